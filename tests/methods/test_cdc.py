"""Cross-domain Compositing as a whole, on the embedded checkpoint and real photographs."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from inlay import Box, Composer, InputError, Result
from inlay.methods.cdc import erode, next_input
from inlay.methods.registry import get
from inlay.methods.workspace import model_size
from inlay.pictures.arrays import resize
from inlay.scene.stitch import to_tensor
from photos import Photo, five_scenes

PASTE: dict[str, Any] = {"method": "paste", "shadow": "none"}


@cache
def composer() -> Composer:
    return Composer.from_pretrained("embedded", device="cpu", dtype="float32")


def compose(index: int, **settings: Any) -> Result:
    background, subject, box = five_scenes()[index]
    few = {"method": "cdc", "num_inference_steps": 10, "seed": 3, "shadow": "none"}
    return composer().compose(background, subject, box=box, **{**few, **settings})


def pixels(result: Result) -> Photo:
    return np.asarray(result.image)


def inside(index: int) -> np.ndarray:
    """The subject's own pixels: where its alpha is full, in the background."""
    background, subject, box = five_scenes()[index]
    blue = np.dstack([np.zeros_like(subject[..., :3]), subject[..., 3]])
    black = composer().compose(np.full_like(background, 255), blue, box=box, **PASTE)
    return pixels(black).max(-1) == 0


def distance(index: int, result: Result, paste: Result) -> float:
    difference = pixels(result).astype(float) - pixels(paste)
    return float(np.sqrt((difference[inside(index)] ** 2).mean()))


FREE = {"decoding": "plain", "smoothing": 0.0}


