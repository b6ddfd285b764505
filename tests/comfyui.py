"""A stand-in for ComfyUI, which no package index has: the part of its published V3 interface that
nodes are written against, and what its server does with a workflow.

Written from docs.comfy.org and from what comfy_api.latest, comfy.utils, comfy.model_management and
folder_paths export. It is as strict as they are: an unknown keyword of an input is a TypeError.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import torch
from PIL import Image

Workflow = Mapping[str, Any]


class InterruptProcessingException(Exception):  # noqa: N818
    """What ComfyUI stops a run with."""


@dataclass
class Input:
    id: str
    display_name: str | None = None
    optional: bool = False
    tooltip: str | None = None
    lazy: bool | None = None
    extra_dict: dict[str, Any] | None = None
    raw_link: bool | None = None
    advanced: bool | None = None
    io_type: str = field(init=False, default="")


@dataclass
class WidgetInput(Input):
    default: Any = None
    socketless: bool | None = None
    force_input: bool | None = None


@dataclass
class NumberInput(WidgetInput):
    min: float | None = None
    max: float | None = None
    step: float | None = None
    round: float | bool | None = None
    control_after_generate: bool | None = None
    display_mode: Any = None


@dataclass
class StringInput(WidgetInput):
    multiline: bool = False
    placeholder: str | None = None
    dynamic_prompts: bool | None = None


@dataclass
class ComboInput(WidgetInput):
    options: list[str] = field(default_factory=list)


@dataclass
class Option:
    key: str
    inputs: list[Input]


@dataclass
class DynamicInput(Input):
    options: list[Option] = field(default_factory=list)


@dataclass
class Output:
    id: str | None = None
    display_name: str | None = None
    tooltip: str | None = None
    is_output_list: bool = False
    io_type: str = field(init=False, default="")


def kind_of(name: str, input_class: type[Input] = Input) -> type:
    """What io.Int, io.Image and the like are: classes with an Input and an Output of one type."""
    parts = {
        "Input": dataclass(type("Input", (input_class,), {"io_type": name})),
        "Output": dataclass(type("Output", (Output,), {"io_type": name})),
    }
    return type(name, (), {**parts, "io_type": name})


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Input] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    hidden: list[Any] = field(default_factory=list)
    description: str = ""
    is_output_node: bool = False

    def __post_init__(self) -> None:
        for inputs in (self.inputs, *(o.inputs for i in self.inputs for o in options_of(i))):
            names = [each.id for each in inputs]
            assert len(set(names)) == len(names), names


class ComfyNode:
    """The class that nodes derive from, whose methods are class methods."""


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None, expand: Any = None) -> None:
        self.args = args


class ComfyExtension:
    """What an entry point returns."""


def options_of(each: Input) -> list[Option]:
    return each.options if isinstance(each, DynamicInput) else []


class Progress:
    """comfy.utils.ProgressBar; all that was told to one stands in `told`."""

    told: ClassVar[list[tuple[float, float, Any]]] = []

    def __init__(self, total: float, node_id: str | None = None) -> None:
        self.total = total

    def update_absolute(
        self, value: float, total: float | None = None, preview: Any = None
    ) -> None:
        Progress.told.append((value, total or self.total, preview))


class Interrupt:
    """Whether a user has pressed the button, and after how many looks at it."""

    after: int | None = None

    @classmethod
    def look(cls) -> None:
        if cls.after is not None:
            cls.after -= 1
            if cls.after < 0:
                raise InterruptProcessingException


@contextmanager
def comfyui(models: Path) -> Iterator[None]:
    """ComfyUI's modules, with its folder of models."""
    io = types.SimpleNamespace(
        Image=kind_of("IMAGE"),
        Mask=kind_of("MASK"),
        String=kind_of("STRING", StringInput),
        Int=kind_of("INT", NumberInput),
        Float=kind_of("FLOAT", NumberInput),
        Boolean=kind_of("BOOLEAN", WidgetInput),
        Combo=kind_of("COMBO", ComboInput),
        DynamicCombo=kind_of("COMFY_DYNAMICCOMBO_V3", DynamicInput),
        Custom=kind_of,
        Schema=Schema,
        ComfyNode=ComfyNode,
        NodeOutput=NodeOutput,
        Input=Input,
        Output=Output,
        ComfyTypeIO=type,
    )
    io.DynamicCombo.Option = Option
    known = {"checkpoints": models / "checkpoints", "diffusers": models / "diffusers"}
    known |= {"loras": models / "loras", "embeddings": models / "embeddings"}

    def names(folder: str) -> list[str]:
        return sorted(p.name for p in known[folder].glob("*") if p.is_file())

    def path(folder: str, name: str) -> str | None:
        return str(known[folder] / name) if name in names(folder) else None

    parts: dict[str, dict[str, Any]] = {
        "comfy_api": {},
        "comfy_api.latest": {"io": io, "ComfyExtension": ComfyExtension},
        "comfy": {},
        "comfy.utils": {"ProgressBar": Progress},
        "comfy.model_management": {"throw_exception_if_processing_interrupted": Interrupt.look},
        "folder_paths": {
            "models_dir": str(models),
            "add_model_folder_path": lambda name, folder: known.setdefault(name, Path(folder)),
            "get_folder_paths": lambda name: [str(known[name])],
            "get_filename_list": names,
            "get_full_path": path,
        },
    }
    modules = {name: types.ModuleType(name) for name in parts}
    for name, values in parts.items():
        vars(modules[name]).update(values)
        above, _, last = name.rpartition(".")
        if above:
            setattr(modules[above], last, modules[name])
    Progress.told, Interrupt.after = [], None
    with mock.patch.dict(sys.modules, modules):
        yield


