"""Write the table of defaults into docs/defaults.md: the published ones, and the embedded ones.

python tools/defaults.py            write it
python tools/defaults.py --check    say whether it is out of date, and exit with 1
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from inlay.learning.settings import LearnConfig
from inlay.methods.registry import all_methods
from inlay.settings import tuned_defaults

PAGE = Path(__file__).parent.parent / "docs" / "defaults.md"
BEGIN, END = "<!-- table: written by tools/defaults.py -->\n", "<!-- end of table -->"


def table() -> str:
    """The rows of every setting whose default is another one on the embedded checkpoint."""
    kinds = {f"`{name}`": method.settings for name, method in all_methods().items()}
    kinds["`inlay learn`"] = LearnConfig
    lines = ["| of | setting | published | embedded checkpoint |", "|---|---|---:|---:|"]
    for name, kind in kinds.items():
        for setting, embedded in tuned_defaults(kind).items():
            values = (kind.model_fields[setting].default, embedded)
            published, own = (v if isinstance(v, str) else json.dumps(v) for v in values)
            lines.append(f"| {name} | `{setting}` | {published} | {own} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    new = before + BEGIN + table() + END + rest.partition(END)[2]
    if "--check" in sys.argv[1:]:
        if new != text:
            print("docs/defaults.md is out of date; run tools/defaults.py")
        return int(new != text)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
