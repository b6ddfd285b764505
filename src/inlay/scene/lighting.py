"""Our own network for the shadow that an object casts where it lies.

A small U-Net looks at a window, 96 pixels on its longer side, with the object and its mask. It
says by how many stops what lies round the object gets darker, and whether the object touches
anything there. That is applied at the picture's own size, so no detail is painted.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from inlay.checkpoints.folder import load_weights
from inlay.pictures.arrays import Image, resize

SIDE = 96
# Both sides of what the networks read are multiples of this.
_MULTIPLE = 16
_WIDTHS, _BLOCKS = (32, 64, 96, 144), (0, 1, 1, 2)
# An answer of nothing is a shadow of 0.05 stops.
_CALM = 3.0
# Fewer stops than this are no shadow.
_FAINT = 0.015


def conv(read: int, made: int, side: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """A convolution without bias, and batch normalisation."""
    padding = (side - 1) // 2 * dilation
    layer = nn.Conv2d(read, made, side, stride, padding, dilation, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(made))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = conv(width, width), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(functional.relu(self.first(x))))


class CellAttention(nn.Module):
    """Self-attention over all cells of a coarse map (N, width, h, w). `place` says where a cell is:
    what is added to it, learnt for each, or a network that makes that from the map.
    """

    def __init__(self, width: int, place: nn.Module | nn.Parameter, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.place = heads, place
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out, self.norm2 = nn.Linear(width, width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        for last in (self.out, self.down):
            nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        place = self.place(x) if isinstance(self.place, nn.Module) else self.place
        tokens = (x + place).flatten(2).transpose(1, 2)
        parts = self.qkv(self.norm(tokens)).unflatten(2, (3, self.heads, -1))
        heads = functional.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4))
        tokens = tokens + self.out(heads.transpose(1, 2).flatten(2))
        tokens = tokens + self.down(functional.gelu(self.up(self.norm2(tokens))))
        mixed: Tensor = tokens.transpose(1, 2).reshape(x.shape)
        return mixed


class Lighting(nn.Module):
    """The network, on windows (N, 4, H, W) of RGB and mask in [0, 1], sides multiples of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.levels, width = conv(4, _WIDTHS[0], 5, 2), nn.ModuleList(), _WIDTHS[0]
        for made, count in zip(_WIDTHS[1:], _BLOCKS[1:], strict=True):
            blocks = [_Block(made) for _ in range(count)]
            self.levels.append(nn.Sequential(conv(width, made, 3, 2), nn.ReLU(), *blocks))
            width = made
        self.told = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, width))
        mixers = (
            CellAttention(width, nn.Conv2d(width, width, 3, padding=1, groups=width))
            for _ in range(2)
        )
        self.mix = nn.Sequential(*mixers)
        self.lateral, self.widen, self.merge = (nn.ModuleList() for _ in range(3))
        for made in _WIDTHS[2::-1]:
            self.widen.append(nn.Conv2d(width, made, 1))
            self.lateral.append(nn.Conv2d(made, made, 1))
            convs = [conv(made, made), nn.ReLU(), conv(made, made), nn.ReLU()]
            self.merge.append(nn.Sequential(*convs))
            width = made
        self.head = nn.Conv2d(width, 3, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        self.judge = nn.Sequential(nn.Linear(2 * _WIDTHS[3], 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (N, 3, H / 2, W / 2) for stops(), and the logit of whether the object touches."""
        rgb, mask = x[:, :3], x[:, 3:]
        features = [functional.relu(self.stem(torch.cat([(rgb - 0.5) * 4, mask * 2 - 1], 1)))]
        for level in self.levels:
            features.append(level(features[-1]))
        y = self.mix(features[3] + self.told(_statistics(rgb, mask))[..., None, None])
        small = functional.adaptive_avg_pool2d(mask, y.shape[-2:])
        inside = (y * small).sum((2, 3)) / (small.sum((2, 3)) + 0.1)
        touches = self.judge(torch.cat([inside, y.mean((2, 3))], 1))[:, 0]
        for number, lateral in enumerate(self.lateral):
            wide = functional.interpolate(self.widen[number](y), scale_factor=2.0, mode="bilinear")
            y = self.merge[number](wide + lateral(features[2 - number]))
        return self.head(y), touches


def _statistics(rgb: Tensor, mask: Tensor) -> Tensor:
    """Mean and deviation of each colour inside and outside the mask, and its share: (N, 13)."""
    told = list[Tensor]()
    for part in (mask, 1 - mask):
        count = part.sum((2, 3)) + 1
        mean = (rgb * part).sum((2, 3)) / count
        spread = ((rgb - mean[..., None, None]) ** 2 * part).sum((2, 3)) / count
        told += [mean, (spread + 1e-4).sqrt()]
    return torch.cat([*told, mask.mean((2, 3))], 1)


def stops(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """By how many stops (N, 3, height, width) linear light is darker, for maps (N, 3, h, w)."""
    large = functional.interpolate(maps.float(), size, mode="bilinear")
    return functional.softplus(large - _CALM)


@cache
def load_lighting(folder: Path | None = None) -> Lighting:
    """The network that ships with inlay, or the one that a training wrote to a folder."""
    net = Lighting()
    load_weights(net, folder or Path(str(resources.files("inlay").joinpath("assets/shadow"))))
    return net.eval().requires_grad_(False)


def predict_shadow(rgb: Image, alpha: Image, net: Lighting | None = None) -> tuple[Image, float]:
    """Which share of its linear light each pixel keeps, (h, w, 3) in (0, 1], and the probability
    that the object touches anything.

    rgb (h, w, 3) is the window in sRGB with the object in it, alpha (h, w) the object's. The shares
    are meant for what lies round the object.
    """
    scale = SIDE / max(alpha.shape)
    height, width = (max(1, round(v * scale / _MULTIPLE)) * _MULTIPLE for v in alpha.shape)
    small = np.dstack([resize(v, (height, width)) for v in (np.clip(rgb, 0, 1), alpha)])
    both = torch.from_numpy(np.stack([small, small[:, ::-1]]).astype(np.float32))
    with torch.inference_mode():
        maps, touches = (net or load_lighting())(both.permute(0, 3, 1, 2).contiguous())
    # The mean of the answers as it is and mirrored.
    darker = functional.softplus((maps[0] + maps[1].flip(2)) / 2 - _CALM)
    # A shadow that cannot be seen is none.
    darker = darker * ((darker - _FAINT) / _FAINT).clamp(0, 1)
    size = alpha.shape[::-1]
    planes = [cv2.resize(plane.numpy(), size, interpolation=cv2.INTER_LINEAR) for plane in darker]
    return np.exp2(-np.dstack(planes)).astype(np.float32), float(touches.mean().sigmoid())
