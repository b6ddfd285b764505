"""Checkpoints in the real formats, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from checkpoints import built
from inlay.cli import main
from photos import five_scenes

NAMES = ["sd1", "sd1_inpaint", "sd2_v", "sdxl", "sdxl_inpaint"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("formats")
    background, subject, _ = five_scenes()[0]
    Image.fromarray(background).save(root / "background.png")
    Image.fromarray(subject).save(root / "cup.png")
    mask = np.zeros(background.shape[:2], np.uint8)
    mask[60:180, 300:420] = 255
    Image.fromarray(mask).save(root / "mask.png")
    return root


def region_of(out: str) -> tuple[slice, slice]:
    region = json.loads(out)["region"]
    rows = slice(region["y"], region["y"] + region["height"])
    return rows, slice(region["x"], region["x"] + region["width"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", ["compose", "remove"])
def test_every_format_works_from_the_command_line(
    name: str, verb: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = np.asarray(Image.open(folder / "background.png"))
    out = tmp_path / "out.png"
    words = [verb, str(folder / "background.png")]
    if verb == "compose":
        words += [str(folder / "cup.png"), "--box", "20,335,170,156", "--prompt", "a red hat"]
    else:
        words += ["--mask", str(folder / "mask.png"), "--method", "inpaint"]
    words += ["-o", str(out), "--model", str(built(name)), "--num-inference-steps", "3"]
    assert main([*words, "--guidance-scale", "3", "--json", "--quiet"]) == 0
    printed = capsys.readouterr().out
    record = json.loads(printed)
    family = name.removesuffix("_inpaint").removesuffix("_v")
    assert record["model"]["family"] == family
    assert record["model"]["kind"] == ("inpaint" if "inpaint" in name else "plain")
    differs = (np.asarray(Image.open(out)) != before).any(-1)
    assert differs.any()
    differs[region_of(printed)] = False
    assert not differs.any()


def _refused(model: Path, folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    words = ["compose", str(folder / "background.png"), str(folder / "cup.png"), "-o", str(out)]
    assert main([*words, "--model", str(model)]) == 2
    sentence = capsys.readouterr().err.strip()
    assert len(sentence.splitlines()) == 1
    assert not out.exists()
    return sentence


def test_a_truncated_checkpoint_is_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(built("sd1"), broken)
    weights = next((broken / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    assert "broken" in _refused(broken, folder, tmp_path / "out.png", capsys)


def test_a_folder_without_a_checkpoint_is_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "holiday").mkdir()
    assert "holiday" in _refused(tmp_path / "holiday", folder, tmp_path / "out.png", capsys)


@pytest.mark.parametrize("name", ["sd1", "sd2_v", "sdxl_inpaint"])
def test_half_precision_makes_nearly_the_same_picture(name: str) -> None:
    from inlay import Composer

    background, subject, box = five_scenes()[0]
    pictures = []
    for dtype in ("float32", "bfloat16"):
        composer = Composer.from_pretrained(str(built(name)), device="cpu", dtype=dtype)
        few = {"method": "cdc", "num_inference_steps": 3, "T_in": 0.7}
        result = composer.compose(background, subject, box=box, **few)
        pictures.append(np.asarray(result.image).astype(int))
        assert result.record["dtype"] == dtype
    assert np.abs(pictures[0] - pictures[1]).mean() < 1.0
