"""FreeCompose as a whole: what each verb and variant does to real photographs."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints import built
from inlay import Box, Cancelled, Composer, InputError, Result
from inlay.methods.freecompose import FreeComposeSettings
from inlay.methods.registry import MethodChoice, get
from inlay.settings import validate_settings
from photos import Photo, cutout

NAMES = ["sd1", "sd1_inpaint", "sd2_v", "sdxl", "sdxl_inpaint", "embedded"]
VARIANTS = ["background", "collage", "score"]
BOX = Box(40, 30, 60, 50)


@cache
def composer(name: str) -> Composer:
    model = name if name == "embedded" else str(built(name))
    return Composer.from_pretrained(model, device="cpu", dtype="float32")


@cache
def scene() -> tuple[Photo, Photo, Photo]:
    """(background, picture with a coffee cup pasted by hand, its mask)."""
    from skimage import data

    background = np.ascontiguousarray(data.chelsea()[:140, 200:360])
    cup = cutout(data.coffee()[::4, ::4], Box(30, 5, 60, 50))
    alpha = cup[..., 3:] / 255.0
    picture, mask = background.copy(), np.zeros(background.shape[:2], np.uint8)
    picture[BOX.slices] = np.round(cup[..., :3] * alpha + picture[BOX.slices] * (1 - alpha))
    mask[BOX.slices] = cup[..., 3]
    return background, picture, mask


# The settings of most runs below: large steps with all that they can have, and few of them.
FEW: dict[str, Any] = {
    "method": "freecompose", "num_iterations": 2, "seed": 3, "variant": "background",
    "eta": 0.49, "guidance_scale": 7.5, "smoothing": 0.03, "texture": 0.0,
}  # fmt: skip


def harmonize(name: str = "embedded", known: bool = True, **settings: Any) -> Result:
    background, picture, mask = scene()
    extra = {"background": background} if known else {}
    return composer(name).harmonize(picture, mask=mask, **extra, **{**FEW, **settings})


def remove(name: str = "embedded", **settings: Any) -> Result:
    _, picture, mask = scene()
    return composer(name).remove(picture, mask=mask, **{**FEW, **settings})


def pixels(result: Result) -> Photo:
    return np.asarray(result.image)


@cache
def harmonized() -> Photo:
    return pixels(harmonize())


@cache
def removed() -> Photo:
    return pixels(remove())


def only_inside(result: Result, before: Photo) -> bool:
    differs = (pixels(result) != before).any(-1)
    assert differs.any()
    return not (differs & (np.asarray(result.mask) == 0)).any()


@pytest.mark.parametrize("name", NAMES)
def test_every_format_removes_and_harmonizes_inside_the_region_only(name: str) -> None:
    _, picture, _ = scene()
    for variant in VARIANTS:
        # Gradients that the random weights of these checkpoints call for are small.
        assert only_inside(harmonize(name, variant=variant, eta=3.0), picture)
    assert only_inside(remove(name), picture)


@pytest.mark.parametrize("name", ["sd1", "embedded"])
def test_compose_pastes_and_then_harmonizes(name: str) -> None:
    from skimage import data

    background = scene()[0]
    cup = cutout(data.coffee()[::4, ::4], Box(30, 5, 60, 50))
    made = composer(name).compose(background, cup, box=BOX, shadow="none", **{**FEW, "eta": 3.0})
    paste = composer(name).compose(background, cup, box=BOX, method="paste", shadow="none")
    assert only_inside(made, background)
    assert not np.array_equal(pixels(made), pixels(paste))
    assert made.record["notes"] == []


@pytest.mark.parametrize("name", ["sd1", "sd1_inpaint", "embedded"])
def test_the_same_on_both_sides_is_the_picture_byte_for_byte(name: str) -> None:
    same = {"prompt": "a cup", "source_prompt": "a cup", "surroundings": "both"}
    for pool_size in (0, 1):
        result = harmonize(name, variant="collage", pool_size=pool_size, num_iterations=3, **same)
        assert np.array_equal(pixels(result), scene()[1])


def test_an_empty_source_prompt_is_one() -> None:
    for verb in ("compose", "remove"):
        assert FreeComposeSettings(source_prompt="").prompts(verb)[0] == ""
        assert get("freecompose").settings_on("embedded")().prompts(verb)[0] != ""
    told = {"variant": "collage", "prompt": "a cup", "guidance_scale": 3.0}
    empty, default = (harmonize("sd1", **told, **more) for more in ({"source_prompt": ""}, {}))
    assert not np.array_equal(pixels(empty), pixels(default))


@pytest.mark.parametrize("settings", [{"num_iterations": 0}, {"eta": 0.0}])
def test_nothing_to_do_changes_nothing(settings: dict[str, Any]) -> None:
    assert np.array_equal(pixels(harmonize(**settings)), scene()[1])


def test_without_the_background_a_smooth_fill_stands_for_it_and_it_is_said() -> None:
    import cv2

    _, picture, mask = scene()
    blind = harmonize(known=False)
    assert "smooth fill" in " ".join(blind.record["notes"])
    assert harmonize().record["notes"] == []
    filled = cv2.inpaint(picture, (mask > 0).astype(np.uint8), 3, cv2.INPAINT_TELEA)
    told = composer("embedded").harmonize(picture, mask=mask, background=filled, **FEW)

    # Another fill gives nearer to the same than what lies behind the object.
    def apart(one: Result, two: Result) -> float:
        return float(np.abs(pixels(one).astype(float) - pixels(two)).mean())

    assert 0 < apart(blind, told) < apart(blind, harmonize())


def test_the_variants_differ() -> None:
    pictures = [pixels(harmonize(variant=variant)) for variant in VARIANTS]
    for one in range(3):
        assert not np.array_equal(pictures[one], pictures[one - 1])


@pytest.mark.parametrize(
    "settings",
    [
        {"eta": 0.2},
        {"t_min": 400, "t_max": 500},
        {"late_share": 0.5},
        {"pool_size": 1},
        {"optimizer": "AdamW", "eta": 0.05},
        {"guidance_scale": 1.0},
        {"prompt": "a photo of a t-shirt"},
        {"source_prompt": "a photo of a t-shirt"},
        {"surroundings": "none"},
        {"blend_pixels": 4},
        {"outside_weight": 0.2},
        {"variant": "empty"},
        {"foreground_weight": 1.0, "perceptual_every": 1},
        {"decoding": "plain"},
        {"smoothing": 0.0},
        {"rim": 0.1},
        {"num_iterations": 4},
    ],
    ids=lambda s: next(iter(s)),
)
def test_every_setting_of_harmonize_has_an_effect(settings: dict[str, Any]) -> None:
    assert not np.array_equal(harmonized(), pixels(harmonize(**settings)))


@pytest.mark.parametrize(
    "settings",
    [
        {"start": "object"},
        {"grow": 0.1},
        {"hide_region": False},
        {"hide_from_iteration": 0.5},
        {"hide_from_layer": 0},
        {"surroundings": "none"},
        {"surroundings": "both"},
        {"variant": "score"},
        {"texture": 0.3},
    ],
    ids=str,
)
def test_every_setting_of_remove_has_an_effect(settings: dict[str, Any]) -> None:
    assert not np.array_equal(removed(), pixels(remove(**settings)))


@pytest.mark.parametrize("name", ["sd1_inpaint", "embedded"])
def test_who_sees_the_surroundings_of_an_inpainting_checkpoint(name: str) -> None:
    """Rows are [source, target] twice; who sees nothing is fed a picture erased as a whole."""
    backbone = composer(name).backbone
    fed: list[torch.Tensor] = []
    handle = backbone.unet.register_forward_hook(lambda module, args, output: fed.append(args[0]))
    try:
        for shown in ("none", "target", "both"):
            harmonize(name, num_iterations=1, surroundings=shown)
    finally:
        handle.remove()
    channels = backbone.latent_channels
    # A window of the picture's 160 x 140 is no square.
    height, width = (side * backbone.factor for side in fed[0].shape[-2:])
    grey = backbone.encode(torch.zeros(1, 3, height, width))[0]
    for call, blind in zip(fed, ([0, 1, 2, 3], [0, 2], []), strict=True):
        for row in range(4):
            mask, seen = call[row, channels], call[row, channels + 1 :]
            assert bool(mask.all()) == (row in blind)
            assert torch.allclose(seen, grey, atol=1e-5) == (row in blind)


def test_the_background_term_acts_where_the_decoder_mixes_neighbours() -> None:
    plain = {"num_iterations": 3, "perceptual_every": 1}
    without = remove("sd1", **plain)
    held = remove("sd1", **plain, background_weight=1.0)
    assert not np.array_equal(pixels(without), pixels(held))


def test_the_foreground_term_holds_the_object() -> None:
    mask = scene()[2] > 250

    def moved(weight: float) -> float:
        result = harmonize(
            variant="score", num_iterations=12, perceptual_every=1, smoothing=0.0,
            foreground_weight=weight,
        )  # fmt: skip
        change = pixels(result).astype(float) - scene()[1]
        # The change of detail: overall colour is free.
        fine = change - np.stack([_blurred(change[..., c]) for c in range(3)], -1)
        return float(np.abs(fine[mask]).mean())

    assert moved(3.0) < 0.8 * moved(0.0)


def _blurred(plane: np.ndarray) -> np.ndarray:
    import cv2

    return np.asarray(cv2.GaussianBlur(plane, (0, 0), 3))


def test_a_smooth_start_has_lost_the_object_before_the_first_step() -> None:
    """With no iterations the hole is the fill: its Laplacian is small, the object's is not."""
    import cv2

    inside = cv2.erode(scene()[2], np.ones((9, 9), np.uint8)) > 0

    def rough(**settings: Any) -> float:
        grey = cv2.cvtColor(pixels(remove(num_iterations=0, **settings)), cv2.COLOR_RGB2GRAY)
        return float(np.abs(cv2.Laplacian(grey.astype(float), cv2.CV_64F))[inside].mean())

    assert rough(start="smooth") < 0.3 * rough(start="object")


