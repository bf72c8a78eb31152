#!/usr/bin/env python3
"""Runs the samples of docs/examples/ over the vectors, and checks that the
consumer guide shows them as they are. Exits 1 on any difference.

    python3 clients/vectors/check_examples.py

The samples read X-Webhook-Signature alone: of each vector only that header is
given to them, and what is to come out is what check.py says of the same input
when it insists on the scheme `v1`.
"""
import base64
import importlib.util
import json
import pathlib
import subprocess
import sys

sys.dont_write_bytecode = True
import check  # noqa: E402

ROOT = pathlib.Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "docs/examples"
GUIDE = ROOT / "docs/consumer-guide.md"

# Reads cases from standard input and answers what became of each.
NODE = """
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
const { verify } = await import(pathToFileURL(process.argv[1]));
const cases = JSON.parse(readFileSync(0, "utf8"));
const results = cases.map(({ headers, body, secret, now }) => {
  try {
    return verify(headers, Buffer.from(body, "base64"), secret, now);
  } catch {
    return null;
  }
});
console.log(JSON.stringify(results));
"""


def cases():
    """Each header with each secret that a receiver holds, and the event's id or None."""
    vectors = json.loads((check.HERE / "signatures.json").read_text(encoding="utf-8"))["vectors"]
    for v in vectors:
        body = base64.b64decode(v["body_base64"]) if "body_base64" in v else v["body"].encode()
        headers = {n: t for n, t in v["headers"].items() if n.lower() == "x-webhook-signature"}
        for secret in v["keys"]:
            if secret.startswith("whpk_"):
                continue
            try:
                expected = check.verify([secret], "v1", headers, body, v["now"])["event_id"]
            except check.Refused:
                expected = None
            yield v["name"], headers, body, secret, v["now"], expected


def python(cases):
    spec = importlib.util.spec_from_file_location("verify", EXAMPLES / "verify.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for _, headers, body, secret, now, _ in cases:
        try:
            yield module.verify(headers, body, secret, now)
        except ValueError:
            yield None


def javascript(cases):
    given = [
        {"headers": headers, "body": base64.b64encode(body).decode(), "secret": secret, "now": now}
        for _, headers, body, secret, now, _ in cases
    ]
    command = ["node", "--input-type=module", "--eval", NODE, str(EXAMPLES / "verify.mjs")]
    done = subprocess.run(command, input=json.dumps(given), text=True, check=True, capture_output=True)
    return json.loads(done.stdout)


def main():
    all_cases = list(cases())
    accepted = sum(case[-1] is not None for case in all_cases)
    differences = 0
    for name, results in [("verify.py", list(python(all_cases))), ("verify.mjs", javascript(all_cases))]:
        for case, result in zip(all_cases, results):
            if result != case[-1]:
                differences += 1
                print(f"{name}, {case[0]}: expected {case[-1]}, found {result}", file=sys.stderr)
        if (EXAMPLES / name).read_text(encoding="utf-8").strip() not in GUIDE.read_text(encoding="utf-8"):
            differences += 1
            print(f"{GUIDE.name} does not show {name} as it is", file=sys.stderr)
    print(f"2 samples, {len(all_cases)} cases, {accepted} of them good: {differences} differences")
    return 1 if differences or not accepted or accepted == len(all_cases) else 0


if __name__ == "__main__":
    sys.exit(main())
