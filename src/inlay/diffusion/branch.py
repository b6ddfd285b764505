"""What a harmonizer hands to a U-Net call; it stands below the backbone, which takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Guide"]


@dataclass(frozen=True, eq=False)
class Guide:
    """A harmonizer at work on one picture, for Backbone.predict().

    network is diffusers' ControlNetModel; condition is (1 or N, 4, H, W) at the size of the model's
    picture; scale weighs what the branch adds, 0 is without it.
    """

    network: Any
    condition: Tensor
    scale: float = 1.0

    def residuals(
        self, inputs: Tensor, t: Tensor, hidden: Tensor, added: Mapping[str, Tensor] | None
    ) -> dict[str, Any]:
        """What the branch adds to a U-Net call on `inputs` (N, C, h, w), as that call's options."""
        condition = self.condition.to(inputs.device, inputs.dtype)
        down, middle = self.network(
            inputs,
            t,
            encoder_hidden_states=hidden,
            controlnet_cond=condition.expand(len(inputs), -1, -1, -1),
            conditioning_scale=self.scale,
            added_cond_kwargs=added,
            return_dict=False,
        )
        return {
            "down_block_additional_residuals": down,
            "mid_block_additional_residual": middle,
        }
