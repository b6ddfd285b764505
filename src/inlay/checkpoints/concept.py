"""What `inlay learn` writes: a LoRA of one object, or a U-Net that learnt it, and in its header all
that using it needs.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from inlay.checkpoints.folder import check_safetensors
from inlay.errors import InputError
from inlay.pictures.picture import name_of
from inlay.pictures.write import replace_file

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from inlay.checkpoints.folder import Loaded
    from inlay.diffusion.backbone import Backbone


_KEY = "inlay_learned"
# Of an object's picture in a file, on each side; those that are written have half of it.
_MOST_PIXELS = 1024
_MOST_LETTERS = 1 << 23


class _Loose(BaseModel):
    """Later versions may write more; what is not known here is passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Base(_Loose):
    """The checkpoint that an object was learnt for."""

    name: str
    hash: str = Field(min_length=1)
    kind: Literal["plain", "inpaint"]
    family: str


class Sight(_Loose):
    """The object in one photo: its box's width over its height, and the root of its share of the
    photo's area.

    picture is the box as a WebP file in base64, with the object's shape as alpha where that was
    known, None where photos were not to be kept; image() reads it.
    """

    photo: str
    sha256: str
    aspect: float = Field(gt=0)
    size: float = Field(gt=0, le=1)
    picture: str | None = None

    def image(self) -> Image.Image | None:
        """The picture, RGB or RGBA, at most 1024 pixels a side; None where there is none.

        Raises InputError where it is larger or no whole WebP picture.
        """
        if self.picture is None:
            return None
        from PIL import Image

        try:
            if len(self.picture) > _MOST_LETTERS:
                raise ValueError(len(self.picture))
            data = base64.b64decode(self.picture, validate=True)
            # The size is read from the header, before a pixel is.
            with Image.open(BytesIO(data), formats=["WEBP"]) as image:
                if max(image.size) > _MOST_PIXELS:
                    raise ValueError(image.size)
                return image.convert("RGBA" if "A" in image.getbands() else "RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            raise InputError(
                f"the concept's picture of {name_of(self.photo)} is damaged or too large; "
                f"expected a WebP picture of at most {_MOST_PIXELS} x {_MOST_PIXELS} pixels, as "
                "`inlay learn` writes it, so learn the object again."
            ) from None


class Concept(_Loose):
    """What a file says of the object in it.

    prompt names the object with its token; class_prompt is the same without it. layout and
    mask_cross_attention say how the prompt was read in training, context how much of its
    surroundings the object was seen with, in box sizes. sights are of each photo. kind is "full"
    where the file holds a whole U-Net.
    """

    kind: Literal["lora", "full"] = "lora"
    format: Literal[1] = 1
    inlay: str = ""
    class_name: str = Field(min_length=1)
    token: str = Field(min_length=1)
    prompt: str
    class_prompt: str
    layout: Literal["plain", "released"]
    background_prompt: str
    mask_cross_attention: bool
    context: float
    sights: tuple[Sight, ...] = Field(min_length=1)
    base: Base
    steps: int
    settings: dict[str, Any]

    @property
    def aspect(self) -> float:
        """The median of the boxes' width over height."""
        return median([sight.aspect for sight in self.sights])

    @property
    def size(self) -> float:
        """The median of the boxes' sizes, the root of their share of the photo's area."""
        return median([sight.size for sight in self.sights])


def is_concept(path: Path) -> bool:
    """Whether a file is one that `inlay learn` wrote; reads its header alone, raises nothing."""
    try:
        return path.suffix.lower() == ".safetensors" and _KEY in _header(path)
    except (InputError, OSError):
        return False


def read_concept(path: Path, backbone: Backbone | Loaded | None = None) -> Concept:
    """What a file says of itself, checked against the checkpoint it is to be used with.

    Raises InputError for a file that is not whole, that `inlay learn` did not write, or that was
    learnt for another checkpoint.
    """
    text = _header(path).get(_KEY)
    if text is None:
        raise InputError(f"{path.name} holds no concept; expected a file that `inlay learn` wrote.")
    try:
        concept = Concept.model_validate(json.loads(text))
    except ValueError:
        raise InputError(
            f"{path.name} says of its object what this version cannot read; learn it again."
        ) from None
    base = concept.base
    if backbone is not None and backbone.hash != base.hash:
        raise InputError(
            f"{path.name} was learnt for the model {base.name} ({base.hash[:12]}), but "
            f"{backbone.name} has other weights ({backbone.hash[:12]}); use the same model, or "
            "learn the object for this one."
        )
    return concept


