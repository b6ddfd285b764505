"""Segmentation models from the hub or a folder, through transformers, loaded when asked for.

Three kinds: models with classes (DeepLabV3 and everything that transformers calls
...ForSemanticSegmentation), the SAM family (asked with a box), and models that bring their own
code and give a soft foreground map (BiRefNet and its kin), which run only when that is allowed.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inlay.errors import InputError
from inlay.pictures.arrays import resize, to_uint8
from inlay.pictures.box import Box

__all__ = ["Segmentation", "segment"]

Image = NDArray[np.float32]

_log = logging.getLogger("inlay")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Seconds to find out whether the hub can be reached at all.
_PATIENCE = 5.0
_BACKGROUND = {"background", "__background__", "unlabeled", "void", "label_0"}
# What these models were trained with, where the checkpoint does not say.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIDE = 1024


@dataclass(frozen=True, eq=False)
class Segmentation:
    """mask: float32 (h, w) in [0, 1]; soft: it is an alpha already, not an outline; reach: by
    how many pixels its edge may be off, one cell of the model's own map."""

    mask: Image
    soft: bool
    reach: float


def segment(
    rgb: Image, model: str, *, box: Box | None = None, trust_remote_code: bool = False
) -> Segmentation:
    """Find the subject in a picture, float32 (h, w, 3) in [0, 1].

    model is a folder or a hub id; the local cache is tried before the network. box says where
    the subject is; the SAM family needs one. A model with classes gives the class that fills
    most of the box, or of the picture's middle, background left out. Raises InputError where the
    model cannot be had, is of another kind, or finds nothing.
    """
    import torch
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_MASK_GENERATION_MAPPING_NAMES as PROMPTED,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES as SEMANTIC,
    )

    options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    config, options = _config(AutoConfig, model, options)
    kind = config.model_type
    custom = "AutoModelForImageSegmentation" in (getattr(config, "auto_map", None) or {})
    with torch.inference_mode():
        if kind in SEMANTIC:
            found = _semantic(rgb, model, box, options)
        elif kind in PROMPTED:
            found = _prompted(rgb, model, box, options)
        elif custom:
            found = _foreground(rgb, model, options)
        else:
            raise InputError(
                f"{model} is a {kind} model, which is no segmenter inlay can use; "
                "give one for semantic segmentation, of the SAM family, or like BiRefNet."
            )
    mask = found.mask
    if box is not None:
        mask = np.zeros_like(mask)
        mask[box.slices] = found.mask[box.slices]
    if not (mask > 0.5).any():
        raise InputError(f"{model} found no subject; give a mask or another box.")
    return Segmentation(mask, found.soft, found.reach)


