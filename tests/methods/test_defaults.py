"""Defaults by checkpoint: published values everywhere, tuned ones on the embedded one alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import built
from inlay import Composer, InputError, Request
from inlay.checkpoints.folder import family_of
from inlay.cli import main
from inlay.learning.settings import LearnConfig
from inlay.methods.registry import all_methods, get
from inlay.settings import knobs
from photos import five_scenes

ROOT = Path(__file__).parents[2]
# (published, embedded): what papers and code say, and what 0.1 had everywhere.
KNOWN: dict[str, dict[str, tuple[Any, Any]]] = {
    "cdc": {
        "guidance_scale": (5.0, 5.0), "temperature": (1.0, 0.9), "smoothing": (0.0, 0.03),
        "decoding": ("plain", "residual"), "words_weight": (1.0, 0.4), "T_in": (0.8, 0.8),
    },
    "phd": {
        "guidance_scale": (7.5, 3.0), "inpaint": (True, False), "strength": (1.0, 0.35),
        "harmonizer_strength": (1.0, 0.5), "harmonizer_samples": (1, 4), "restraint": (0.0, 1.0),
    },
    "freecompose": {
        "guidance_scale": (7.5, 1.0), "num_iterations": (200, 40), "eta": (0.49, 0.075),
        "variant": ("empty", "score"), "pool_size": (0, 32), "outside_weight": (0.2, 0.0),
        "foreground_weight": (0.1, 0.25), "texture": (0.0, 0.4), "smoothing": (0.03, 0.3),
    },
    "dreamcom": {"guidance_scale": (7.5, 3.0)},
    "dreamedit": {"guidance_scale": (7.5, 3.0)},
    "inpaint": {"guidance_scale": (7.5, 5.0)},
}  # fmt: skip


def asked(method: dict[str, Any] | str, model: str | None) -> dict[str, Any]:
    """The settings of a request that was never run."""
    given = {"background": "bg.png", "subjects": ["cup.png"], "method": method}
    if model is not None:
        given["model"] = {"name": model}
    return dict(Request.of({"verb": "compose", **given}).model_dump()["method"])


@pytest.mark.parametrize("name", KNOWN)
def test_each_checkpoint_has_its_column(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for column, model in enumerate(("owner/stable-diffusion", "embedded")):
        wanted = {key: values[column] for key, values in KNOWN[name].items()}
        settings = get(name).settings_on("embedded" if model == "embedded" else None)()
        assert {key: getattr(settings, key) for key in wanted} == wanted
        assert main(["methods", name, "--model", model, "--json"]) == 0
        listed = json.loads(capsys.readouterr().out)[name]["settings"]
        told = {row["name"]: row["default"] for row in listed}
        assert {key: told[key] for key in wanted} == wanted
        # But for the defaults both columns are the same settings, with the same words.
        for key, knob in knobs(type(settings)).items():
            twin = knobs(get(name).settings)[key]
            assert (knob.bounds, knob.description, knob.type) == (
                twin.bounds, twin.description, twin.type,
            )  # fmt: skip


def test_what_is_given_and_what_a_preset_says_stay() -> None:
    assert asked("phd", None) == asked("phd", "embedded")
    assert asked("phd", "embedded")["inpaint"] is False
    assert asked("phd", "owner/model")["inpaint"] is True
    for model in ("embedded", "owner/model"):
        given = asked({"name": "phd", "guidance_scale": 4, "harmonizer_samples": 2}, model)
        assert (given["guidance_scale"], given["harmonizer_samples"]) == (4, 2)
        for name, preset in (
            ("phd", "paper"), ("freecompose", "released"), ("freecompose", "paper"),
            ("cdc", "released"),
        ):  # fmt: skip
            said = {"preset": preset, **get(name).presets[preset]}
            published = {**get(name).settings_on(None)().model_dump(), **said}
            assert asked({"name": name, "preset": preset}, model) == {"name": name, **published}
        assert asked({"name": "cdc", "words_weight": 0.3, "temperature": None}, model) == {
            **asked("cdc", model), "words_weight": 0.3,
        }  # fmt: skip


def test_checks_are_made_with_the_defaults_that_hold() -> None:
    gentle = {"name": "phd", "strength": 0.2}
    assert asked(gentle, "embedded")["strength"] == 0.2
    # Where the ring is painted its strength must be above harmonizing's.
    with pytest.raises(InputError, match=r"harmonize_strength is 0\.3"):
        asked(gentle, "owner/model")
    with pytest.raises(InputError, match="harmonize_strength"):
        asked({"name": "phd", "inpaint": True, "harmonize_strength": 0.5}, "embedded")
    assert asked({"name": "phd", "harmonize_strength": 0.5}, "owner/model")["strength"] == 1.0


def test_a_folder_of_the_embedded_kind_is_known_without_loading(tmp_path: Path) -> None:
    assert family_of("embedded")
    index = tmp_path / "model_index.json"
    assert not family_of(str(tmp_path))
    own = json.loads((ROOT / "src/inlay/assets/embedded/model_index.json").read_text())
    index.write_text(json.dumps(own))
    assert family_of(str(tmp_path))
    index.write_text(json.dumps({**own, "vae": ["diffusers", "AutoencoderKL"]}))
    for other in (str(tmp_path), "owner/model", "~nobody/x", "a\0b", str(built("sd1"))):
        assert not family_of(other)


def test_the_open_checkpoint_decides_and_the_record_is_made_again(tmp_path: Path) -> None:
    background, subject, box = five_scenes()[0]
    composer = Composer(str(built("sd1")), device="cpu")
    few = {"num_inference_steps": 2, "harmonize_steps": 4}
    result = composer.compose(background, subject, box=box, **few)
    own = result.record["request"]["method"]
    assert (own["inpaint"], own["guidance_scale"], own["strength"]) == (True, 7.5, 1.0)
    # A request without a model means whichever is open.
    asks = {"background": background, "subjects": [{"picture": subject, "box": box}]}
    same = composer.run(Request.of({"verb": "compose", **asks, "method": {"name": "phd", **few}}))
    assert same.record["request"]["method"] == own
    assert np.array_equal(np.asarray(same.image), np.asarray(result.image))
    # A record has every setting, so that no default has a part in making it again.
    request = {**result.record["request"], **asks, "model": None}
    again = composer.run(Request.of(request))
    assert np.array_equal(np.asarray(again.image), np.asarray(result.image))


def test_a_record_without_a_temperature_means_the_models_own() -> None:
    told = json.loads((ROOT / "tests" / "records_0_1.json").read_text())["cdc"]["record"]
    assert told["settings"]["temperature"] is None
    assert asked({"name": "cdc", **told["settings"]}, "embedded")["temperature"] == 0.9


def test_learning_has_the_published_recipe_but_on_the_embedded_checkpoint() -> None:
    own, large = LearnConfig(), LearnConfig(model="owner/model")
    assert (own.steps, own.batch, own.learning_rate, own.hole_weight) == (150, 4, 1e-3, 1.0)
    assert (large.steps, large.batch, large.learning_rate, large.hole_weight) == (400, 1, 1e-4, 0)
    assert (large.warmup_steps, large.cooldown_share, large.ema_decay) == (1, 0, 0)
    for model in ("embedded", "owner/model"):
        paper = LearnConfig(model=model, preset="paper")
        assert (paper.train, paper.learning_rate, paper.layout) == ("full", 5e-6, "plain")
        assert (paper.steps, paper.batch, paper.hole_weight) == (400, 1, 0)
        assert LearnConfig(model=model, preset="released").layout == "released"
        assert LearnConfig(model=model, preset="paper", steps=7).steps == 7
        assert LearnConfig(model=model, train="full").learning_rate == 5e-6


def test_the_page_of_defaults_is_up_to_date() -> None:
    page = [sys.executable, str(ROOT / "tools" / "defaults.py"), "--check"]
    assert subprocess.run(page, capture_output=True).returncode == 0


def test_the_command_line_checks_with_the_models_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["compose", "bg.png", "cup.png", "--box", "1,1,9,9", "-o", "out.png", "--set"]
    assert main([*line, "strength=0.2", "--model", "owner/model"]) == 2
    assert "harmonize_strength is 0.3" in capsys.readouterr().err
    assert main([*line, "words_weigth=1", "--method", "cdc"]) == 2
    assert "words_weight" in capsys.readouterr().err


def test_every_method_of_a_paper_has_a_published_preset() -> None:
    for name in ("phd", "cdc", "freecompose", "dreamcom"):
        assert {"paper", "released"} & set(all_methods()[name].presets)
