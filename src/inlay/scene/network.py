"""The small networks of our own, run with numpy: their layers, and the files that these lie in.

A network is one function of its layers and what it reads, (N, C, H, W). Here the layers take their
weights from a file; those of inlay.training.network are torch's, and learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from inlay.checkpoints.folder import check_safetensors
from inlay.errors import InputError
from inlay.pictures.arrays import Image
from inlay.pictures.read import file_sha256

# A file of more bytes is not one of these networks.
_LARGEST = 1 << 26
_HEADS = 4
# Of normalisation, as torch has them.
_EPSILON = np.float32(1e-5)
# Of either network: channels at a half of the side and less, residual blocks after the first of
# these, and channels on the way back.
_CUTTER, _CUTTER_BLOCKS, _CUTTER_BACK = (24, 48, 96, 192, 288), (1, 2, 4, 3), (96, 64, 48, 24)
_SHADOW, _SHADOW_BLOCKS, _SHADOW_BACK = (32, 64, 96, 144), (1, 1, 2), (96, 64, 32)
# The sides of what the network for shadows reads are multiples of this; from its maps this is taken
# before their softplus, so that an answer of nothing is a shadow of 0.05 stops.
MULTIPLE, CALM = 16, 3.0
_OWN = Path(str(resources.files("inlay").joinpath("assets")))
_LOADED = ContextVar[dict[str, "Layers"]]("loaded")
# What a network is: of its layers and an array, one or several arrays.
Definition = Callable[["Layers", Any], Any]


class Layers:
    """A network's layers by the names of their weights, of which they say how much they make.

    The weights are those of a folder's model.safetensors, or such as are given. `kind` is that of
    the training that makes the like. Raises InputError for a file that is of no safe format; and
    where a layer is called whose weights are not there, or not of its size.
    """

    def __init__(self, kind: str, weights: Path | Mapping[str, Image]) -> None:
        self.kind, self.file, self._ready = kind, Path(), dict[str, tuple[Image, Image]]()
        if isinstance(weights, Path):
            from safetensors.numpy import load_file

            self.file = weights / "model.safetensors"
            check_safetensors(self.file, "weight file")
            try:
                weights = load_file(self.file) if self.file.stat().st_size <= _LARGEST else {}
            except (KeyError, TypeError):
                # Numbers of a kind that numpy does not know.
                weights = {}
        self.weights = weights

    @property
    def name(self) -> str:
        """The folder, or embedded."""
        return "embedded" if self.file.parent == _OWN / self.kind else str(self.file.parent)

    @cached_property
    def hash(self) -> str:
        """The SHA-256 of the file."""
        return file_sha256(self.file)

    def weight(self, name: str, shape: tuple[int, ...]) -> Any:
        """An array that is learnt."""
        found = np.asarray(self.weights.get(name), np.float32)
        if found.shape != shape or not np.isfinite(found).all():
            raise InputError(
                f"The weight file {self.file} is not of a {self.kind}: give the folder that inlay "
                f"train {self.kind} wrote."
            )
        return found

    def _pair(self, name: str, *shape: int) -> tuple[Image, Image]:
        """A weight, whose outputs come first, and its bias."""
        if name not in self._ready:
            both = self.weight(f"{name}.weight", shape), self.weight(f"{name}.bias", shape[:1])
            self._ready[name] = both
        return self._ready[name]

    def conv(
        self, x: Any, name: str, made: int, side: int = 3, *, stride: int = 1, dilation: int = 1
    ) -> Any:
        """A convolution without bias, and batch normalisation."""
        if name not in self._ready:
            scale, bias = (self.weight(f"{name}.1.{key}", (made,)) for key in ("weight", "bias"))
            mean, var = (self.weight(f"{name}.1.running_{key}", (made,)) for key in ("mean", "var"))
            # Of numbers that stand, it is part of the weights.
            scale = scale / np.sqrt(np.maximum(var, 0) + _EPSILON)
            weight = self.weight(f"{name}.0.weight", (made, x.shape[1], side, side))
            self._ready[name] = weight * scale[:, None, None, None], bias - mean * scale
        return _convolved(x, *self._ready[name], stride, dilation)

    def plain(self, x: Any, name: str, made: int, side: int = 1, *, groups: int = 1) -> Any:
        """A convolution with a bias, of all channels or of each (as many groups)."""
        return _convolved(x, *self._pair(name, made, x.shape[1] // groups, side, side))

    def linear(self, x: Any, name: str, made: int) -> Any:
        """A matrix and a bias, along the last axis."""
        weight, bias = self._pair(name, made, x.shape[-1])
        return x @ weight.T + bias

    def norm(self, x: Any, name: str) -> Any:
        """Layer normalisation (Ba et al. 2016, arXiv 1607.06450), along the last axis."""
        scale, bias = self._pair(name, x.shape[-1])
        apart = x - x.mean(-1, keepdims=True)
        return apart / np.sqrt((apart**2).mean(-1, keepdims=True) + _EPSILON) * scale + bias

    def act(self, x: Any, kind: str = "relu") -> Any:
        """relu, gelu or sigmoid of each number, or softmax along the last axis."""
        if kind == "softmax":
            powers = np.exp(x - x.max(-1, keepdims=True))
            return powers / powers.sum(-1, keepdims=True)
        if kind == "gelu":
            return x * (1 + np.frompyfunc(math.erf, 1, 1)(x / 2**0.5).astype(np.float32)) / 2
        return np.maximum(x, 0) if kind == "relu" else (1 + np.tanh(x / 2)) / 2

    def enlarge(self, x: Any) -> Any:
        """Maps at twice their height and width, bilinearly."""
        rows, columns = (_doubling(side) for side in x.shape[2:])
        return rows @ x @ columns.T

    def join(self, parts: Sequence[Any]) -> Any:
        """Arrays as one, along axis 1."""
        return np.concatenate(parts, 1)

    def fixed(self, x: Any) -> Any:
        """The same as float32, of which nothing learns."""
        return np.asarray(x, np.float32)

    def relu_conv(self, x: Any, name: str, made: int, side: int = 3, **geometry: int) -> Any:
        return self.act(self.conv(x, name, made, side, **geometry))

    def perceptron(self, x: Any, name: str, made: int) -> Any:
        """So many numbers (N, made) of others (N, C), by way of 64 hidden ones."""
        return self.linear(self.act(self.linear(x, f"{name}.0", 64)), f"{name}.2", made)

    def attend(self, x: Any, name: str, place: Any) -> Any:
        """Self-attention over all cells of a coarse map (Vaswani et al. 2017, arXiv 1706.03762);
        `place`, which is added to it, says where a cell is.
        """
        count, width, height, across = x.shape
        tokens = (x + place).reshape(count, width, height * across).swapaxes(1, 2)
        parts = self.linear(self.norm(tokens, f"{name}.norm"), f"{name}.qkv", 3 * width)
        parts = parts.reshape(count, height * across, 3 * _HEADS, -1).swapaxes(1, 2)
        query, key, value = (parts[:, n * _HEADS : (n + 1) * _HEADS] for n in range(3))
        near = self.act(query @ key.swapaxes(2, 3) * (width // _HEADS) ** -0.5, "softmax")
        seen = (near @ value).swapaxes(1, 2).reshape(tokens.shape)
        tokens = tokens + self.linear(seen, f"{name}.out", width)
        inner = self.linear(self.norm(tokens, f"{name}.norm2"), f"{name}.up", 2 * width)
        tokens = tokens + self.linear(self.act(inner, "gelu"), f"{name}.down", width)
        return tokens.swapaxes(1, 2).reshape(x.shape)


def shuffled(x: Any) -> Any:
    """Maps (N, 4 C, h, w) as (N, C, 2 h, 2 w) (Shi et al. 2016, arXiv 1609.05158)."""
    count, made, height, width = x.shape
    cells = x.reshape(count, made // 4, 2, 2, height, width)
    rows = cells.swapaxes(3, 4).swapaxes(2, 3).swapaxes(4, 5)
    return rows.reshape(count, made // 4, 2 * height, 2 * width)


def pooled(x: Any, cell: int) -> Any:
    """The means of cells of so many pixels on a side, of maps (N, C, h, w)."""
    count, made, height, width = x.shape
    return x.reshape(count, made, height // cell, cell, width // cell, cell).mean((3, 5))


def cutter(layers: Layers, x: Any) -> tuple[Any, list[Any], Any]:
    """The network, on squares (N, 5, 256, 256): RGB less 0.5 times 4; 1 inside the box that was
    given; discs of 1 and -1 at the points on the subject and off it.

    Returns logits of alpha (N, 1, 256, 256), those at a 16th, an 8th and a 4th of the side (for
    training), and the logit of the IoU that is expected (N,).
    """
    features = [layers.relu_conv(x, "stem", _CUTTER[0], stride=2)]
    for number, (made, count) in enumerate(zip(_CUTTER[1:], _CUTTER_BLOCKS, strict=True)):
        y = layers.relu_conv(features[-1], f"levels.{number}.0", made, stride=2)
        for j in range(count):
            y = _block(layers, y, f"levels.{number}.{2 + j}.convs", number >= 2, 1 + j % 2)
        features.append(y)
    made, cells = _CUTTER[4], y.shape[2:]
    place = layers.weight("levels.3.5.place", (1, made, *cells))
    y = features[4] = layers.attend(y, "levels.3.5", place)
    sides, maps = list[Any](), list[Any]()
    for number, made in enumerate(_CUTTER_BACK):
        wide = shuffled(layers.plain(y, f"widen.{number}", 4 * made))
        y = wide + layers.plain(features[3 - number], f"lateral.{number}", made)
        for j in range(2 if number < 3 else 1):
            y = layers.relu_conv(y, f"merge.{number}.{2 * j}", made)
        maps.append(y)
        sides.append(layers.plain(y, f"heads.{number}", 1 if number < 3 else 4, 3))
    logits = shuffled(sides.pop())
    return logits, sides, _judge(layers, logits, features[4], maps[1])


def _block(layers: Layers, x: Any, name: str, narrow: bool, dilation: int) -> Any:
    """A residual block: two 3 x 3 convolutions, or one at half the width between two of 1 x 1."""
    width = x.shape[1]
    if narrow:
        y = layers.relu_conv(x, f"{name}.0", width // 2, 1)
        y = layers.relu_conv(y, f"{name}.1", width // 2, dilation=dilation)
        return layers.act(x + layers.conv(y, f"{name}.2", width, 1))
    y = layers.relu_conv(x, f"{name}.0", width)
    return layers.act(x + layers.conv(y, f"{name}.1", width))


def _judge(layers: Layers, logits: Any, coarse: Any, middle: Any) -> Any:
    """How well it expects to have done; what it found does not learn from that."""
    logits, coarse, middle = (layers.fixed(each) for each in (logits, coarse, middle))
    full = layers.act(logits, "sigmoid")
    found = layers.act(pooled(logits, logits.shape[-1] // middle.shape[-1]), "sigmoid")
    share, doubt = full.mean((2, 3)), abs(full - 0.5)
    unsure = layers.fixed(doubt < 0.4).mean((2, 3))
    inside = (middle * found).sum((2, 3)) / (found.sum((2, 3)) + 1)
    told = [coarse.mean((2, 3)), inside, (middle * (1 - found)).mean((2, 3))]
    told += [share, 2 * doubt.mean((2, 3)), unsure / (share + 0.02)]
    return layers.perceptron(layers.join(told), "judge", 1)[:, 0]


def shadow(layers: Layers, x: Any) -> tuple[Any, Any]:
    """The network, on windows (N, 4, H, W) of RGB and mask in [0, 1], sides multiples of 16.

    Returns maps (N, 3, H / 2, W / 2) of stops before their softplus, and the logit of whether the
    object touches anything (N,).
    """
    rgb, mask = x[:, :3], x[:, 3:]
    both = layers.join([(rgb - 0.5) * 4, mask * 2 - 1])
    features = [layers.relu_conv(both, "stem", _SHADOW[0], 5, stride=2)]
    for number, (made, count) in enumerate(zip(_SHADOW[1:], _SHADOW_BLOCKS, strict=True)):
        y = layers.relu_conv(features[-1], f"levels.{number}.0", made, stride=2)
        for j in range(2, 2 + count):
            inner = layers.relu_conv(y, f"levels.{number}.{j}.first", made)
            y = layers.act(y + layers.conv(inner, f"levels.{number}.{j}.second", made))
        features.append(y)
    told = layers.perceptron(_statistics(layers, rgb, mask), "told", made)
    y = y + told[..., None, None]
    for number in range(2):
        place = layers.plain(y, f"mix.{number}.place", made, 3, groups=made)
        y = layers.attend(y, f"mix.{number}", place)
    small = pooled(mask, MULTIPLE)
    inside = (y * small).sum((2, 3)) / (small.sum((2, 3)) + 0.1)
    touches = layers.perceptron(layers.join([inside, y.mean((2, 3))]), "judge", 1)[:, 0]
    for number, made in enumerate(_SHADOW_BACK):
        wide = layers.enlarge(layers.plain(y, f"widen.{number}", made))
        y = wide + layers.plain(features[2 - number], f"lateral.{number}", made)
        for j in (0, 2):
            y = layers.relu_conv(y, f"merge.{number}.{j}", made)
    return layers.plain(y, "head", 3, 3), touches


def _statistics(layers: Layers, rgb: Any, mask: Any) -> Any:
    """Mean and deviation of each colour inside and outside the mask, and its share: (N, 13)."""
    told = list[Any]()
    for part in (mask, 1 - mask):
        count = part.sum((2, 3)) + 1
        mean = (rgb * part).sum((2, 3)) / count
        spread = ((rgb - mean[..., None, None]) ** 2 * part).sum((2, 3)) / count
        told += [mean, (spread + 1e-4) ** 0.5]
    return layers.join([*told, mask.mean((2, 3))])


def load_layers(definition: Definition, folder: Path | None = None) -> Layers:
    """Those of a network that ships with inlay, or that a training of its kind wrote to a folder;
    its definition has the name of its kind.
    """
    layers = _load(definition.__name__, folder)
    _LOADED.get({})[layers.kind] = layers
    return layers


@cache
def _load(kind: str, folder: Path | None) -> Layers:
    return Layers(kind, folder or _OWN / kind)


def networks_from_now() -> Mapping[str, Layers]:
    """What load_layers() gives by kind in this thread, from now on until this is called again."""
    _LOADED.set(loaded := dict[str, Layers]())
    return loaded


def _convolved(x: Image, weight: Image, bias: Image, stride: int = 1, dilation: int = 1) -> Image:
    """Maps (N, C, h, w) by a weight (made, C, side, side), or (C, 1, side, side) for each channel,
    with zeros beyond them: one matrix product for each of the N, so that little is held.
    """
    made, _, side, _ = weight.shape
    reach = (side - 1) * dilation
    padded = np.pad(x, ((0, 0), (0, 0), *[(reach // 2, reach // 2)] * 2))
    seen = sliding_window_view(padded, (reach + 1, reach + 1), (2, 3))
    seen = seen[:, :, ::stride, ::stride, ::dilation, ::dilation]
    if weight.shape[1] < x.shape[1]:
        summed: Image = np.einsum("nchwij,cij->nchw", seen, weight[:, 0])
        return summed + bias[:, None, None]
    matrix = weight.reshape(made, -1)
    out = np.empty((len(x), made, *seen.shape[2:4]), np.float32)
    for one, parts in zip(out, seen, strict=True):
        columns = parts.transpose(0, 3, 4, 1, 2).reshape(matrix.shape[1], -1)
        one[:] = (matrix @ columns + bias[:, None]).reshape(one.shape)
    return out


def _doubling(side: int) -> Image:
    """The matrix (2 side, side) that doubles one axis bilinearly; the outermost pixels go on."""
    at = np.clip((np.arange(2 * side) - 0.5) / 2, 0, side - 1)
    hats = np.maximum(1 - np.abs(at[:, None] - np.arange(side)), 0)
    return np.asarray(hats, np.float32)