@pytest.mark.parametrize("index", range(5))
def test_more_conditioning_is_strictly_nearer_to_the_input(index: int) -> None:
    paste = _paste(index)
    got = [
        distance(index, compose(index, T_in=t, smoothing=0.0), paste)
        for t in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    assert all(a > b for a, b in itertools.pairwise(got)), got


@pytest.mark.parametrize("index", range(5))
def test_a_coarser_pull_is_strictly_farther_from_the_input(index: int) -> None:
    paste = _paste(index)
    got = [
        distance(index, compose(index, T_in=1.0, N_in=n, smoothing=0.0), paste)
        for n in (1, 2, 4, 8)
    ]
    assert all(a < b for a, b in itertools.pairwise(got)), got


@cache
def _paste(index: int) -> Result:
    background, subject, box = five_scenes()[index]
    return composer().compose(background, subject, box=box, **PASTE)


@pytest.mark.parametrize("settings", [{"strength": 0.0}, {"T_in": 1.0}])
@pytest.mark.parametrize("index", [0, 4])
def test_nothing_to_do_is_the_plain_paste(index: int, settings: dict[str, float]) -> None:
    result = compose(index, **settings)
    assert np.abs(pixels(result).astype(int) - pixels(_paste(index))).max() <= 1


def high_frequency(image: Photo, where: np.ndarray) -> float:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    detail = grey - cv2.GaussianBlur(grey, (9, 9), 0)
    return float((detail[where] ** 2).mean())


@pytest.mark.parametrize("decoding", ["residual", "plain"])
@pytest.mark.parametrize("method", ["cdc", "freecompose"])
def test_the_amount_is_the_share_of_the_change(method: str, decoding: str) -> None:
    steps = "num_iterations" if method == "freecompose" else "num_inference_steps"
    background, subject, box = five_scenes()[0]

    def made(amount: float) -> np.ndarray:
        told: dict[str, Any] = {"method": method, "decoding": decoding, "amount": amount, steps: 2}
        if method == "cdc":
            told["T_in"] = 0.5
        result = composer().compose(background, subject, box=box, shadow="none", **told)
        return pixels(result).astype(float)

    none, half, full = (made(amount) for amount in (0.0, 0.5, 1.0))
    assert np.array_equal(none, pixels(_paste(0))) and (full != none).any()
    # Rounded, and clipped where it leaves the levels.
    assert np.abs(half - (none + full) / 2)[(full > 0) & (full < 255)].max() <= 1.01


@pytest.mark.parametrize("index", range(5))
def test_residual_decoding_keeps_the_subjects_detail(index: int) -> None:
    where = cv2.erode(inside(index).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    before = high_frequency(pixels(_paste(index)), where)
    kept = high_frequency(pixels(compose(index)), where) / before
    plain = high_frequency(pixels(compose(index, decoding="plain")), where) / before
    assert abs(kept - 1) <= 0.05
    assert abs(plain - 1) > abs(kept - 1)


def test_same_seed_same_bytes_and_another_seed_another_picture() -> None:
    first, again, other = compose(1), compose(1), compose(1, seed=4)
    assert np.array_equal(pixels(first), pixels(again))
    assert not np.array_equal(pixels(first), pixels(other))


def test_several_images_are_the_runs_of_the_derived_seeds() -> None:
    together = compose(2, num_images=4, seed=10)
    assert [record["seed"] for record in together.records] == [10, 11, 12, 13]
    for number, image in enumerate(together.images):
        alone = compose(2, seed=10 + number)
        assert np.array_equal(np.asarray(image), pixels(alone))


def test_outside_the_named_region_nothing_differs() -> None:
    for index in range(5):
        background = five_scenes()[index][0]
        result = compose(index, T_in=0.2, **FREE)
        differs = (pixels(result) != background).any(-1)
        allowed = np.zeros_like(differs)
        allowed[result.region.slices] = True
        assert not (differs & ~allowed).any()
        assert not (differs & (np.asarray(result.mask) == 0)).any()
        assert result.region.intersect(result.window) == result.region


@pytest.mark.parametrize("preset", list(get("cdc").presets))
def test_every_preset_makes_a_picture(preset: str) -> None:
    result = compose(3, preset=preset, num_inference_steps=4)
    background = five_scenes()[3][0]
    assert not np.array_equal(pixels(result), background)
    assert result.record["request"]["method"]["preset"] == preset


def reconstruction(index: int) -> Photo:
    """The paste through the autoencoder alone, at the size of the picture."""
    paste, backbone = pixels(_paste(index)), composer().backbone
    box = Box.of_size((paste.shape[1], paste.shape[0]))
    size = model_size(box, backbone.native_size, backbone.multiple)
    with torch.inference_mode():
        decoded = backbone.decode(backbone.encode(to_tensor(paste / np.float32(255), size)))
    image = resize(decoded[0].permute(1, 2, 0).numpy() * 0.5 + 0.5, paste.shape[:2])
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def test_both_lays_in_all_that_the_model_drew() -> None:
    """Held everywhere to the end, at every frequency, the sample is the paste's own latent."""
    held = compose(4, region="both", T_in=1.0, T_out=1.0, feather=0.0, **FREE)
    wanted = reconstruction(4)
    assert np.abs(pixels(held).astype(int) - wanted).max() <= 1
    assert np.asarray(held.mask).all()
    # Each side has its own strength: the object alone, or what lies round it, is the latent's.
    where = cv2.erode(inside(4).astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
    far = cv2.dilate(inside(4).astype(np.uint8), np.ones((25, 25), np.uint8)) == 0
    for t_in, t_out, near, other in ((1.0, 0.0, where, far), (0.0, 1.0, far, where)):
        made = pixels(compose(4, region="both", T_in=t_in, T_out=t_out, feather=0.0, **FREE))
        off = np.abs(made.astype(int) - wanted)
        assert off[near].mean() < 1 < 5 < off[other].mean()


def test_the_augment_preset_keeps_the_object_that_the_model_drew() -> None:
    result = pixels(compose(4, preset="augment", num_inference_steps=6)).astype(int)
    paste, solid = pixels(_paste(4)), inside(4)
    assert np.abs(result[solid] - paste[solid]).max() > 5
    assert np.abs(result[solid] - paste[solid]).mean() < np.abs(result - paste)[~solid].mean()
    assert np.abs(result[~solid] - paste[~solid]).mean() > 5


@pytest.mark.parametrize(
    "settings",
    [
        {"repaint_start": 1.0, "repaint_jump": 2, "repaint_repeats": 2},
        {"condition_on": "x0"},
        {"rounds": 3, "blend": 0.5},
        {"temperature": 0.5},
        {"blend_pixels": 2},
        {"T_out": 0.2},
        {"prompt": "a photo of a hat", "words_inside": "hat", "guidance_scale": 3.0},
        {"prompt": "a photo of a hat", "words_inside": "hat", "words_weight_inside": 2.0},
    ],
    ids=lambda s: next(iter(s)),
)
def test_every_setting_has_an_effect_and_stays_in_the_region(settings: dict[str, Any]) -> None:
    base = {"T_in": 0.5, "num_inference_steps": 6, **FREE}
    if "prompt" in settings:
        base |= {"prompt": "a photo of a hat", "guidance_scale": 3.0}
    plain, changed = compose(0, **base), compose(0, **{**base, **settings})
    assert not np.array_equal(pixels(plain), pixels(changed))


def test_words_have_a_weight_for_each_side() -> None:
    told = {"prompt": "a photo of a hat", "T_in": 0.5, "num_inference_steps": 6, **FREE}
    inside = {**told, "words_inside": "hat"}
    # The one weight is both, and the one of the other side changes nothing.
    one = pixels(compose(0, **inside, words_weight=2.0))
    assert np.array_equal(one, pixels(compose(0, **inside, words_weight_inside=2.0)))
    still = pixels(compose(0, **inside))
    assert np.array_equal(still, pixels(compose(0, **inside, words_weight_outside=2.0)))
    outside = {**told, "words_outside": "hat"}
    assert np.array_equal(
        pixels(compose(0, **outside, words_weight=2.0)),
        pixels(compose(0, **outside, words_weight_outside=2.0)),
    )
    # At 0 the scores are the network's own, summed in another order.
    none = pixels(compose(0, **inside, words_weight_inside=0.0)).astype(int)
    assert np.abs(none - pixels(compose(0, **told))).max() <= 1


def test_the_next_round_gets_the_mix_inside_and_the_picture_outside() -> None:
    rng = np.random.default_rng(0)
    image, output = (torch.from_numpy(a) for a in rng.normal(size=(2, 1, 3, 9, 9)))
    mask = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    mask[..., 2:7, 3:8] = 1
    got = next_input(image, output, mask, 0.3)
    expected = torch.where(mask > 0, 0.3 * output + 0.7 * image, image)
    torch.testing.assert_close(got, expected)


def test_the_erosion_shrinks_from_round_to_round() -> None:
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 20:110, 20:110] = 1
    widths = [int(erode(mask, n, 4, 0.06)[0, 0, 64].sum()) for n in (1, 2, 3, 4)]
    # Kernels of 7, 5, 3 and 1 pixels' radius take as much off either side.
    assert widths == [90 - 2 * radius for radius in (7, 5, 3, 1)]
    thin = torch.zeros(1, 1, 128, 128)
    thin[..., 60, 20:110] = 1
    assert torch.equal(erode(thin, 1, 4, 0.06), thin)


def test_rounds_report_progress_as_one_run() -> None:
    seen: list[tuple[int, int]] = []
    compose(
        0,
        rounds=2,
        num_inference_steps=3,
        callback=lambda step, total, _: seen.append((step, total)),
    )
    assert seen == [(n, 6) for n in range(1, 7)]


def test_a_word_that_is_not_in_the_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="'zebra'"):
        compose(0, prompt="a photo of a hat", words_inside="zebra")


def test_attention_is_left_as_found_after_a_cancelled_run() -> None:
    from inlay import Cancelled

    unet = composer().backbone.unet
    before = dict(unet.attn_processors)

    def stop(step: int, total: int, preview: object) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        compose(0, prompt="a photo of a hat", words_inside="hat", callback=stop)
    assert all(unet.attn_processors[name] is before[name] for name in before)


def test_two_runs_write_the_same_file(tmp_path: Path) -> None:
    compose(1).save(tmp_path / "one.png")
    compose(1).save(tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
