"""A worker that uses nothing but stubs generated from proto/onering/v1/worker.proto.

It does what it is told on standard input and tells what it hears on standard
output, a JSON object a line; a worker of your own puts its work in place of both.
Arguments: HOST:PORT KEY NAME WINDOW LEASE_SECONDS.
"""
import json, queue, sys, threading, time

import grpc
from onering.v1 import worker_pb2, worker_pb2_grpc

Say = worker_pb2.WorkerMessage
FINAL = {"INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND"}


def tell(**what):
    print(json.dumps(what), flush=True)


class Worker:
    def __init__(self, address, key, name, window, lease):
        self.stub = worker_pb2_grpc.WorkerServiceStub(grpc.insecure_channel(address))
        self.metadata = [("authorization", f"Bearer {key}")]
        self.open = dict(worker_id=name, instance_epoch=time.time_ns(), lease_seconds=lease)
        self.window, self.wait, self.draining = window, 0.2, False
        self.held, self.leases, self.out = {}, {}, queue.Queue()

    def say(self, **message):
        self.out.put(Say(**message))

    def lease(self, id, which=-1):
        return dict(delivery_id=id, lease_token=self.leases[id][which])

    def connect(self):
        self.out, resume = queue.Queue(), [self.lease(id) for id in self.held]
        self.say(open=Say.Open(**self.open, max_messages=self.window, resume=resume))
        self.call = self.stub.StreamDeliveries(iter(self.out.get, None), metadata=self.metadata)
        for message in self.call:
            kind = message.WhichOneof("message")
            getattr(self, "on_" + kind)(getattr(message, kind))

    def run(self):
        while not self.draining:
            try:
                self.connect()
            except grpc.RpcError as e:
                tell(broken=e.code().name)
                if e.code().name in FINAL:
                    return 1
            time.sleep(self.wait)
        return 0

    def over(self, ids):
        for id in ids:
            self.held.pop(id, None)

    def on_opened(self, opened):
        self.wait = 0.2
        self.over(opened.lost)
        tell(opened=opened.lease_seconds, resumed=list(opened.resumed), lost=list(opened.lost))

    def on_delivery(self, delivery):
        self.held[delivery.delivery_id] = True
        self.leases.setdefault(delivery.delivery_id, []).append(delivery.lease_token)
        tell(delivery=delivery.delivery_id, attempt=delivery.attempt, body=delivery.body.decode())

    def on_result(self, result):
        self.over([*result.ok, *result.stale])
        tell(result=result.request_id, ok=list(result.ok), stale=list(result.stale))

    def on_revoke(self, revoke):
        self.over(revoke.delivery_ids)
        tell(revoked=list(revoke.delivery_ids), reason=revoke.reason)

    def on_go_away(self, go):
        self.wait = go.reconnect_after_ms / 1000
        tell(go_away=go.reconnect_after_ms, drain_by=go.drain_by_ms)

    def on_ping(self, _):
        self.say(pong=Say.Pong())

    def do(self, do, id=None, lease=-1, window=0):
        if do == "ack":
            self.say(ack=Say.Ack(request_id="ack", items=[Say.AckItem(**self.lease(id, lease))]))
        elif do == "release":
            self.say(nack=Say.Nack(request_id="nack", items=[Say.NackItem(**self.lease(id))]))
        elif do == "extend":
            items = [self.lease(id)] if id else []
            self.say(extend=Say.Extend(request_id="extend", items=items, seconds=600))
        elif do == "credit":
            self.window = window
            self.say(credit=Say.Credit(messages=window))
        elif do == "break":
            self.call.cancel()
        elif do == "drain":
            self.draining = True
            self.say(drain=Say.Drain())
            self.out.put(None)


if __name__ == "__main__":
    worker = Worker(*sys.argv[1:4], *map(int, sys.argv[4:6]))
    listen = lambda: [worker.do(**json.loads(line)) for line in sys.stdin]
    threading.Thread(target=listen, daemon=True).start()
    sys.exit(worker.run())
