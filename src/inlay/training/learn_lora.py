"""The LoRA (Hu et al. 2021, arXiv 2106.09685) that is trained beside a frozen U-Net."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["ADAPTER", "LoraWeights", "lora_layers"]

ADAPTER = "learned"


class LoraWeights(nn.Module):
    """The trained weights of a U-Net's LoRA alone, for an optimiser and a state of their own.

    They are the U-Net's own tensors, (A, B) for each layer by its name.
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.layers = {
            name: (module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight)
            for name, module in unet.named_modules()
            if ADAPTER in getattr(module, "lora_A", {})
        }
        for name, pair in self.layers.items():
            for side, parameter in zip("AB", pair, strict=True):
                # A parameter's name cannot have dots in it.
                self.register_parameter(f"{name}.{side}".replace(".", "/"), parameter)


def lora_layers(unet: Any, layers: str) -> list[str]:
    """The names of the linear and convolution layers that a LoRA changes, see LearnConfig."""
    blocks = ("down_blocks.", "mid_block.", "up_blocks.")
    parts = {"cross": ".attn2.", "attention": ".attn", "all": "."}
    return [
        name
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and name.startswith(blocks)
        and parts[layers] in name
        and "time_emb" not in name
    ]
