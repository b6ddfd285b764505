"""T2I-Adapters (Mou et al. 2023, arXiv 2302.08453): from a control image to a U-Net's features.

An adapter is a small network beside a frozen U-Net. What it makes of a control image is added
inside the U-Net's blocks on the way down, the same at every timestep and for every prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from inlay.checkpoints.branch import Beside, Sort, open_beside
from inlay.diffusion.backbone import Backbone
from inlay.errors import InputError

__all__ = ["ControlAdapter", "feature_shapes", "load_adapter", "new_adapter"]

_SORT = Sort("adapter", "a T2I-Adapter", "T2IAdapter", "adapter-canny")
Shape = tuple[int, int, int]


class ControlAdapter(Beside):
    """An adapter that fits a backbone; raises InputError where it does not.

    network is diffusers' T2IAdapter, on the backbone's device.
    """

    def __init__(
        self, network: Any, backbone: Backbone, *, name: str, hasher: Callable[[], str]
    ) -> None:
        super().__init__(network, name=name, hasher=hasher)
        _check(network, backbone, name)

    def features(self, control: Tensor, scale: float = 1.0) -> list[Tensor]:
        """What a control image (N, 1, H, W) in [0, 1] adds to the U-Net, coarser and coarser.

        Tensors (N, C, h, w) for Backbone.predict(), times `scale`. An adapter that reads three
        channels is shown the lines in white.
        """
        network = self.network
        shown = control.expand(-1, int(network.config.in_channels), -1, -1)
        return [scale * level for level in network(shown.to(network.device, network.dtype))]


def feature_shapes(unet: Any, height: int, width: int) -> list[Shape]:
    """What a U-Net takes for a latent of (height, width): (channels, height, width) of each level.

    As diffusers' UNet2DConditionModel adds them: in a block with cross-attention before it shrinks
    the picture, in one without after. The last shape is the middle's, which takes one more where
    an adapter has it (that of SDXL does).
    """
    shapes, size = [], (height, width)
    channels = list(unet.config.block_out_channels)
    for block, wide in zip(unet.down_blocks, channels, strict=True):
        shrinks = block.downsamplers is not None
        after = ((size[0] + 1) // 2, (size[1] + 1) // 2) if shrinks else size
        attends = getattr(block, "has_cross_attention", False)
        shapes.append((wide, *(size if attends else after)))
        size = after
    return [*shapes, (channels[-1], *size)]


def _check(network: Any, backbone: Backbone, name: str) -> None:
    reads = int(network.config.in_channels)
    if reads not in (1, 3):
        raise InputError(
            f"The adapter {name} reads {reads} channels, but lines have 1, or 3 in colour."
        )
    side = 2 * backbone.multiple
    wanted = feature_shapes(backbone.unet, side // backbone.factor, side // backbone.factor)
    blank = torch.zeros(1, reads, side, side, device=network.device, dtype=network.dtype)
    try:
        with torch.no_grad():
            made = [tuple(level.shape[1:]) for level in network(blank)]
    except RuntimeError:
        # Its first layer cuts the picture into squares, which may not be this model's.
        made = []
    # With the middle or without it.
    if made not in (wanted, wanted[:-1]):
        raise InputError(
            f"The adapter {name} does not fit the model {backbone.name}: of {side} pixels it makes "
            f"{_listed(made)}, but the U-Net takes {_listed(wanted[:-1])}."
        )


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes) or "nothing"


def new_adapter(backbone: Backbone) -> Any:
    """An untrained T2IAdapter (float32, on the CPU) for lines of one channel that fits a backbone.

    A U-Net whose first block attends gets "full_adapter", as SD 1.x and 2.x; else it is
    "full_adapter_xl", as SDXL, which starts one level coarser. Weights come from torch's generator.
    """
    from diffusers import T2IAdapter

    channels = list(backbone.unet.config.block_out_channels)
    attends = getattr(backbone.unet.down_blocks[0], "has_cross_attention", False)
    if backbone.family == "sdxl":
        channels.append(channels[-1])
    return T2IAdapter(
        in_channels=1,
        channels=channels,
        num_res_blocks=2,
        downscale_factor=backbone.factor * (1 if attends else 2),
        adapter_type="full_adapter" if attends else "full_adapter_xl",
    )


def load_adapter(name: str, backbone: Backbone) -> ControlAdapter:
    """The adapter "embedded" (for the embedded checkpoint), of a folder in diffusers' layout, or
    of a hub id (the local cache first, then a download); frozen, in the backbone's dtype.

    Weights come from .safetensors files alone. Raises InputError, one sentence, for anything that
    cannot be loaded or does not fit the backbone.
    """
    network, hasher = open_beside(name, _SORT, backbone)
    return ControlAdapter(network, backbone, name=name, hasher=hasher)
