"""The nodes: inputs from the schemas of inlay's requests, so that no setting is listed here.

A widget that is left as it first stands is left out of the request: the setting is then as it is
best on the checkpoint. IMAGE is float (batch, h, w, 3) in 0..1, MASK (batch, h, w), 1 where the
object is; of inputs whose batches differ, the shorter ones begin again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache, partial
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import ComfyExtension, io
from PIL import Image

import inlay
from inlay.methods.registry import Model
from inlay.request import KINDS, Request

Schema = dict[str, Any]
CONCEPTS = "inlay"
folder_paths.add_model_folder_path(CONCEPTS, os.path.join(folder_paths.models_dir, CONCEPTS))

# What a widget says in place of null, and of a method that the verb chooses.
NONE, AUTO = "none", "auto"
# Fields that are nodes of their own, and those of a checkpoint that name files, by their folder.
LINKS = {name: io.Custom(f"INLAY_{name.upper()}") for name in ("subjects", "model", "shadow")}
FILES = {"loras": "loras", "textual_inversions": "embeddings"}
# What the command line has flags for; all other settings are folded.
FIRST = ("preset", "prompt", "negative_prompt", "num_inference_steps", "guidance_scale")
# Where a schema has no bounds: ComfyUI's own would be 0 and 2048.
MOST = 1_000_000
MASKS = "white (1) is what is meant; a picture's alpha is LoadImage's mask, inverted"
schema_of = cache(Request.schema_of)


def part_of(name: str) -> Schema:
    """The schema of a model inside a request: Subject, Model, Shadow."""
    compose = schema_of("compose")
    return {**compose["$defs"], "Shadow": compose["properties"]["shadow"]["anyOf"][1]}[name]


def is_picture(schema: Schema) -> bool:
    return schema.get("description") == "path of a picture"


def first_of(schema: Schema) -> Any:
    """What a widget shows before it is touched."""
    value = schema.get("default")
    if None in schema.get("enum", ()):
        return NONE
    if "enum" in schema or schema.get("type") in ("boolean", "integer", "number", "string"):
        return value
    return str(value) if value else ""


def input_of(name: str, schema: Schema, folded: bool = False) -> io.Input:
    """The input of a node for a field of a schema."""
    if is_picture(schema):
        kind, told = (io.Mask, {"tooltip": MASKS}) if "mask" in name else (io.Image, {})
        return kind.Input(name, optional="default" in schema, **told)
    if name in LINKS:
        return LINKS[name].Input(name, optional=name != "subjects")
    if "oneOf" in schema:
        options = [io.DynamicCombo.Option(AUTO, [])]
        for method in schema["oneOf"]:
            settings = {k: s for k, s in method["properties"].items() if k != "name"}
            inputs = [input_of(k, s, folded=k not in FIRST) for k, s in settings.items()]
            options.append(io.DynamicCombo.Option(method["title"], inputs))
        return io.DynamicCombo.Input(name, options=options)
    told = {"default": first_of(schema), "tooltip": schema.get("description"), "advanced": folded}
    if "enum" in schema:
        options = [NONE if choice is None else str(choice) for choice in schema["enum"]]
        return io.Combo.Input(name, options=options, **told)
    if (kind := schema.get("type")) == "boolean":
        return io.Boolean.Input(name, **told)
    if kind in ("integer", "number"):
        told |= {"min": schema.get("minimum", schema.get("exclusiveMinimum", -MOST))}
        told |= {"max": schema.get("maximum", schema.get("exclusiveMaximum", MOST))}
        if kind == "integer":
            return io.Int.Input(name, control_after_generate=name == "seed" or None, **told)
        return io.Float.Input(name, step=0.01, round=False, **told)
    hint = schema.get("title") if kind == "array" else NONE
    return io.String.Input(name, multiline="prompt" in name, placeholder=hint, **told)


def inputs_of(properties: Schema) -> list[io.Input]:
    """The inputs for the fields of a schema: what is linked first, as ComfyUI shows them."""
    linked = [name for name, schema in properties.items() if is_picture(schema) or name in LINKS]
    ordered = dict.fromkeys([*linked, *properties])
    return [input_of(name, properties[name]) for name in ordered if name != "verb"]


def read(name: str, schema: Schema, text: Any) -> Any:
    """The value of a widget; raises InputError for text in place of numbers."""
    kinds = {each.get("type") for each in (schema, *schema.get("anyOf", ()))}
    words = "enum" in schema or "string" in (*kinds, schema.get("items", {}).get("type"))
    if words or not isinstance(text, str):
        return text
    with suppress(ValueError, IndexError):
        listed = json.loads(f"[{text}]")
        return listed if "array" in kinds else listed[0]
    raise inlay.InputError(f"{name} is {text!r}; expected numbers, with commas between several.")


def given(properties: Schema, values: dict[str, Any]) -> dict[str, Any]:
    """What of a node's values a request is told, as plain data."""
    told: dict[str, Any] = {}
    for name, schema in properties.items():
        if (value := values.get(name)) is None:
            continue
        if "oneOf" in schema:
            method = next((m for m in schema["oneOf"] if m["title"] == value[name]), None)
            if method is not None:
                told[name] = {"name": method["title"], **given(method["properties"], value)}
        elif is_picture(schema) or name in LINKS:
            told[name] = value
        elif value != first_of(schema):
            told[name] = read(name, schema, value)
    return told


