"""Fails when a tracked file holds what must not be committed, and names file and line."""

import re
import subprocess
import sys
from pathlib import Path

# As the package managers write them: they name their registries.
LOCK_FILES = {"Cargo.lock", "package-lock.json", "go.sum", "uv.lock", "poetry.lock"}

# Hosts as parts, so that this file does not name them itself.
REGISTRIES = [
    ("crates", "io"),
    ("registry", "npmjs", "org"),
    ("registry", "yarnpkg", "com"),
    ("pypi", "org"),
    ("files", "pythonhosted", "org"),
    ("proxy", "golang", "org"),
    ("sum", "golang", "org"),
    ("repo1", "maven", "org"),
    ("repo", "maven", "apache", "org"),
    ("rubygems", "org"),
]


def everywhere(path):
    return path.name not in LOCK_FILES


def rust(path):
    return path.suffix == ".rs"


def outside_the_store(path):
    return rust(path) and path.parts[0] == "src" and path.parts[1] not in ("store", "store.rs")


# (what is wrong, pattern, the files that it is wrong in)
RULES = [
    ("a path of one machine", r"(?<![\w.~-])/(?:work|root|home|Users|tmp/wt)/", everywhere),
    ("a package registry's host", "|".join(r"\b" + r"\.".join(host) + r"\b" for host in REGISTRIES), everywhere),
    ("unfinished work", r"\bFIX(?:ME)\b", everywhere),
    ("unfinished work", r"\b(?:todo|unimplemented)!\s*[(\[{]", rust),
    ("a test that does not run", r"#\[ignore\b|#\[cfg_attr\([^\]]*\bignore\b", rust),
    (
        "SQL outside src/store/",
        r"\bSELECT\s|\bINSERT\s+INTO\b|\bUPDATE\s+\S+\s+SET\b|\bDELETE\s+FROM\b",
        outside_the_store,
    ),
]


def tracked():
    names = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True).stdout
    for name in names.decode().split("\0"):
        path = Path(name)
        # Neither deleted files and links, nor what is not text.
        if name and path.is_file() and not path.is_symlink():
            try:
                yield path, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                pass


def main():
    rules = [(what, re.compile(pattern), applies) for what, pattern, applies in RULES]
    count = 0
    found = []
    for path, text in tracked():
        count += 1
        for what, pattern, applies in rules:
            if applies(path):
                for match in pattern.finditer(text):
                    line = text.count("\n", 0, match.start()) + 1
                    found.append(f"{path}:{line}: {what}: {' '.join(match.group().split())}")
    print("\n".join(found) if found else f"{count} files are clean")
    return 1 if found or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
