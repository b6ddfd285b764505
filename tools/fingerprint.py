"""Fingerprints of pictures: proof that a change of the code changes no picture.

    python tools/fingerprint.py -o before.json --checkpoints DIR         # in the tree as it was
    python tools/fingerprint.py -o after.json --checkpoints DIR --against before.json

It runs every command (compose, harmonize, remove, scene, cut) with every method, preset and choice
on small crops of scikit-image's photographs, in a few steps each: all of them on the embedded
checkpoint, fewer on small random checkpoints of every Stable Diffusion format, and some as whole
command lines. FILE holds one SHA-256 for each picture: of its samples, shape, type and mode. What
records and notes say does not count. A case that raises stores "error: ..." in place of the hash.

DIR keeps what the cases read besides photographs: random checkpoints, adapters, a harmonizer,
segmentation models, learnt objects. What is missing there is made by the tree that runs, so both
trees must be given the same DIR, the old one first. The tree that is looked at is the one that this
file lies in. Only inlay's public interface is used, the builders of DIR apart.

With --against every picture that differs, is missing or is new is named; the exit status is 1 if
one differs or is missing. --only limits both sides to the cases whose name contains a text.
"""

from __future__ import annotations

import os

# Sums in another order are other pictures: one thread, before anything is imported.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import contextlib
import functools
import hashlib
import importlib
import io
import json
import shutil
import sys
import tempfile
import time
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from skimage import data

import inlay
from inlay import Box, Composer
from inlay.settings import tuned

TREE = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)
cv2.setNumThreads(1)

Photo = NDArray[np.uint8]
Prints = dict[str, str]
Run = Callable[[], Prints]

SEED = 3
# Methods whose subject is a learnt object.
LEARNT = ("dreamcom", "dreamedit")
# At which the learnt cup stands out from its background, so that it is found there.
LEARNT_SEED = 1
PROMPT = "a cup on a table"
BOX, OTHER, CUT_BOX = Box(70, 40, 84, 78), Box(150, 92, 52, 56), Box(34, 14, 92, 88)
# As few steps as still run every part of a method.
FEW: dict[str, Any] = {
    "num_inference_steps": 3,
    "num_iterations": 3,
    "harmonize_steps": 4,
    "harmonizer_samples": 2,
    "refine_steps": 4,
    "redraw_steps": 3,
    "iterations": 2,
}
# Where so few steps would leave no trace at the defaults.
STRONG: dict[str, dict[str, Any]] = {
    "cdc": {"num_inference_steps": 4, "T_in": 0.3},
    "freecompose": {"eta": 0.5, "redraw_steps": 4},
    "dreamcom": {"num_inference_steps": 4},
    "dreamedit": {"num_inference_steps": 4},
    "phd": {"num_inference_steps": 6, "refine_strength": 0.5},
}
CDC: dict[str, Any] = {"method": "cdc", **STRONG["cdc"]}
# Settings beside the presets and the choices, which are listed by the methods themselves:
# method, the commands they are for, settings.
ALL = ("compose", "harmonize", "remove", "scene")
# What the methods make is compared, as it was before there were shadows.
BARE = {"shadow": "none"}
EXTRAS: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("cdc", ALL, {"prompt": PROMPT, "negative_prompt": "a dog", "guidance_scale": 7.5}),
    ("cdc", ALL, {"guidance_scale": 1.0, "strength": 0.7}),
    ("cdc", ALL, {"T_in": 0.3, "T_out": 0.5, "N_in": 4.0, "N_out": 2.0, "blend_pixels": 2}),
    ("cdc", ("compose",), {"T_in": 0.0}),
    ("cdc", ("compose",), {"T_in": 0.5, "context": 0.0, "feather": 0.0, "smoothing": 0.0}),
    ("cdc", ("compose",), {"T_in": 1.0}),
    ("cdc", ("compose",), {"repaint_start": 1.0, "repaint_jump": 1, "repaint_repeats": 2}),
    ("cdc", ("compose",), {"eta": 0.5, "temperature": 0.5, "context": 1.5}),
    ("cdc", ALL, {"prompt": PROMPT, "words_inside": "cup", "words_outside": "table"}),
    ("cdc", ALL, {"rounds": 2, "blend": 0.5, "erosion": 0.05}),
    ("freecompose", ALL, {"prompt": PROMPT, "source_prompt": "a table", "guidance_scale": 5.0}),
    ("freecompose", ("compose",), {"late_share": 0.5, "late_t_max": 200, "pool_size": 0}),
    ("freecompose", ALL, {"t_min": 100, "t_max": 600, "pool_size": 2, "num_iterations": 4}),
    ("freecompose", ("compose",), {"plateau": 1.0, "patience": 1, "num_iterations": 5}),
    ("freecompose", ALL, {"optimizer": "AdamW", "eta": 0.02, "background_weight": 1.0}),
    ("freecompose", ALL, {"foreground_weight": 2.0, "perceptual_every": 1, "eta": 0.3}),
    ("freecompose", ("compose",), {"perceptual": "laplacian", "perceptual_every": 1}),
    ("freecompose", ("compose",), {"rim": 0.05, "smoothing": 0.0, "blend_pixels": 0}),
    ("freecompose", ("remove",), {"texture": 0.0, "grow": 0.1}),
    ("freecompose", ("remove",), {"num_iterations": 0}),
    ("freecompose", ("remove",), {"start": "object", "texture": 0.0, "eta": 2.0}),
    ("phd", ("compose",), {"inpaint": True, "prompt": PROMPT}),
    ("phd", ("compose",), {"inpaint": True, "harmonize": False, "strength": 1.0}),
    ("phd", ("compose",), {"inpaint": True, "region": "box", "decoding": "plain"}),
    ("phd", ("compose",), {"inpaint": True, "grow": 0.2, "ring_smoothing": 0.0, "feather": 0.1}),
    ("phd", ("compose",), {"inpaint": True, "scheduler": "DPMSolverMultistepScheduler"}),
    ("phd", ALL, {"harmonizer": "none"}),
    ("phd", ("compose",), {"harmonizer": "none", "harmonize_guidance_scale": 3.0, "smoothing": 0}),
    ("phd", ("compose",), {"harmonizer_steps": 2, "harmonizer_strength": 1.0}),
    ("phd", ("compose",), {"harmonizer_scale": 0.5, "restraint": 0.0}),
    ("phd", ALL, {"shadow_reach": 0.2, "harmonize_grow": 0.05, "amount": 0.7}),
    ("phd", ("compose",), {"paste_blur": 0.02, "harmonizer_samples": 1}),
    ("phd", ("scene",), {"outpaint_tile_overlap": 0.25, "guidance_scale": 6.0}),
    ("phd", ("scene",), {"refine_strength": 0.0, "scheduler": "DDIMScheduler"}),
    ("phd", ("scene",), {"strength": 0.6, "negative_prompt": "a dog"}),
    ("dreamcom", ALL, {"prompt": "a photo of a table", "lora_scale": 0.5, "strength": 0.7}),
    ("dreamcom", ALL, {"best_of": 4}),
    ("dreamcom", ALL, {"best_of": 3, "best_by": "likelihood"}),
    ("dreamcom", ALL, {"scheduler": "DDIMScheduler", "guidance_scale": 1.0}),
    ("dreamedit", ALL, {"start": "inpaint", "iterations": 0}),
    ("dreamedit", ALL, {"strength_start": 0.3, "strength_end": 0.25, "details": 0.5}),
    ("dreamedit", ALL, {"strength_start": 1.0, "strength_end": 0.5, "grow": 0.2}),
    ("inpaint", ALL, {"prompt": "a table", "negative_prompt": "a cup", "grow": 0.1}),
    ("inpaint", ALL, {"strength": 0.6, "scheduler": "DDIMScheduler", "context": 0.2}),
    ("inpaint", ALL, {"guidance_scale": 1.0, "scheduler": "DPMSolverMultistepScheduler"}),
    ("feather", ALL, {"radius": 0.0}),
    ("feather", ALL, {"radius": 12.0}),
    ("poisson", ALL, {"amount": 0.4}),
    ("reinhard", ALL, {"amount": 0.4, "reach": 0.1}),
    ("reinhard", ALL, {"limit": 1.0, "space": "cielab"}),
    ("telea", ALL, {"radius": 12.0, "dilate": 0}),
    ("telea", ALL, {"working_side": 64}),
]
# What the random checkpoints are asked: command, method, preset, settings.
THIN: list[tuple[str, str, str | None, dict[str, Any]]] = [
    ("compose", "cdc", None, {"prompt": PROMPT}),
    ("compose", "cdc", "immerse", {"guidance_scale": 1.0}),
    ("compose", "cdc", "augment", {}),
    ("compose", "cdc", None, {"prompt": PROMPT, "words_inside": "cup", "condition_on": "x0"}),
    ("compose", "freecompose", None, {"guidance_scale": 3.0}),
    ("compose", "freecompose", "released", {}),
    ("compose", "freecompose", None, {"variant": "background", "surroundings": "both"}),
    ("compose", "freecompose", None, {"perceptual": "encoder", "perceptual_every": 1}),
    ("compose", "freecompose", "semantic", {"num_iterations": 2}),
    ("compose", "freecompose", "semantic-released", {}),
    ("compose", "phd", None, {}),
    ("compose", "phd", None, {"inpaint": True, "prompt": PROMPT}),
    ("compose", "phd", None, {"harmonizer": "DIR", "harmonizer_steps": 2}),
    ("harmonize", "cdc", "stylize", {}),
    ("harmonize", "freecompose", None, {"variant": "collage"}),
    ("harmonize", "phd", None, {"harmonize_guidance_scale": 2.0}),
    ("remove", "freecompose", None, {}),
    ("remove", "freecompose", None, {"hide_region": False, "variant": "background"}),
    ("remove", "inpaint", None, {"prompt": "a table"}),
    ("remove", "inpaint", None, {"decoding": "plain", "scheduler": "DDIMScheduler"}),
    ("scene", "phd", None, {}),
]
FORMATS = ("sd1", "sd1_inpaint", "sd2_v", "sdxl", "sdxl_inpaint")


