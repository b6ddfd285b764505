"""The small networks of our own as they learn, with no checkpoint beside them: the layers of
inlay.scene.network by torch, and their training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from inlay.learning.settings import Optimizer, Rate, TrainingConfig, Warmup
from inlay.scene.network import Definition, Layers, load_layers
from inlay.training.trainer import Trainer

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


class SupervisedConfig(TrainingConfig):
    """What every such training can be told."""

    learning_rate: Rate = 1.5e-3
    warmup_steps: Warmup = 300
    optimizer: Optimizer = "adamw"
    start_from: str | None = None
    """folder whose weights are begun with; embedded are those that ship with inlay"""


class SupervisedTrainer(Trainer):
    """One run. The network is a definition that reads arrays of a shape; its name is the training's
    kind.
    """

    definition: ClassVar[Any]
    shape: ClassVar[tuple[int, int, int]]
    config: SupervisedConfig
    bfloat16 = True

    def new_network(self) -> Learner:
        return Learner(self.definition, self.shape)

    def begin(self) -> None:
        if (name := self.config.start_from) is not None:
            folder = None if name == "embedded" else Path(name)
            self.network.load(load_layers(self.definition, folder))

    def write(self, network: nn.Module, folder: Path) -> None:
        """The weights alone, as model.safetensors; how many batches were counted is left out."""
        folder.mkdir()
        tensors = {k: v.cpu() for k, v in network.state_dict().items() if v.is_floating_point()}
        save_file(tensors, folder / "model.safetensors")