def test_texture_is_sampled_in_the_hole_of_every_kind_of_checkpoint() -> None:
    """With no iterations the fill is smooth, and what is sampled from it at the end is not."""
    import cv2

    inside = cv2.erode(scene()[2], np.ones((9, 9), np.uint8)) > 0

    def rough(**settings: Any) -> float:
        grey = cv2.cvtColor(pixels(remove(num_iterations=0, **settings)), cv2.COLOR_RGB2GRAY)
        return float(np.abs(cv2.Laplacian(grey.astype(float), cv2.CV_64F))[inside].mean())

    assert rough(texture=0.4) > 1.5 * rough()
    for name in ("sd1", "sd1_inpaint", "sd2_v"):
        assert only_inside(remove(name, texture=0.1), scene()[1])


def test_where_nothing_round_the_hole_has_texture_none_is_laid_in() -> None:
    flat = np.full((140, 160, 3), (60, 90, 140), np.uint8)
    flat[50:80, 60:100] = (200, 40, 40)
    mask = np.zeros(flat.shape[:2], np.uint8)
    mask[50:80, 60:100] = 255
    made = [
        pixels(composer("embedded").remove(flat, mask=mask, **{**FEW, "texture": texture}))
        for texture in (0.0, 0.5)
    ]
    rim = pixels(remove(texture=0.5)).astype(int) - pixels(remove())
    assert np.abs(made[1].astype(int) - made[0]).max() <= 2 < np.abs(rim).max()