# --- pictures -------------------------------------------------------------------------------


@functools.cache
def background() -> Photo:
    return np.ascontiguousarray(data.chelsea()[60:220, 100:316])


@functools.cache
def helmet() -> Photo:
    """A background that a learnt cup stands out from."""
    return np.ascontiguousarray(data.astronaut()[300:460, 290:506])


def _ellipse(photo: Photo) -> Photo:
    """The photograph's alpha: a filled ellipse with an antialiased edge."""
    alpha = np.zeros(photo.shape[:2], np.uint8)
    height, width = alpha.shape
    axes = (int(width * 0.45), int(height * 0.45))
    cv2.ellipse(alpha, (width // 2, height // 2), axes, 0, 0, 360, 255, -1, cv2.LINE_AA)
    return alpha


def _cutout(photo: Photo) -> Photo:
    photo = np.ascontiguousarray(photo)
    return np.dstack([photo, _ellipse(photo)])


@functools.cache
def cup() -> Photo:
    return _cutout(data.coffee()[10:250:3, 150:420:3])


@functools.cache
def face() -> Photo:
    return _cutout(data.astronaut()[0:250:4, 100:350:4])


@functools.cache
def photo() -> Photo:
    """A cup on its table, to be cut out."""
    return np.ascontiguousarray(data.coffee()[0:300:2, 130:450:2])


@functools.cache
def pasted() -> tuple[Photo, Photo]:
    """The background with the cup in it, and the cup's mask."""
    box = Box(75, 45, cup().shape[1], cup().shape[0])
    whole, mask = background().copy(), np.zeros(background().shape[:2], np.uint8)
    alpha = cup()[..., 3:] / 255
    part = whole[box.slices]
    whole[box.slices] = np.round(alpha * cup()[..., :3] + (1 - alpha) * part).astype(np.uint8)
    mask[box.slices] = cup()[..., 3]
    return whole, mask


@functools.cache
def lines() -> Photo:
    """White lines on black, of the background's size: an ellipse where the subject lies."""
    drawn = np.zeros(background().shape[:2], np.uint8)
    cv2.ellipse(drawn, (112, 79), (38, 24), 35, 0, 360, 255, 1)
    return drawn


def subjects(pictures: list[Any], **each: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Several subjects, as (the argument, the keywords) of the tree's own kind.

    Where inlay has Subject it is a list of those; before, it was a list of pictures beside a list
    of values for each keyword.
    """
    if not hasattr(inlay, "Subject"):
        return pictures, each
    made = []
    for number, picture in enumerate(pictures):
        own = {name: values[number] for name, values in each.items()}
        own = {name: value for name, value in own.items() if value is not None}
        made.append(inlay.Subject(picture, **own))
    return made, {}


# --- hashes ---------------------------------------------------------------------------------


def _sha(mode: str, *arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256(mode.encode())
    for array in arrays:
        digest.update(f"|{array.shape}|{array.dtype.str}|".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _of_image(image: Any) -> str:
    """Of a PIL image, an array, or a picture of inlay's own."""
    image = image.to_pil() if hasattr(image, "to_pil") else image
    if isinstance(image, Image.Image):
        return _sha(image.mode, np.asarray(image))
    samples = getattr(image, "samples", image)
    if not isinstance(samples, np.ndarray):
        raise TypeError(f"there are no pixels in a {type(image).__name__}")
    return _sha(str(getattr(image, "mode", "")), samples)


def _inputs(picture: Path) -> list[str]:
    """The words that give a rerun all that the picture's record names."""
    from inlay.request import Request
    from inlay.result.record import names, read_back

    record = read_back(picture)
    given = {place: source.path for place, source in record.inputs.items()}
    given |= {place: name for place, (_, name) in names(Request.of(record.request)).items()}
    return [word for place, name in given.items() for word in ("--input", f"{place}={name}")]


def _of_file(path: Path) -> str:
    """Of a picture's file: as PIL opens it, and as OpenCV does, which keeps 16 bits."""
    with Image.open(path) as opened:
        mode, arrays = opened.mode, [np.asarray(opened)]
    deep = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return _sha(mode, *arrays, *([] if deep is None else [deep]))


def prints(result: Any) -> Prints:
    """Of all that a call gives back: pictures, mask, phases."""
    found = {str(number): _of_image(image) for number, image in enumerate(result.images, 1)}
    found["mask"] = _of_image(result.mask)
    found |= {f"phase {name}": _of_image(picture) for name, picture in result.phases.items()}
    return found


# --- what is kept in DIR --------------------------------------------------------------------


def _helper(*names: str) -> types.ModuleType:
    """A module of the tests, wherever below tests/ it lies and by whichever of its names."""
    for name in names:
        for path in sorted((TREE / "tests").rglob(f"{name}.py")):
            if str(path.parent) not in sys.path:
                sys.path.append(str(path.parent))
            return importlib.import_module(name)
    raise RuntimeError(f"the tests have no {' or '.join(names)}.py to build a checkpoint with")


def _draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Kept:
    """A folder of checkpoints and the like; each is made when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def _made(self, name: str, build: Callable[[Path], Any]) -> Path:
        path = self.root / name
        if not path.exists():
            # Under another name until it is whole.
            part = self.root / f"part-{name}"
            if part.is_dir():
                shutil.rmtree(part)
            print(f"building {name}", file=sys.stderr, flush=True)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                build(part)
            part.rename(path)
        return path

    def checkpoint(self, name: str) -> str:
        """ "embedded", one of FORMATS, or "single", a file in the original layout."""
        if name == "embedded":
            return name
        if name == "single":
            folder = self._made(name, lambda part: _helper("checkpoints").build_single_file(part))
            return str(folder / "model.safetensors")
        return str(
            self._made(name, lambda part: shutil.copytree(_helper("checkpoints").built(name), part))
        )

    def adapter(self, name: str) -> str:
        """An untrained T2I-Adapter for a checkpoint, its weights enlarged so that it shows."""

        def build(part: Path) -> None:
            module = importlib.import_module("inlay.diffusion.branches")
            network = module.new_adapter(Composer(self.checkpoint(name), device="cpu").backbone)
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.mul_(1.5)
            network.save_pretrained(part)

        return str(self._made(f"adapter-{name}", build))

    def harmonizer(self, name: str) -> str:
        """An untrained harmonizer whose zero layers are drawn, so that it does something."""

        def build(part: Path) -> None:
            module = importlib.import_module("inlay.diffusion.branches")
            network = module.new_harmonizer(Composer(self.checkpoint(name), device="cpu").backbone)
            for parameter in network.parameters():
                if not parameter.detach().any():
                    torch.nn.init.normal_(parameter, std=0.2)
            network.save_pretrained(part)

        return str(self._made(f"harmonizer-{name}", build))

    def learnt(self, name: str, *more: str) -> str:
        """The file of a cup that a checkpoint has learnt, with more options of `inlay learn`.

        The embedded checkpoint learns it a little, the others hastily: it shows in every picture.
        """

        def build(part: Path) -> None:
            part.mkdir()
            learn(part, self.checkpoint(name), *more, hastily=name != "embedded")

        label = "".join(char for char in "".join(more) if char.isalnum())
        folder = self._made("-".join(filter(None, ("learnt", name, label))), build)
        return str(folder / "cup.safetensors")

    def lora(self) -> str:
        """A LoRA for sd1 as kohya's scripts write it, in the U-Net and the text encoder."""

        def build(part: Path) -> None:
            layer = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
            tensors = {}
            names = {f"lora_unet_{layer}": 16}
            for text in ("q_proj", "out_proj"):
                names[f"lora_te_text_model_encoder_layers_0_self_attn_{text}"] = 32
            for number, (key, width) in enumerate(names.items()):
                tensors[f"{key}.lora_down.weight"] = _draw(2, width, seed=number)
                tensors[f"{key}.lora_up.weight"] = _draw(width, 2, seed=number + 10)
                tensors[f"{key}.alpha"] = torch.tensor(4.0)
            part.mkdir()
            save_file(tensors, part / "style.safetensors")

        return str(self._made("lora", build) / "style.safetensors")

    def lora_xl(self) -> str:
        """A LoRA for sdxl as peft writes it, in the U-Net and the second text encoder."""

        def build(part: Path) -> None:
            layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
            text = "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj"
            tensors = {}
            for number, name in enumerate((layer, text)):
                tensors[f"{name}.lora_A.weight"] = _draw(1, 32, seed=number)
                tensors[f"{name}.lora_B.weight"] = _draw(32, 1, seed=number + 10)
            part.mkdir()
            save_file(tensors, part / "style.safetensors")

        return str(self._made("lora-xl", build) / "style.safetensors")

    def word(self) -> str:
        """A textual inversion for sd1."""

        def build(part: Path) -> None:
            part.mkdir()
            save_file({"<my-cup>": _draw(2, 32, seed=5)}, part / "word.safetensors")

        return str(self._made("word", build) / "word.safetensors")

    def segmenter(self, kind: str) -> str:
        """A random model that finds subjects: "semantic" or "sam"."""

        def build(part: Path) -> None:
            (_semantic if kind == "semantic" else _sam)(part)

        return str(self._made(f"segmenter-{kind}", build))


def _semantic(folder: Path) -> None:
    """A classifier of pixels that says "cat" everywhere."""
    from transformers import (
        MobileNetV2Config,
        MobileNetV2ForSemanticSegmentation,
        MobileNetV2ImageProcessorPil,
    )

    names = {0: "background", 1: "cat", 2: "cup"}
    model = MobileNetV2ForSemanticSegmentation(
        MobileNetV2Config(
            image_size=64, depth_multiplier=0.25, output_stride=8, id2label=names, num_labels=3
        )
    )
    last = model.segmentation_head.classifier.convolution
    torch.nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.eye(3)[1])
    model.save_pretrained(folder)
    crop = {"height": 64, "width": 64}
    MobileNetV2ImageProcessorPil(size={"shortest_edge": 72}, crop_size=crop).save_pretrained(folder)


def _sam(folder: Path) -> None:
    from transformers import SamConfig, SamModel

    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 128,
        "patch_size": 16,
        "output_channels": 32,
        "mlp_dim": 64,
        "window_size": 4,
        "global_attn_indexes": [1],
        "num_pos_feats": 16,
    }
    prompts = {"hidden_size": 32, "image_size": 128, "patch_size": 16}
    decoder = {
        "hidden_size": 32,
        "mlp_dim": 64,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 32,
    }
    torch.manual_seed(3)
    SamModel(
        SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    ).save_pretrained(folder)


# --- command lines --------------------------------------------------------------------------


def command(*words: object) -> None:
    """Run a command line in this process; raises RuntimeError with what it said if it fails."""
    from inlay.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        status = main([str(word) for word in words])
    if status != 0:
        lines_said = said.getvalue().strip().splitlines() or [""]
        raise RuntimeError(f"status {status}: {lines_said[-1]}")


def learn(folder: Path, model: str, *more: str, hastily: bool = True) -> None:
    """`inlay learn` of a cup, as folder/cup.safetensors: in a few large steps, or in some more."""
    whole = data.coffee()
    if hastily:
        photos = {Box(60, 30, 90, 80): whole[120:300, 10:230]}
        photos[Box(50, 20, 100, 90)] = whole[180:360, 40:260]
        sets = "steps=3 batch=1 variants=2 resolution=64 rank=2 ema_decay=0 learning_rate=0.1"
    else:
        photos = {Box(36, 8, 92, 100): photo()}
        sets = "steps=80 batch=2 variants=8 rank=8"
    words: list[object] = []
    for number, (box, picture) in enumerate(photos.items()):
        path = folder / f"photo{number}.png"
        Image.fromarray(np.ascontiguousarray(picture)).save(path)
        words += [path, "--box", f"{box.x},{box.y},{box.width},{box.height}"]
    for item in sets.split():
        words += ["--set", item]
    where = ("--class-name", "cup", "--model", model, "--device", "cpu")
    command("learn", *words, *where, "--quiet", *more, "-o", folder / "cup.safetensors")


# --- cases ----------------------------------------------------------------------------------


def settings_of(
    name: str, method: Any, preset: str | None, given: dict[str, Any]
) -> dict[str, Any]:
    """Few steps, what shows, and what is given, as far as the method has such settings."""
    fixed = dict(method.presets[preset]) if preset else {}
    few = {**FEW, **STRONG.get(name, {})}
    # A preset's 0 leaves a part out, and its other numbers are what it is about, but for counts.
    few = {key: n for key, n in few.items() if key not in fixed or (key in FEW and fixed[key] > 0)}
    return {key: n for key, n in few.items() if key in method.settings.model_fields} | given


def choices(method: Any) -> Iterator[dict[str, Any]]:
    """Every value other than the embedded checkpoint's default, of choices and switches."""
    for name, info in tuned(method.settings).model_fields.items():
        values: tuple[Any, ...] = ()
        if info.annotation is bool:
            values = (True, False)
        elif typing.get_origin(info.annotation) is typing.Literal:
            values = typing.get_args(info.annotation)
        yield from ({name: value} for value in values if value != info.default)


def _unfit(verb: str, method: Any, preset: str | None, given: dict[str, Any]) -> bool:
    """Whether inlay refuses it on the embedded checkpoint, or it wants a package of its own."""
    merged = {**(method.presets[preset] if preset else {}), **given}
    if merged.get("perceptual") in ("encoder", "lpips"):
        return True
    if verb != "compose" and merged.get("variant") == "semantic":
        return True
    if verb == "remove" and merged.get("variant") == "collage":
        return True
    return verb == "harmonize" and merged.get("harmonize") is False


class Cases:
    """All cases, by name in a stable order; nothing runs before it is called."""

    def __init__(self, kept: Kept, work: Path) -> None:
        self.kept, self.work = kept, work
        self.found: dict[str, Run] = {}
        self._composers: dict[str, Any] = {}

    def composer(self, name: str = "embedded", dtype: str = "float32", **more: Any) -> Any:
        key = f"{name}{dtype}{more}"
        if key not in self._composers:
            model = self.kept.checkpoint(name)
            self._composers[key] = Composer.from_pretrained(
                model, device="cpu", dtype=dtype, **more
            )
        return self._composers[key]

    def add(self, name: str, run: Run) -> None:
        if name in self.found:
            raise ValueError(f"two cases are called {name}")
        self.found[name] = run

    def all(self) -> dict[str, Run]:
        self._methods()
        self._random_checkpoints()
        self._places()
        self._many()
        self._phases()
        self._files()
        self._cuts()
        self._learnt()
        self._commands()
        return self.found

    # One call of a command -----------------------------------------------------------------

    def call(
        self, model: str, verb: str, method: str, preset: str | None, given: dict[str, Any]
    ) -> Prints:
        composer, entry = self.composer(model), inlay.methods()[method]
        more = settings_of(method, entry, preset, given)
        if more.get("harmonizer") == "DIR":
            more["harmonizer"] = self.kept.harmonizer(model)
        seed = LEARNT_SEED if method in LEARNT else SEED
        more |= {"method": method, "preset": preset, "seed": seed}
        variant = (entry.presets[preset] if preset else {}).get("variant")
        if given.get("variant", variant) == "semantic":
            # Untrained lines need timesteps that see them; the embedded adapter has its own.
            if model != "embedded":
                more["adapter"] = self.kept.adapter(model)
                more |= {"t_min": 200, "t_max": 500} if preset == "semantic" else {}
            more["control"] = lines()
        if verb == "compose":
            picture, subject = background(), cup()
            if method in LEARNT:
                picture, subject = helmet(), self.kept.learnt(model)
            return prints(composer.compose(picture, subject, box=BOX, **BARE, **more))
        if verb == "scene":
            more = {"prompt": "a photo of a landscape", "size": (150, 128), **more}
            return prints(composer.scene(cup(), **more))
        picture, mask = pasted()
        if verb == "harmonize":
            return prints(composer.harmonize(picture, mask=mask, background=background(), **more))
        return prints(composer.remove(picture, mask=mask, **{"method": "freecompose", **more}))

    def _call(
        self, model: str, verb: str, method: str, preset: str | None, given: dict[str, Any]
    ) -> None:
        said = ",".join(f"{key}={value}" for key, value in given.items())
        name = "/".join(filter(None, (model, verb, method, preset, said)))
        self.add(name, lambda: self.call(model, verb, method, preset, given))

    def _methods(self) -> None:
        """Every command, method, preset and choice on the embedded checkpoint."""
        for verb in ALL:
            for name, method in inlay.methods().items():
                if verb not in method.verbs:
                    continue
                asked: list[tuple[str | None, dict[str, Any]]] = [(None, {})]
                asked += [(preset, {}) for preset in method.presets]
                asked += [(None, given) for given in choices(method)]
                if verb == "compose" and "semantic" in method.presets:
                    for given in (
                        *({key: value} for key, value in (
                            ("share", False), ("region", "mask"), ("control_type", "sketch"),
                            ("share_from_layer", "0"), ("adapter_conditioning_scale", 0.0),
                            ("share_from_iteration", 0.9), ("redraw", 0.0),
                        )),
                        {"control_t_min": 100, "control_t_max": 500, "prompt": PROMPT},
                    ):  # fmt: skip
                        asked.append(("semantic", {"num_iterations": 2, **given}))
                asked += [(None, own) for of, verbs, own in EXTRAS if of == name and verb in verbs]
                for preset, given in asked:
                    if not _unfit(verb, method, preset, given):
                        self._call("embedded", verb, name, preset, given)

    def _random_checkpoints(self) -> None:
        for model in FORMATS:
            for verb, name, preset, given in THIN:
                self._call(model, verb, name, preset, given)
        self._call("single", *THIN[0])

        def extended(model: str, opened: Callable[[], dict[str, Any]]) -> Prints:
            how = {"prompt": "a <my-cup> on a table", "seed": SEED, "box": BOX, **CDC}
            return prints(
                self.composer(model, **opened()).compose(background(), cup(), **BARE, **how)
            )

        kept = self.kept
        for label, model, opened in (
            ("plain", "sd1", dict),
            ("lora", "sd1", lambda: {"loras": [(kept.lora(), 1.0)]}),
            ("two loras", "sd1", lambda: {"loras": [(kept.lora(), 1.0), (kept.lora(), -2.0)]}),
            ("inversion", "sd1", lambda: {"textual_inversions": [kept.word()]}),
            ("bfloat16", "sd1", lambda: {"dtype": "bfloat16"}),
            ("plain", "sdxl", dict),
            ("lora", "sdxl", lambda: {"loras": [(kept.lora_xl(), 1.0)]}),
        ):
            self.add(f"opened/{model}/{label}", functools.partial(extended, model, opened))

    # Where and what ------------------------------------------------------------------------

    def _compose(self, name: str, subject: Any, **keywords: Any) -> None:
        """A case of compose on the embedded checkpoint; subject may be a function that makes it."""

        def run() -> Prints:
            given, more = subject() if callable(subject) else subject, dict(keywords)
            if isinstance(given, tuple):
                given, own = given
                more |= own
            picture = more.pop("background", None)
            picture = background() if picture is None else picture
            return prints(self.composer().compose(picture, given, **{"seed": SEED, **BARE, **more}))

        self.add(name, run)

    def _places(self) -> None:
        paste = {"method": "paste"}
        for label, where in {
            "middle": {},
            "box over the edge": {"box": Box(170, 110, 80, 80)},
            "box as numbers": {"box": (10, 20, 60, 90)},
            "point": {"at": (110, 80)},
            "point and scale": {"at": (150.5, 60.25), "scale": 0.6},
            "point and scale over the edge": {"at": (10, 150), "scale": 1.3},
            "random": {"random": True},
            "random, three": {"random": True, "num_images": 3},
            "rotate": {"box": BOX, "rotate": 30},
            "rotate and flip": {"box": BOX, "rotate": -75.5, "flip": True},
            "rotate, flip, point": {"at": (100, 80), "scale": 0.8, "rotate": 90, "flip": True},
            "rotate, flip, random": {"random": True, "rotate": 200, "flip": True},
        }.items():
            self._compose(f"place/{label}/paste", cup(), **where, **paste)
            if label in ("box over the edge", "random", "rotate and flip"):
                self._compose(f"place/{label}/cdc", cup(), **where, **CDC)
        # Windows above, below and far from the checkpoint's own size, and at the picture's rim.
        whole = data.chelsea()
        for label, box in {
            "large": Box(120, 50, 230, 210),
            "tiny": Box(300, 100, 14, 12),
            "wide": Box(5, 200, 420, 60),
            "corner": Box(0, 0, 40, 60),
        }.items():
            for method, few in {
                "cdc": STRONG["cdc"],
                "freecompose": {"num_iterations": 2, "eta": 0.5},
                "phd": {"inpaint": True, "num_inference_steps": 6, "shadow_reach": 0.1},
                "poisson": {},
                "reinhard": {},
            }.items():
                self._compose(f"window/{label}/{method}", cup(), background=whole, box=box,
                              method=method, **few)  # fmt: skip
            hole = np.zeros(whole.shape[:2], np.uint8)
            hole[box.slices] = 255
            for method, few in {
                "inpaint": {"num_inference_steps": 3},
                "freecompose": {"num_iterations": 2, "texture": 0.1},
                "telea": {},
            }.items():
                given = {"mask": hole, "method": method, "seed": SEED, **few}
                self.add(
                    f"window/{label}/remove by {method}",
                    functools.partial(
                        lambda own: prints(self.composer().remove(whole, **own)), given
                    ),
                )
        self._compose("images/cdc", cup(), box=BOX, num_images=2, **CDC)
        self._compose("images/default method", cup(), box=BOX, num_images=2)
        self._compose("images/previews", cup(), box=BOX, previews=True, callback=_ignore, **CDC)
        self._compose("stages/phd", cup(), box=BOX, keep_phases=True, method="phd", inpaint=True,
                      num_inference_steps=6)  # fmt: skip
        for size in ((96, 200), (256, 160)):
            for label, more in {
                "default place": {},
                "box": {"box": (20, 30, 50, 60), "keep_phases": True},
                "random": {"random": True, "num_images": 2},
            }.items():
                few = {"num_inference_steps": 2, "refine_steps": 2, "refine_strength": 0.5}
                given = {"prompt": "a photo of a beach", "size": size, "seed": SEED, **few, **more}
                self.add(
                    f"scene/{size[0]}x{size[1]}/{label}",
                    functools.partial(
                        lambda own: prints(self.composer().scene(cup(), **own)), given
                    ),
                )

        def two() -> Prints:
            given, own = subjects([cup(), face()], box=[(10, 60, 60, 60), (80, 50, 60, 70)])
            few = {"num_inference_steps": 2, "refine_steps": 2, "seed": SEED, **own}
            result = self.composer().scene(given, prompt="a beach", size=(160, 130), **few)
            return prints(result)

        self.add("scene/two subjects", two)

    def _many(self) -> None:
        methods: dict[str, dict[str, Any]] = {
            "paste": {},
            "poisson": {},
            "reinhard": {},
            "cdc": STRONG["cdc"],
            "freecompose": {"num_iterations": 2, "eta": 0.5},
            "phd": {"harmonizer_samples": 1},
        }
        for method, few in methods.items():
            for together in (False, True):
                how = "together" if together else "after each other"
                self._compose(
                    f"two/{how}/{method}",
                    lambda: subjects([cup(), face()], box=[BOX, OTHER]),
                    together=together,
                    method=method,
                    **few,
                )
        values: dict[str, dict[str, list[Any]]] = {
            "points": {"at": [(60, 60), (150, 100)], "scale": [0.5, 0.9]},
            "random": {"random": [True, True]},
            "box and random": {"box": [BOX, None], "random": [False, True]},
            "turned": {"box": [BOX, OTHER], "rotate": [20.0, -90.0], "flip": [True, False]},
        }
        for label, each in values.items():
            for together in (False, True):
                how = "together" if together else "after each other"
                self._compose(
                    f"two/{label}/{how}",
                    functools.partial(subjects, [cup(), face()], **each),
                    together=together,
                    method="poisson",
                    num_images=2 if "random" in label else 1,
                )
        self._compose(
            "two/cuts",
            lambda: subjects(
                [photo(), photo()],
                box=[BOX, OTHER],
                mask=[_photo_mask(), None],
                cut=["mask", "grabcut"],
                cut_box=[None, CUT_BOX],
            ),
            method="feather",
        )
        self._compose(
            "three/together",
            lambda: subjects(
                [cup(), face(), cup()], box=[BOX, OTHER, Box(4, 100, 50, 50)], flip=[False] * 3
            ),
            together=True,
            **CDC,
        )

    def _phases(self) -> None:
        telea: dict[str, Any] = {"remove": "telea"}
        free = {"remove": {"name": "freecompose", "num_iterations": 2, "texture": 0.2}}
        paint = {"remove": {"name": "inpaint", "num_inference_steps": 2}}
        repose = {"num_iterations": 2, "redraw_steps": 3}
        every = "remove,paste,harmonize"
        where: dict[str, Any] = {"box": BOX, "keep_phases": True}
        for label, more in {
            "remove": {"phases": "remove", **telea},
            "remove, paste": {"phases": ("remove", "paste"), **telea},
            "all, telea, cdc": {"phases": every, **telea, **CDC},
            "all, freecompose, poisson": {"phases": every, **free, "method": "poisson"},
            "all, inpaint, reinhard": {"phases": every, **paint, "method": "reinhard"},
            "all, mask": {"phases": every, **telea, "method": "poisson",
                          "remove_mask": pasted()[1]},
            "all, settings": {"phases": every, "method": "feather",
                              "remove": {"name": "telea", "radius": 9.0, "dilate": 0}},
            "two pictures": {"phases": "paste,harmonize", **CDC, "num_images": 2},
            "repose": {"phases": "paste,repose", "control": lines(),
                       "repose": repose},
            "all and repose": {"phases": f"{every},repose", **CDC, **telea, "control": lines(),
                               "repose": repose},
        }.items():  # fmt: skip
            self._compose(f"phases/{label}", cup(), **where, **more)
        for together in (False, True):
            self._compose(
                f"phases/two subjects, {'together' if together else 'after each other'}",
                lambda: subjects([cup(), face()], box=[BOX, OTHER]),
                phases=every,
                together=together,
                keep_phases=True,
                **telea,
                **CDC,
            )

    # Kinds of pictures ---------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """A picture's file, of one of the kinds that are read; made when first asked for."""
        path = self.work / name
        if path.exists():
            return path
        plain, (whole, mask) = background(), pasted()
        grey = cv2.cvtColor(plain, cv2.COLOR_RGB2GRAY)
        fine = plain.astype(np.uint16) * 257 + np.arange(plain.shape[1], dtype=np.uint16)[:, None]
        veil = np.linspace(40, 255, plain.shape[1]).astype(np.uint8)
        rgba = np.dstack([plain, np.broadcast_to(veil, grey.shape)])
        exif = Image.Exif()
        exif[0x0112] = 6
        if name in ("deep.png", "deep.tif"):
            cv2.imwrite(str(path), fine[..., ::-1])
        elif name == "deep-grey.png":
            cv2.imwrite(str(path), fine[..., 1])
        elif name == "deep-alpha.png":
            cv2.imwrite(
                str(path), np.dstack([fine[..., ::-1], rgba[..., 3].astype(np.uint16) * 257])
            )
        else:
            image = {
                "table.png": lambda: Image.fromarray(plain),
                "table.bmp": lambda: Image.fromarray(plain),
                "table.jpg": lambda: Image.fromarray(plain),
                "turned.jpg": lambda: Image.fromarray(np.ascontiguousarray(np.rot90(plain))),
                "rgba.png": lambda: Image.fromarray(rgba),
                "grey.png": lambda: Image.fromarray(grey),
                "grey-alpha.png": lambda: Image.fromarray(np.dstack([grey, rgba[..., 3]]), "LA"),
                "palette.png": lambda: Image.fromarray(plain).quantize(64),
                "cmyk.tif": lambda: Image.fromarray(plain).convert("CMYK"),
                "cup.png": lambda: Image.fromarray(cup()),
                "face.png": lambda: Image.fromarray(face()),
                "photo.png": lambda: Image.fromarray(photo()),
                "photo-mask.png": lambda: Image.fromarray(_photo_mask()),
                "pasted.png": lambda: Image.fromarray(whole),
                "mask.png": lambda: Image.fromarray(mask),
                "lines.png": lambda: Image.fromarray(lines()),
            }[name]()
            image.save(path, **({"exif": exif} if name == "turned.jpg" else {}))
        return path

    def _files(self) -> None:
        """Backgrounds of every kind, and what is written of them."""

        def kind(name: str, out: str, **keywords: Any) -> Prints:
            given = {"box": BOX, "seed": SEED, **BARE, **keywords}
            result = self.composer().compose(self.path(name), cup(), **given)
            written = self.work / f"written-{name}-{out}"
            result.save(written)
            return {**prints(result), "file": _of_file(written)}

        outs = {
            "deep.png": "out.png",
            "deep.tif": "out.tif",
            "deep-grey.png": "out.png",
            "deep-alpha.png": "out.png",
            "rgba.png": "out.png",
            "grey.png": "out.bmp",
            "grey-alpha.png": "out.png",
            "palette.png": "out.png",
            "cmyk.tif": "out.tif",
            "turned.jpg": "out.jpg",
            "table.bmp": "out.webp",
        }
        for name, out in outs.items():
            for method in ("poisson", "cdc"):
                if method == "cdc" and name in ("deep.tif", "palette.png", "table.bmp"):
                    continue
                few = STRONG["cdc"] if method == "cdc" else {}
                self.add(
                    f"kind/{name}/{method}",
                    functools.partial(kind, name, out, method=method, **few),
                )

        def without_mask() -> Prints:
            found = np.dstack([pasted()[0], pasted()[1]])
            return prints(self.composer().harmonize(found, method="reinhard", seed=SEED))

        self.add("harmonize/by alpha", without_mask)
        for method, few in (("freecompose", {"num_iterations": 3}), ("cdc", STRONG["cdc"])):
            self.add(
                f"harmonize/without background/{method}",
                functools.partial(
                    lambda own: prints(
                        self.composer().harmonize(pasted()[0], mask=pasted()[1], **own)
                    ),
                    {"method": method, **few},
                ),
            )

    def _cuts(self) -> None:
        ways: dict[str, dict[str, Any]] = {
            "grabcut": {"by": "grabcut"},
            "grabcut in a box": {"by": "grabcut", "box": CUT_BOX},
            "box": {"box": CUT_BOX},
            "hard mask": {"mask": _photo_mask()},
            "soft mask": {"mask": cv2.GaussianBlur(_photo_mask(), (0, 0), 3)},
            "mask in a box": {"mask": _photo_mask(), "by": "mask", "box": CUT_BOX},
        }
        for label, how in ways.items():
            self.add(
                f"cut/{label}",
                functools.partial(lambda own: {"1": _of_image(inlay.cut(photo(), **own))}, how),
            )
        self.add("cut/alpha", lambda: {"1": _of_image(inlay.cut(cup()))})
        for kind in ("semantic", "sam"):
            self.add(
                f"cut/{kind}",
                functools.partial(
                    lambda own: {
                        "1": _of_image(inlay.cut(photo(), by=self.kept.segmenter(own), box=CUT_BOX))
                    },
                    kind,
                ),
            )
        self._compose("compose/grabcut", photo(), box=BOX, cut="grabcut", cut_box=CUT_BOX,
                      method="paste")  # fmt: skip
        self._compose("compose/mask", photo(), box=BOX, mask=_photo_mask(), method="feather")
        self._compose("compose/cut box", photo(), random=True, cut_box=CUT_BOX, rotate=15,
                      **CDC)  # fmt: skip

    def _learnt(self) -> None:
        """Learnt objects beside the methods' own cases, which are on the embedded checkpoint."""

        def go(model: str, how: tuple[str, ...], keywords: dict[str, Any]) -> Prints:
            few = {"num_inference_steps": 2, "seed": LEARNT_SEED, "box": BOX, **keywords}
            if few.get("method") == "dreamedit":
                few = {**few, "iterations": 2, "num_inference_steps": 4}
            file = self.kept.learnt(model, *how)
            return prints(self.composer(model).compose(helmet(), file, **few))

        asked: dict[str, dict[str, Any]] = {
            "default": {},
            "released": {"self_attention": "released", "mask_cross_attention": "on"},
            "object": {"region": "object"},
            "two pictures": {"num_images": 2},
            "point": {"box": None, "at": (110, 80), "scale": 0.2},
            "random": {"box": None, "random": True},
            "dreamedit": {"method": "dreamedit"},
            "dreamedit faithful": {"method": "dreamedit", "preset": "faithful"},
        }
        kinds: dict[str, tuple[str, tuple[str, ...]]] = {
            name: (name, ()) for name in ("embedded", "sd1", "sd1_inpaint", "sdxl_inpaint")
        }
        kinds["sd1_inpaint, full"] = ("sd1_inpaint", ("--full", "--set", "full_dtype=float32"))
        kinds["sd1_inpaint, text"] = ("sd1_inpaint", ("--set", "text_encoder=true"))
        kinds["sdxl, attention"] = ("sdxl", ("--set", "layers=attention"))
        for label, (model, how) in kinds.items():
            chosen = list(asked) if not how else ["default", "released", "dreamedit"]
            for of in chosen:
                self.add(f"learnt/{label}/{of}", functools.partial(go, model, how, asked[of]))

        def twice() -> Prints:
            file = self.kept.learnt("embedded")
            given, own = subjects([file, file], box=[BOX, OTHER])
            few = {"num_inference_steps": 2, "seed": SEED, **own}
            return prints(self.composer().compose(helmet(), given, **few))

        self.add("learnt/embedded/two subjects", twice)

        def anew(model: str) -> Prints:
            # Learnt by this tree: that the training makes the same weights.
            folder = Path(tempfile.mkdtemp(dir=self.work))
            learn(folder, self.kept.checkpoint(model))
            result = self.composer(model).compose(
                helmet(), str(folder / "cup.safetensors"), box=BOX, num_inference_steps=2
            )
            return prints(result)

        for model in ("embedded", "sd1"):
            self.add(f"learnt/{model}/anew", functools.partial(anew, model))

    # Command lines -------------------------------------------------------------------------

    def _command(
        self, name: str, *words: object, out: str = "out.png", again: bool = False
    ) -> None:
        """A whole command line: every picture that it leaves; `again` adds a rerun of it.

        Words that are functions are called, as files are made when they are needed.
        """

        def run() -> Prints:
            folder = Path(tempfile.mkdtemp(dir=self.work))
            said = [word() if callable(word) else word for word in words]
            quick = ["--device", "cpu"] if said[0] != "cut" else []
            quick += ["--shadow", "none"] if said[0] == "compose" else []
            command(*said, *quick, "--quiet", "-o", folder / out)
            if again:
                made = sorted(path for path in folder.iterdir() if path.is_file())
                # Where there are several pictures OUT is a sheet of them.
                several = [path for path in made if "-seed=" in path.stem]
                first = several[0] if several else folder / out
                again_file = folder / f"again{first.suffix}"
                command("rerun", first, *_inputs(first), "--quiet", "-o", again_file)
            return {
                path.name: _of_file(path) for path in sorted(folder.iterdir()) if path.is_file()
            }

        self.add(f"command/{name}", run)

    def _commands(self) -> None:
        def file(name: str) -> Callable[[], Path]:
            return functools.partial(self.path, name)

        table, cup_file, face_file = file("table.png"), file("cup.png"), file("face.png")
        whole, mask = file("pasted.png"), file("mask.png")
        box = ("--box", "70,40,84,78")
        both = (*box, "--box", "150,92,52,56")
        plain = ("--method", "cdc", "--num-inference-steps", 4)
        cdc = (*plain, "--set", "T_in=0.3")
        compose = ("compose", table, cup_file)
        self._command("compose/default", *compose, *box, again=True)
        self._command("compose/poisson, jpg", *compose, *box, "--method", "poisson", out="out.jpg")
        self._command("compose/cdc", *compose, *box, *cdc, "--preset", "immerse", again=True)
        self._command("compose/sweep", *compose, *box, *plain, "--set", "T_in=0,1")
        self._command("compose/two sweeps", *compose, *box, "--method", "reinhard",
                      "--set", "amount=0,0.5,1", "--set", "space=lalphabeta,cielab")  # fmt: skip
        self._command("compose/sweep of presets' choice", *compose, *box, *cdc, "--seed", 5,
                      "--num-images", 2, "--set", "decoding=residual,plain")  # fmt: skip
        self._command("compose/random", *compose, "--random", "--seed", 7, "--num-images", 2,
                      "--method", "feather", again=True)  # fmt: skip
        self._command("compose/point", *compose, "--at", "150,60", "--scale", 0.5, "--rotate", 30,
                      "--flip", "--method", "paste", again=True)  # fmt: skip
        self._command("compose/grabcut", "compose", table, file("photo.png"), *box, "--cut",
                      "grabcut", "--cut-box", "34,14,92,88", "--method", "paste",
                      again=True)  # fmt: skip
        self._command("compose/two subjects", "compose", table, cup_file, face_file, *both, *cdc,
                      again=True)  # fmt: skip
        self._command("compose/two subjects, together", "compose", table, cup_file, face_file,
                      *both, *cdc, "--together", again=True)  # fmt: skip
        self._command("compose/two cuts", "compose", table, file("photo.png"), cup_file, *both,
                      "--mask", file("photo-mask.png"), "--mask", "-", "--method", "poisson",
                      "--rotate", 10, again=True)  # fmt: skip
        self._command("compose/phases", *compose, *box, *cdc, "--phases", "remove,paste,harmonize",
                      "--remove-method", "telea", "--set", "remove.radius=9",
                      "--keep-phases", again=True)  # fmt: skip
        self._command("compose/phases, sweep", *compose, *box, "--method", "poisson", "--phases",
                      "remove,paste,harmonize", "--remove-method", "telea", "--set",
                      "remove.dilate=0,8", "--set", "amount=0.5,1", "--keep-phases")  # fmt: skip
        self._command("compose/repose", *compose, *box, "--phases", "paste,repose", "--control",
                      file("lines.png"), "--set", "num_iterations=2", "--set", "redraw_steps=3",
                      again=True)  # fmt: skip
        self._command("compose/stages", *compose, *box, "--set", "inpaint=true", "--keep-phases",
                      "--num-inference-steps", 6)  # fmt: skip
        self._command("compose/deep", "compose", file("deep.png"), cup_file, *box, *cdc)
        self._command("compose/deep tif", "compose", file("deep.tif"), cup_file, *box, "--method",
                      "poisson", out="out.tif", again=True)  # fmt: skip
        self._command("compose/rgba", "compose", file("rgba.png"), cup_file, *box, *cdc)
        self._command("compose/cmyk", "compose", file("cmyk.tif"), cup_file, *box, "--method",
                      "reinhard", out="out.tif")  # fmt: skip
        for model in FORMATS:
            path = functools.partial(self.kept.checkpoint, model)
            self._command(f"compose/{model}", *compose, *box, *cdc, "--prompt", PROMPT, "--model",
                          path, again=model == "sd1")  # fmt: skip
        self._command("compose/lora", *compose, *box, *cdc, "--model",
                      functools.partial(self.kept.checkpoint, "sd1"), "--lora",
                      lambda: f"{self.kept.lora()}:0.5", "--textual-inversion",
                      self.kept.word, "--prompt", "a <my-cup>", again=True)  # fmt: skip
        self._command("compose/learnt", "compose", table,
                      functools.partial(self.kept.learnt, "embedded"), *box,
                      "--num-inference-steps", 3, "--num-images", 2, again=True)  # fmt: skip
        self._command("harmonize/default", "harmonize", whole, "--mask", mask, again=True)
        self._command("harmonize/background", "harmonize", whole, "--mask", mask, "--background",
                      table, "--method", "freecompose", "--set", "num_iterations=3",
                      again=True)  # fmt: skip
        self._command("remove/default", "remove", whole, "--mask", mask, "--set",
                      "num_iterations=3", again=True)  # fmt: skip
        self._command("remove/telea", "remove", whole, "--mask", mask, "--method", "telea",
                      "--set", "algorithm=telea,navier-stokes", out="out.bmp")  # fmt: skip
        self._command("remove/inpaint", "remove", whole, "--mask", mask, "--method", "inpaint",
                      "--num-inference-steps", 3, "--prompt", "a table", again=True)  # fmt: skip
        scene = ("--prompt", "a photo of a beach", "--num-inference-steps", 2, "--set",
                 "refine_steps=3")  # fmt: skip
        self._command("scene/one", "scene", cup_file, "--size", "150x128", *scene, again=True)
        self._command("scene/two", "scene", cup_file, face_file, "--size", "160x140", *scene,
                      "--box", "10,60,60,60", "--box", "80,50,60,70", "--keep-phases")  # fmt: skip
        self._command("cut/box", "cut", file("photo.png"), "--box", "34,14,92,88")
        self._command("cut/mask", "cut", file("photo.png"), "--mask", file("photo-mask.png"),
                      out="out.webp")  # fmt: skip
        self._command("cut/alpha", "cut", cup_file, "--cut", "alpha", out="out.tif")


@functools.cache
def _photo_mask() -> Photo:
    """Where the cup of photo() is, roughly and with a hard edge."""
    mask = np.zeros(photo().shape[:2], np.uint8)
    cv2.ellipse(mask, (80, 58), (42, 40), 0, 0, 360, 255, -1)
    return mask


def _ignore(*_: Any) -> None:
    """A callback that hears and does nothing."""


# --- running and comparing ------------------------------------------------------------------


def run_all(cases: Iterable[tuple[str, Run]]) -> Prints:
    """The hashes of all cases, "NAME | PART" each; a line of progress for each case."""
    found: Prints = {}
    for name, run in cases:
        start = time.process_time()
        try:
            made = run()
            found |= {f"{name} | {part}": value for part, value in made.items()}
            end = f"{len(made)} hashes"
        except Exception as error:
            end = f"error: {type(error).__name__}: {' '.join(str(error).split())}"
            found[name] = end
        print(f"{time.process_time() - start:6.2f} s  {name}: {end}", file=sys.stderr, flush=True)
    return found


def compare(new: Prints, old: Prints) -> bool:
    """Say what is other than it was; whether anything that was there is."""
    differing = [name for name in old if name in new and new[name] != old[name]]
    missing = [name for name in old if name not in new]
    added = [name for name in new if name not in old]
    for label, names in (("differs", differing), ("missing", missing), ("new", added)):
        for name in names:
            values = {value for value in (old.get(name), new.get(name)) if value is not None}
            errors = sorted(value for value in values if value.startswith("error"))
            print(f"{label}: {name}", *errors, sep="  ")
    same = len(old) - len(differing) - len(missing)
    print(f"{same} the same, {len(differing)} differ, {len(missing)} missing, {len(added)} new")
    return bool(differing or missing)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE")
    parser.add_argument("--against", type=Path, metavar="FILE", help="hashes of another tree")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this in their name")
    parser.add_argument("--checkpoints", type=Path, metavar="DIR", help="kept between runs")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    start = time.process_time()
    with tempfile.TemporaryDirectory(prefix="inlay-fingerprint-") as folder:
        work = Path(folder) / "work"
        work.mkdir()
        kept = Kept((given.checkpoints or Path(folder) / "kept").resolve())
        cases = Cases(kept, work).all()
        chosen = [(name, run) for name, run in cases.items() if given.only in name]
        print(f"{len(chosen)} cases of {inlay.__file__}", file=sys.stderr, flush=True)
        found = run_all(chosen)
    given.output.write_text(json.dumps(found, indent=1) + "\n")
    failed = sum(value.startswith("error") for value in found.values())
    print(
        f"{len(chosen)} cases, {len(found)} hashes, {failed} errors, "
        f"{time.process_time() - start:.0f} s of CPU"
    )
    if given.against is None:
        return 0
    old: Prints = json.loads(given.against.read_text())
    old = {name: value for name, value in old.items() if given.only in name.partition(" | ")[0]}
    return int(compare(found, old))


if __name__ == "__main__":
    sys.exit(main())
