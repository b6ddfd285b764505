"""Our own network that finds a picture's subject, or the thing that a box or points name.

A small U-Net looks at the picture, or at the box and some of what lies round it, as a square of 256
pixels. It says how much of each pixel is subject, and how well it expects to have done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from inlay.checkpoints.folder import load_weights
from inlay.pictures.arrays import Box, Image, bounds
from inlay.scene.lighting import CellAttention, conv

# A place in pixels of the picture, and whether it lies on the subject.
Point = tuple[float, float, bool]

SIDE = 256
# Radius of the disc that stands for a point, in pixels of the square.
_RADIUS = 6
# Share of a box's sides that is seen beyond it, on each.
_MARGIN = 0.25
# A subject whose box fills more of the picture than this is not looked at again from nearer.
_LARGE = 0.55
# Sides of squares round a point that are looked at as well, over the picture's shorter one.
_NEAR = (0.5, 0.25, 0.12)
# What the second look says, against the first.
_NEARER = 0.65
# Channels, and blocks, from a half to a thirty-second of the square's side; and on the way back.
_WIDTHS, _BLOCKS = (24, 48, 96, 192, 288), (0, 1, 2, 4, 3)
_DECODER = (24, 48, 64, 96)


class _Block(nn.Module):
    """A residual block: two 3 x 3 convolutions, or one at half the width between two of 1 x 1."""

    def __init__(self, width: int, narrow: bool, dilation: int) -> None:
        super().__init__()
        half = width // 2
        ends = [conv(width, half, 1), conv(half, width, 1)]
        self.convs = nn.ModuleList(
            [ends[0], conv(half, half, 3, 1, dilation), ends[1]]
            if narrow
            else [conv(width, width, 3, 1, dilation), conv(width, width)]
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convs[0](x)
        for layer in self.convs[1:]:
            y = layer(functional.relu(y))
        return functional.relu(x + y)


class Cutter(nn.Module):
    """The network, on squares (N, 5, 256, 256): RGB less 0.5 times 4; 1 inside the box that was
    given; discs of 1 and -1 at the points on the subject and off it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.levels, width = conv(5, _WIDTHS[0], 3, 2), nn.ModuleList(), _WIDTHS[0]
        for number in range(1, 5):
            made, far = _WIDTHS[number], number >= 3
            blocks = [_Block(made, far, 1 + (far and j % 2)) for j in range(_BLOCKS[number])]
            level = [conv(width, made, 3, 2), nn.ReLU(), *blocks]
            if number == 4:
                place = nn.Parameter(0.02 * torch.randn(1, made, SIDE // 32, SIDE // 32))
                level.append(CellAttention(made, place))
            self.levels.append(nn.Sequential(*level))
            width = made
        self.lateral, self.widen, self.merge, self.heads = (nn.ModuleList() for _ in range(4))
        for number in (3, 2, 1, 0):
            made = _DECODER[number]
            self.lateral.append(nn.Conv2d(_WIDTHS[number], made, 1))
            self.widen.append(nn.Conv2d(width, 4 * made, 1))
            merge = [conv(made, made), nn.ReLU(), conv(made, made), nn.ReLU()]
            self.merge.append(nn.Sequential(*merge[: 4 if number else 2]))
            self.heads.append(nn.Conv2d(made, 1 if number else 4, 3, padding=1))
            width = made
        told = _WIDTHS[4] + 2 * _DECODER[2] + 3
        self.judge = nn.Sequential(nn.Linear(told, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Logits of alpha (N, 1, 256, 256), those at a 16th, an 8th and a 4th of the side (for
        training), and the logit of the IoU that is expected (N,).
        """
        features = [functional.relu(self.stem(x))]
        for level in self.levels:
            features.append(level(features[-1]))
        y, sides, maps = features[4], list[Tensor](), list[Tensor]()
        for number, lateral in enumerate(self.lateral):
            y = functional.pixel_shuffle(self.widen[number](y), 2) + lateral(features[3 - number])
            y = self.merge[number](y)
            maps.append(y)
            sides.append(self.heads[number](y))
        logits = functional.pixel_shuffle(sides.pop(), 2)
        return logits, sides, self._judge(logits, features[4], maps[1])

    def _judge(self, logits: Tensor, coarse: Tensor, middle: Tensor) -> Tensor:
        """How well it expects to have done; what it found does not learn from that."""
        with torch.no_grad():
            full, middle = logits.float().sigmoid(), middle.float()
            found = functional.interpolate(logits.float(), middle.shape[-2:], mode="area").sigmoid()
            share, unsure = full.mean((2, 3)), ((full - 0.5).abs() < 0.4).float().mean((2, 3))
            inside = (middle * found).sum((2, 3)) / (found.sum((2, 3)) + 1)
            told = [coarse.float().mean((2, 3)), inside, (middle * (1 - found)).mean((2, 3))]
            told += [share, (2 * full - 1).abs().mean((2, 3)), unsure / (share + 0.02)]
        judged: Tensor = self.judge(torch.cat(told, 1))
        return judged[:, 0]


@cache
def load_cutter(folder: Path | None = None) -> Cutter:
    """The network that ships with inlay, or the one that a training wrote to a folder."""
    net = Cutter()
    load_weights(net, folder or Path(str(resources.files("inlay").joinpath("assets/cutter"))))
    return net.eval().requires_grad_(False)


def find_subject(
    rgb: Image, box: Box | None = None, points: Sequence[Point] = (), net: Cutter | None = None
) -> tuple[Image, float]:
    """How much of each pixel is subject, (h, w) in [0, 1], and the IoU that is expected of it.

    rgb is (h, w, 3) in [0, 1]; points lie inside it. With a box nothing beyond its surroundings is
    looked at; without one the subject that was found is looked at again from nearer. Where a point
    is given, squares round it are looked at as well, and the best answer is taken.
    """
    net = net or load_cutter()
    whole = Box.of_size((rgb.shape[1], rgb.shape[0]))
    if box is not None:
        return _look(net, rgb, _view(box, whole), box, points)
    found, expected = _look(net, rgb, whole, None, points)
    found = of_points(found, points)
    for view in _squares(whole, points):
        other, promised = _look(net, rgb, view, None, points)
        other = of_points(other, points)
        seen = bounds(other > 0.5)
        # What the view cuts off is not the whole thing.
        if seen is None or seen.grown(1).intersect(whole) != seen.grown(1).intersect(view):
            continue
        if promised > expected or not (found > 0.5).any():
            found, expected = other, promised
    near = bounds(found > 0.5)
    if near is None or near.area > _LARGE * whole.area:
        return found, expected
    nearer, also = _look(net, rgb, _view(near, whole), near, points)
    return of_points((1 - _NEARER) * found + _NEARER * nearer, points), min(expected, also)


def _squares(whole: Box, points: Sequence[Point]) -> Iterator[Box]:
    """Smaller and smaller squares round the point that is first."""
    for share in _NEAR if points else ():
        side = max(1, round(share * min(whole.width, whole.height)))
        x, y = (int(v) - side // 2 for v in points[0][:2])
        yield Box(x, y, side, side).intersect(whole) or whole


def of_points(found: Image, points: Sequence[Point]) -> Image:
    """Of what was found the pieces that points lie on; all of it without a point."""
    _, labels = cv2.connectedComponents((found > 0.5).astype(np.uint8))
    height, width = found.shape
    named = {
        int(labels[min(int(y), height - 1), min(int(x), width - 1)]) for x, y, on in points if on
    }
    if not any(on for _, _, on in points):
        return found
    return np.where(np.isin(labels, [0, *named]) & (len(named - {0}) > 0), found, np.float32(0))


def _view(box: Box, whole: Box) -> Box:
    """A box and some of what lies round it, inside the picture."""
    x, y = (round(_MARGIN * side) for side in (box.width, box.height))
    wide = Box(box.x - x, box.y - y, box.width + 2 * x, box.height + 2 * y)
    return wide.intersect(whole) or whole


def as_square(part: Image, view: Box, box: Box | None, points: Sequence[Point]) -> Image:
    """What the network reads, (256, 256, 5), of a part (h, w, 3) of a picture, at `view` in it."""
    enlarged = min(part.shape[:2]) <= SIDE
    way = cv2.INTER_CUBIC if enlarged else cv2.INTER_AREA
    square = np.zeros((SIDE, SIDE, 5), np.float32)
    square[..., :3] = (cv2.resize(part, (SIDE, SIDE), interpolation=way) - 0.5) * 4
    across, down = SIDE / view.width, SIDE / view.height
    if box is not None:
        own = box.shifted(-view.x, -view.y)
        left, right = (round(v * across) for v in (own.x, own.right))
        top, bottom = (round(v * down) for v in (own.y, own.bottom))
        square[top : max(bottom, top + 2), left : max(right, left + 2), 3] = 1
    discs = np.zeros((SIDE, SIDE), np.float32)
    for x, y, on in points:
        centre = int((x - view.x) * across), int((y - view.y) * down)
        cv2.circle(discs, centre, _RADIUS, 1.0 if on else -1.0, -1)
    square[..., 4] = discs
    return square


def _look(
    net: Cutter, rgb: Image, view: Box, box: Box | None, points: Sequence[Point]
) -> tuple[Image, float]:
    """What the network says of a part of the picture: the mean of as it is and mirrored."""
    square = as_square(np.clip(rgb[view.slices], 0, 1), view, box, points)
    both = torch.from_numpy(np.stack([square, square[:, ::-1]])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        logits, _, expected = net(both.contiguous())
    found = logits.sigmoid()[:, 0].numpy()
    mean = (found[0] + found[1, :, ::-1]) / 2
    alpha = np.zeros(rgb.shape[:2], np.float32)
    large = cv2.resize(mean, (view.width, view.height), interpolation=cv2.INTER_LINEAR)
    alpha[view.slices] = large
    return alpha, float(expected.sigmoid().mean())
