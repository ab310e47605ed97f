"""Writes `modules.md`, the list of every module and its job, from the first line of each docstring.

`--check` compares instead of writing; a test calls it, so that the page cannot rot.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "modules.md"
ROOMS = ("bundle", "kernels", "protos", "models", "converters", "runtime", "cli")


def summary(path: Path) -> str:
    """First line of the module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def page() -> str:
    """The whole page."""
    lines = [
        "# Modules",
        "",
        "Every module and its job: written by `python docs/modules.py` from their docstrings.",
    ]
    for room in ROOMS:
        lines += ["", f"## {room}/", "", "| module | job |", "|---|---|"]
        for path in sorted((ROOT / room).rglob("*.py")):
            name = path.relative_to(ROOT / room).as_posix()
            if not name.endswith(("_pb2.py", "_pb2_grpc.py")) and (text := summary(path)):
                lines.append(f"| `{name}` | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Writes the page, or with `--check` says whether it is as it should be."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    sys.stderr.write("docs/modules.md is stale: run `python docs/modules.py`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
