"""The small networks of our own as they learn: the layers of inlay.scene.network, by torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from inlay.scene.network import Definition, Layers

# The ends of names of layers that begin at nothing.
_ZERO = ("out", "down", "head")


class Learner(nn.Module, Layers):
    """A network's definition with weights to learn, for what it reads, of a shape (C, H, W)."""

    def __init__(self, definition: Definition, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.definition, self.shape = definition, shape
        with torch.no_grad():
            # A layer comes into being where it is first asked for.
            definition(self, torch.zeros(1, *shape))
        self.train()

    def forward(self, x: Tensor) -> Any:
        return self.definition(self, x)

    def load(self, layers: Layers) -> None:
        """Go on from weights; raises InputError where they are not of this definition."""
        self.definition(layers, np.zeros((1, *self.shape), np.float32))
        tensors = {name: torch.from_numpy(value) for name, value in layers.weights.items()}
        self.load_state_dict(tensors, strict=False)

    def _layer(self, name: str, new: Callable[[], Any]) -> Any:
        """The layer of a name; its state has the names of nested modules."""
        *above, last = name.split(".")
        home: Any = self
        for part in above:
            if part not in home._modules:
                home.add_module(part, nn.Module())
            home = home._modules[part]
        if not hasattr(home, last):
            layer = new()
            if last in _ZERO:
                nn.init.zeros_(layer.weight)
            setattr(home, last, layer.eval() if isinstance(layer, nn.Module) else layer)
        return getattr(home, last)

    def conv(
        self, x: Tensor, name: str, made: int, side: int = 3, *, stride: int = 1, dilation: int = 1
    ) -> Any:
        padding = (side - 1) // 2 * dilation
        shape = x.shape[1], made, side, stride, padding, dilation
        return self._layer(
            name,
            lambda: nn.Sequential(nn.Conv2d(*shape, bias=False), nn.BatchNorm2d(made)),
        )(x)

    def plain(self, x: Tensor, name: str, made: int, side: int = 1, *, groups: int = 1) -> Any:
        shape = x.shape[1], made, side, 1, side // 2
        return self._layer(name, lambda: nn.Conv2d(*shape, groups=groups))(x)

    def linear(self, x: Tensor, name: str, made: int) -> Any:
        return self._layer(name, lambda: nn.Linear(x.shape[-1], made))(x)

    def norm(self, x: Tensor, name: str) -> Any:
        return self._layer(name, lambda: nn.LayerNorm(x.shape[-1]))(x)

    def weight(self, name: str, shape: tuple[int, ...]) -> Any:
        return self._layer(name, lambda: nn.Parameter(0.02 * torch.randn(shape)))

    def act(self, x: Tensor, kind: str = "relu") -> Any:
        return x.softmax(-1) if kind == "softmax" else getattr(functional, kind)(x)

    def enlarge(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=2.0, mode="bilinear")

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([*parts], 1)

    def fixed(self, x: Tensor) -> Tensor:
        return x.detach().float()
