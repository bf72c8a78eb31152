"""A worker that uses nothing but stubs generated from proto/onering/v1/worker.proto."""
import queue, random, sys, threading, time
from concurrent.futures import ThreadPoolExecutor

import grpc
from onering.v1 import worker_pb2, worker_pb2_grpc

Say = worker_pb2.WorkerMessage
FOR_GOOD = {"INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND"}
# A server that is silent for so long is gone.
SILENCE = [("grpc.keepalive_time_ms", 5_000), ("grpc.keepalive_timeout_ms", 10_000)]


class Worker:
    """Calls `work(delivery)` for each delivery; `work` knows events it has seen."""

    def __init__(self, address, key, name, work, window=10, lease=60):
        self.stub = worker_pb2_grpc.WorkerServiceStub(grpc.insecure_channel(address, SILENCE))
        self.metadata = [("authorization", f"Bearer {key}")]
        self.open = dict(worker_id=name, instance_epoch=time.time_ns(), lease_seconds=lease)
        self.work, self.window, self.pool = work, window, ThreadPoolExecutor(window)
        self.out, self.wait, self.stopping = queue.Queue(), None, False
        self.has, self.done = {}, {}  # tokens of what it has, and has done without a result

    def say(self, **message):
        self.out.put(Say(**message))

    def run(self):
        failures = 0
        while not self.stopping or self.has or self.done:
            began, self.wait = time.monotonic(), None
            try:
                self.stream()
            except grpc.RpcError as e:
                if self.is_refused(e):
                    return 1
            failures = failures + 1 if time.monotonic() - began < 10 else 1
            backoff = min(0.1 * 2 ** (failures - 1), 10) * random.uniform(0.5, 1)
            time.sleep(max(self.wait or 0, backoff))
        return 0

    def is_refused(self, e):
        why = dict(e.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
        return e.code().name in FOR_GOOD and b"CANARY_ONLY_MODE" not in why

    def stream(self):
        self.out = queue.Queue()
        resume = [Say.Lease(delivery_id=i, lease_token=t) for i, t in {**self.done, **self.has}.items()]
        self.say(open=Say.Open(**self.open, max_messages=self.window, resume=resume))
        self.call = self.stub.StreamDeliveries(iter(self.out.get, None), metadata=self.metadata)
        try:
            for message in self.call:
                kind = message.WhichOneof("message")
                getattr(self, f"on_{kind}", lambda _: None)(getattr(message, kind or "", None))
        finally:
            self.out.put(None)

    def do(self, call, until, delivery):
        id, token = delivery.delivery_id, delivery.lease_token
        if self.has.get(id) != token:
            return
        if not call.is_active() or time.monotonic() > until:
            return self.nack(id, token, Say.ACTION_RELEASE)
        try:
            self.work(delivery)
            self.ack(id, token)
        except Exception:
            self.nack(id, token, Say.ACTION_RETRY)

    def ack(self, id, token):
        self.has.pop(id, None)
        self.done[id] = token
        self.say(ack=Say.Ack(request_id="ack", items=[Say.AckItem(delivery_id=id, lease_token=token)]))

    def nack(self, id, token, action):
        self.has.pop(id, None)
        item = Say.NackItem(delivery_id=id, lease_token=token, action=action)
        self.say(nack=Say.Nack(request_id="nack", items=[item]))
        self.leave()

    def on_opened(self, opened):
        self.over(self.has, opened.lost)
        self.again()

    def again(self):
        for id, token in list(self.done.items()):
            self.ack(id, token)

    def on_delivery(self, delivery):
        self.has[delivery.delivery_id] = delivery.lease_token
        until = time.monotonic() + delivery.deadline_in_ms / 1000
        self.pool.submit(self.do, self.call, until, delivery)

    def on_result(self, result):
        self.over(self.done, [*result.ok, *result.stale])
        if result.temporary:
            threading.Timer(1, self.again).start()

    def on_revoke(self, revoke):
        self.over(self.has, revoke.delivery_ids)

    def on_go_away(self, go):
        self.wait = go.reconnect_after_ms / 1000
        threading.Timer(go.drain_by_ms / 1000, self.out.put, [None]).start()
        self.leave()

    def on_ping(self, _):
        self.say(pong=Say.Pong())

    def over(self, of, ids):
        for id in ids:
            of.pop(id, None)
        self.leave()

    def leave(self):
        if (self.stopping or self.wait is not None) and not self.has and not self.done:
            self.out.put(None)

    def stop(self):
        self.stopping = True
        self.say(drain=Say.Drain())
        self.leave()


if __name__ == "__main__":
    sys.exit(Worker(*sys.argv[1:4], work=print).run())
