#!/usr/bin/env python3
"""Checks the vectors with an implementation of their own: Python's standard
library alone, Ed25519 (RFC 8032) included. It shares no code with the server,
so that a mistake in one of them is seen. Exits 1 on any difference.

    python3 clients/vectors/check.py
"""
import base64
import binascii
import hashlib
import hmac
import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).parent

# --- Ed25519, RFC 8032 section 5.1. For checking only: not in constant time. ---
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
SQRT_M1 = pow(2, (P - 1) // 4, P)


def add(a, b):
    u = (a[1] - a[0]) * (b[1] - b[0]) % P
    v = (a[1] + a[0]) * (b[1] + b[0]) % P
    c = 2 * a[3] * b[3] * D % P
    d = 2 * a[2] * b[2] % P
    e, f, g, h = v - u, d - c, d + c, v + u
    return e * f % P, g * h % P, f * g % P, e * h % P


def mul(n, point):
    result = (0, 1, 1, 0)
    while n:
        if n & 1:
            result = add(result, point)
        point = add(point, point)
        n >>= 1
    return result


def same(a, b):
    return (a[0] * b[2] - b[0] * a[2]) % P == 0 and (a[1] * b[2] - b[1] * a[2]) % P == 0


def recover_x(y, sign):
    if y >= P:
        return None
    x2 = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * SQRT_M1 % P
    if (x * x - x2) % P or (x == 0 and sign):
        return None
    return P - x if x & 1 != sign else x


BASE_Y = 4 * pow(5, -1, P) % P
BASE_X = recover_x(BASE_Y, 0)
BASE = (BASE_X, BASE_Y, 1, BASE_X * BASE_Y % P)


def pack(point):
    inverse = pow(point[2], -1, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def unpack(data):
    n = int.from_bytes(data, "little")
    y = n & ((1 << 255) - 1)
    x = recover_x(y, n >> 255)
    return None if x is None else (x, y, 1, x * y % P)


def expand(seed):
    digest = hashlib.sha512(seed).digest()
    a = int.from_bytes(digest[:32], "little")
    return (a & ((1 << 254) - 8)) | (1 << 254), digest[32:]


def scalar(*parts):
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little") % L


def ed25519_public(seed):
    return pack(mul(expand(seed)[0], BASE))


def ed25519_sign(seed, message):
    a, prefix = expand(seed)
    public = pack(mul(a, BASE))
    r = scalar(prefix, message)
    big_r = pack(mul(r, BASE))
    s = (r + scalar(big_r, public, message) * a) % L
    return big_r + s.to_bytes(32, "little")


def ed25519_verify(public, message, signature):
    a, r = unpack(public), unpack(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= L:
        return False
    # A point of small order would verify for anyone.
    if any(same(mul(8, point), (0, 1, 1, 0)) for point in (a, r)):
        return False
    return same(mul(s, BASE), add(r, mul(scalar(signature[:32], public, message), a)))


# --- Keys ---
def decode(text):
    """Padded base64 of the standard alphabet, or None."""
    if len(text) % 4 or not re.fullmatch(r"[A-Za-z0-9+/]*={0,2}", text):
        return None
    try:
        return base64.b64decode(text)
    except binascii.Error:
        return None


def seed_of(text):
    data = decode(text[5:]) if text.startswith("whsk_") else None
    if data is None or len(data) not in (32, 64):
        return None
    if len(data) == 64 and ed25519_public(data[:32]) != data[32:]:
        return None
    return data[:32]


def standard_key(text):
    data = decode(text.removeprefix("whsec_"))
    return text.encode() if data is None else data


def mac(key, *parts):
    return hmac.new(key, b".".join(parts), hashlib.sha256).digest()


# --- Signing ---
def sign(scheme, secret, previous, t, event_id, body):
    t, event = str(t).encode(), event_id.encode()

    def standard(text):
        seed = seed_of(text)
        if seed is None:
            return "v1," + base64.b64encode(mac(standard_key(text), event, t, body)).decode()
        return "v1a," + base64.b64encode(ed25519_sign(seed, b".".join((event, t, body)))).decode()

    if scheme == "plain":
        x = mac((previous or secret).encode(), t, body).hex()
    else:
        x = f"t={t.decode()},e={event_id},"
        if previous:
            x += f"v1n={mac(secret.encode(), t, event, body).hex()},"
        x += f"v1={mac((previous or secret).encode(), t, event, body).hex()}"
    return x, " ".join(standard(text) for text in (secret, previous) if text)


# --- Verifying, in the steps of README.md ---
class Refused(Exception):
    pass


def digest(text):
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise Refused("malformed_header")
    return bytes.fromhex(text)


def parse_x(value):
    if "=" not in value:
        return None, None, [digest(value)]
    items = [item.strip(" ").split("=", 1) for item in value.split(",")]
    if any(len(item) != 2 for item in items):
        raise Refused("malformed_header")
    digests = [digest(text) for name, text in items if name in ("v1", "v1n")]
    t = [text for name, text in items if name == "t"]
    e = [text for name, text in items if name == "e"]
    if len(t) != 1 or len(e) != 1:
        raise Refused("malformed_header")
    if not digests:
        versions = [name for name, _ in items if name.startswith("v")]
        raise Refused("unknown_version" if versions else "malformed_header")
    return t[0], e[0], digests


def parse_standard(value):
    found = {"v1": [], "v1a": []}
    entries = [entry for entry in value.split(" ") if entry]
    if not entries or any("," not in entry for entry in entries):
        raise Refused("malformed_header")
    for entry in entries:
        version, text = entry.split(",", 1)
        if version in found:
            data = decode(text)
            if data is None or len(data) != (32 if version == "v1" else 64):
                raise Refused("malformed_header")
            found[version].append(data)
    if not found["v1"] and not found["v1a"]:
        raise Refused("unknown_version")
    return found


def timestamp(text):
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise Refused("malformed_header")
    return int(text)


def verify(keys, scheme, headers, body, now):
    get = {name.lower(): value for name, value in headers.items()}.get

    def need(name):
        if get(name) is None:
            raise Refused("missing_header")
        return get(name)

    secrets = [key for key in keys if not key.startswith("whpk_")]
    publics = [decode(key[5:]) for key in keys if key.startswith("whpk_")]
    publics += [ed25519_public(seed_of(key)) for key in secrets if seed_of(key)]

    x = standard = None
    if scheme in ("v1", "plain"):
        x = parse_x(need("x-webhook-signature"))
    elif get("x-webhook-signature") is not None and secrets:
        x = parse_x(get("x-webhook-signature"))
    plain = x is not None and x[0] is None
    if x and scheme and plain != (scheme == "plain"):
        raise Refused("malformed_header")
    if get("webhook-signature") is not None:
        standard = parse_standard(get("webhook-signature"))
    if scheme == "ed25519":
        need("webhook-signature")
        if not standard["v1a"]:
            raise Refused("unknown_version")

    claims = []
    if x:
        claims.append((need("x-webhook-timestamp"), need("x-webhook-event-id")) if plain else x[:2])
    if standard:
        claims.append((need("webhook-timestamp"), need("webhook-id")))
    if not claims:
        raise Refused("missing_header")
    t_text, event_id = claims[0]
    t = timestamp(t_text)
    if not re.fullmatch(r"[!-~]{1,256}", event_id) or re.search(r"[.,]", event_id):
        raise Refused("malformed_header")
    for name in ("x-webhook-event-id", "webhook-id"):
        if get(name) not in (None, event_id):
            raise Refused("event_id_mismatch")
    for name in ("x-webhook-timestamp", "webhook-timestamp"):
        if get(name) is not None and timestamp(get(name)) != t:
            raise Refused("timestamp_mismatch")
    if now - t > 300:
        raise Refused("too_old")
    if t - now > 30:
        raise Refused("in_future")

    x_holds = standard_holds = None
    if x:
        t_x, e_x = (part.encode() for part in claims[0])
        parts = (t_x, body) if plain else (t_x, e_x, body)
        x_holds = any([hmac.compare_digest(mac(s.encode(), *parts), d) for s in secrets for d in x[2]])
    if standard:
        t_s, e_s = (part.encode() for part in claims[-1])
        parts = (e_s, t_s, body)
        checks = [ed25519_verify(p, b".".join(parts), s) for p in publics for s in standard["v1a"]]
        if scheme != "ed25519":
            checks += [
                hmac.compare_digest(mac(standard_key(s), *parts), d) for s in secrets for d in standard["v1"]
            ]
        standard_holds = any(checks)
    if x_holds is False and not (plain and standard_holds):
        raise Refused("no_matching_signature")
    if standard_holds is False:
        raise Refused("no_matching_signature")
    return {"event_id": event_id, "timestamp": t}


def guide_receiver(secret, headers, body):
    """The launch guide's receiver, word for word: it knows nothing of rotation."""
    signature = headers["X-Webhook-Signature"].split("v1=")[1]
    ts, event_id = headers["X-Webhook-Timestamp"], headers["X-Webhook-Event-ID"]
    expected = hmac.new(secret.encode(), f"{ts}.{event_id}.".encode() + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, signature)


def check_rfc_8032():
    """The second test of RFC 8032 section 7.1: is the Ed25519 above right at all?"""
    seed = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    public = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    signature = bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert ed25519_public(seed) == public
    assert ed25519_sign(seed, b"\x72") == signature
    assert ed25519_verify(public, b"\x72", signature)
    assert not ed25519_verify(public, b"\x73", signature)


def check_sequence(steps):
    seen = {}
    for step in steps:
        at, event_id = step["at"], step["event_id"]
        if event_id in seen and at - seen[event_id] <= 900:
            became = "duplicate"
        elif step["handler"] == "succeeds":
            seen[event_id] = at
            became = "handled"
        else:
            became = "failed"
        yield step, became


def main():
    check_rfc_8032()
    differences = 0
    made = guided = 0

    def differs(name, expected, found):
        nonlocal differences
        differences += 1
        print(f"{name}:\n  expected {expected}\n  found    {found}", file=sys.stderr)

    vectors = json.loads((HERE / "signatures.json").read_text(encoding="utf-8"))["vectors"]
    for v in vectors:
        body = base64.b64decode(v["body_base64"]) if "body_base64" in v else v["body"].encode()
        try:
            found, verified = "ok", verify(v["keys"], v.get("scheme"), v["headers"], body, v["now"])
        except Refused as refused:
            found, verified = str(refused), None
        if (found, verified) != (v["expect"], v.get("verified")):
            differs(v["name"], (v["expect"], v.get("verified")), (found, verified))
        if "signed_with" not in v:
            continue
        made += 1
        s = v["signed_with"]
        previous = s.get("previous_secret")
        signed = sign(s["scheme"], s["secret"], previous, s["timestamp"], s["event_id"], body)
        sent = v["headers"]["X-Webhook-Signature"], v["headers"]["webhook-signature"]
        if signed != sent:
            differs(v["name"] + ", signed", sent, signed)
        if s["scheme"] != "plain":
            guided += 1
            # During an overlap the guide's receiver still has the old secret.
            if not guide_receiver(previous or s["secret"], v["headers"], body):
                differs(v["name"] + ", the guide's receiver", True, False)

    sequences = json.loads((HERE / "duplicates.json").read_text(encoding="utf-8"))["sequences"]
    for sequence in sequences:
        for step, became in check_sequence(sequence["steps"]):
            if became != step["expect"]:
                differs(f"{sequence['name']}, at {step['at']}", step["expect"], became)

    print(
        f"{len(vectors)} vectors, {made} of them signed again, {guided} read as the guide does, "
        f"{len(sequences)} sequences: {differences} differences"
    )
    return 1 if differences or not vectors or not made or not guided else 0


if __name__ == "__main__":
    sys.exit(main())