def test_the_same_seed_makes_the_same_bytes() -> None:
    assert np.array_equal(removed(), pixels(remove()))
    assert not np.array_equal(removed(), pixels(remove(seed=4)))
    first, second = (np.asarray(image) for image in harmonize(num_images=2).images)
    assert np.array_equal(first, harmonized())
    assert np.array_equal(second, pixels(harmonize(seed=4)))
    assert not np.array_equal(first, second)


def test_cancelling_ends_the_run_and_leaves_the_unet_as_found() -> None:
    unet = composer("sd1").backbone.unet
    before = dict(unet.attn_processors)
    seen: list[tuple[int, int]] = []

    def stop(step: int, total: int, preview: object) -> None:
        seen.append((step, total))
        raise Cancelled

    with pytest.raises(Cancelled):
        remove("sd1", callback=stop)
    assert seen == [(1, 2)]
    assert all(unet.attn_processors[name] is before[name] for name in before)


def test_no_gradient_reaches_the_network() -> None:
    backbone = composer("sd1").backbone
    graded: list[bool] = []
    handle = backbone.unet.register_forward_hook(
        lambda module, args, output: graded.append(torch.is_grad_enabled())
    )
    try:
        harmonize("sd1", foreground_weight=1.0, perceptual_every=1)
    finally:
        handle.remove()
    assert graded == [False, False]
    for module in (backbone.unet, backbone.vae, *backbone.text.encoders):
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())


