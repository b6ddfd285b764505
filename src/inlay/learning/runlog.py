"""What a training run tells: one JSON line a report, and the same for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["RunLog"]


class RunLog:
    """Appends to OUT/log.jsonl and, where tensorboardX is installed, to events in OUT/events."""

    def __init__(self, out: Path) -> None:
        self._file = out / "log.jsonl"
        self._writer: Any = None
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(out / "events"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Figures by name, for the curves alone."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def row(self, row: Mapping[str, Any], curves: Mapping[str, float]) -> None:
        """One report: a line of JSON with a step in it, and its curves."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")
        self.scalars(int(row["step"]), curves)
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
