"""The file of a concept: its pictures, and what else loads it or must not."""

from __future__ import annotations

import base64
import json
import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from skimage import data

from checkpoints import built, loaded
from concepts import learnt
from inlay import Box, InputError
from inlay.checkpoints.concept import (
    Sight,
    attach,
    is_concept,
    read_concept,
    write_concept,
)
from inlay.checkpoints.load import load_backbone
from inlay.learning.photos import Photo, find_views, portrait
from inlay.learning.samples import example
from inlay.learning.settings import LearnConfig


def _sight(picture: str | None) -> Sight:
    return Sight(photo="cup.jpg", sha256="0", aspect=1, size=0.5, picture=picture)


def _encoded(image: Image.Image, kind: str) -> str:
    file = BytesIO()
    image.save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def test_a_file_has_the_object_of_each_photo_in_it() -> None:
    photo, box = data.astronaut()[:, :300], Box(20, 10, 200, 300)
    (found,) = find_views([Photo(photo, box=box)])
    image = _sight(portrait(found)).image()
    assert image is not None
    assert (image.mode, image.size) == ("RGB", (200, 300))
    difference = np.asarray(image, float) - photo[box.slices]
    assert (difference**2).mean() ** 0.5 < 6
    y, x = np.mgrid[: photo.shape[0], : photo.shape[1]]
    shape = (((x - 120) / 60) ** 2 + ((y - 160) / 100) ** 2 < 1).astype(np.uint8) * 255
    (masked,) = find_views([Photo(photo, mask=shape)])
    within = _sight(portrait(masked)).image()
    assert within is not None and within.mode == "RGBA"
    # A matte of it: solid inside, clear outside, its own in between.
    alpha, hard = np.asarray(within)[..., 3].astype(float), shape[masked.box.slices] > 0
    assert ((alpha > 127) == hard).mean() > 0.9 and np.abs(alpha - 255 * hard).mean() < 15
    inner = cv2.erode(hard.astype(np.uint8), np.ones((31, 31))) > 0
    assert alpha[inner].mean() > 240
    assert np.asarray(within.convert("RGB"))[100, 60] == pytest.approx(photo[160, 120], abs=20)
    large = np.repeat(np.repeat(photo, 4, 0), 4, 1)
    (big,) = find_views([Photo(large, box=Box(0, 0, 900, 2000))])
    small = _sight(portrait(big)).image()
    assert small is not None and small.size == (230, 512)
    assert example(found, LearnConfig(keep_photos=False), 64).sight.picture is None
    assert _sight(None).image() is None


@pytest.mark.parametrize(
    "picture",
    [
        "no base64!",
        base64.b64encode(b"no picture").decode(),
        _encoded(Image.new("RGB", (1025, 8)), "WEBP"),
        _encoded(Image.new("RGB", (8, 8)), "PNG"),
        _encoded(Image.fromarray(data.coffee()), "WEBP")[:4000],
        "A" * ((1 << 23) + 4),
    ],
)
def test_pictures_that_are_not_ours_are_one_sentence(picture: str) -> None:
    with pytest.raises(InputError, match=r"picture of cup\.jpg .*expected a WebP") as error:
        _sight(picture).image()
    assert str(error.value).count("\n") == 0


def test_ten_large_pictures_hinder_no_reader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import diffusers

    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    (found,) = find_views([Photo(noise, box=Box(0, 0, 512, 512))])
    # With a text encoder's LoRA in it, as diffusers warns of every file without.
    path, source = tmp_path / "cup.safetensors", learnt(text_encoder=True)
    sights = tuple(_sight(portrait(found)) for _ in range(10))
    said = read_concept(source).model_copy(update={"sights": sights})
    write_concept(path, said, load_file(source))
    with safe_open(path, "pt") as file:
        assert len((file.metadata() or {})["inlay_learned"]) > 1_000_000
    assert is_concept(path) and read_concept(path, loaded("sd1_inpaint")).sights == sights
    library: Any = diffusers
    pipe = library.StableDiffusionInpaintPipeline.from_pretrained(
        built("sd1_inpaint"), safety_checker=None
    )
    log = logging.getLogger("diffusers")
    log.addHandler(caplog.handler)
    try:
        caplog.clear()
        pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    finally:
        log.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert pipe.get_active_adapters()