def batch_of(value: Any) -> int:
    """The length of the longest batch in a value."""
    if isinstance(value, dict | list):
        return max(map(batch_of, value.values() if isinstance(value, dict) else value), default=1)
    return len(value) if isinstance(value, torch.Tensor) and value.ndim > 2 else 1


def nth(value: Any, number: int) -> Any:
    """The value with one picture of each batch in place of it, as uint8 (h, w) or (h, w, C)."""
    if isinstance(value, dict):
        return {name: nth(part, number) for name, part in value.items()}
    if isinstance(value, list):
        return [nth(part, number) for part in value]
    if not isinstance(value, torch.Tensor):
        return value
    if not value.numel() or not value.isfinite().all():
        raise inlay.InputError("a picture or mask is empty or has NaN in it; expected 0 to 1.")
    one = value[number % len(value)] if value.ndim > 2 else value
    return (one.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def tensor_of(images: list[Image.Image]) -> torch.Tensor:
    """PIL pictures of one size as (batch, h, w) or (batch, h, w, C) in 0..1."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).float() / 255


@lru_cache(maxsize=2)
def open_composer(model: Model) -> inlay.Composer:
    """A composer on a checkpoint: those of the last two models stay open."""
    options = dict(model)
    return inlay.Composer.from_pretrained(options.pop("name"), **options)


def on_step(bar: comfy.utils.ProgressBar, step: int, total: int, preview: Any) -> None:
    """Show how far it is; raises what stops a run where a user has asked for that."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    bar.update_absolute(step, total, preview and ("JPEG", preview, None))


def node(
    name: str,
    describe: Callable[[], Schema],
    run: Callable[..., Sequence[Any]],
    outputs: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> type[io.ComfyNode]:
    """A node with an input for each property of a schema, and links that no schema has."""

    class Node(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            linked = [kind.Input(each, optional=True) for each, kind in (more or {}).items()]
            return io.Schema(
                node_id=f"Inlay{name.replace(' ', '')}",
                display_name=f"{name} (inlay)",
                category="inlay",
                description=describe()["description"],
                inputs=[*linked, *inputs_of(describe()["properties"])],
                outputs=[kind.Output(display_name=each) for each, kind in outputs.items()],
            )

        # ComfyUI runs nodes in inference mode, in which nothing can be optimised.
        @classmethod
        @torch.inference_mode(False)
        def execute(cls, **values: Any) -> io.NodeOutput:
            links = {each: values.pop(each, None) for each in more or ()}
            return io.NodeOutput(*run(given(describe()["properties"], values), **links))

    return Node


def make(verb: str, told: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, str]:
    """The pictures that a request asks for, where they changed, and their records as JSON."""
    composer = open_composer(Model(**told.setdefault("model", {})))
    images, masks, records, bar = [], [], [], comfy.utils.ProgressBar(1)
    for number in range(batch_of(told)):
        request = Request.of({"verb": verb, **nth(told, number)})
        result = composer.run(request, callback=partial(on_step, bar), previews=True)
        images += [image.convert("RGB") for image in result.images]
        masks += [result.mask] * len(result.images)
        records += result.records
    return tensor_of(images), tensor_of(masks), json.dumps(records)


def cut(told: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture with its subject's own colours, and where that is."""
    words, cuts = {"cut": "by", "cut_box": "box", "cut_points": "points"}, []
    told = {words.get(name, name): value for name, value in told.items()}
    for number in range(batch_of(told)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        cuts.append(inlay.cut(**nth(told, number)))
    whole = tensor_of(cuts)
    return whole[..., :3], whole[..., 3]


def subject(told: dict[str, Any], before: Any, place: torch.Tensor | None) -> tuple[Any]:
    """The subjects of before and one more, which lies in the box round the white of place."""
    if place is not None:
        rows, columns = np.nonzero(nth(place, 0) > 127)
        if "box" in told or not len(rows):
            raise inlay.InputError("place is empty, or there is a box too; give one of the two.")
        x, y = int(columns.min()), int(rows.min())
        told["box"] = [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
    return ([*(before or ()), told],)


def learnt_object(told: dict[str, Any], **links: Any) -> tuple[Any]:
    return subject({**told, "picture": path_of(CONCEPTS, told["picture"])}, **links)


def subject_of(cutting: bool) -> Schema:
    """The fields of a subject that say how it is cut out, or else where a learnt one goes."""
    whole = part_of("Subject")
    own = {k: s for k, s in whole["properties"].items() if cutting == (is_picture(s) or "cut" in k)}
    file = {"picture": {"enum": folder_paths.get_filename_list(CONCEPTS)}}
    return {**whole, "properties": own if cutting else file | own}


def model(told: dict[str, Any]) -> tuple[Any]:
    """A checkpoint whose files are those that ComfyUI knows by these names."""
    for field, folder in FILES.items():
        names = [each.partition("=") for each in told.get(field, "").split(",") if each.strip()]
        told[field] = [path_of(folder, name.strip()) for name, _, _ in names]
        if field == "loras":
            scales = [read(field, {}, scale or "1") for _, _, scale in names]
            told[field] = list(zip(told[field], scales, strict=True))
    return ({**told, "name": checkpoints()[told.get("name", "embedded")]},)


def model_of_files() -> Schema:
    """A checkpoint's fields, of which those that name files offer ComfyUI's."""
    whole, name = part_of("Model"), {"enum": [*checkpoints()], "default": "embedded"}
    own = {k: {"type": "string"} if k in FILES else s for k, s in whole["properties"].items()}
    return {**whole, "properties": {**own, "name": name}}


def checkpoints() -> dict[str, str]:
    """Checkpoints in ComfyUI's folders, by name: single files, and folders of diffusers."""
    found = {n: path_of("checkpoints", n) for n in folder_paths.get_filename_list("checkpoints")}
    for root in filter(os.path.isdir, folder_paths.get_folder_paths("diffusers")):
        folders = ((name, os.path.join(root, name)) for name in sorted(os.listdir(root)))
        found |= {n: p for n, p in folders if os.path.isfile(os.path.join(p, "model_index.json"))}
    return {"embedded": "embedded", **found}


def path_of(folder: str, name: str) -> str:
    """A file in one of ComfyUI's folders; raises InputError where there is none."""
    path: str | None = folder_paths.get_full_path(folder, name)
    if path is None:
        raise inlay.InputError(f"{name} is not in ComfyUI's folder {folder}; put the file there.")
    return path


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        made = {"image": io.Image, "changed": io.Mask, "record": io.String}
        verbs = [node(v.title(), partial(schema_of, v), partial(make, v), made) for v in KINDS]
        subjects, models, shadows = ({name: kind} for name, kind in LINKS.items())
        more = {"before": LINKS["subjects"], "place": io.Mask}
        return [
            *verbs,
            node("Cut", partial(subject_of, True), cut, {"image": io.Image, "subject": io.Mask}),
            node("Subject", partial(part_of, "Subject"), subject, subjects, more),
            node("Learnt Object", partial(subject_of, False), learnt_object, subjects, more),
            node("Shadow", partial(part_of, "Shadow"), lambda told: [told], shadows),
            node("Model", model_of_files, model, models),
        ]


async def comfy_entrypoint() -> ComfyExtension:
    return Extension()
