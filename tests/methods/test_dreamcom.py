"""DreamCom on small random checkpoints in the real formats, against its equations by hand."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from skimage import data

from checkpoints import built, loaded, raw
from concepts import learnt
from inlay import Box, Composer, InputError, Result
from inlay.checkpoints.concept import attach, read_concept
from inlay.methods.workspace import model_size
from inlay.pictures.arrays import resize
from photos import Photo

BOX = Box(40, 150, 130, 120)
STEPS = 2
# Said here, as the equations below have them; the defaults may become others.
KNOWN: dict[str, Any] = {
    "num_inference_steps": STEPS, "guidance_scale": 5.0, "context": 0.5, "feather": 0.03,
    "scheduler": "EulerAncestralDiscreteScheduler", "seed": 3, "box": BOX,
}  # fmt: skip
OFF: dict[str, Any] = {"mask_cross_attention": "off", "self_attention": "a"}


@cache
def composer(model: str) -> Composer:
    return Composer.from_pretrained(str(built(model)), device="cpu", dtype="float32")


def composed(model: str = "sd1_inpaint", **settings: Any) -> Result:
    return composer(model).compose(data.chelsea(), learnt(model), **{**KNOWN, **settings})


def pixels(result: Result) -> Photo:
    return np.asarray(result.image)


class ByHand:
    """Plain inpainting of the box, with no mask on any attention: the method without a line of it.

    lora_scale None leaves the object out.
    """

    def __init__(self, model: str, lora_scale: float | None, prompt: str | None = None) -> None:
        self.backbone, self.path = loaded(model), learnt(model)
        self.concept = read_concept(self.path)
        self.lora_scale, self.prompt = lora_scale, prompt or self.concept.prompt
        # A square of twice the box's longer side, round its middle, within the picture.
        self.window = Box(0, 40, 260, 260)
        self.size = model_size(self.window, 128, self.backbone.multiple)
        clean = data.chelsea()[self.window.slices].astype(np.float32) / 255
        self.clean = clean
        small = torch.from_numpy(resize(clean, self.size)).permute(2, 0, 1)[None] * 2 - 1
        hole = np.zeros(clean.shape[:2], np.float32)
        hole[110:230, 40:170] = 1
        hard = torch.from_numpy((resize(hole, self.size) > 0.5).astype(np.float32))[None, None]
        self.hole = torch.nn.functional.max_pool2d(hard, 8)
        whole = self.hole.repeat_interleave(8, 2).repeat_interleave(8, 3)
        with torch.no_grad():
            self.source = self.backbone.encode(small)
            self.masks: tuple[Any, ...] = (None, None)
            if self.backbone.kind == "inpaint":
                self.masks = self.hole, self.backbone.encode(small * (1 - whole))

    def samples(self, count: int = 1, seed: int = 3) -> list[torch.Tensor]:
        backbone, generator = self.backbone, torch.Generator().manual_seed(seed)
        config = {**backbone.scheduler_config, "clip_sample": False, "skip_prk_steps": True}
        scale, found = self.lora_scale, []
        known = nullcontext() if scale is None else attach(backbone, self.path, scale)
        with known, torch.no_grad():
            words, none = (backbone.embed([text], self.size) for text in (self.prompt, ""))
            for _ in range(count):
                solver = EulerAncestralDiscreteScheduler.from_config(config)
                solver.set_timesteps(STEPS)
                solver.timesteps = solver.timesteps.clamp(max=999)
                solver.set_begin_index(0)
                times = solver.timesteps

                def noised(number: int, solver: Any = solver, times: Any = times) -> torch.Tensor:
                    draw = torch.randn(self.source.shape, generator=generator)
                    return solver.add_noise(self.source, draw, times[number : number + 1])

                # Strength 1 starts from noise alone, as the release does.
                z = torch.randn(self.source.shape, generator=generator) * solver.init_noise_sigma
                for number, t in enumerate(times):
                    scaled, level = solver.scale_model_input(z, t), int(t)
                    one, two = (
                        raw(backbone, scaled, level, text, *self.masks) for text in (none, words)
                    )
                    z = solver.step(one + 5 * (two - one), t, z, generator=generator).prev_sample
                    if backbone.kind == "plain":
                        last = number + 1 == STEPS
                        kept = self.source if last else noised(number + 1)
                        z = z * self.hole + kept * (1 - self.hole)
                found.append(z)
        return found

    def decoded(self, z: torch.Tensor) -> np.ndarray:
        """A sample in the window's pixels, (h, w, 3) in [0, 1]."""
        with torch.no_grad():
            image = self.backbone.decode(z)[0].permute(1, 2, 0).numpy() * 0.5 + 0.5
        return resize(np.ascontiguousarray(image), (260, 260))

    def picture(self, z: torch.Tensor) -> np.ndarray:
        """The whole picture with the box as the sample says, and no rim."""
        whole = data.chelsea().astype(np.float32)
        whole[BOX.slices] = 255 * np.clip(self.decoded(z), 0, 1)[110:230, 40:170]
        return whole


def apart(result: Result, by_hand: np.ndarray) -> float:
    """The greatest difference inside the box, in levels."""
    return float(np.abs(pixels(result).astype(float) - by_hand)[BOX.slices].max())


@pytest.mark.parametrize("model", ["sd1_inpaint", "sd1", "sd2_v", "sdxl", "sdxl_inpaint"])
def test_without_masks_it_is_plain_inpainting(model: str) -> None:
    hand = ByHand(model, 1.0)
    result = composed(model, **OFF)
    assert result.window == hand.window
    assert apart(result, hand.picture(hand.samples()[0])) < 0.6
    # The rim passes into the background over 0.03 of the window: near its middle by half.
    row, column = BOX.y + 60, BOX.right - 1 + 4
    weight = 1 - 4 / (0.03 * 260)
    weight = weight**2 * (3 - 2 * weight)
    sample = 255 * np.clip(hand.decoded(hand.samples()[0]), 0, 1)[row - 40, column]
    before = data.chelsea()[row, column].astype(float)
    assert np.abs(pixels(result)[row, column] - (before + weight * (sample - before))).max() < 1.5


