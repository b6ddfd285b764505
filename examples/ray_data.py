"""Composites as a column of a Ray dataset: a class for ray.data's map_batches.

    python examples/ray_data.py background.png cup.png composites.parquet

A row has the fields of a request (see `inlay schema compose`), whose pictures are paths here; it
gets the picture's bytes as PNG, and what was wrong with it, in `image` and `error`. For thousands
of rows that must not be lost `inlay batch` is the better tool: Ray Data runs all of a block again
where its process dies.
"""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import numpy as np


class Compose:
    """Opens a checkpoint once for each actor and makes the pictures of batches of rows."""

    def __init__(self, model: str = "embedded") -> None:
        from inlay import Composer

        self.composer = Composer.from_pretrained(model)

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        from inlay import InputError, Request

        images, errors = [], []
        for text in batch["request"]:
            try:
                result = self.composer.run(Request.of(json.loads(text)))
                buffer = io.BytesIO()
                result.image.save(buffer, "PNG")
                images.append(buffer.getvalue())
                errors.append("")
            except InputError as error:
                images.append(b"")
                errors.append(str(error))
        return {**batch, "image": images, "error": errors}


def main(background: str, subject: str, output: str) -> None:
    import ray

    requests = [
        {
            "verb": "compose",
            "method": "poisson",
            "background": background,
            "subjects": [{"picture": subject, "random": True}],
            "seed": seed,
        }
        for seed in range(8)
    ]
    rows = ray.data.from_items([{"request": json.dumps(request)} for request in requests])
    made = rows.map_batches(Compose, batch_size=4, compute=ray.data.ActorPoolStrategy(size=2))
    made.write_parquet(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
