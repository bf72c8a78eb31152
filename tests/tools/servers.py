"""A private PostgreSQL and Redis on free ports of the loopback interface.

    servers.py start --owner PID --logs FOLDER    prints shell exports when both answer
    servers.py stop PID                           PID from ONERING_TEST_SERVERS_PID

`start` leaves a process behind that stops both and removes their files at
SIGTERM, or when the owner is gone, even if it was killed outright.
"""

import argparse
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

START_SECONDS = 60
STOP_SECONDS = 15

# Durability is tested, so fsync stays on. Many tests at once, each with the
# pools of several nodes, need many connections.
POSTGRES_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "400",
    "shared_buffers": "256MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "logging_collector": "off",
}


class Failed(Exception):
    """The servers can't be started; the text says why, and what to do."""


class Servers:
    def __init__(self, logs):
        self.logs = logs
        self.processes = []
        self.folder = None
        # PostgreSQL refuses to run as root.
        self.user = unprivileged_user() if os.geteuid() == 0 else None

    def start(self):
        # Root's TMPDIR may be closed to the servers' user.
        parent = "/tmp" if self.user else None
        self.folder = Path(tempfile.mkdtemp(prefix="onering-test-", dir=parent))
        if self.user:
            os.chown(self.folder, self.user.pw_uid, self.user.pw_gid)
        postgres = self.start_postgres()
        redis = self.start_redis()
        return {
            "ONERING_TEST_POSTGRES_URL": f"postgres://onering@127.0.0.1:{postgres}/postgres",
            "ONERING_TEST_REDIS_URL": f"redis://127.0.0.1:{redis}",
        }

    def start_postgres(self):
        programs = Path(os.environ["ONERING_TEST_POSTGRES_BIN"])
        cluster = self.folder / "postgres"
        initdb = self.spawn(
            "initdb",
            [programs / "initdb", "--pgdata", cluster, "--username=onering", "--auth=trust"]
            + ["--encoding=UTF8", "--no-locale", "--no-sync"],
        )
        if initdb.wait() != 0:
            raise Failed(f"initdb failed, see {self.logs / 'initdb.log'}")
        self.processes.remove(initdb)
        settings = POSTGRES_SETTINGS | {"unix_socket_directories": str(self.folder)}
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return self.on_free_port(
            "postgres",
            lambda port: [programs / "postgres", "-D", cluster, "-p", str(port), *flags],
            lambda port: subprocess.run(
                [programs / "pg_isready", "--quiet", "--host=127.0.0.1", f"--port={port}"]
            ).returncode
            == 0,
        )

    def start_redis(self):
        return self.on_free_port(
            "redis",
            lambda port: ["redis-server", "--bind", "127.0.0.1", "--port", str(port)]
            + ["--save", "", "--appendonly", "no", "--dir", self.folder],
            redis_answers,
        )

    def on_free_port(self, name, command, answers):
        """Starts a server. Another process may take the port first: tries again."""
        for _ in range(5):
            port = free_port()
            process = self.spawn(name, command(port))
            end = time.monotonic() + START_SECONDS
            while process.poll() is None and time.monotonic() < end:
                if answers(port) and process.poll() is None:
                    return port
                time.sleep(0.05)
            if process.poll() is None:
                raise Failed(f"{name} does not answer after {START_SECONDS} s, see {self.logs / name}.log")
            self.processes.remove(process)
        raise Failed(f"{name} does not start, see {self.logs / name}.log")

    def spawn(self, name, command):
        options = {}
        if self.user:
            options = {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}
        with open(self.logs / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "LC_ALL": "C"},
                **options,
            )
        self.processes.append(process)
        return process

    def stop(self):
        # SIGQUIT is PostgreSQL's immediate shutdown: the files go anyway.
        for process in self.processes:
            process.send_signal(signal.SIGQUIT)
        for process in self.processes:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def unprivileged_user():
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            pass
    raise Failed("PostgreSQL can't run as root: add a user `nobody`, or run ./test as another user.")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def redis_answers(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # A zombie is not alive: its parent may not have asked for its end yet.
    stat = Path(f"/proc/{pid}/stat")
    try:
        return ") Z " not in stat.read_text()
    except OSError:
        return True


def keep(owner, logs, answer):
    """Runs the servers until SIGTERM or the owner's end; tells `answer` how the start went."""
    # A session of its own: Ctrl-C in the terminal must not stop the servers
    # before the tests that use them.
    os.setsid()
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: told.set())
    servers = Servers(logs)
    try:
        exports = servers.start()
        exports["ONERING_TEST_SERVERS_PID"] = os.getpid()
        answer.write("".join(f"export {name}='{value}'\n" for name, value in exports.items()))
        answer.close()
        while not told.wait(0.25) and alive(owner):
            pass
    finally:
        servers.stop()


def start(owner, logs):
    logs = Path(logs).resolve()
    logs.mkdir(parents=True, exist_ok=True)
    receive, send = os.pipe()
    if os.fork() == 0:
        os.close(receive)
        # Whoever reads our output waits for its end, so it can't stay open here.
        output = os.open(logs / "servers.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            with os.fdopen(send, "w") as answer:
                keep(owner, logs, answer)
        except Failed as error:
            print(error, flush=True)
        return 0
    os.close(send)
    with os.fdopen(receive) as answer:
        exports = answer.read()
    if not exports:
        print("The test servers did not start:", (logs / "servers.log").read_text(), file=sys.stderr)
        return 1
    print(exports, end="")
    return 0


def stop(pid):
    end = time.monotonic() + 2 * STOP_SECONDS
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return 0
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("start")
    starting.add_argument("--owner", type=int, required=True)
    starting.add_argument("--logs", required=True)
    stopping = commands.add_parser("stop")
    stopping.add_argument("pid", type=int)
    arguments = parser.parse_args()
    if arguments.command == "start":
        return start(arguments.owner, arguments.logs)
    return stop(arguments.pid)


if __name__ == "__main__":
    sys.exit(main())