def test_at_a_scale_of_0_it_is_the_bare_model() -> None:
    for model in ("sd1_inpaint", "sd1"):
        hand = ByHand(model, None)
        bare = hand.picture(hand.samples()[0])
        assert apart(composed(model, lora_scale=0.0, **OFF), bare) < 0.6
        assert apart(composed(model, **OFF), bare) > 5
    half = ByHand("sd1_inpaint", 0.5)
    assert apart(composed(lora_scale=0.5, **OFF), half.picture(half.samples()[0])) < 0.6


def test_the_masks_of_attention_are_in_force() -> None:
    made = {
        name: pixels(composed(**settings))
        for name, settings in {
            "off": OFF,
            "cross": {"self_attention": "a"},
            "on": {"self_attention": "a", "mask_cross_attention": "on"},
            "both": {"self_attention": "paper"},
            "b": {"self_attention": "b"},
            "released": {"self_attention": "released"},
        }.items()
    }
    # The file was learnt with masked cross-attention.
    assert np.array_equal(made.pop("on"), made["cross"])
    pictures = list(made.values())
    for number, one in enumerate(pictures):
        assert all((one != other)[BOX.slices].any() for other in pictures[:number])


def test_what_the_box_shows_is_said_by_the_prompt() -> None:
    as_learnt = pixels(composed(**OFF))
    for same in ("a photo of {object}", "a photo of q cup"):
        assert np.array_equal(pixels(composed(prompt=same, **OFF)), as_learnt)
    hand = ByHand("sd1_inpaint", 1.0, "two cups of q cup")
    other = composed(prompt="two cups of {object}", **OFF)
    assert apart(other, hand.picture(hand.samples()[0])) < 0.6
    assert (pixels(other) != as_learnt).any()


def test_the_released_layout_is_used_as_it_was_learnt() -> None:
    path = learnt("sd1_inpaint", layout="released")
    background = data.chelsea()
    result = composer("sd1_inpaint").compose(background, path, **KNOWN)
    assert (np.asarray(result.image) != background).any()
    with pytest.raises(InputError, match="longer than the 38 tokens"):
        composer("sd1_inpaint").compose(background, path, prompt="a " * 39, **KNOWN)


def test_a_strength_of_0_changes_nothing() -> None:
    assert np.array_equal(pixels(composed(strength=0.0)), data.chelsea())


def test_the_best_sample_is_the_likeliest() -> None:
    hand = ByHand("sd1", 1.0)
    samples = hand.samples(3)
    backbone, concept = hand.backbone, hand.concept
    scores = []
    with attach(backbone, hand.path), torch.no_grad():
        for z in samples:
            errors = []
            for prompt in (concept.class_prompt, concept.prompt):
                text = backbone.embed([prompt], hand.size)
                generator, error = torch.Generator().manual_seed(0), 0.0
                for t in (300, 500, 700):
                    noise = torch.randn(z.shape, generator=generator)
                    noisy = backbone.levels[t].add_noise(z, noise)
                    wrong = (raw(backbone, noisy, t, text) - noise)[:, :, hand.hole[0, 0] > 0]
                    error += float((wrong**2).mean()) / 3
                errors.append(error)
            scores.append(errors[0] - errors[1])
    result = composed("sd1", best_of=3, best_by="likelihood", **OFF)
    best = int(np.argmax(scores))
    assert apart(result, hand.picture(samples[best])) < 0.6
    (note,) = result.record["notes"]
    told = ", ".join(f"{score:.3f}" for score in scores)
    assert note == f"dreamcom: sample {best + 1} of {told} by likelihood"


def test_the_best_sample_has_the_colours_of_the_photos() -> None:
    hand = ByHand("sd1", 1.0)
    samples = hand.samples(3)

    def histogram(colours: np.ndarray) -> np.ndarray:
        levels = np.clip(colours.reshape(-1, 3) * 255, 0, 255).astype(int) // 32
        counts = np.bincount(levels @ (64, 8, 1), minlength=512)
        return counts / counts.sum()

    photos = [np.asarray(sight.image(), float) / 255 for sight in hand.concept.sights]
    distances = []
    for z in samples:
        here = histogram(hand.decoded(z)[110:230, 40:170])
        # Bhattacharyya's coefficient of each photo's colours with the box's.
        each = [np.sqrt(here * histogram(photo)).sum() for photo in photos]
        distances.append(np.mean([max(1 - one, 0) ** 0.5 for one in each]))
    result = composed("sd1", best_of=3, **OFF)
    best = int(np.argmin(distances))
    assert apart(result, hand.picture(samples[best])) < 0.6
    told = ", ".join(f"{-score:.3f}" for score in distances)
    assert result.record["notes"] == [f"dreamcom: sample {best + 1} of {told} by histogram"]


@pytest.mark.parametrize(("setting", "use"), [("best_of=2", "best_by"), ("details=0.5", "details")])
def test_a_file_without_photos_is_refused_where_they_are_needed(setting: str, use: str) -> None:
    name, value = setting.split("=")
    path, settings = learnt("sd1", keep_photos=False), {name: float(value)}
    with pytest.raises(InputError, match=f"none of its photos, which {use}"):
        composer("sd1").compose(data.chelsea(), path, box=BOX, **settings)
