"""The table of docs/checkpoints.md: which method runs on which kind of checkpoint."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage import data

import checkpoints
import flows
from concepts import learnt
from inlay import Box, Composer, InputError, Result
from inlay.checkpoints.load import load_backbone
from inlay.diffusion.branches import new_adapter, new_harmonizer
from photos import Photo, cutout

# The table's columns, and the checkpoint of each.
KINDS = {
    "SD 1.x": "sd1", "SD 1.x inpaint": "sd1_inpaint", "SD 2.x": "sd2_v", "SDXL": "sdxl",
    "SDXL inpaint": "sdxl_inpaint", "SD 3.x": "sd3", "FLUX.1": "flux", "Fill": "flux_fill",
    "Kontext": "flux_kontext", "Qwen-Image": "qwen", "Qwen Edit": "qwen_edit",
}  # fmt: skip
BOX = Box(40, 30, 60, 50)
FEW: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0, "prompt": "a cat"}


def folder(name: str) -> Path:
    return flows.built(name) if name in flows.BUILDERS else checkpoints.built(name)


@functools.cache
def composer(name: str) -> Composer:
    return Composer.from_pretrained(str(folder(name)), device="cpu", dtype="float32")


@functools.cache
def photos() -> tuple[Photo, Photo]:
    """A background and a subject."""
    background = np.ascontiguousarray(data.chelsea()[:140, 200:360])
    return background, cutout(data.coffee()[::4, ::4], Box(30, 5, 60, 50))


@functools.cache
def branch(make: Callable[[Any], Any], name: str) -> str:
    """The folder of an untrained network that works beside a checkpoint."""
    root = Path(tempfile.mkdtemp(prefix="inlay-branch-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    make(composer(name).backbone).save_pretrained(root / "it")
    return str(root / "it")


@functools.cache
def ip_adapter(name: str) -> str:
    """The file of a random IP-Adapter; where a family has none, one for another."""
    own = name if name.startswith(("sd1", "sdxl")) else "sd1"
    root = Path(tempfile.mkdtemp(prefix="inlay-ip-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return str(checkpoints.build_ip_adapter(root, composer(own).backbone) / "ip.safetensors")


def compose(name: str, method: str, **settings: Any) -> Result:
    background, cup = photos()
    known = {"method": method, "shadow": "none", **settings}
    return composer(name).compose(background, cup, box=BOX, **known)


def remove(name: str, **settings: Any) -> Result:
    mask = np.zeros(photos()[0].shape[:2], np.uint8)
    mask[BOX.slices] = 255
    return composer(name).remove(photos()[0], mask=mask, **settings)


def concept(name: str, method: str) -> Result:
    model = str(folder(name)) if name in flows.BUILDERS else name
    if name in flows.BUILDERS:
        from inlay.learning.lora import set_up
        from inlay.learning.settings import LearnConfig

        set_up(load_backbone(model, device="cpu"), LearnConfig())
    return composer(name).compose(
        photos()[0], str(learnt(name)), box=BOX, method=method, shadow="none", **FEW
    )


DELTA: dict[str, Any] = {
    "method": "freecompose", "num_iterations": 2, "texture": 0.0, "eta": 3.0,
    "foreground_weight": 0.0, "background_weight": 0.0,
}  # fmt: skip
RUNS: dict[str, Callable[[str], Result]] = {
    "cdc": lambda name: compose(name, "cdc", **FEW),
    "cdc, `words_inside`": lambda name: compose(name, "cdc", words_inside="cat", **FEW),
    "phd": lambda name: compose(name, "phd", **FEW, harmonize_steps=2, harmonize_strength=0.6),
    "phd, a trained harmonizer": lambda name: compose(
        name, "phd", harmonizer=branch(new_harmonizer, name), inpaint=False, harmonizer_steps=2
    ),
    "phd, an IP-Adapter": lambda name: compose(
        name, "phd", **FEW, harmonize=False, ip_adapter=ip_adapter(name)
    ),
    "freecompose, compose": lambda name: compose(name, **DELTA),
    "freecompose, remove": lambda name: remove(name, **DELTA),
    "freecompose, a drawing": lambda name: compose(
        name, "freecompose", variant="semantic", adapter=branch(new_adapter, name),
        num_iterations=1, control=np.ascontiguousarray(photos()[0][..., 0] // 200 * 255),
    ),
    "inpaint": lambda name: remove(name, method="inpaint", **FEW),
    "dreamcom": lambda name: concept(name, "dreamcom"),
}  # fmt: skip


@functools.cache
def table() -> dict[str, dict[str, str]]:
    """The cells of the documentation's table, by method and kind."""
    text = Path(__file__).parents[2].joinpath("docs", "checkpoints.md").read_text()
    lines = [
        line for line in text.split("## Which method runs on what")[1].splitlines() if "|" in line
    ]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2 : 2 + len(RUNS)]}


def test_the_table_has_all_methods_and_kinds() -> None:
    assert list(table()) == list(RUNS)
    assert all(list(row) == list(KINDS) for row in table().values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", RUNS)
def test_a_method_runs_on_a_kind_or_says_why_not(method: str, kind: str) -> None:
    run, name = RUNS[method], KINDS[kind]
    if table()[method][kind] == "yes":
        result = run(name)
        assert result.image.size == photos()[0].shape[1::-1]
        differs = (np.asarray(result.image) != photos()[0]).any(-1)
        assert differs.any() and not (differs & (np.asarray(result.mask) == 0)).any()
        return
    with pytest.raises(InputError) as error:
        run(name)
    text = str(error.value)
    assert text.endswith(".") and ". " not in text.replace("1. ", "") and "\n" not in text
    reasons = "transformer", "attends to text and picture at once", "for Stable Diffusion 1.x or XL"
    assert any(reason in text for reason in reasons)


def test_paint_by_example_is_refused_in_one_sentence(tmp_path: Path) -> None:
    index = {
        "_class_name": "PaintByExamplePipeline",
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "image_encoder": ["paint_by_example", "PaintByExampleImageEncoder"],
    }  # fmt: skip
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="has no text_encoder, but inlay runs") as error:
        load_backbone(tmp_path, device="cpu")
    assert str(error.value).endswith(".")
