"""What a concept's file changes of a checkpoint besides the LoRA of its U-Net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from inlay.diffusion.backbone import Backbone

__all__ = ["changes"]


def changes(
    backbone: Backbone, tensors: Mapping[str, Tensor], scale: float, before: Mapping[Any, Tensor]
) -> dict[Any, Tensor]:
    """What one file makes of a checkpoint's weights, by parameter, each in memory of its own.

    tensors are unet.NAME of a whole U-Net, all of them or none, and text_encoder(_2).LAYER's
    lora_A and lora_B; a U-Net's LoRA is passed over. scale is how far to go: at 1 a whole U-Net's
    weights are the file's. `before` has what earlier files made of them. Raises LookupError for
    tensors that do not fit.
    """
    whole = {name[5:]: value for name, value in tensors.items() if "lora_" not in name}
    unet = dict(backbone.unet.named_parameters())
    if whole and whole.keys() != unet.keys():
        raise LookupError("not the weights of this U-Net")
    changed: dict[Any, Tensor] = {}
    for name, value in whole.items():
        parameter = unet[name]
        old = parameter.data
        _same(old.shape, value.shape)
        new = value.to(old.device, old.dtype, copy=True)
        changed[parameter] = new if scale == 1 else old.lerp(new, scale)
    for name, down in tensors.items():
        if not name.startswith("unet.") and ".lora_A." in name:
            up = tensors[name.replace(".lora_A.", ".lora_B.")]
            parameter = _text_weight(backbone, name)
            old = before.get(parameter, parameter.data)
            _same((*old.shape, len(down)), (len(up), *down.shape[1:], *up.shape[1:]))
            added = scale * (up.float() @ down.float())
            changed[parameter] = (old.float() + added.to(old.device)).to(old.dtype)
    return changed


def _same(one: Sequence[int], other: Sequence[int]) -> None:
    if tuple(one) != tuple(other):
        raise LookupError(f"{tuple(other)} instead of {tuple(one)}")


def _text_weight(backbone: Backbone, name: str) -> Any:
    """The weight of a text encoder that a LoRA's tensor is for."""
    part, _, rest = name.partition(".")
    encoder = backbone.text.encoders[("text_encoder", "text_encoder_2").index(part)]
    layer = rest.rpartition(".lora_")[0]
    # Files have this part in their names, whether or not the library has it.
    if not hasattr(encoder, "text_model"):
        layer = layer.removeprefix("text_model.")
    try:
        return encoder.get_submodule(layer).weight
    except AttributeError:
        raise LookupError(name) from None
