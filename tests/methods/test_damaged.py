"""NaN and infinity anywhere in a checkpoint: an error that says so, never a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from skimage import data

from checkpoints import built
from flows import built as built_flow
from inlay import Composer, InputError
from photos import cup

FEW: dict[str, dict[str, Any]] = {
    "cdc": {"num_inference_steps": 2},
    "phd": {"num_inference_steps": 2, "harmonize_steps": 4},
    "freecompose": {"num_iterations": 2, "perceptual": "laplacian"},
    "inpaint": {"num_inference_steps": 2},
}
CASES = [
    ("compose", "cdc"), ("compose", "phd"), ("harmonize", "phd"), ("compose", "freecompose"),
    ("remove", "freecompose"), ("remove", "inpaint"), ("scene", "phd"),
]  # fmt: skip


def damage(composer: Composer, part: str, number: float) -> None:
    """One number of the last weights of a part is none."""
    backbone: Any = composer.backbone
    module = backbone.text.encoders[0] if part == "text" else getattr(backbone, part)
    with torch.no_grad():
        list(module.parameters())[-1].view(-1)[0] = number


@pytest.mark.parametrize(("verb", "method"), CASES)
@pytest.mark.parametrize(
    ("name", "part", "number"),
    [("sd1", "network", np.nan), ("sd1_inpaint", "vae", np.inf), ("embedded", "text", np.nan),
     ("embedded", "network", np.inf), ("sd3", "network", np.nan)],
)  # fmt: skip
def test_no_picture_is_made(verb: str, method: str, name: str, part: str, number: float) -> None:
    model = name if name == "embedded" else str((built_flow if name == "sd3" else built)(name))
    composer = Composer(model, device="cpu")
    damage(composer, part, number)
    background = np.ascontiguousarray(data.astronaut()[:140, :160])
    mask = np.zeros(background.shape[:2], np.uint8)
    mask[40:90, 50:110] = 255
    calls = {
        "compose": lambda: composer.compose(background, cup(), box=(50, 40, 60, 50), **told),
        "harmonize": lambda: composer.harmonize(background, mask=mask, **told),
        "remove": lambda: composer.remove(background, mask=mask, **told),
        "scene": lambda: composer.scene(cup(), prompt="a cat", size=(128, 128), **told),
    }
    told: dict[str, Any] = {"method": method, **FEW[method]}
    with pytest.raises(InputError, match="gave NaN or infinity") as error:
        calls[verb]()
    assert "\n" not in str(error.value) and composer.model in str(error.value)
