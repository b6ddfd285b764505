"""The optimisers of training: AdamW, or Muon for the weight matrices and AdamW for the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["JointOptimizer"]

# Rows of an embedding are looked up, not multiplied, and the outermost convolutions map to and
# from latents: orthogonal updates are meant for the matrices in between. Those of a ControlNet that
# begin at zero would grow too slowly by them, as all directions move by the same small step.
_NOT_MATRICES = ("embedding", "conv_in.", "conv_out.", "controlnet_")


class JointOptimizer:
    """One `step(lr)` for all parameters of a network.

    kind "adamw": AdamW throughout (Loshchilov and Hutter 2019). kind "muon": every weight of two
    or more dimensions inside the network is updated by its orthogonalised momentum (Muon, Jordan
    2024; convolutions as matrices of out-channels by the rest), scaled to the size of an AdamW
    update (Liu et al. 2025, arXiv 2502.16982), so that both share one learning rate.
    """

    def __init__(self, networks: nn.Module, kind: str, learning_rate: float) -> None:
        self._named = dict(networks.named_parameters())
        matrices = {
            name: parameter
            for name, parameter in self._named.items()
            if kind == "muon"
            and parameter.ndim >= 2
            and not any(part in name for part in _NOT_MATRICES)
        }
        rest = {name: p for name, p in self._named.items() if name not in matrices}
        self._adamw = torch.optim.AdamW(
            rest.values(), lr=learning_rate, weight_decay=0.01, fused=True
        )
        self._flat = {name: nn.Parameter(_matrix(p)) for name, p in matrices.items()}
        self._muon: Any = None
        if self._flat:
            self._muon = torch.optim.Muon(
                self._flat.values(),
                lr=learning_rate,
                weight_decay=0.01,
                adjust_lr_fn="match_rms_adamw",
            )

    def step(self, learning_rate: float) -> None:
        """Update every parameter from its gradient."""
        for name, flat in self._flat.items():
            parameter = self._named[name]
            # The storage is shared: what Muon writes, the network has.
            flat.data = _matrix(parameter)
            assert parameter.grad is not None
            flat.grad = parameter.grad.reshape(flat.shape)
        for optimizer in (self._adamw, self._muon):
            if optimizer is not None:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate
                optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """What has to be kept for resuming, as named tensors."""
        tensors = {}
        for name, parameter in self._parameters().items():
            owner = self._muon if name in self._flat else self._adamw
            for key, value in owner.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up a state(); parameters that it does not mention start afresh."""
        for name, parameter in self._parameters().items():
            keys = ("momentum_buffer",) if name in self._flat else ("exp_avg", "exp_avg_sq", "step")
            if all(f"{key}.{name}" in tensors for key in keys):
                owner = self._muon if name in self._flat else self._adamw
                owner.state[parameter] = {
                    # AdamW counts its steps on the CPU unless it is told otherwise.
                    key: value if key == "step" else value.to(parameter.device)
                    for key in keys
                    for value in (tensors[f"{key}.{name}"],)
                }

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {**self._named, **self._flat}


def _matrix(parameter: Tensor) -> Tensor:
    return parameter.detach().view(parameter.shape[0], -1)
