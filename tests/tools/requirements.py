"""Fails when code names a requirement that docs/requirements.md does not have.

A comment that begins with a requirement's number, such as `// K5` or
`// D7, D8: why`, says that the test or code below it shows that requirement.
"""

import re
import subprocess
import sys
from pathlib import Path

DOCUMENT = Path("docs/requirements.md")
FOLDERS = ["src", "tests", "benches", "clients"]
# They run the tests and show no requirement themselves.
TOOLS = "tests/tools"
SUFFIXES = {".rs", ".py", ".go", ".ts", ".js", ".mjs", ".java", ".sh"}

NUMBER = r"[A-Z](?:1[0-9]|[1-9])"
# In Python, also as the beginning of a test's docstring.
COMMENT = re.compile(rf"(?://[/!]?|#|/?\*+|\"\"\")[ \t]*({NUMBER}(?:(?:, | and | · ){NUMBER})*)(?=[\s:.,;)]|$)", re.M)


def main():
    if not DOCUMENT.is_file():
        print(f"{DOCUMENT} is missing: it lists each requirement and the tests that show it.")
        return 1
    known = set(re.findall(rf"\b{NUMBER}\b", DOCUMENT.read_text(encoding="utf-8")))
    # Files not yet added count too: they are about to be.
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *FOLDERS]
    names = subprocess.run(listing, check=True, capture_output=True).stdout.decode().split("\0")
    shown = set()
    unknown = []
    for path in (Path(name) for name in names if name):
        if path.suffix not in SUFFIXES or path.is_relative_to(TOOLS) or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        for match in COMMENT.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            for number in re.findall(NUMBER, match.group(1)):
                shown.add(number)
                if number not in known:
                    unknown.append(f"{path}:{line}: {number} is not in {DOCUMENT}")
    print("\n".join(unknown) if unknown else f"{len(shown)} requirements named, all in {DOCUMENT}")
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
