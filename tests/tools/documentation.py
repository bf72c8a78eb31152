"""Fails when docs/ leaves out what the code names: a setting or a metric in
docs/operations.md, a reason in docs/consumer-guide.md; or when a link in a
Markdown file leads nowhere."""

import re
import subprocess
import sys
from pathlib import Path

OPERATIONS = Path("docs/operations.md")
GUIDE = Path("docs/consumer-guide.md")
SETTINGS = Path("src/settings/names.rs")
METRICS = Path("src/metrics.rs")
REASONS = Path("proto/onering/v1/error_reason.proto")

# `("LISTEN", "127.0.0.1:8000", "the address to listen on"),`
SETTING = re.compile(r'^    \(\s*"([A-Z_]+)",\s*"(.*?)",\s*"[^"]*",?\s*\),$', re.M)
OTHER = re.compile(r"const OTHER: &\[&str\] = &\[(.*?)\];", re.S)
METRIC = re.compile(r'"(onering_[a-z_]+)"')
REASON = re.compile(r"^  ERROR_REASON_([A-Z_]+) = (\d+);", re.M)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.M)
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)


def text(path):
    return path.read_text(encoding="utf-8")


def missing(document, names, what):
    """The names that do not stand in a document between backticks."""
    if not document.is_file():
        return [f"{document} is missing"]
    shown = set(re.findall(r"`([^`\n]+)`", FENCE.sub("", text(document))))
    if not names:
        return [f"found no {what} in the source: has its form changed?"]
    return [f"{document} does not name the {what} {name}" for name in names if name not in shown]


def settings():
    source = text(SETTINGS)
    names = [name for name, _ in SETTING.findall(source)]
    names += re.findall(r'"([A-Z_]+)"', OTHER.search(source).group(1))
    return [f"ONERING_{name}" for name in names]


def wrong_rows():
    """The table of settings has a row for each, with the default of the source."""
    rows = dict(re.findall(r"^\| `ONERING_([A-Z_]+)` \| (.*?) \|", text(OPERATIONS), re.M))
    for name, default in SETTING.findall(text(SETTINGS)):
        row = rows.get(name)
        if row is None:
            yield f"{OPERATIONS} has no row for ONERING_{name}"
        elif row.replace("`", "") != default:
            yield f"{OPERATIONS}: the default of ONERING_{name} is {default!r}, not {row!r}"


def anchor(heading):
    """As GitHub makes it of a heading."""
    plain = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return plain.replace(" ", "-")


def dead_links():
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.md"]
    names = subprocess.run(listing, check=True, capture_output=True).stdout.decode().split("\0")
    for path in (Path(name) for name in names if name):
        if not path.is_file():
            continue
        for link in LINK.findall(FENCE.sub("", text(path))):
            if re.match(r"[a-z]+:", link):
                continue
            file, _, section = link.partition("#")
            target = path.parent / file if file else path
            if not target.exists():
                yield f"{path}: the link {link} leads nowhere"
            elif section and section not in map(anchor, HEADING.findall(FENCE.sub("", text(target)))):
                yield f"{path}: {target} has no section #{section}"


def main():
    metrics = sorted(set(METRIC.findall(text(METRICS))))
    reasons = [name for name, number in REASON.findall(text(REASONS)) if number != "0"]
    found = missing(OPERATIONS, settings(), "setting")
    found += missing(OPERATIONS, metrics, "metric")
    found += missing(GUIDE, reasons, "reason")
    if OPERATIONS.is_file():
        found += wrong_rows()
    found += dead_links()
    if found:
        print("\n".join(found))
        return 1
    print(f"{len(settings())} settings, {len(metrics)} metrics and {len(reasons)} reasons are documented")
    return 0


if __name__ == "__main__":
    sys.exit(main())
