"""The nodes for ComfyUI, under a stand-in for it; see tests/comfyui.py."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

import inlay
from comfyui import (
    ComboInput,
    Interrupt,
    InterruptProcessingException,
    Progress,
    Server,
    WidgetInput,
    as_api,
    comfyui,
    options_of,
)
from inlay.request import KINDS, Request
from photos import cup

HOME = Path(__file__).parent.parent.parent / "integrations" / "comfyui"
EXAMPLES = sorted(path.stem for path in (HOME / "example_workflows").glob("*.json"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("comfyui")
    for folder in ("checkpoints", "diffusers/tiny", "loras", "embeddings", "inlay", "input"):
        (root / folder).mkdir(parents=True)
    (root / "diffusers" / "tiny" / "model_index.json").write_text("{}")
    (root / "loras" / "style.safetensors").touch()
    (root / "inlay" / "cup.safetensors").touch()
    Image.fromarray(data.chelsea()).save(root / "input" / "cat.png")
    Image.fromarray(cup()).save(root / "input" / "cup.png")
    painted = np.dstack([data.chelsea(), np.full(data.chelsea().shape[:2], 255, np.uint8)])
    painted[40:80, 20:70, 3] = 0
    Image.fromarray(painted).save(root / "input" / "painted.png")
    with comfyui(root):
        spec = importlib.util.spec_from_file_location(
            "inlay_comfyui", HOME / "__init__.py", submodule_search_locations=[str(HOME)]
        )
        assert spec and spec.loader
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        extension = asyncio.run(module.comfy_entrypoint())
        yield Server(asyncio.run(extension.get_node_list()), root / "input")
        del sys.modules[spec.name], sys.modules[f"{spec.name}.nodes"]


def image(pixels: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(pixels).copy()).float()[None] / 255


def pixels(tensor: torch.Tensor, number: int = 0) -> Any:
    return (tensor[number].numpy() * 255).round().astype(np.uint8)


def defaults(server: Server, name: str, /, **values: Any) -> dict[str, Any]:
    """The values of a node that was just put down, with some changed."""
    inputs, told = server.nodes[name].define_schema().inputs, dict[str, Any]()
    for each in inputs:
        if options := {option.key: option.inputs for option in options_of(each)}:
            told[each.id] = chosen = values.get(each.id, next(iter(options)))
            told |= {f"{each.id}.{setting.id}": setting.default for setting in options[chosen]}
        elif isinstance(each, ComboInput):
            told[each.id] = each.default or each.options[0]
        elif isinstance(each, WidgetInput):
            told[each.id] = each.default
    return {**told, **values}


def subjects(server: Server, **values: Any) -> Any:
    rgba = cup()
    told = {"picture": image(rgba[..., :3]), "mask": image(rgba[..., 3]), **values}
    return server.call("InlaySubject", defaults(server, "InlaySubject", **told))[0]


@pytest.mark.parametrize("verb", KINDS)
def test_every_field_and_setting_of_a_request_is_an_input(verb: str, server: Server) -> None:
    schema = server.nodes[f"Inlay{verb.title()}"].define_schema()
    fields = Request.schema_of(verb)["properties"]
    assert {each.id for each in schema.inputs} == fields.keys() - {"verb"}
    method = next(each for each in schema.inputs if each.id == "method")
    told = {option.key: [each.id for each in option.inputs] for option in method.options}
    settings = {m["title"]: [*m["properties"]] for m in fields["method"]["oneOf"]}
    assert told == {"auto": [], **{m: [n for n in s if n != "name"] for m, s in settings.items()}}


def test_a_new_node_says_nothing_that_the_verb_does_not_choose(server: Server) -> None:
    background = image(data.chelsea())
    told = {"background": background, "subjects": subjects(server), "method": "reinhard"}
    made, changed, record = server.call("InlayCompose", defaults(server, "InlayCompose", **told))
    rgba = cup()
    alone = inlay.Subject(rgba[..., :3].copy(), mask=rgba[..., 3].copy())
    right = inlay.Composer().compose(data.chelsea(), alone, method="reinhard")
    assert np.array_equal(pixels(made), np.asarray(right.image))
    assert np.array_equal(pixels(changed), np.asarray(right.mask))
    assert json.loads(record)[0]["request"]["method"] == right.record["request"]["method"]


def test_a_change_of_a_setting_a_place_and_a_shadow_arrive(server: Server) -> None:
    place = torch.zeros(1, 300, 451)
    place[:, 100:220, 40:190] = 1
    (shadow,) = server.call("InlayShadow", defaults(server, "InlayShadow", kind="contact"))
    told = {"subjects": subjects(server, place=place, rotate=20.0), "shadow": shadow, "seed": 3}
    told |= {"background": image(data.chelsea()), "num_images": 2, "method": "feather"}
    inputs = defaults(server, "InlayCompose", **told, **{"method.radius": 7})
    made, changed, record = server.call("InlayCompose", inputs)
    assert made.shape == (2, 300, 451, 3) and changed.shape == (2, 300, 451)
    first, second = (each["request"] for each in json.loads(record))
    assert first["subjects"][0]["box"] == [40, 100, 150, 120]
    assert first["subjects"][0]["rotate"] == 20 and first["shadow"]["kind"] == "contact"
    assert (first["seed"], second["seed"], first["method"]["radius"]) == (3, 4, 7)


def test_batches_go_together_and_a_shorter_one_begins_again(server: Server) -> None:
    both = torch.cat([image(data.chelsea()), image(data.chelsea()[:, ::-1])])
    told = {"subjects": subjects(server), "method": "paste"}
    inputs = defaults(server, "InlayCompose", background=both, **told)
    made, _, _ = server.call("InlayCompose", inputs)
    for number in range(2):
        inputs["background"] = both[number : number + 1]
        assert torch.equal(made[number], server.call("InlayCompose", inputs)[0][0])


def test_several_subjects_are_chained(server: Server) -> None:
    first = subjects(server, box="10, 20, 100, 90")
    both = subjects(server, before=first, at="300, 200", scale="0.5", mask=None)
    assert [{*each} - {"picture"} for each in both] == [{"mask", "box"}, {"at", "scale"}]
    assert (both[0]["box"], both[1]["at"], both[1]["scale"]) == ([10, 20, 100, 90], [300, 200], 0.5)


def test_a_cut_is_that_of_the_library(server: Server) -> None:
    picture = data.coffee()
    told = {"picture": image(picture), "cut": "grabcut", "cut_box": "150, 10, 270, 240"}
    made, mask = server.call("InlayCut", defaults(server, "InlayCut", **told))
    right = inlay.cut(picture, by="grabcut", box=inlay.Box(150, 10, 270, 240))
    assert np.array_equal(np.dstack([pixels(made), pixels(mask)]), np.asarray(right))


def test_models_and_learnt_objects_are_files_of_comfyui(server: Server) -> None:
    root = server.pictures.parent
    told = defaults(server, "InlayModel", name="tiny", loras="style.safetensors=0.7")
    (model,) = server.call("InlayModel", told)
    lora = (str(root / "loras" / "style.safetensors"), 0.7)
    assert (model["name"], model["loras"]) == (str(root / "diffusers" / "tiny"), [lora])
    learnt = server.call("InlayLearntObject", defaults(server, "InlayLearntObject"))[0]
    assert learnt == [{"picture": str(root / "inlay" / "cup.safetensors")}]
    for wrong in ({"loras": "other.safetensors"}, {"textual_inversions": "../secret.pt"}):
        with pytest.raises(inlay.InputError, match=r"is not in ComfyUI's folder \w+; put the file"):
            server.call("InlayModel", defaults(server, "InlayModel", **wrong))


@pytest.mark.parametrize(
    ("node", "values", "sentence"),
    [
        ("InlaySubject", {"box": "10, wide"}, "box is '10, wide'; expected numbers, with commas"),
        ("InlaySubject", {"place": torch.zeros(1, 9, 9)}, "place is empty, or there is a box too"),
        ("InlayCut", {"mask": torch.zeros(0, 9, 9)}, "a picture or mask is empty or has NaN in it"),
        ("InlayCut", {"mask": torch.full((1, 9, 9), torch.nan)}, "a picture or mask is empty or"),
        ("InlayRemove", {}, "mask is missing; give a mask, a box or a point of what is to go."),
        (
            "InlayRemove",
            {"mask": torch.zeros(1, 64, 64)},
            "the mask is 64 x 64 pixels; expected",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    node: str, values: Any, sentence: str, server: Server
) -> None:
    with pytest.raises(inlay.InputError) as raised:
        server.call(node, defaults(server, node, picture=image(data.chelsea()), **values))
    assert str(raised.value).startswith(sentence)


def test_progress_has_previews_and_the_button_stops_a_run(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"background": image(data.chelsea()), "subjects": subjects(server), "method": "phd"}
    inputs = defaults(server, "InlayCompose", **told, **{"method.num_inference_steps": 4})
    Progress.told.clear()
    server.call("InlayCompose", inputs)
    steps = [(value, total) for value, total, _ in Progress.told]
    assert steps == [(n, len(steps)) for n in range(1, len(steps) + 1)]
    kind, preview, limit = next(shown for _, _, shown in Progress.told if shown)
    assert kind == "JPEG" and isinstance(preview, Image.Image) and limit is None
    monkeypatch.setattr(Interrupt, "after", len(steps) - 1)
    with pytest.raises(InterruptProcessingException):
        server.call("InlayCompose", inputs)


def test_a_method_that_needs_gradients_has_them(server: Server) -> None:
    """ComfyUI runs nodes in torch's inference mode, in which freecompose could not optimise."""
    told = {"picture": image(data.chelsea()[:128, :160]), "box": "40, 30, 60, 60"}
    inputs = defaults(server, "InlayHarmonize", **told, method="freecompose")
    made, _, _ = server.call("InlayHarmonize", {**inputs, "method.num_iterations": 1})
    assert made.shape == (1, 128, 160, 3)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_is_the_same_in_both_formats(name: str, server: Server) -> None:
    page = json.loads((HOME / "example_workflows" / f"{name}.json").read_text())
    api = json.loads((HOME / "api_workflows" / f"{name}.json").read_text())
    assert as_api(page, server) == api
    server.saved.clear()
    (made,) = server.run(api)
    assert made.shape == (1, 300, 451, 3)
    assert not np.array_equal(pixels(made), data.chelsea())


def test_the_package_is_as_the_registry_wants_it() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    told = tomllib.loads((HOME / "pyproject.toml").read_text())
    assert told["project"]["version"] == inlay.__version__
    assert {"PublisherId", "DisplayName"} <= told["tool"]["comfy"].keys()
    assert EXAMPLES and (HOME / "requirements.txt").read_text().startswith("inlay")
