"""What is listed, what is imported for it, and the names of the package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

import inlay
from inlay.checkpoints.hub import hub_cache, is_cached
from inlay.cli import main


def test_methods_and_models_as_json_and_as_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed == {name: listed[name] for name in inlay.methods()}
    t_in = next(s for s in listed["cdc"]["settings"] if s["name"] == "T_in")
    assert (t_in["minimum"], t_in["maximum"]) == (0, 1)
    pictures = [m for m in listed.values() if not m["concepts"]]
    defaults = sorted(v for m in pictures for v in m["default_for"])
    assert defaults == ["compose", "harmonize", "remove", "scene"]
    assert [n for n, m in listed.items() if m["concepts"] and m["default_for"]] == ["exemplar"]
    assert listed["dreamcom"]["invents"] == ["dreamcom"] and listed["paste"]["invents"] == []
    assert main(["methods"]) == 0
    assert "a larger one for augment, scribble, stylize, texture" in capsys.readouterr().out
    assert main(["methods", "cdc"]) == 0
    table = capsys.readouterr().out
    for setting in listed["cdc"]["settings"]:
        row = next(line for line in table.splitlines() if line.split()[:1] == [setting["name"]])
        assert setting["description"] in row
    assert main(["models", "--json"]) == 0
    names = [model["name"] for model in json.loads(capsys.readouterr().out)]
    assert names[0] == "embedded"
    assert main(["models"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in names)


def test_the_hub_cache_is_read_as_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert hub_cache() == tmp_path / "hub"
    snapshot = tmp_path / "hub/models--someone--model/snapshots/0123abcd"
    (snapshot / "unet").mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    assert not is_cached("someone/model"), "an unfinished download was taken for a model"
    (snapshot / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"x")
    assert is_cached("someone/model")
    assert not is_cached("someone/other")


def test_nothing_heavy_is_imported_by_help_or_listing() -> None:
    code = (
        "import sys, inlay; from inlay.cli import main\n"
        "light = {m for m in ('numpy', 'torch', 'PIL') if m in sys.modules}\n"
        "assert main(['--help']) == 0 and main(['compose', '--help']) == 0\n"
        "light |= {m for m in ('numpy', 'torch', 'cv2') if m in sys.modules}\n"
        "assert not light, light\n"
        "assert main(['methods', 'cdc']) == 0 and main(['models']) == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'cv2', 'skimage'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_deep_learning_library_is_imported_where_no_checkpoint_runs(tmp_path: Path) -> None:
    """The cutter and the shadow network run by numpy alone; a cut-out needs no matting library."""
    photo, clear = data.chelsea(), np.zeros((300, 451, 4), np.uint8)
    clear[50:250, 100:350] = 255
    Image.fromarray(photo).save(tmp_path / "cat.png")
    Image.fromarray(clear).save(tmp_path / "clear.png")
    Image.fromarray(clear[..., 3]).save(tmp_path / "mask.png")
    compose, place = "compose cat.png clear.png", "--box 20,20,200,200 -o o.png"
    lines = [f"{compose} {place} --method {m}" for m in ("paste", "feather", "poisson", "reinhard")]
    lines += ["remove cat.png --mask mask.png -o o.png --method telea"]
    # Behind these the subject has to be cut out, by the matting library.
    cuts = [f"compose cat.png cat.png {place} --method paste", "cut cat.png -o o.png"]
    code = (
        "import sys; from inlay.cli import main\n"
        "heavy = lambda *more: {'torch', 'diffusers', 'transformers', *more} & set(sys.modules)\n"
        f"for line in {lines + cuts!r}:\n"
        "    assert main(line.split()) == 0, line\n"
        f"    more = () if line in {cuts!r} else ('numba', 'scipy', 'pandas')\n"
        "    assert not heavy(*more), (line, heavy(*more))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_the_public_names() -> None:
    assert inlay.Box is __import__("inlay.pictures.arrays", fromlist=["Box"]).Box
    assert issubclass(inlay.InputError, ValueError)
    assert set(inlay.__all__) <= set(dir(inlay))
    with pytest.raises(AttributeError, match="no attribute 'Compsoer'"):
        _ = inlay.Compsoer
    picture = Image.fromarray(data.coffee()[60:260, 180:420])
    picture.putalpha(128)
    cut = inlay.cut(picture)
    assert (cut.mode, cut.size) == ("RGBA", (240, 200))
