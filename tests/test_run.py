"""Several threads on one Composer, and every kind of request by every door."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from checkpoints import built
from concepts import learnt
from inlay import Box, Cancelled, Composer, Request, Result, Subject
from inlay.cli import main
from inlay.pictures.read import read_record
from photos import Photo, cup, cutout
from reruns import needs

BOX, OTHER = Box(150, 60, 150, 140), Box(300, 30, 120, 100)


def pixels(result: Result) -> Photo:
    return np.asarray(result.image)


def calls(composer: Composer) -> dict[str, Callable[[], Result]]:
    """Methods that change the network while they run: attention, weights, what it reads."""
    background, shared = data.chelsea(), {"box": BOX, "seed": 3}
    mask = np.zeros(background.shape[:2], np.uint8)
    mask[OTHER.slices] = 255
    concept = str(learnt("embedded"))
    return {
        "cdc": lambda: composer.compose(
            background, cup(), method="cdc", prompt="a cup", words_inside="cup", guidance_scale=3,
            num_inference_steps=3, **shared,
        ),
        "freecompose": lambda: composer.remove(
            background, mask=mask, method="freecompose", num_iterations=4, texture=0.2, seed=3
        ),
        "phd": lambda: composer.compose(
            background, cup(), method="phd", inpaint=True, num_inference_steps=3, **shared
        ),
        "dreamcom": lambda: composer.compose(
            background, concept, method="dreamcom", num_inference_steps=3, **shared
        ),
    }  # fmt: skip


def test_what_the_embedded_checkpoint_is_too_small_for_is_said_before_it_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the record, and in the log before the first step; on other checkpoints, or where nothing
    new is painted, it is not.
    """
    caplog.set_level("INFO", "inlay")
    told, heard = "the embedded checkpoint paints textures, not things; for {} use", list[str]()
    few: dict[str, Any] = {"box": BOX, "num_inference_steps": 1}
    composer = Composer(device="cpu")
    for given, name in (
        ({"method": "cdc", "preset": "texture"}, "texture"),
        ({"method": "cdc"}, None),
        ({"method": "freecompose", "preset": "semantic", "prompt": "a red cup",
          "source_prompt": "a cup", "box": BOX}, "semantic"),
    ):  # fmt: skip
        caplog.clear()
        own = given if "box" in given else {**few, **given}

        def hear(step: int, total: int, preview: Any) -> None:
            heard.append(caplog.text)

        result = composer.compose(data.chelsea(), cup(), callback=hear, **own)
        notes = [note for note in result.record["notes"] if "embedded" in note]
        assert [note.startswith(told.format(name)) for note in notes] == [True] * bool(name)
        # A page shows it too, where nobody types options.
        assert not any("--" in note for note in notes)
        assert ("not things" in heard[-1]) == ("not things" in caplog.text) == bool(name)
    other = Composer(str(built("sd1")), device="cpu")
    result = other.compose(data.chelsea(), cup(), method="cdc", preset="texture", **few)
    assert not any("embedded" in note for note in result.record["notes"])


def test_threads_that_share_a_composer_get_what_each_would_get_alone() -> None:
    composer = Composer(device="cpu")
    alone = {name: pixels(call()) for name, call in calls(composer).items()}
    processors = dict(composer.backbone.unet.attn_processors)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            waiting = {name: pool.submit(call) for name, call in calls(composer).items()}
            for name, each in waiting.items():
                assert np.array_equal(pixels(each.result()), alone[name]), name
    assert composer.backbone.unet.attn_processors == processors
    for name, call in calls(composer).items():
        assert np.array_equal(pixels(call()), alone[name]), name


def test_a_thread_that_is_stopped_leaves_the_others_as_they_are() -> None:
    composer = Composer(device="cpu")

    def stop(step: int, total: int, preview: Any) -> None:
        raise Cancelled

    def stopped() -> None:
        with pytest.raises(Cancelled):
            composer.compose(data.chelsea(), str(learnt("embedded")), box=BOX, callback=stop,
                             num_inference_steps=3)  # fmt: skip

    wanted = pixels(calls(composer)["cdc"]())
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(stopped), pool.submit(calls(composer)["cdc"])
        first.result()
        assert np.array_equal(pixels(second.result()), wanted)


def test_a_callback_may_use_the_same_composer() -> None:
    composer, inner = Composer(device="cpu"), []

    def again(step: int, total: int, preview: Any) -> None:
        if not inner:
            inner.append(None)
            inner.append(pixels(composer.compose(data.chelsea(), cup(), box=BOX, method="cdc",
                                                 num_inference_steps=1)))  # fmt: skip

    wanted = pixels(calls(composer)["phd"]())
    made = composer.compose(
        data.chelsea(), cup(), box=BOX, method="phd", inpaint=True, num_inference_steps=3, seed=3,
        callback=again,
    )  # fmt: skip
    assert np.array_equal(pixels(made), wanted)
    assert len(inner) == 2


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.chelsea()).save("bg.jpg", quality=92)
    Image.fromarray(cup()).save("cup.png")
    Image.fromarray(cutout(data.chelsea(), Box(60, 20, 300, 260))).save("cat.png")
    Image.fromarray(data.coffee()).save("coffee.png")
    mask = np.zeros((300, 451), np.uint8)
    mask[OTHER.slices] = 255
    Image.fromarray(mask).save("mask.png")
    Image.fromarray(np.where(mask > 0, 255, 0).astype(np.uint8)[:, ::-1]).save("lines.png")
    return tmp_path


