"""Control images, lines white on black, and the T2I-Adapters that read them.

A T2I-Adapter (Mou et al. 2023, arXiv 2302.08453) is a small network beside a frozen U-Net. What it
makes of a control image is added inside the U-Net's blocks on the way down, the same at every
timestep and for every prompt. Those that are published for Stable Diffusion were trained on
Canny's edges, or on soft lines as of a pencil.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from inlay.diffusion.backbone import Backbone, Branch
from inlay.errors import InputError

Shape = tuple[int, int, int]
ControlType = Literal["canny", "sketch"]

Image = NDArray[np.uint8]
Lines = NDArray[np.float32]

# A pencil's width in picture sizes: one pixel at 128.
_PENCIL = 1 / 128
# What a pencil's line is multiplied by: a step from 0.8 to 0.5 is then about white.
_STRENGTH = 4.0
# Below this brightness differences are noise, not lines.
_DARK = 0.05


def canny(image: Image, low: float = 100, high: float = 200) -> Lines:
    """Canny's edges (1986) of an RGB image (H, W, 3), uint8: float32 (H, W), 0 or 1.

    The thresholds on the gradient are those that the published adapters were trained with.
    """
    import cv2

    edges = cv2.Canny(np.ascontiguousarray(image), low, high)
    return np.asarray(edges > 0, np.float32)


def sketch(image: Image) -> Lines:
    """Soft lines of an RGB image (H, W, 3), uint8: float32 (H, W) in [0, 1].

    A dodged pencil drawing, white on black: 1 - g / blur(g), times a strength. Lines lie on the
    darker side of an edge; their strength is that of the contrast, whatever the light.
    """
    import cv2

    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    sigma = max(1.0, max(grey.shape) * _PENCIL)
    around = cv2.GaussianBlur(grey, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    lines = _STRENGTH * (1 - (grey + _DARK) / (around + _DARK))
    # Rounding alone leaves a flat picture a little off 0.
    return np.asarray(np.clip(np.where(lines < 1e-3, 0, lines), 0, 1), np.float32)


_KINDS = {"canny": canny, "sketch": sketch}


def control_image(pictures: Tensor, kind: ControlType) -> Tensor:
    """The lines of pictures (N, 3, H, W) in [-1, 1]: float32 (N, 1, H, W) in [0, 1], on the CPU."""
    levels = ((pictures.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round()
    images = levels.to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return torch.from_numpy(np.stack([_KINDS[kind](image) for image in images]))[:, None]


def fit_drawing(lines: Lines, size: tuple[int, int], kind: ControlType) -> Tensor:
    """A drawing (h, w) in [0, 1] at (height, width) of the model's picture: (1, 1, height, width).

    Shrunk by its brightest pixel: an average would fade thin lines to a grey that no adapter was
    ever shown. For "canny" lines are then thinned to one pixel of white, which is what Canny's are.
    """
    from skimage.morphology import skeletonize

    drawing = torch.from_numpy(np.ascontiguousarray(lines, np.float32))[None, None].clamp(0, 1)
    if size[0] <= lines.shape[0] and size[1] <= lines.shape[1]:
        drawing = functional.adaptive_max_pool2d(drawing, size)
    else:
        drawing = functional.interpolate(drawing, size, mode="bilinear", align_corners=False)
    if kind == "canny":
        thin = skeletonize(drawing[0, 0].numpy() > 0.5)
        drawing = torch.from_numpy(thin.astype(np.float32))[None, None]
    return drawing


class ControlAdapter(Branch):
    """An adapter that makes features of a control image."""

    what, article, class_name = "adapter", "a T2I-Adapter", "T2IAdapter"

    def features(self, control: Tensor, scale: float = 1.0) -> list[Tensor]:
        """What a control image (N, 1, H, W) in [0, 1] adds to the U-Net, coarser and coarser.

        Tensors (N, C, h, w) for Conditions.control, times `scale`. An adapter that reads three
        channels is shown the lines in white.
        """
        network = self.network
        shown = control.expand(-1, int(network.config.in_channels), -1, -1)
        return [scale * level for level in network(shown.to(network.device, network.dtype))]

    def check(self, backbone: Backbone) -> None:
        network, name = self.network, self.name
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
                f"The adapter {name} does not fit the model {backbone.name}: of {side} pixels it "
                f"makes {_listed(made)}, but the U-Net takes {_listed(wanted[:-1])}."
            )


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