def _config(auto: Any, model: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model's config, from disk where it is there, else from the hub."""
    local = os.path.isdir(model)
    if not local and not _HUB_ID.fullmatch(model):
        raise InputError(
            f"cannot cut by {model}; expected alpha, mask, box, grabcut, a model's folder or its "
            "hub id owner/name."
        )
    for online in (False, True):
        if online:
            _reachable(model)
            _log.info("downloading %s", model)
        options = {**options, "local_files_only": not online}
        try:
            return auto.from_pretrained(model, **options), options
        except (OSError, ValueError, KeyError) as error:
            if "trust_remote_code" in str(error):
                raise InputError(
                    f"{model} brings code of its own; allow it with trust_remote_code only if "
                    "you trust its author."
                ) from error
            if local or online or not isinstance(error, OSError):
                raise InputError(
                    f"{model} holds no model that this version of transformers can read; "
                    "expected a config.json and safetensors weights."
                ) from error
    raise AssertionError("the second round returns or raises")


def _reachable(model: str) -> None:
    """One quick question to the hub, so that no run hangs in retries without a network."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    missing = InputError(
        f"the model {model} is not on this machine and the hub does not have it or cannot be "
        "reached; give a folder, or download it first."
    )
    if HF_HUB_OFFLINE:
        raise missing
    try:
        HfApi().model_info(model, timeout=_PATIENCE)
    except Exception as error:  # whatever the HTTP library raises: it is not to be had
        raise missing from error


def _load(auto: Any, model: str, options: dict[str, Any]) -> Any:
    """A model in float32, ready to run; weights are read from safetensors only."""
    import torch
    from safetensors import SafetensorError

    try:
        net = auto.from_pretrained(model, use_safetensors=True, dtype=torch.float32, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if isinstance(error, OSError) and options["local_files_only"] and not os.path.isdir(model):
            # The config lies in the cache but the weights do not.
            _reachable(model)
            options["local_files_only"] = False
            return _load(auto, model, options)
        raise InputError(
            f"the weights of {model} could not be loaded; expected whole safetensors files."
        ) from error
    return net.eval()


def _semantic(rgb: Image, model: str, box: Box | None, options: dict[str, Any]) -> Segmentation:
    """The class that fills most of the box, as an outline."""
    import torch
    from PIL import Image as PILImage
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    net = _load(AutoModelForSemanticSegmentation, model, options)
    try:
        processor = AutoImageProcessor.from_pretrained(model, backend="pil", **options)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{model} has no preprocessor_config.json; save its image processor beside it."
        ) from error
    picture = PILImage.fromarray(to_uint8(rgb))
    height, width = rgb.shape[:2]
    # A centre crop would lose the picture's rim, and the map would not lie over the picture.
    crop = {"do_center_crop": False} if getattr(processor, "do_center_crop", False) else {}
    inputs = processor(images=picture, return_tensors="pt", **crop)
    logits = net(pixel_values=inputs["pixel_values"]).logits.float()
    reach = max(height / logits.shape[-2], width / logits.shape[-1])
    logits = torch.nn.functional.interpolate(logits, (height, width), mode="bilinear")
    classes = logits.argmax(1)[0].numpy()
    names = {int(key): str(name).lower() for key, name in net.config.id2label.items()}
    # Without a box, the middle of the picture is where a subject is expected.
    view = box or Box(width // 4, height // 4, max(width // 2, 1), max(height // 2, 1))
    for area in (classes[view.slices], classes if box is None else classes[:0]):
        counts = np.bincount(area.ravel(), minlength=logits.shape[1])
        for number, name in names.items():
            if name in _BACKGROUND and number < len(counts):
                counts[number] = 0
        if counts.any():
            return Segmentation((classes == counts.argmax()).astype(np.float32), False, reach)
    raise InputError(f"{model} sees only background; give a mask or a box round the subject.")


def _prompted(rgb: Image, model: str, box: Box | None, options: dict[str, Any]) -> Segmentation:
    """The SAM family: the outline of the one thing inside a box."""
    import torch
    from transformers import AutoModelForMaskGeneration

    if box is None:
        raise InputError(f"{model} has to be asked with a box; give the cut box X,Y,W,H.")
    net = _load(AutoModelForMaskGeneration, model, options)
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
    corners = [[[box.x * fx, box.y * fy, box.right * fx, box.bottom * fy]]]
    answer = net(
        pixel_values=pixels, input_boxes=torch.tensor(corners), multimask_output=False
    ).pred_masks.float()
    logits = answer.reshape(-1, 1, *answer.shape[-2:])[:1]
    reach = max(height, width) / min(shape) * side / logits.shape[-1]
    resize = torch.nn.functional.interpolate
    logits = resize(logits, (side, side), mode="bilinear")[..., : shape[0], : shape[1]]
    logits = resize(logits, (height, width), mode="bilinear")
    return Segmentation((logits[0, 0] > 0).float().numpy(), False, min(reach, side))


def _foreground(rgb: Image, model: str, options: dict[str, Any]) -> Segmentation:
    """BiRefNet and its kin: a soft map of what stands in front, last of the outputs, as logits."""
    import torch
    from transformers import AutoModelForImageSegmentation

    net = _load(AutoModelForImageSegmentation, model, options)
    answer = net(_tensor(rgb, (_SIDE, _SIDE), model, options))
    answer = getattr(answer, "logits", answer)
    while not isinstance(answer, torch.Tensor):
        if not isinstance(answer, (list, tuple)) or not answer:
            raise InputError(f"{model} gives no foreground map; expected a model like BiRefNet.")
        answer = answer[-1]
    maps = answer.float().reshape(-1, 1, *answer.shape[-2:])[:1]
    height, width = rgb.shape[:2]
    maps = torch.nn.functional.interpolate(maps, (height, width), mode="bilinear")
    reach = max(height / answer.shape[-2], width / answer.shape[-1])
    return Segmentation(maps[0, 0].sigmoid().numpy(), True, reach)


def _tensor(rgb: Image, shape: tuple[int, int], model: str, options: dict[str, Any]) -> Any:
    """The picture at (height, width) as (1, 3, height, width), normalised as in training."""
    import torch
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        known, _ = ImageProcessingMixin.get_image_processor_dict(
            model, local_files_only=options["local_files_only"]
        )
    except (OSError, ValueError):
        known = {}
    mean = np.asarray(known.get("image_mean") or _MEAN, np.float32)
    std = np.asarray(known.get("image_std") or _STD, np.float32)
    small = (np.clip(resize(np.clip(rgb, 0, 1), shape), 0, 1) - mean) / std
    return torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1), np.float32))[None]
