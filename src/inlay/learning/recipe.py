"""What a run says of itself: in its folder, to be resumed, and in the file that it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.checkpoints.concept import Base, Concept, Sight
from inlay.errors import InputError
from inlay.learning.loop import check_state

if TYPE_CHECKING:
    from inlay.learning.run import Learning

__all__ = ["check_resumable", "description", "recipe_of"]


def recipe_of(run: Learning, prior: bool) -> dict[str, Any]:
    """What must be the same for a run to go on; `prior` is whether it has class pictures."""
    examples = (*run.examples, *run.kept_out)
    return {
        "photos": [one.sha256 for one in examples],
        "boxes": [one.box.as_dict() for one in examples],
        "class_name": run.class_name,
        "class_pictures": prior,
        "model": run.backbone.hash,
        "settings": run.config.identity(),
    }


def check_resumable(out: Path, recipe: dict[str, Any]) -> None:
    """Raises InputError where a run's folder holds no state, or that of another run."""
    check_state(out)
    try:
        before = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    told = json.loads(json.dumps(recipe))
    other = [key for key in told if before.get(key) != told[key]]
    if other:
        raise InputError(
            f"the run in {out} had other {' and '.join(other).replace('_', ' ')}; expected the "
            "same as when it began, but for its steps, or leave out --resume."
        )


def description(run: Learning) -> Concept:
    """What a run's file says, as things stand."""
    backbone, config = run.backbone, run.config
    sights = [
        Sight(photo=e.name, sha256=e.sha256, aspect=e.aspect, size=e.size, picture=e.picture)
        for e in run.examples
    ]
    return Concept(
        kind=config.train,
        class_name=run.class_name,
        token=run.token,
        prompt=run.prompt,
        class_prompt=run.class_prompt,
        layout=config.layout,
        background_prompt=config.background_prompt,
        mask_cross_attention=config.mask_cross_attention,
        context=config.context,
        sights=tuple(sights),
        base=Base(
            name=backbone.name, hash=backbone.hash, kind=backbone.kind, family=backbone.family
        ),
        steps=run.step,
        settings=config.model_dump(mode="json"),
    )
