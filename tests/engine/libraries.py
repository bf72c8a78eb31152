"""Verifies deliveries with the public library of Standard Webhooks and with what
a consumer's guide shows. Standard input: a list of {secret, headers, body}; the
answer: for each, which of the two holds.
"""
import hmac
import json
import sys
from hashlib import sha256

from standardwebhooks import Webhook


def library(case):
    try:
        Webhook(case["secret"]).verify(case["body"], case["headers"])
        return True
    except Exception:
        return False


def guide(case):
    """As receivers were told to: the header cut at `v1=`."""
    headers, secret, body = case["headers"], case["secret"], case["body"].encode()
    header = headers["x-webhook-signature"]
    ts = headers["x-webhook-timestamp"]
    event_id = headers["x-webhook-event-id"]
    signature = header.split("v1=")[1]
    expected = hmac.new(secret.encode(), f"{ts}.{event_id}.".encode() + body, sha256).hexdigest()
    return hmac.compare_digest(signature, expected)


print(json.dumps([[library(case), guide(case)] for case in json.load(sys.stdin)]))