class Server:
    """Runs workflows in the API format: nodes of ours, and the few of ComfyUI's in the examples."""

    own = ("LoadImage", "InvertMask", "SaveImage")

    def __init__(self, nodes: list[type], pictures: Path) -> None:
        self.nodes = {node.define_schema().node_id: node for node in nodes}
        self.pictures, self.saved = pictures, list[torch.Tensor]()

    def run(self, workflow: Workflow) -> list[torch.Tensor]:
        """What is saved, after every node ran once, whatever it needs first."""
        made: dict[str, tuple[Any, ...]] = {}

        def result(number: str) -> tuple[Any, ...]:
            if number not in made:
                node = workflow[number]
                values = {
                    name: result(value[0])[value[1]] if isinstance(value, list) else value
                    for name, value in node["inputs"].items()
                }
                made[number] = self.call(node["class_type"], values)
            return made[number]

        for number in workflow:
            result(number)
        return self.saved

    def call(self, name: str, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """What a node gives for its inputs, by their names in a workflow."""
        if name == "LoadImage":
            rgba = Image.open(self.pictures / values["image"]).convert("RGBA")
            levels = torch.from_numpy(np.array(rgba)).float()[None] / 255
            return levels[..., :3], 1 - levels[..., 3]
        if name == "InvertMask":
            return (1 - values["mask"],)
        if name == "SaveImage":
            self.saved.append(values["images"])
            return ()
        node = self.nodes[name]
        with torch.inference_mode():
            return node.execute(**nested(node.define_schema().inputs, values)).args


def nested(inputs: list[Input], values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A node's arguments, checked as ComfyUI checks them before it runs anything."""
    told: dict[str, Any] = {}
    for each in inputs:
        name = f"{above}{each.id}"
        if name not in values:
            assert each.optional, f"{name}: required input is missing"
            continue
        value = told[each.id] = values[name]
        if isinstance(each, NumberInput):
            told[each.id] = value = (int if each.io_type == "INT" else float)(value)
            assert each.min is not None and each.max is not None, name
            assert each.min <= value <= each.max, f"{name}: {value} is out of bounds"
        if isinstance(each, ComboInput):
            assert value in each.options, f"{name}: {value} is not in {each.options}"
        if isinstance(each, DynamicInput):
            chosen = {option.key: option.inputs for option in each.options}
            assert value in chosen, f"{name}: {value} is not in {[*chosen]}"
            told[each.id] = {each.id: value, **nested(chosen[value], values, f"{name}.")}
    return told


def widgets(inputs: list[Input], values: Iterator[Any], above: str = "") -> dict[str, Any]:
    """The values that the page has saved for a node's widgets, by their names."""
    told: dict[str, Any] = {}
    for each in inputs:
        name = f"{above}{each.id}"
        if isinstance(each, (WidgetInput, DynamicInput)):
            told[name] = next(values)
        if isinstance(each, NumberInput) and each.control_after_generate:
            next(values)
        for option in options_of(each):
            if option.key == told[name]:
                told |= widgets(option.inputs, values, f"{name}.")
    return told


def as_api(page: Workflow, server: Server) -> dict[str, Any]:
    """A workflow as the page saves it in the API format, as the page does that."""
    links = {link[0]: link[1:] for link in page["links"]}
    made = {}
    for node in page["nodes"]:
        kind, values = node["type"], iter(node.get("widgets_values", ()))
        if kind in Server.own:
            known = {"LoadImage": {"image": 0}, "SaveImage": {"filename_prefix": 0}}.get(kind, {})
            told: dict[str, Any] = {name: next(values) for name in known}
        else:
            told = widgets(server.nodes[kind].define_schema().inputs, values)
            assert next(values, None) is None, f"{kind} has more values than widgets"
        for slot, each in enumerate(node["inputs"]):
            if each["link"] is not None:
                source, output, target, place, _ = links[each["link"]]
                assert (target, place) == (node["id"], slot)
                told[each["name"]] = [str(source), output]
        made[str(node["id"])] = {"class_type": kind, "inputs": told}
    return made
