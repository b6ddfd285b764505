"""The checkpoint in the package is the one its card describes, and it has learned something."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.torch import load_file
from skimage import data

from inlay import Box, Composer
from inlay.training.disturb import disturb_object, draw
from photos import five_scenes

ROOT = Path(str(files("inlay"))) / "assets" / "embedded"


def test_the_card_names_the_weights_that_are_there() -> None:
    card = (ROOT / "README.md").read_text()
    weights = sorted(ROOT.rglob("*.safetensors"))
    assert {path.parent.name for path in weights} == {"unet", "vae", "text_encoder"}
    for path in weights:
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card


def test_the_whole_is_small_enough_to_ship_and_in_half_precision() -> None:
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) < 90e6
    for part in ("unet", "text_encoder"):
        for tensors in (load_file(path) for path in (ROOT / part).glob("*.safetensors")):
            assert {str(tensor.dtype) for tensor in tensors.values()} == {"torch.float16"}


def test_the_decoder_attends_to_itself_at_two_resolutions() -> None:
    """What attention-based methods hold on to."""
    config = json.loads((ROOT / "unet" / "config.json").read_text())
    with_attention = [kind for kind in config["up_block_types"] if kind.startswith("CrossAttn")]
    assert len(with_attention) >= 2
    tensors = load_file(ROOT / "unet" / "diffusion_pytorch_model.safetensors")
    for block in range(2):
        assert any(key.startswith(f"up_blocks.{block}.attentions.0.") for key in tensors)


@pytest.mark.parametrize("photo", ["coffee", "rocket", "chelsea"])
def test_what_it_paints_is_nearer_to_the_truth_than_grey_is(photo: str) -> None:
    """Foreign photographs: the hole's mean colour and light come from its surroundings."""
    image = getattr(data, photo)()
    mask = np.zeros(image.shape[:2], np.uint8)
    height, width = mask.shape
    mask[height // 3 : height // 3 + 100, width // 3 : width // 3 + 100] = 255
    result = Composer.from_pretrained("embedded", device="cpu").remove(
        image, mask=mask, method="inpaint", num_inference_steps=12
    )
    hole = mask > 0
    blurred = cv2.GaussianBlur(image, (0, 0), 12)[hole].astype(float)
    painted = cv2.GaussianBlur(np.asarray(result.image), (0, 0), 12)[hole].astype(float)
    around = image[cv2.dilate(mask, np.ones((60, 60), np.uint8)) > 0].mean((0,))
    assert np.abs(painted - blurred).mean() < np.abs(127.5 - blurred).mean()
    assert np.abs(painted.mean(0) - around).max() < 60


def test_half_the_precision_half_the_bytes_same_picture() -> None:
    background, subject, box = five_scenes()[0]
    pictures = []
    for dtype in ("float32", "bfloat16"):
        composer = Composer.from_pretrained("embedded", device="cpu", dtype=dtype)
        result = composer.compose(background, subject, box=box, num_inference_steps=8)
        pictures.append(np.asarray(result.image).astype(int))
    assert np.abs(pictures[0] - pictures[1]).mean() < 0.5


def test_the_adapter_that_ships_is_the_one_its_card_describes_and_acts() -> None:
    folder = ROOT.parent / "adapter-canny"
    (weights,) = folder.glob("*.safetensors")
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in (folder / "README.md").read_text()
    background = np.ascontiguousarray(data.chelsea()[:140, 200:360])
    subject = np.dstack([data.coffee()[80:200:2, 200:340:2], np.full((60, 70), 255, np.uint8)])
    drawing = np.zeros(background.shape, np.uint8)
    cv2.circle(drawing, (80, 70), 28, (255, 255, 255), 1)
    composer = Composer.from_pretrained("embedded", device="cpu")

    def made(**settings: float) -> np.ndarray:
        result = composer.compose(
            background, subject, box=Box(45, 40, 70, 60), method="freecompose", preset="semantic",
            control=drawing, num_iterations=3, control_t_max=1000, **settings,
        )  # fmt: skip
        differs = (np.asarray(result.image) != background).any(-1)
        assert not (differs & (np.asarray(result.mask) == 0)).any()
        return np.asarray(result.image)

    assert not np.array_equal(made(), made(adapter_conditioning_scale=0.0))


def test_the_harmonizer_that_ships_is_the_one_its_card_describes_and_mends() -> None:
    folder = ROOT.parent / "harmonizer"
    (weights,) = folder.glob("*.safetensors")
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in (folder / "README.md").read_text()
    truth = np.ascontiguousarray(data.coffee())
    outline = np.zeros(truth.shape[:2], np.uint8)
    cv2.ellipse(outline, (276, 236), (200, 150), 0, 0, 360, 255, -1)
    composer, inside = Composer.from_pretrained("embedded", device="cpu"), outline > 0
    for kind in ("gain", "exposure"):
        changes = draw(kind, np.random.default_rng(0))
        wrong = disturb_object(truth, (outline / 255).astype(np.float32), changes)
        result = composer.harmonize(wrong, mask=outline)
        assert result.record["method"] == "phd" and result.record["harmonizer"]["hash"]
        before, after = (
            ((picture.astype(float) - truth)[inside] ** 2).mean()
            for picture in (wrong, np.asarray(result.image))
        )
        assert after < 0.9 * before
