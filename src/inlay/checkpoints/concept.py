"""What `inlay learn` writes: a LoRA of one object, or a U-Net that learnt it, and in its header all
that using it needs.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from inlay.checkpoints.folder import check_safetensors
from inlay.errors import InputError
from inlay.pictures.picture import name_of
from inlay.pictures.write import replace_file

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from inlay.diffusion.backbone import Backbone


_KEY = "inlay_learned"
# Of an object's picture in a file, on each side; those that are written have half of it.
_MOST_PIXELS = 1024
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^\P{Cc}*$")]
Prompt = Annotated[str, Field(max_length=4000)]


class _Loose(BaseModel):
    """Later versions may write more; what is not known here is passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Base(_Loose):
    """The checkpoint that an object was learnt for."""

    name: str
    hash: str = Field(min_length=1)
    kind: Literal["plain", "inpaint"]
    family: str


class Sight(_Loose):
    """The object in one photo: its box's width over its height, and the root of its share of the
    photo's area.

    whole is whether the box keeps clear of the photo's border. picture is the box as a WebP file
    in base64, with the object's shape as alpha where that was known, None where photos were not to
    be kept; image() reads it.
    """

    photo: str
    sha256: str
    aspect: float = Field(gt=0, lt=1e5)
    size: float = Field(gt=0, le=1)
    whole: bool = True
    picture: str | None = None

    def image(self) -> Image.Image | None:
        """The picture, RGB or RGBA, at most 1024 pixels a side; None where there is none. Raises
        InputError where it is larger or no whole WebP picture.
        """
        if self.picture is None:
            return None
        from PIL import Image

        try:
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
    """What a file says of the object in it; kind is "full" where that holds a whole U-Net.

    prompt names the object with its token; class_prompt is the same without it. layout and
    mask_cross_attention say how the prompt was read in training, context how much of its
    surroundings the object was seen with, in box sizes. sights are of each photo.
    """

    kind: Literal["lora", "full"] = "lora"
    format: Literal[1] = 1
    inlay: str = ""
    class_name: Name
    token: Name
    prompt: Prompt
    class_prompt: Prompt
    layout: Literal["plain", "released"]
    background_prompt: str
    mask_cross_attention: bool
    context: float = Field(ge=0, le=1e5)
    sights: tuple[Sight, ...] = Field(min_length=1, max_length=1000)
    base: Base
    steps: int
    settings: dict[str, Any]

    @property
    def aspect(self) -> float:
        """The median of the boxes' width over height."""
        return median([sight.aspect for sight in self.sights])


def is_concept(path: Path) -> bool:
    """Whether a file is one that `inlay learn` wrote; reads its header alone, raises nothing."""
    try:
        return path.suffix.lower() == ".safetensors" and _KEY in _header(path)[0]
    except (InputError, OSError):
        return False


def read_concept(path: Path, backbone: Backbone | None = None) -> Concept:
    """What a file says of itself, checked against the checkpoint it is to be used with. Raises
    InputError for a file that is not whole, that `inlay learn` did not write, or that was learnt
    for another checkpoint.
    """
    said, shapes = _header(path)
    if (text := said.get(_KEY)) is None:
        raise InputError(f"{path.name} holds no concept; expected a file that `inlay learn` wrote.")
    try:
        concept = Concept.model_validate_json(text)
    except ValueError:
        raise InputError(
            f"{path.name} says of its object what this version cannot read; learn it again."
        ) from None
    downs = {name: shape for name, shape in shapes.items() if ".lora_A." in name}
    ups = [shapes.get(name.replace(".lora_A.", ".lora_B."), []) for name in downs]
    whole = all(a[:1] == b[1:2] != [] for a, b in zip(downs.values(), ups, strict=True))
    if concept.kind == "lora" and not (whole and 2 * len(downs) == len(shapes) > 0):
        raise InputError(f"{path.name} holds tensors that are no LoRA's; learn the object again.")
    base = concept.base
    if backbone is not None and backbone.hash != base.hash:
        raise InputError(
            f"{path.name} was learnt for the model {base.name} ({base.hash[:12]}), but "
            f"{backbone.name} has other weights ({backbone.hash[:12]}); use the same model, or "
            "learn the object for this one."
        )
    return concept


def _header(path: Path) -> tuple[dict[str, str], dict[str, list[int]]]:
    """What a file says, and the shapes of its tensors; without torch."""
    from safetensors import safe_open

    names = check_safetensors(path, "concept")
    with safe_open(path, "np") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in names}
        return dict(file.metadata() or {}), shapes


def write_concept(
    path: Path, concept: Concept, tensors: Mapping[str, Tensor], dtype: str = "float32"
) -> None:
    """Write named tensors and what is to be said of them; in one step.

    A LoRA has the names of diffusers' format, such as unet.LAYER.lora_A.weight. What a layer adds
    is B A x, so any scale is in B already: there is no alpha to be known. A whole U-Net has
    unet.NAME. Raises InputError where the file cannot be written.
    """
    import torch
    from safetensors.torch import save

    kind = getattr(torch, dtype)
    data = {
        name: tensor.detach().to("cpu", torch.float32 if "lora" in name else kind).contiguous()
        for name, tensor in tensors.items()
    }
    header = {"format": "pt", _KEY: concept.model_dump_json()}
    replace_file(path, lambda file: file.writelines([save(data, header)]))


@contextmanager
def attach(backbone: Backbone, path: Path, scale: float = 1.0) -> Iterator[Concept]:
    """Inside, a checkpoint knows the object of a file; afterwards it is as it was, to the bit.
    Gives what the file says. Raises InputError for one that is not ours, was learnt for another
    checkpoint or does not fit it.
    """
    concept = read_concept(path, backbone)
    before: dict[Any, Tensor] = {}
    try:
        for parameter, value in _changes(backbone, path, scale, concept.kind):
            before.setdefault(parameter, parameter.data)
            parameter.data = value
        backbone.text.clear()
        yield concept
    finally:
        for parameter, value in before.items():
            parameter.data = value
        backbone.text.clear()


def _changes(
    backbone: Backbone, path: Path, scale: float, kind: str
) -> Iterator[tuple[Any, Tensor]]:
    """The parameters that a file changes, each with what becomes of it, in memory of its own; at
    scale 1 a whole U-Net's weights are the file's. Raises InputError for a file that does not fit.
    """
    from safetensors.torch import load_file

    from inlay.checkpoints.lora import read_updates

    unfit = InputError(
        f"{path.name} does not fit the weights of {backbone.name}, which it says it was learnt "
        "for; learn the object again."
    )
    if kind == "lora":
        updates = read_updates(path, backbone)[0].values()
        if not updates or any(update.misfit() for update in updates):
            raise unfit
        for update in updates:
            yield update.parameter, update.merge(scale)
        return
    unet = {f"unet.{name}": parameter for name, parameter in backbone.unet.named_parameters()}
    tensors = load_file(path)
    if {name: x.shape for name, x in unet.items()} != {k: x.shape for k, x in tensors.items()}:
        raise unfit
    for name, parameter in unet.items():
        new = tensors[name].to(parameter.device, parameter.dtype, copy=True)
        yield parameter, new if scale == 1 else parameter.data.lerp(new, scale)
