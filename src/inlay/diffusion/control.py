"""Control images: the lines of a picture, white on black, as T2I-Adapters are shown them.

The adapters that are published for Stable Diffusion (Mou et al. 2023, arXiv 2302.08453) were
trained on such lines: on Canny's edges, or on soft ones as of a pencil.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

__all__ = ["ControlType", "canny", "control_image", "fitted", "sketch"]

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


def fitted(lines: Lines, size: tuple[int, int], kind: ControlType) -> Tensor:
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
