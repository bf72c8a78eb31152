"""Verifies deliveries as a receiver does, with the standard library alone.

Reads a JSON list of {"secret", "headers", "body"} from standard input; prints a
list of what holds of each: "v1", "v1n", "plain" and "standard".
"""

import base64
import binascii
import hashlib
import hmac
import json
import sys


def mac(key, content):
    return hmac.new(key, content, hashlib.sha256)


def standard_key(secret):
    text = secret.removeprefix("whsec_")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return secret.encode()


def holds(secret, headers, body):
    timestamp, event = headers["x-webhook-timestamp"], headers["x-webhook-event-id"]
    signature = headers["x-webhook-signature"]
    found = []
    parts = dict(part.split("=", 1) for part in signature.split(",") if "=" in part)
    content = f"{timestamp}.{event}.".encode() + body
    for name in ("v1", "v1n"):
        if hmac.compare_digest(parts.get(name, ""), mac(secret.encode(), content).hexdigest()):
            if parts["t"] == timestamp and parts["e"] == event:
                found.append(name)
    plain = mac(secret.encode(), f"{timestamp}.".encode() + body).hexdigest()
    if hmac.compare_digest(signature, plain):
        found.append("plain")
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    wanted = base64.b64encode(mac(standard_key(secret), content).digest()).decode()
    if any(hmac.compare_digest(entry, "v1," + wanted) for entry in headers["webhook-signature"].split(" ")):
        found.append("standard")
    return found


deliveries = json.load(sys.stdin)
print(json.dumps([holds(d["secret"], d["headers"], d["body"].encode()) for d in deliveries]))
