"""What learns: a LoRA (Hu et al. 2021, arXiv 2106.09685) beside a checkpoint, or its U-Net.

A run has its checkpoint for itself: its U-Net is set up here to be learnt with quickly, its
attention, too, which makes the same sums as in use in fewer and larger calls.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from inlay.diffusion.attention import HeadsRule, Layer, processors
from inlay.diffusion.attention_masked import MaskedAttention
from inlay.diffusion.backbone import Backbone
from inlay.errors import InputError
from inlay.learning.settings import LearnConfig

ADAPTER = "concept"

# Attention of CLIP's text encoders.
_TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")
# On CPUs the fused kernel's backward pass is slow, but beyond so many scores a row the explicit
# one's memory costs more than it saves.
_EXPLICIT = 1 << 21
# Sequences are filled up to one of so many lengths: kernels are made anew for every shape.
_LENGTHS = 8


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


def set_up(backbone: Backbone, config: LearnConfig) -> nn.ParameterDict:
    """Make a checkpoint ready to learn and return what learns: the networks' own tensors, by their
    names in the file, with / for every dot, as a parameter's name cannot have dots in it.

    The U-Net runs under autocast to bfloat16 from now on. Raises InputError for a U-Net without
    layers to train.
    """
    unet = backbone.unet
    names = lora_layers(unet, config.layers)
    named: dict[str, nn.Parameter] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.train == "full":
            unet.requires_grad_(True)
            named |= {f"unet.{name}": value for name, value in unet.named_parameters()}
        elif names:
            named |= _add_lora(unet, config.rank, names, "unet.")
            _make_lean(unet)
        else:
            raise InputError(
                f"the U-Net of the model {config.model} has no layers of layers={config.layers} "
                "to train."
            )
        if config.text_encoder:
            for number, encoder in enumerate(backbone.text.encoders):
                # Files have this part in their names, whether or not the library has it.
                inner = "" if hasattr(encoder, "text_model") else "text_model."
                prefix = f"text_encoder{'_2' if number else ''}.{inner}"
                named |= _add_lora(encoder, config.rank, list(_TEXT_LAYERS), prefix)
    unet.set_attn_processor(processors(PlainTrainingAttention(), backbone.layers()))
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    unet.forward = torch.autocast(backbone.device.type, torch.bfloat16)(unet.forward)
    return nn.ParameterDict({name.replace(".", "/"): value for name, value in named.items()})


def _add_lora(module: Any, rank: int, layers: list[str], prefix: str) -> dict[str, nn.Parameter]:
    """Put a LoRA beside layers; its weights by their names in the file."""
    from peft import LoraConfig

    module.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), ADAPTER)
    return {
        f"{prefix}{name}.lora_{side}.weight": getattr(layer, f"lora_{side}")[ADAPTER].weight
        for name, layer in module.named_modules()
        if ADAPTER in getattr(layer, "lora_A", {})
        for side in "AB"
    }


def _make_lean(unet: Any) -> None:
    """The same sums with less round them.

    Frozen matrices are held as what autocast makes of them in every step; convolutions' in the
    layout that their kernels want; and layers with a LoRA do without the library's casts to
    float32, which autocast takes back, and its scale, which is 1.
    """
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and "lora_" not in name:
            module.to(torch.bfloat16)
            if isinstance(module, nn.Conv2d):
                weight = module.weight
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        if hasattr(module, "lora_A"):
            module.forward = functools.partial(_forward, module)


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """W x + B A x for x (..., channels) or, of a convolution, (N, C, h, w): B is a product over
    channels there, too.
    """
    base: Tensor = layer.base_layer(x)
    low, up = layer.lora_A[ADAPTER](x), layer.lora_B[ADAPTER].weight.flatten(1)
    if pixels := isinstance(layer.base_layer, nn.Conv2d):
        base, low = base.permute(0, 2, 3, 1), low.permute(0, 2, 3, 1)
    both = torch.addmm(base.flatten(0, -2), low.flatten(0, -2), up.t()).view(base.shape)
    return both.permute(0, 3, 1, 2) if pixels else both


class PlainTrainingAttention(HeadsRule):
    """diffusers' attention, explicit on CPUs where that is faster to learn with."""

    def layers(self, layers: Sequence[Layer]) -> Sequence[Layer]:
        return layers

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores, scale = query.shape[1] * query.shape[2] * key.shape[2], layer.attn.scale
        if query.device.type != "cpu" or scores > _EXPLICIT:
            return functional.scaled_dot_product_attention(query, key, value, scale=scale)
        weights: Tensor = (query * scale @ key.transpose(-1, -2)).softmax(-1)
        return weights @ value


class TrainingAttention(MaskedAttention):
    """Masked attention that is faster where a batch has one prompt.

    In cross-attention all rows then read the same keys, so the queries inside of all holes are one
    sequence, whatever their number in each row, and keys and values are made once.
    """

    def run(self, layer: Layer, hidden: Tensor, context: Tensor | None) -> Tensor:
        rows, tokens, _ = hidden.shape
        regions = self.regions(tokens, context is not None, hidden.device)
        # A row repeated by expand() is one by its stride.
        one = context is not None and (len(context) == 1 or context.stride(0) == 0)
        if context is None or not one or len(regions) != rows:
            return super().run(layer, hidden, context)
        flat, heads = hidden.reshape(1, rows * tokens, -1), layer.attn.heads
        # A query that reads nothing.
        nothing = hidden.new_zeros(1, heads, 1, layer.attn.to_out[0].in_features // heads)
        result = layer.finish(nothing).expand(-1, rows * tokens, -1)
        every = torch.arange(tokens, device=hidden.device)
        chosen = [(row, region) for row, those in enumerate(regions) for region in those]
        if chosen:
            parts = [(every if r.queries is None else r.queries) + n * tokens for n, r in chosen]
            at = torch.cat(parts)
            padded = functional.pad(at, (0, -len(at) % max(1, rows * tokens // _LENGTHS)))
            query, key, value = layer.project(flat.index_select(1, padded), context[:1])
            value = chosen[0][1].kept(value)
            read = layer.finish(PlainTrainingAttention().attend(layer, query, key, value))
            result = result.index_copy(1, at, read[:, : len(at)])
        return result.reshape(rows, tokens, -1)
