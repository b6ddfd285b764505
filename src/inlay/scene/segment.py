"""Segmentation models from the hub or a folder, through transformers, loaded when asked for.

Three kinds: models with classes (DeepLabV3 and everything that transformers calls
...ForSemanticSegmentation), the SAM family (asked with a box or points), and models that bring
their own code and give a soft foreground map (BiRefNet and its kin), which run only when that is
allowed. And those of the package rembg, which fetches them itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inlay.checkpoints.folder import pick_weights
from inlay.checkpoints.hub import hub_folder, is_hub_id
from inlay.errors import InputError, nearest, show
from inlay.pictures.arrays import Box, Image, from_levels, resize, to_uint8
from inlay.scene.cutter import Point, of_points

_BACKGROUND = {"background", "__background__", "unlabeled", "void", "label_0"}
# What these models were trained with, where the checkpoint does not say.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIDE = 1024
# Of rembg, where none is named: its own first one, which is free for all uses.
_REMBG = "u2net"


# A mask (h, w) in [0, 1], and by how many pixels its outline may be off, a cell of the model's map;
# None where the mask is an alpha already.
Found = tuple[Image, float | None]


def segment(
    rgb: Image,
    model: str,
    *,
    box: Box | None = None,
    points: Sequence[Point] = (),
    trust_remote_code: bool = False,
) -> Found:
    """Find the subject in a picture, float32 (h, w, 3) in [0, 1].

    model is rembg or rembg:NAME, or a folder or a hub id; the local cache is tried before the
    network. box and points say where the subject is; the SAM family needs some. A model with
    classes gives the class that fills most of the box, or of the picture's middle, background left
    out. Raises InputError where the model cannot be had, is of another kind, or finds nothing.
    """
    own, _, name = model.partition(":")
    if own == "rembg":
        return _checked(_rembg(rgb, name or _REMBG, box), model, box, points), None
    import torch
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto as kinds

    if not os.path.isdir(model) and not is_hub_id(model):
        raise InputError(
            f"cannot cut by {model}; expected alpha, mask, box, grabcut, rembg, the folder of a "
            "model or its hub id owner/name."
        )
    options = {
        "pretrained_model_name_or_path": str(model_folder(model)),
        "local_files_only": True,
        "trust_remote_code": trust_remote_code,
    }
    fault = (
        f"{model} holds no model that this version of transformers can read; expected a "
        "config.json and safetensors weights."
    )
    config = _read(AutoConfig, model, options, fault)
    custom = "AutoModelForImageSegmentation" in (getattr(config, "auto_map", None) or {})
    with torch.inference_mode():
        if config.model_type in kinds.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES:
            mask, reach = _semantic(rgb, model, box, options)
        elif config.model_type in kinds.MODEL_FOR_MASK_GENERATION_MAPPING_NAMES:
            mask, reach = _prompted(rgb, model, box, points, options)
        elif custom:
            mask, reach = _foreground(rgb, model, options)
        else:
            raise InputError(
                f"{model} is a {config.model_type} model, which is no segmenter inlay can use; "
                "give one for semantic segmentation, of the SAM family, or like BiRefNet."
            )
    return _checked(mask, model, box, points), reach


def _checked(mask: Image, model: str, box: Box | None, points: Sequence[Point]) -> Image:
    """What of a mask is in the box and on the points; raises InputError where that is nothing."""
    mask = of_points(mask if box is None else box.keep(mask), points)
    if not (mask > 0.5).any():
        raise InputError(f"{model} found no subject; give a mask or another box.")
    return mask


def _rembg(rgb: Image, name: str, box: Box | None) -> Image:
    """A soft map of what stands out in a picture, or in a box and round it, by a model of rembg."""
    from PIL import Image as PILImage

    try:
        from rembg.session_factory import new_session
        from rembg.sessions import sessions_names
    except (ImportError, SystemExit):
        # Without onnxruntime it would end the process.
        raise InputError(
            "the cut by rembg needs a package that is not here; pip install inlay[rembg]."
        ) from None
    if name not in sessions_names:
        raise InputError(f"rembg has no model {show(name)}; {nearest(name, sessions_names)}")
    whole = Box.of_size((rgb.shape[1], rgb.shape[0]))
    wide = whole if box is None else box.grown(max(box.width, box.height) // 4)
    view = wide.intersect(whole) or whole
    try:
        maps = new_session(name).predict(PILImage.fromarray(to_uint8(rgb[view.slices])))
    except Exception as error:  # whatever its downloads and onnxruntime raise
        raise InputError(
            f"rembg cannot run its model {name} ({type(error).__name__}); it downloads it when it "
            "is first used, which needs the network."
        ) from error
    found = np.zeros(rgb.shape[:2], np.float32)
    found[view.slices] = from_levels(np.max([np.asarray(each) for each in maps], axis=0))
    return found


def model_folder(model: str) -> Path:
    """The folder of a model's files: its own, or that of the hub's. Raises InputError."""
    if os.path.isdir(model):
        return Path(model)

    def wanted(names: Sequence[str]) -> list[str]:
        own = [name for name in names if name.endswith((".json", ".txt", ".py"))]
        return [*own, *pick_weights(names, "model", half=False, where=f"The model {model}")[1]]

    def complete(folder: Path) -> bool:
        return set(wanted(names := os.listdir(folder))) <= set(names)

    return hub_folder(model, complete, wanted)


def _read(auto: Any, model: str, options: dict[str, Any], fault: str, **more: Any) -> Any:
    """What `auto` makes of a model's files; raises InputError: fault, where nothing else is known
    to be wrong.
    """
    from safetensors import SafetensorError

    try:
        return auto.from_pretrained(**options, **more)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            fault = (
                f"{model} brings code of its own; allow it with trust_remote_code only if you "
                "trust its author."
            )
        raise InputError(fault) from error


def load_network(auto: Any, model: str, options: dict[str, Any]) -> Any:
    """A network in float32, ready to run; weights are read from safetensors only."""
    import torch

    fault = f"the weights of {model} could not be loaded; expected whole safetensors files."
    return _read(auto, model, options, fault, use_safetensors=True, dtype=torch.float32).eval()


def _semantic(rgb: Image, model: str, box: Box | None, options: dict[str, Any]) -> Found:
    """The class that fills most of the box, as an outline."""
    import torch
    from PIL import Image as PILImage
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    net = load_network(AutoModelForSemanticSegmentation, model, options)
    fault = f"{model} has no preprocessor_config.json; save its image processor beside it."
    processor = _read(AutoImageProcessor, model, options, fault, backend="pil")
    picture = PILImage.fromarray(to_uint8(rgb))
    height, width = rgb.shape[:2]
    # A centre crop would lose the picture's rim, and the map would not lie over the picture.
    crop = {"do_center_crop": False} if getattr(processor, "do_center_crop", False) else {}
    inputs = processor(images=picture, return_tensors="pt", **crop)
    logits = net(pixel_values=inputs["pixel_values"]).logits.float()
    reach = max(height / logits.shape[-2], width / logits.shape[-1])
    logits = torch.nn.functional.interpolate(logits, (height, width), mode="bilinear")
    classes = logits.argmax(1)[0].numpy()
    background = [
        int(number)
        for number, name in net.config.id2label.items()
        if str(name).lower() in _BACKGROUND and int(number) < logits.shape[1]
    ]
    # Without a box, the middle of the picture is where a subject is expected.
    view = box or Box(width // 4, height // 4, max(width // 2, 1), max(height // 2, 1))
    for area in (classes[view.slices], classes if box is None else classes[:0]):
        counts = np.bincount(area.ravel(), minlength=logits.shape[1])
        counts[background] = 0
        if counts.any():
            return (classes == counts.argmax()).astype(np.float32), reach
    raise InputError(f"{model} sees only background; give a mask or a box round the subject.")


def _prompted(
    rgb: Image, model: str, box: Box | None, points: Sequence[Point], options: dict[str, Any]
) -> Found:
    """The SAM family: the outline of the one thing inside a box, or at points."""
    import torch
    from transformers import AutoModelForMaskGeneration

    if box is None and not points:
        raise InputError(f"{model} has to be asked with a box; give the cut box X,Y,W,H.")
    net = load_network(AutoModelForMaskGeneration, model, options)
    side = net.config.prompt_encoder_config.image_size
    side = int(side if isinstance(side, int) else max(side))
    height, width = rgb.shape[:2]
    # SAM keeps the aspect and pads below and to the right; its successors stretch to a square.
    if net.config.model_type in ("sam", "sam_hq"):
        scale = side / max(height, width)
        shape = max(1, round(height * scale)), max(1, round(width * scale))
    else:
        shape = side, side
    pixels = torch.zeros(1, 3, side, side)
    pixels[..., : shape[0], : shape[1]] = _tensor(rgb, shape, model, options)
    fx, fy = shape[1] / width, shape[0] / height
    prompts: dict[str, Any] = {}
    if box is not None:
        corners = [[[box.x * fx, box.y * fy, box.right * fx, box.bottom * fy]]]
        prompts["input_boxes"] = torch.tensor(corners)
    if points:
        prompts["input_points"] = torch.tensor([[[[x * fx, y * fy] for x, y, _ in points]]])
        prompts["input_labels"] = torch.tensor([[[int(on) for _, _, on in points]]])
    answer = net(pixel_values=pixels, **prompts, multimask_output=False).pred_masks.float()
    logits = answer.reshape(-1, 1, *answer.shape[-2:])[:1]
    reach = max(height, width) / min(shape) * side / logits.shape[-1]
    resize = torch.nn.functional.interpolate
    logits = resize(logits, (side, side), mode="bilinear")[..., : shape[0], : shape[1]]
    logits = resize(logits, (height, width), mode="bilinear")
    return (logits[0, 0] > 0).float().numpy(), min(reach, side)


def _foreground(rgb: Image, model: str, options: dict[str, Any]) -> Found:
    """BiRefNet and its kin: a soft map of what stands in front, last of the outputs, as logits."""
    import torch
    from transformers import AutoModelForImageSegmentation

    net = load_network(AutoModelForImageSegmentation, model, options)
    answer = net(_tensor(rgb, (_SIDE, _SIDE), model, options))
    answer = getattr(answer, "logits", answer)
    while not isinstance(answer, torch.Tensor):
        if not isinstance(answer, (list, tuple)) or not answer:
            raise InputError(f"{model} gives no foreground map; expected a model like BiRefNet.")
        answer = answer[-1]
    maps = answer.float().reshape(-1, 1, *answer.shape[-2:])[:1]
    height, width = rgb.shape[:2]
    maps = torch.nn.functional.interpolate(maps, (height, width), mode="bilinear")
    return maps[0, 0].sigmoid().numpy(), None


def _tensor(rgb: Image, shape: tuple[int, int], model: str, options: dict[str, Any]) -> Any:
    """The picture at (height, width) as (1, 3, height, width), normalised as in training."""
    import torch
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        known, _ = ImageProcessingMixin.get_image_processor_dict(
            options["pretrained_model_name_or_path"], local_files_only=True
        )
    except (OSError, ValueError):
        known = {}
    mean = np.asarray(known.get("image_mean") or _MEAN, np.float32)
    std = np.asarray(known.get("image_std") or _STD, np.float32)
    small = (np.clip(resize(np.clip(rgb, 0, 1), shape), 0, 1) - mean) / std
    return torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1), np.float32))[None]
