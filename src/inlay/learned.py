"""What `inlay learn` writes: a LoRA of one object, and in its header all that using it needs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inlay._version import __version__
from inlay.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.diffusion.backbone import Backbone

__all__ = ["Base", "Learned", "Sight", "attached", "is_learned", "read_learned", "write_learned"]

_KEY = "inlay_learned"


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
    """

    photo: str
    sha256: str
    aspect: float = Field(gt=0)
    size: float = Field(gt=0, le=1)


class Learned(_Loose):
    """What a file says of the object in it.

    prompt names the object with its token; class_prompt is the same without it. layout and
    mask_cross_attention say how the prompt was read in training, context how much of its
    surroundings the object was seen with, in box sizes. sights are of each photo.
    """

    format: Literal[1] = 1
    inlay: str = __version__
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
        return _median([sight.aspect for sight in self.sights])

    @property
    def size(self) -> float:
        """The median of the boxes' sizes, the root of their share of the photo's area."""
        return _median([sight.size for sight in self.sights])

    def check_base(self, backbone: Backbone, path: Path) -> None:
        """Raises InputError where a checkpoint is not the one that the object was learnt for."""
        if backbone.hash != self.base.hash:
            raise InputError(
                f"{path.name} was learnt for the model {self.base.name} "
                f"({self.base.hash[:12]}), but {backbone.name} has other weights "
                f"({backbone.hash[:12]}); use the same model, or learn the object for this one."
            )


def _median(values: Sequence[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def is_learned(path: Path) -> bool:
    """Whether a file is one that `inlay learn` wrote; reads its header alone, raises nothing."""
    try:
        return path.suffix.lower() == ".safetensors" and _KEY in _header(path)
    except (InputError, OSError):
        return False


def read_learned(path: Path, backbone: Backbone | None = None) -> Learned:
    """What a file says of itself, checked against the checkpoint it is to be used with.

    Raises InputError for a file that is not whole, that `inlay learn` did not write, or that was
    learnt for another checkpoint.
    """
    text = _header(path).get(_KEY)
    if text is None:
        raise InputError(
            f"{path.name} holds no learnt object; expected a file that `inlay learn` wrote."
        )
    try:
        learned = Learned.model_validate(json.loads(text))
    except (ValueError, ValidationError):
        raise InputError(
            f"{path.name} says of its object what this version cannot read; learn it again."
        ) from None
    if backbone is not None:
        learned.check_base(backbone, path)
    return learned


def _header(path: Path) -> Mapping[str, str]:
    from safetensors import safe_open

    from inlay.diffusion.weights import check_safetensors

    check_safetensors(path, "learnt object")
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def write_learned(
    path: Path, learned: Learned, lora: Mapping[str, tuple[Tensor, Tensor]], rank: int
) -> None:
    """Write (A, B) of each of the U-Net's layers by name, in diffusers' format; in one step.

    What a layer adds is B A x, so any scale is in B already: there is no alpha to be known. The
    header says so too, as readers of that header ask for it. Raises InputError where the file
    cannot be written.
    """
    from safetensors.torch import save

    from inlay.files import replace_file

    tensors = {
        f"unet.{name}.lora_{side}.weight": tensor.detach().float().cpu().contiguous()
        for name, pair in lora.items()
        for side, tensor in zip("AB", pair, strict=True)
    }
    config = {"unet.r": rank, "unet.lora_alpha": rank, "unet.target_modules": sorted(lora)}
    header = {
        "format": "pt",
        _KEY: learned.model_dump_json(),
        "lora_adapter_metadata": json.dumps(config),
    }
    data = save(tensors, header)

    def write(file: IO[bytes]) -> None:
        file.write(data)

    replace_file(path, write)


@contextmanager
def attached(
    backbone: Backbone, files: Sequence[tuple[Path, float]]
) -> Iterator[tuple[Learned, ...]]:
    """Inside, a checkpoint knows the objects of some files, each (path, scale); afterwards it is
    as it was, to the bit. Gives what the files say.

    Raises InputError for a file that is not one of ours or was learnt for another checkpoint,
    before anything is changed.
    """
    from safetensors.torch import load_file

    found = tuple(read_learned(path, backbone) for path, _ in files)
    unet = backbone.unet
    names = [f"learned_{number}" for number in range(len(files))]
    try:
        for name, (path, _) in zip(names, files, strict=True):
            unet.load_lora_adapter(load_file(path), prefix="unet", adapter_name=name)
        if names:
            unet.set_adapters(names, [scale for _, scale in files])
            unet.requires_grad_(False).eval()
        yield found
    finally:
        if getattr(unet, "_hf_peft_config_loaded", False):
            unet.unload_lora()
