import hashlib
import hmac
import time


def verify(headers, body, secret, now=None):
    """Returns the event's id; raises ValueError where a delivery can't be trusted.

    `body` is the raw bytes as they came, `secret` the whole text, `whsec_` included.
    """
    header = {name.lower(): value for name, value in headers.items()}.get("x-webhook-signature", "")
    items = [item.strip().partition("=") for item in header.split(",")]
    names = [name for name, _, _ in items]
    if not all(sign for _, sign, _ in items) or names.count("t") != 1 or names.count("e") != 1:
        raise ValueError("X-Webhook-Signature is missing or malformed")
    values = {name: value for name, _, value in items}
    t, event_id = values["t"], values["e"]
    if not (t.isascii() and t.isdigit() and len(t) <= 12) or not event_id or "." in event_id:
        raise ValueError("X-Webhook-Signature is malformed")
    age = (time.time() if now is None else now) - int(t)
    if not -30 <= age <= 300:
        raise ValueError("signed too long ago, or in the future")
    expected = hmac.new(secret.encode(), f"{t}.{event_id}.".encode() + body, hashlib.sha256).hexdigest()
    # During a rotation two secrets sign: v1n= is the new one's, v1= the old one's.
    digests = [value.lower().encode() for name, _, value in items if name in ("v1", "v1n")]
    if not any([hmac.compare_digest(expected.encode(), digest) for digest in digests]):
        raise ValueError("no signature matches")
    return event_id