def test_a_lora_that_was_learnt_for_another_checkpoint_is_refused(tmp_path: Path) -> None:
    """Its layers are the same, so nothing but the header tells."""
    other = load_backbone(built("sd1"), device="cpu").hash
    said = read_concept(learnt())
    path = tmp_path / "cup.safetensors"
    base = said.base.model_copy(update={"hash": other})
    write_concept(path, said.model_copy(update={"base": base}), load_file(learnt()))
    with pytest.raises(InputError, match=r"cup\.safetensors was learnt for .* has other weights"):
        load_backbone(built("sd1_inpaint"), device="cpu", loras=[(path, 1.0)])
    # What was merged before it does not make another checkpoint of it.
    load_backbone(built("sd1_inpaint"), device="cpu", loras=[(learnt(), 0.5), (learnt(), 0.5)])


def test_files_that_say_too_much_are_one_sentence(tmp_path: Path) -> None:
    tensors, said = load_file(learnt()), json.loads(_said(learnt()))
    sight = said["sights"][0]
    cases = [
        {**said, "context": float("nan")},
        {**said, "context": 1e300},
        {**said, "sights": [{**sight, "picture": None}] * 2000},
        {**said, "sights": [{**sight, "aspect": float("inf")}]},
        {**said, "sights": [{**sight, "size": 7}]},
        {**said, "prompt": "x" * 10**6},
        {**said, "token": "\x1b[31m"},
        {**said, "settings": 1},
        [],
    ]
    texts = [json.dumps(case) for case in cases]
    for number, text in enumerate([*texts, "[" * 10**6, "[" + "[]," * 10**6 + "[]]", "{", "\0"]):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path, {"inlay_learned": text})
        with pytest.raises(InputError, match="cannot read; learn it again") as error:
            read_concept(path, loaded("sd1_inpaint"))
        assert str(error.value).isprintable() and len(str(error.value)) < 300


def test_layers_that_do_not_fit_are_one_sentence_and_leave_no_trace(tmp_path: Path) -> None:
    source = learnt(text_encoder=True)
    tensors, said = load_file(source), _said(source)
    part = next(name for name in tensors if name.startswith("unet.") and "lora_A" in name)
    text = next(name for name in tensors if name.startswith("text_") and "lora_A" in name)
    base = load_backbone(built("sd1_inpaint"), device="cpu")
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    less = {name: value for name, value in tensors.items() if name != part}
    cases: list[dict[str, Any]] = [
        tensors | {part: torch.zeros(5)},
        tensors | {text: torch.zeros(5)},
        tensors | {part: torch.zeros(2, 7)},
        less,
        less | {part.replace("unet.", "unet.(.*)*(.*)*(.*)*X"): tensors[part]},
        tensors | {part.replace(".lora_A.weight", ".dora_scale"): torch.ones(1)},
        tensors | {part.replace(".lora_A.weight", ".lora_C.weight"): torch.ones(1)},
        tensors | {"unet.conv_in.weight": torch.ones(1)},
    ]
    for number, case in enumerate(cases):
        path = tmp_path / f"{number}.safetensors"
        save_file(case, path, {"inlay_learned": said})
        with pytest.raises(InputError, match=rf"{number}\.safetensors"), attach(base, path):
            pass
        assert all(torch.equal(base.unet.state_dict()[name], old) for name, old in before.items())


def _said(path: Path) -> str:
    with safe_open(path, "pt") as file:
        return str((file.metadata() or {})["inlay_learned"])
