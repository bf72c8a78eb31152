"""The worker of worker.py, driven by a test: it does what it is told on standard input
and tells what it hears on standard output, a JSON object a line.
Arguments: HOST:PORT KEY NAME WINDOW LEASE_SECONDS.
"""
import json, os, sys, threading

from worker import Say, Worker


def tell(**what):
    print(json.dumps(what), flush=True)


class Driven(Worker):
    tokens = {}

    def is_refused(self, e):
        tell(broken=e.code().name)
        return super().is_refused(e)

    def on_opened(self, opened):
        super().on_opened(opened)
        tell(opened=opened.lease_seconds, resumed=list(opened.resumed), lost=list(opened.lost))

    def on_delivery(self, delivery):
        self.has[delivery.delivery_id] = delivery.lease_token
        self.tokens.setdefault(delivery.delivery_id, []).append(delivery.lease_token)
        tell(delivery=delivery.delivery_id, attempt=delivery.attempt, body=delivery.body.decode())

    def on_result(self, result):
        super().on_result(result)
        tell(result=result.request_id, ok=list(result.ok), stale=list(result.stale))

    def on_revoke(self, revoke):
        super().on_revoke(revoke)
        tell(revoked=list(revoke.delivery_ids), reason=revoke.reason)

    def on_go_away(self, go):
        super().on_go_away(go)
        tell(go_away=go.reconnect_after_ms, drain_by=go.drain_by_ms)

    def told(self, do, id=None, lease=-1, window=0):
        if do == "ack":
            self.ack(id, self.tokens[id][lease])
        elif do == "extend":
            self.say(extend=Say.Extend(request_id="extend", seconds=600))
        elif do == "credit":
            self.window = window
            self.say(credit=Say.Credit(messages=window))
        elif do == "break":
            self.call.cancel()
        elif do == "drain":
            self.has.clear()
            self.stop()


if __name__ == "__main__":
    window, lease = map(int, sys.argv[4:6])
    worker = Driven(*sys.argv[1:4], None, window, lease)
    listen = lambda: [worker.told(**json.loads(line)) for line in sys.stdin]
    threading.Thread(target=listen, daemon=True).start()
    status = worker.run()
    sys.stdout.flush()
    # Not to wait for what is still read from standard input.
    os._exit(status)
