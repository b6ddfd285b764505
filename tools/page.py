"""Build the web page anew, and compare it with the bundle in server/page/dist.

python tools/page.py            say what differs, and exit with 1 where anything does
python tools/page.py --write    put the new build in its place

Needs node 20.19 or later; the exact packages of package-lock.json are fetched where they lack.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).parent.parent / "src" / "inlay" / "server" / "page"
DIST = PAGE / "dist"
MOST_BYTES = 150_000


def build(folder: Path) -> dict[str, bytes]:
    """The files of a fresh build in a folder, by name."""
    if not (PAGE / "node_modules").is_dir():
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=PAGE, check=True)
    subprocess.run(["npx", "svelte-check", "--fail-on-warnings"], cwd=PAGE, check=True)
    command = ["npx", "vite", "build", "--outDir", str(folder), "--emptyOutDir"]
    subprocess.run(command, cwd=PAGE, check=True)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name from there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def main() -> int:
    """Build, compare or write; the exit status."""
    if shutil.which("npx") is None:
        print("page: there is no node here, so nothing was compared", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        new = build(Path(folder))
        if "--write" in sys.argv[1:]:
            shutil.rmtree(DIST, ignore_errors=True)
            shutil.copytree(folder, DIST)
    old = contents(DIST)
    size = sum(len(gzip.compress(data)) for data in new.values())
    differ = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    for name in differ:
        print(f"page: {name} differs; run python tools/page.py --write")
    if size > MOST_BYTES:
        print(f"page: {size} bytes gzipped; expected at most {MOST_BYTES}")
    print(f"page: {len(new)} files, {size} bytes gzipped")
    return int(bool(differ) or size > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
