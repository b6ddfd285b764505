"""Write the map of src/inlay into README.md and CONTRIBUTING.md, from each file's first line.

python tools/map.py            write both
python tools/map.py --check    say which is out of date, and exit with 1
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "inlay"
BEGIN, END = "<!-- map: written by tools/map.py -->", "<!-- end of map -->"
# The rooms from the street to the cellar: a file imports only what stands further down.
ROOMS = (
    "cli", "server", "evaluation", "batch", "training", "learning", "methods", "scene",
    "checkpoints", "diffusion", "pictures",
)  # fmt: skip
FILES = ("composer", "run", "plan", "result", "request", "settings", "errors")


def first_line(path: Path) -> str:
    """The first sentence of a file's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").removesuffix(".")


def rows(deep: bool) -> list[tuple[str, str]]:
    """(name, what it is) of the rooms and the files between them, from top to bottom.

    deep: with every file of a room below it.
    """
    above, below = ROOMS[:6], ROOMS[6:]
    found: list[tuple[str, str]] = []

    def room(name: str) -> None:
        folder = PACKAGE / name
        found.append((f"{name}/", first_line(folder / "__init__.py")))
        if deep:
            inside = sorted(path for path in folder.rglob("*.py") if path.name != "__init__.py")
            for path in inside:
                shown = path.relative_to(folder).as_posix()
                found.append((f"  {shown}", first_line(path)))

    for name in (*above, *FILES[:5]):
        if (PACKAGE / name).is_dir():
            room(name)
        else:
            found.append((f"{name}.py", first_line(PACKAGE / f"{name}.py")))
    for name in below:
        room(name)
    for name in FILES[5:]:
        found.append((f"{name}.py", first_line(PACKAGE / f"{name}.py")))
    return found


def block(deep: bool) -> str:
    """The map as a block of Markdown."""
    table = rows(deep)
    width = max(len(name) for name, _ in table) + 2
    lines = [f"    {name:<{width}}{what}".rstrip() for name, what in table]
    return "\n".join([BEGIN, "", *lines, "", END])


def mapped(document: Path, deep: bool) -> str:
    """A document with the map as it should be; raises ValueError where it has no place for it."""
    text = document.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document.name} has no {BEGIN} ... {END}")
    return before + block(deep) + after


def main() -> int:
    check, stale = "--check" in sys.argv[1:], False
    for name, deep in (("README.md", False), ("CONTRIBUTING.md", True)):
        document = ROOT / name
        wanted = mapped(document, deep)
        if document.read_text(encoding="utf-8") == wanted:
            continue
        if check:
            print(f"the map in {name} is out of date; run python tools/map.py")
            stale = True
        else:
            document.write_text(wanted, encoding="utf-8")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