def test_progress_has_previews_where_asked_for() -> None:
    seen: list[tuple[int, int, Any]] = []
    harmonize(callback=lambda *row: seen.append(row), previews=True)
    assert [row[:2] for row in seen] == [(1, 2), (2, 2)]
    assert all(max(row[2].size) == 128 for row in seen)


def test_a_plateau_ends_early_and_says_so() -> None:
    seen: list[tuple[int, int]] = []
    result = harmonize(
        plateau=1.0, patience=2, num_iterations=30, callback=lambda s, t, _: seen.append((s, t))
    )
    assert "after 3 steps" in " ".join(result.record["notes"])
    assert seen[-1] == (30, 30) and len(seen) == 4


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"t_min": 500, "t_max": 500}, "t_min"),
        ({"t_min": 200, "late_share": 0.5}, "late_t_max"),
        ({"eta": -1}, "eta"),
        ({"variant": "magic"}, "variant"),
        ({"start": "nothing"}, "start"),
        ({"num_iterations": 2.5}, "num_iterations"),
        ({"pool_size": -1}, "pool_size"),
        ({"optimizer": "Adam"}, "optimizer"),
        ({"num_inference_steps": 5}, "num_inference_steps"),
    ],
)
def test_bad_settings_are_named(values: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        validate_settings(get("freecompose").settings, values)


def test_the_published_prompts() -> None:
    released = MethodChoice.of({"name": "freecompose", "preset": "released"}, "harmonize", {})
    assert released.settings.prompts("harmonize") == ("", "A harmonious scene.")
    assert released.settings.prompts("remove") == ("Something in some place.", "Some place.")
    assert get("freecompose").settings_on(None)().prompts("compose")[0] == ""
    own = get("freecompose").settings_on("embedded")()
    assert own.prompts("harmonize") == ("A harmonious scene", "A harmonious scene")


@pytest.mark.parametrize("name", ["sd1", "embedded"])
def test_a_hole_that_is_never_hidden_is_seen(name: str) -> None:
    seen = pixels(remove(name, hide_region=False))
    assert np.array_equal(seen, pixels(remove(name, hide_from_iteration=1.0)))
    with pytest.raises(InputError, match="hide_from_layer is 99, but the model has"):
        remove(name, hide_from_layer=99)


def test_the_weight_outside_is_that_part_of_the_pull() -> None:
    """At 1 what lies round the region is pulled as it is inside: the ramp makes no difference."""
    one, other = (harmonize(outside_weight=1.0, blend_pixels=n, num_iterations=3) for n in (0, 9))
    assert np.array_equal(pixels(one), pixels(other))


def test_what_this_checkpoint_does_not_have_is_refused() -> None:
    with pytest.raises(InputError, match="linear"):
        harmonize(perceptual="encoder")
    picture = scene()[1]
    with pytest.raises(InputError, match="all that the model sees"):
        composer("embedded").remove(picture, mask=np.full(picture.shape[:2], 255, np.uint8), **FEW)


def test_the_record_has_every_setting_and_the_verb() -> None:
    record = remove(start="object").record
    assert record["verb"] == "remove" and record["method"] == "freecompose"
    assert record["request"]["method"]["start"] == "object"
    assert record["request"]["method"]["pool_size"] == 32