def _header(path: Path) -> Mapping[str, str]:
    from safetensors import safe_open

    check_safetensors(path, "concept")
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def write_concept(
    path: Path, concept: Concept, tensors: Mapping[str, Tensor], rank: int, dtype: str = "float32"
) -> None:
    """Write named tensors and what is to be said of them; in one step.

    A LoRA has the names of diffusers' format, such as unet.LAYER.lora_A.weight. What a layer adds
    is B A x, so any scale is in B already: there is no alpha to be known. The header says so too,
    as readers of that header ask for it. A whole U-Net has unet.NAME. Raises InputError where the
    file cannot be written.
    """
    import torch
    from safetensors.torch import save

    kind = getattr(torch, dtype)
    data = {
        name: tensor.detach().to("cpu", torch.float32 if "lora" in name else kind).contiguous()
        for name, tensor in tensors.items()
    }
    header = {"format": "pt", _KEY: concept.model_dump_json()}
    config: dict[str, Any] = {}
    for name in tensors:
        part, _, rest = name.partition(".")
        layer, found, _ = rest.rpartition(".lora_A.")
        if found:
            # Names within a text encoder differ between the library's versions.
            layer = layer if part == "unet" else layer.rpartition(".")[2]
            config |= {f"{part}.r": rank, f"{part}.lora_alpha": rank}
            layers = config.setdefault(f"{part}.target_modules", [])
            if layer not in layers:
                layers.append(layer)
    if concept.kind == "lora":
        header["lora_adapter_metadata"] = json.dumps(config)
    replace_file(path, lambda file: file.writelines([save(data, header)]))


@contextmanager
def attach(
    backbone: Backbone, files: Sequence[tuple[Path, float]]
) -> Iterator[tuple[Concept, ...]]:
    """Inside, a checkpoint knows the objects of some files, each (path, scale); afterwards it is
    as it was, to the bit. Gives what the files say.

    Raises InputError for a file that is not one of ours, was learnt for another checkpoint or does
    not fit it, and for a whole U-Net beside another file, before anything is changed.
    """
    from safetensors.torch import load_file

    found = tuple(read_concept(path, backbone) for path, _ in files)
    for (path, _), concept in zip(files, found, strict=True):
        if concept.kind == "full" and len(files) > 1:
            raise InputError(
                f"{path.name} holds a whole U-Net, which goes with no other concept; use it "
                "alone, or learn the object as a LoRA."
            )
    tensors = [load_file(path) for path, _ in files]
    changed: dict[Any, Tensor] = {}
    for (path, scale), held in zip(files, tensors, strict=True):
        try:
            changed |= _changes(backbone, held, scale, changed)
        except (AttributeError, LookupError, ValueError):
            raise InputError(
                f"{path.name} does not fit the weights of {backbone.name}, which it says it was "
                "learnt for; learn the object again."
            ) from None
    unet = backbone.unet
    before = {parameter: parameter.data for parameter in changed}
    names = [f"concept_{n}" for n, concept in enumerate(found) if concept.kind == "lora"]
    try:
        for parameter, value in changed.items():
            parameter.data = value
        for name, held in zip(names, tensors, strict=False):
            unet.load_lora_adapter(held, prefix="unet", adapter_name=name)
        if names:
            unet.set_adapters(names, [scale for _, scale in files])
            unet.requires_grad_(False).eval()
        backbone.text.clear()
        yield found
    finally:
        if getattr(unet, "_hf_peft_config_loaded", False):
            unet.unload_lora()
        for parameter, value in before.items():
            parameter.data = value
        backbone.text.clear()


def _changes(
    backbone: Backbone, tensors: Mapping[str, Tensor], scale: float, before: Mapping[Any, Tensor]
) -> dict[Any, Tensor]:
    """What one file makes of a checkpoint's weights, by parameter, each in memory of its own.

    tensors are unet.NAME of a whole U-Net, all of them or none, and text_encoder(_2).LAYER's
    lora_A and lora_B; a U-Net's LoRA is passed over. scale is how far to go: at 1 a whole U-Net's
    weights are the file's. `before` has what earlier files made of them. Raises LookupError or
    AttributeError for tensors that do not fit.
    """
    whole = {name[5:]: value for name, value in tensors.items() if "lora_" not in name}
    unet = dict(backbone.unet.named_parameters())
    if whole and whole.keys() != unet.keys():
        raise LookupError("not the weights of this U-Net")
    changed: dict[Any, Tensor] = {}
    for name, value in whole.items():
        parameter = unet[name]
        old = parameter.data
        if value.shape != old.shape:
            raise LookupError(name)
        new = value.to(old.device, old.dtype, copy=True)
        changed[parameter] = new if scale == 1 else old.lerp(new, scale)
    for name, down in tensors.items():
        if not name.startswith("unet.") and ".lora_A." in name:
            up = tensors[name.replace(".lora_A.", ".lora_B.")]
            parameter = _text_weight(backbone, name)
            old = before.get(parameter, parameter.data)
            if (*old.shape, len(down)) != (len(up), *down.shape[1:], *up.shape[1:]):
                raise LookupError(name)
            added = scale * (up.float() @ down.float())
            changed[parameter] = (old.float() + added.to(old.device)).to(old.dtype)
    return changed


def _text_weight(backbone: Backbone, name: str) -> Any:
    """The weight of a text encoder that a LoRA's tensor is for."""
    part, _, rest = name.partition(".")
    encoder = backbone.text.encoders[("text_encoder", "text_encoder_2").index(part)]
    layer = rest.rpartition(".lora_")[0]
    # Files have this part in their names, whether or not the library has it.
    if not hasattr(encoder, "text_model"):
        layer = layer.removeprefix("text_model.")
    return encoder.get_submodule(layer).weight
