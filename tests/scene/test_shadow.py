"""Shadows: closed forms, what they never touch, and whole commands on real photographs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

import profiles
from checkpoints import built
from concepts import learnt
from inlay import Box, Composer, InputError, Request, Result, Subject
from inlay.cli import main
from inlay.pictures.arrays import srgb_decode, srgb_encode
from inlay.pictures.picture import Picture
from inlay.pictures.read import read_picture
from inlay.pictures.write import write_picture
from inlay.result.record import read_back
from inlay.scene.shadow import Shadow, as_shadow, darkness
from inlay.scene.stitch import Layer
from photos import Photo, cup

Capture = pytest.CaptureFixture[str]
BOX = Box(150, 90, 130, 120)
SQUARE = Box(140, 100, 60, 60)
CAST = "cast,direction=30,length=0.8"


def square(box: Box = SQUARE, size: tuple[int, int] = (340, 260)) -> Any:
    """A flat picture of (width, height) and an opaque square to stand in it."""
    picture = read_picture(np.full((size[1], size[0], 3), 150, np.uint8), role="background")
    shape = box.height, box.width
    return picture, Layer(box, np.ones((*shape, 3), np.float32), np.ones(shape, np.float32))


def dark(picture: Picture, layer: Layer, **how: Any) -> Photo:
    """The darkness over the whole picture (h, w)."""
    whole = np.zeros((picture.height, picture.width), np.float32)
    if (found := darkness(picture, layer, Shadow(**how))) is not None:
        whole[found[0].slices] = found[1][..., 0]
    return whole


def composed(background: Any = None, subject: Any = None, **how: Any) -> Result:
    background = data.chelsea() if background is None else background
    how = {"method": "paste", **({} if isinstance(subject, list) else {"box": BOX}), **how}
    return Composer().compose(background, cup() if subject is None else subject, **how)


def pixels(result: Result) -> Photo:
    return np.asarray(result.image)


def opaque(result: Result, number: int = 0) -> Photo:
    """Where a layer hides all (h, w)."""
    image, box = result.layers[number]
    whole = np.zeros((result.picture.height, result.picture.width), bool)
    whole[box.slices] = np.asarray(image)[..., 3] == 255
    return whole


# Closed forms ------------------------------------------------------------------------------


def test_a_contact_is_darkest_at_the_foot_and_fades_to_nothing_on_all_sides() -> None:
    picture, layer = square()
    found = dark(picture, layer, kind="contact")
    below, side = found[160:, 170], found[158, 200:]
    assert 0.5 < below[0] < 0.95 and found.max() < 1
    assert (np.diff(below) <= 1e-6).all() and (np.diff(side) <= 1e-6).all()
    assert np.allclose(found, found[:, 339::-1][:, :340], atol=2e-3)
    # Its reach is finite, and there is none beside the upper half.
    assert (found[160 + 60 :] == 0).all() and (found[:, :80] == 0).all()
    assert (found[:100] == 0).all()


@pytest.mark.parametrize(
    ("direction", "right", "down"), [(30, 1, -1), (150, -1, -1), (-30, 1, 1), (210, -1, 1)]
)
def test_a_cast_shadow_falls_where_it_is_told_to(direction: float, right: int, down: int) -> None:
    picture, layer = square()
    found = dark(picture, layer, kind="cast", direction=direction, length=1.0)
    more = found - dark(picture, layer, kind="contact")
    rows, columns = np.indices(found.shape)
    assert more.min() >= -1e-6
    assert right * (np.average(columns, weights=more) - 169.5) > 15
    assert down * (np.average(rows, weights=more) - 159.5) > 8
    # It ends, softened, where the upper corners' shadow falls.
    angle = np.radians(direction)
    tip = np.array([170 + right * 30 + 60 * np.cos(angle), 160 - 60 * np.sin(angle)])
    far = np.hypot(columns - tip[0], rows - tip[1])
    assert more[far < 6].max() > 0.02
    out = right * (columns - tip[0]) > 2.8 * 60 * 0.25 + 3
    assert (found[out] == 0).all()


def test_a_cast_shadow_is_paler_and_softer_the_farther_it_is() -> None:
    picture, layer = square(Box(60, 60, 30, 120), (460, 260))
    found = dark(picture, layer, kind="cast", direction=0, length=2.0)
    line = found[:, 100:].max(0)
    assert line[20] > 1.2 * line[120] > 0
    longer = dark(picture, layer, kind="cast", direction=0, length=2.5)
    assert np.flatnonzero(longer.any(0))[-1] > np.flatnonzero(found.any(0))[-1]


@pytest.mark.parametrize("kind", ["contact", "cast"])
def test_opacity_softness_and_ground_do_what_they_say(kind: str) -> None:
    picture, layer = square()
    found, half = dark(picture, layer, kind=kind), dark(picture, layer, kind=kind, opacity=0.5)
    assert np.allclose(half, found / 2, atol=0.004)
    assert not dark(picture, layer, kind=kind, opacity=0).any()
    wide = dark(picture, layer, kind=kind, softness=1.5)
    assert np.count_nonzero(wide) > 1.2 * np.count_nonzero(found)
    higher = dark(picture, layer, kind=kind, ground=150)
    assert higher[160:].sum() < found[160:].sum()


def test_only_what_is_near_the_ground_line_touches_it() -> None:
    picture, layer = square(Box(100, 60, 120, 100))
    layer.alpha[40:, :60] = 0
    found = dark(picture, layer, kind="contact")
    # Below the half that hangs, as far from it as from the foot of the other one.
    assert found[162, 190] > 0.2 and found[104:112, 110].max() < 0.01


def test_what_the_picture_cuts_off_below_stands_on_nothing_in_it() -> None:
    picture, layer = square(Box(140, 200, 60, 60))
    assert darkness(picture, layer, Shadow(kind="contact")) is None
    assert darkness(picture, layer, Shadow(kind="contact", ground=255)) is not None


def test_light_is_what_is_multiplied_and_texture_stays() -> None:
    result, plain = composed(shadow="contact"), composed(shadow="none")
    picture = read_picture(data.chelsea(), role="background")
    image, box = result.layers[0]
    layer = Layer(box, np.asarray(image)[..., :3] / np.float32(255),
                  np.asarray(image)[..., 3] / np.float32(255))  # fmt: skip
    share = 1 - dark(picture, layer, kind="contact")[..., None]
    wanted = srgb_encode(srgb_decode(data.chelsea() / 255) * share) * 255
    outside = np.ones(share.shape[:2], bool)
    outside[box.slices] = layer.alpha == 0
    assert np.abs(wanted - pixels(result))[outside].max() < 1.01
    assert (pixels(result).astype(int) <= pixels(plain)).all()


# What is never touched ---------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["auto", "contact", "cast"]),
    place=st.tuples(st.integers(-5, 400), st.integers(-5, 250)),
    side=st.integers(24, 200),
    direction=st.integers(-180, 180),
    length=st.floats(0, 2),
    softness=st.floats(0, 2),
)
def test_neither_the_subject_nor_anything_outside_the_region_changes(
    kind: str, place: tuple[int, int], side: int, direction: int, length: float, softness: float
) -> None:
    shadow: dict[str, Any] = {"kind": kind, "softness": softness}
    if kind == "cast":
        shadow |= {"direction": direction, "length": length}
    box = Box(*place, side, side)
    result, plain = composed(box=box, shadow=shadow), composed(box=box, shadow="none")
    after, before = pixels(result), pixels(plain)
    hidden, may = opaque(result), np.asarray(result.mask) > 0
    assert np.array_equal(after[hidden], before[hidden])
    assert np.array_equal(after[~may], data.chelsea()[~may])
    assert (after.astype(int) <= before).all()
    region = result.record["region"]
    assert result.region.as_dict() == region and may[result.region.slices].sum() == may.sum()
    assert result.region.hull(plain.region) == result.region


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "16", "adobe"])
def test_every_kind_of_picture_keeps_its_samples_outside(mode: str, tmp_path: Path) -> None:
    photo = Image.fromarray(data.chelsea())
    path, extra = tmp_path / "bg.tif", {}
    if mode == "16":
        deep = data.chelsea().astype(np.uint16) * 257
        write_picture(Picture(deep, "RGB", None, "deep"), path)
    else:
        clear = np.full((300, 451), 255, np.uint8)
        clear[205:230] = 0
        icc = profiles.matrix_profile(profiles.ADOBE, profiles.gamma(2.2))
        image = photo.convert({"adobe": "RGB", "LA": "L", "RGBA": "RGB"}.get(mode, mode))
        if mode in ("LA", "RGBA"):
            image.putalpha(Image.fromarray(clear))
        extra = {"icc_profile": icc} if mode == "adobe" else {}
        image.save(path, **extra)
    before = read_picture(path, role="background")
    after = composed(str(path), shadow="contact").picture
    plain = composed(str(path), shadow="none").picture
    may = np.asarray(composed(str(path), shadow="contact").mask) > 0
    assert np.array_equal(after.samples[~may], before.samples[~may])
    darker = (after.samples != plain.samples).reshape(300, 451, -1).any(-1)
    assert darker.sum() > 300 and after.depth == before.depth
    if mode in ("LA", "RGBA"):
        assert np.array_equal(after.alpha(), plain.alpha())
        assert not darker[205:230].any()
    if mode == "adobe":
        # Light is multiplied in the picture's own space.
        dim = after.samples[darker] / 255, plain.samples[darker] / 255
        ratio = (dim[0] ** 2.2 + 1e-4) / (dim[1] ** 2.2 + 1e-4)
        bright = plain.samples[darker].min(-1) > 60
        assert np.abs(ratio[bright] - ratio[bright].mean(-1, keepdims=True)).max() < 0.05


@pytest.mark.parametrize("together", [False, True])
def test_a_shadow_falls_on_subjects_below_and_not_on_those_above(together: bool) -> None:
    low, high = Box(100, 60, 200, 200), Box(140, 60, 100, 100)
    subjects = [Subject(cup(), box=low), Subject(cup(), box=high)]
    made = {
        kind: composed(subject=subjects, together=together, shadow=kind)
        for kind in ("none", "contact")
    }
    plain, after = pixels(made["none"]).astype(int), pixels(made["contact"]).astype(int)
    first, second = (opaque(made["none"], number) for number in (0, 1))
    assert np.array_equal(after[second], plain[second])
    on_first = first & ~second
    assert (after[on_first] < plain[on_first] - 8).any()
    # Above the upper subject's foot and beside it the lower one keeps its colours.
    assert np.array_equal(after[:80][first[:80]], plain[:80][first[:80]])
    other = composed(subject=subjects, together=not together, shadow="contact")
    assert np.abs(after - pixels(other).astype(int)).max() <= 3


# Requests, records, commands ---------------------------------------------------------------


def test_what_is_said_of_a_shadow_is_read_in_three_ways() -> None:
    wanted = Shadow(kind="cast", direction=20, length=0.5)
    for told in ("cast,direction=20, length=0.5", wanted.model_dump(), wanted):
        assert as_shadow(told, "shadow") == wanted
    assert as_shadow(None, "shadow") == Shadow() and Shadow().kind == "auto"
    request = Request.of({"verb": "compose", "background": "a", "subjects": "b", "shadow": "none"})
    assert request.model_dump(mode="json")["shadow"]["kind"] == "none"
    schema = Request.schema_of("compose")["properties"]["shadow"]
    kinds = schema["anyOf"][1]["properties"]["kind"]["enum"]
    assert kinds == ["auto", "none", "contact", "cast"]


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ("long", "shadow kind is 'long'; expected one of auto, none, contact, cast."),
        ("cast,length=9", "shadow length is '9'; expected a finite number from 0 to 5"),
        ("cast,lenght=1", "shadow 'lenght' is unknown; did you mean length?"),
        ("cast,length", "shadow length is ''"),
        ({"opacity": float("nan")}, "shadow opacity is nan; expected a finite number from 0 to 1"),
        (3, "shadow is 3; expected auto, none, contact or cast."),
    ],
)
def test_what_is_wrong_with_a_shadow_is_one_sentence(told: Any, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        as_shadow(told, "shadow")
    assert sentence in str(error.value)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.chelsea()).save("bg.png")
    Image.fromarray(cup()).save("cup.png")
    return tmp_path


COMPOSE = ["compose", "bg.png", "cup.png", "--box", "150,90,130,120", "--quiet"]


@pytest.mark.parametrize("method", ["paste", "reinhard", "phd", "cdc"])
@pytest.mark.parametrize("shadow", [[], ["--shadow", "contact"], ["--shadow", CAST]])
def test_a_picture_with_a_shadow_can_be_made_again(
    folder: Path, shadow: list[str], method: str, capsys: Capture
) -> None:
    few = ["--num-inference-steps", "2"] if method == "cdc" else []
    words = [*COMPOSE, *shadow, "--method", method, *few]
    assert main([*words, "-o", "out.png", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["request"]["shadow"]["kind"] == (shadow or ["", "auto"])[1].partition(",")[0]
    Path("request.json").write_text(json.dumps(record["request"]))
    assert main(["rerun", "out.png", "-o", "again.png", "--quiet"]) == 0
    assert main(["run", "request.json", "-o", "other.png", "--quiet"]) == 0
    for name in ("again.png", "other.png"):
        assert Path(name).read_bytes() == Path("out.png").read_bytes()
    assert main([*words[:6], "--shadow", "none", *words[6 + len(shadow) :], "-o", "bare.png"]) == 0
    bare, made = (np.asarray(Image.open(name)) for name in ("bare.png", "out.png"))
    # Whether something stands there auto decides by itself.
    assert not shadow or (made != bare).any()


def test_records_without_a_shadow_had_none(folder: Path) -> None:
    assert main([*COMPOSE, "--method", "paste", "--shadow", "none", "-o", "out.png"]) == 0
    image = Image.open("out.png")
    record = json.loads(image.info["inlay"])
    assert record["request"].pop("shadow")["kind"] == "none"
    write_picture(read_picture("out.png", role="x"), "old.png", record=json.dumps(record))
    assert read_back("old.png").request["shadow"] == "none"
    assert main(["rerun", "old.png", "-o", "again.png", "--quiet"]) == 0
    assert np.array_equal(np.asarray(Image.open("again.png")), np.asarray(image))


@pytest.mark.parametrize("shadow", ["auto", "contact"])
def test_a_concept_has_no_shadow_and_says_so_where_one_is_asked_for(shadow: str) -> None:
    file, few = str(learnt()), {"num_inference_steps": 2, "box": BOX}
    composer = Composer(str(built("sd1_inpaint")))
    made = composer.compose(data.chelsea(), file, shadow=shadow, **few)
    bare = composer.compose(data.chelsea(), file, shadow="none", **few)
    assert np.array_equal(pixels(made), pixels(bare))
    said = [note for note in made.record["notes"] if "no shadow" in note]
    assert len(said) == (shadow == "contact")


@pytest.mark.parametrize("method", ["phd", "cdc"])
def test_other_checkpoints_see_the_shadow_first(method: str) -> None:
    composer = Composer(str(built("sd1")))
    few = {"num_inference_steps": 2} if method == "cdc" else {"harmonize_steps": 2}
    given: dict[str, Any] = {"box": BOX, "method": method, **few}
    result = composer.compose(data.chelsea(), cup(), shadow="cast", **given)
    bare = composer.compose(data.chelsea(), cup(), shadow="none", **given)
    may = np.asarray(result.mask) > 0
    assert np.array_equal(pixels(result)[~may], data.chelsea()[~may])
    assert result.region.hull(bare.region) == result.region != bare.region
    both = composer.compose(
        data.chelsea(), [Subject(cup(), box=BOX), Subject(cup(), box=Box(170, 60, 80, 90))],
        together=True, shadow="contact", method=method, **few,
    )  # fmt: skip
    assert (pixels(both) != data.chelsea()).any()


def test_every_phase_and_seed_has_its_shadow_and_makes_itself_again() -> None:
    phases = {"phases": "remove,paste,harmonize", "remove": "telea", "method": "reinhard"}
    composer = Composer()
    result = composer.compose(data.chelsea(), cup(), box=BOX, keep_phases=True, shadow=CAST,
                              num_images=2, **phases)  # fmt: skip
    assert list(result.kept[1]) == ["remove", "paste", "harmonize"]
    for kept in result.kept:
        for picture, record in kept.values():
            request = {**record["request"], "background": data.chelsea()}
            request["subjects"] = [{**record["request"]["subjects"][0], "picture": cup()}]
            again = composer.run(Request.of({**request, "model": None}))
            assert np.array_equal(again.picture.samples, picture.samples)


def test_layers_are_the_subjects_own() -> None:
    result, bare = composed(shadow=CAST), composed(shadow="none")
    for made, plain in zip(result.layers, bare.layers, strict=True):
        assert np.array_equal(np.asarray(made[0]), np.asarray(plain[0])) and made[1] == plain[1]
        assert np.array_equal(np.asarray(made.mask), np.asarray(made.image)[..., 3])
    assert result.record["subjects"] == bare.record["subjects"]


def test_the_record_names_what_was_drawn() -> None:
    result = Composer().compose(data.chelsea(), cup(), random=True, num_images=3, method="paste")
    boxes = [record["subjects"][0]["box"] for record in result.records]
    assert len({tuple(box.values()) for box in boxes}) == 3
    assert boxes[0] == result.layers[0].box.as_dict()