def sd1() -> list[str]:
    return ["--model", str(built("sd1")), "--device", "cpu", "--dtype", "float32"]


COMPOSE = ["compose", "bg.jpg", "cup.png", "--box", "150,60,150,140"]
FEW = ["--num-inference-steps", "2"]
KINDS: dict[str, Callable[[], list[str]]] = {
    "one subject": lambda: [*COMPOSE, "--method", "cdc", *FEW, "--rotate", "15", "--flip"],
    "two, one after the other": lambda: [
        "compose", "bg.jpg", "cup.png", "cat.png", "--method", "phd", "--random", "--seed", "5",
        "--set", "harmonizer_samples=2",
    ],
    "two together": lambda: [
        "compose", "bg.jpg", "cup.png", "coffee.png", "--box", "20,150,110,120", "--box",
        "300,30,120,100", "--cut=-", "--cut", "box", "--cut-box=-", "--cut-box", "160,20,280,250",
        "--method", "cdc", *FEW, "--together",
    ],
    "phases": lambda: [
        *COMPOSE, "--phases", "remove,paste,harmonize", "--remove-method", "telea", "--set",
        "remove.radius=9", "--method", "cdc", *FEW, "--preset", "immerse",
    ],
    "a mask and a drawing": lambda: [
        *COMPOSE, "--phases", "remove,paste", "--remove-mask", "mask.png", "--remove-method",
        "freecompose", "--set", "remove.num_iterations=2", "--control", "lines.png",
    ],
    "harmonize": lambda: [
        "harmonize", "bg.jpg", "--mask", "mask.png", "--background", "bg.jpg", "--method",
        "freecompose", "--set", "num_iterations=2",
    ],
    "remove": lambda: ["remove", "bg.jpg", "--mask", "mask.png", "--method", "inpaint", *FEW],
    "remove without a model": lambda: ["remove", "bg.jpg", "--mask", "mask.png", "--method=telea"],
    "a scene": lambda: [
        "scene", "cup.png", "--prompt", "a photo of a landscape", "--size", "96x80", *FEW, "--set",
        "refine_steps=2",
    ],
    "a scene of two": lambda: [
        "scene", "cup.png", "cat.png", "--prompt", "a house", "--size", "80x80", *FEW, "--box",
        "5,5,30,30", "--box", "40,40,30,30", "--set", "harmonize=false",
    ],
    "a concept": lambda: [
        "compose", "bg.jpg", str(learnt("embedded")), "--box", "150,60,150,140", *FEW,
    ],
    "a LoRA": lambda: [
        *COMPOSE, "--method", "cdc", *FEW, "--model", str(built("sd1_inpaint")), "--device", "cpu",
        "--lora", f"{learnt()}:0.7",
    ],
    "another checkpoint": lambda: [*COMPOSE, "--method", "phd", *sd1(), "--set=inpaint=true", *FEW],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_makes_the_same_bytes_by_every_door(folder: Path, kind: str) -> None:
    assert main([*KINDS[kind](), "-o", "out.png", "-q"]) == 0
    asked = json.loads(read_record("out.png") or "")["request"]
    Path("request.json").write_text(json.dumps(asked))
    assert main(["run", "request.json", "-o", "run.png", "-q"]) == 0
    outside = kind in ("a concept", "a LoRA", "another checkpoint")
    given = needs("out.png") if outside else []
    assert main(["rerun", "out.png", "-o", "rerun.png", *given, "-q"]) == 0
    request = Request.read("request.json")
    assert json.loads(request.model_dump_json()) == asked
    model = request.model
    fields = {} if model is None else dict(model)
    composer = Composer(fields.pop("name", "embedded"), **fields)
    result = composer.run(request)
    result.save("python.png")
    assert json.loads(json.dumps(result.record["request"])) == asked
    for name in ("run", "rerun", "python"):
        assert Path(f"{name}.png").read_bytes() == Path("out.png").read_bytes(), name


def test_several_subjects_and_settings_as_data() -> None:
    """The request in Python's own words says the same as its JSON."""
    composer = Composer(device="cpu")
    subjects = [Subject(cup(), box=BOX), Subject(cup(), at=(60, 60), scale=0.2)]
    one = composer.compose(data.chelsea(), subjects, method="feather", radius=9.0)
    request = Request.of(
        {"verb": "compose", "background": data.chelsea(),
         "method": {"name": "feather", "radius": 9}, "subjects": [
             {"picture": cup(), "box": [150, 60, 150, 140]},
             {"picture": cup(), "at": [60, 60], "scale": 0.2},
         ]}
    )  # fmt: skip
    other = composer.run(request)
    assert np.array_equal(pixels(one), pixels(other))
    assert one.record["request"] == other.record["request"]
