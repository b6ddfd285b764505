"""The trained harmonizer: a branch beside a frozen U-Net that reads the pasted picture and a mask.

It is the Inpainting and Harmonizing Module of PhD (Zhang et al. 2023, arXiv 2306.07596) in the form
of a ControlNet (Zhang et al. 2023, arXiv 2302.05543): a copy of the U-Net's encoder whose features
are added, through 1x1 convolutions that begin at zero, to what the U-Net's decoder reads. So it is
stored as diffusers' ControlNetModel; one with four channels of condition, red, green and blue of
the pasted picture in [-1, 1] and the mask in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from inlay.diffusion.backbone import Backbone, Branch, Conditions, Guide
from inlay.diffusion.sample import CLEAN, Level, Step, sample
from inlay.errors import InputError

_CHANNELS = 4
# ControlNet's own widths of the layers that bring the condition to the latent's size.
_WIDTHS = (16, 32, 96, 256)
# What the branch and the U-Net must have in common.
_SHARED = (
    "in_channels",
    "block_out_channels",
    "down_block_types",
    "layers_per_block",
    "cross_attention_dim",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)


class Harmonizer(Branch):
    """A harmonizer, which makes guides."""

    what, article, class_name = "harmonizer", "a harmonizer", "ControlNetModel"

    def guide(self, pasted: Tensor, mask: Tensor, scale: float = 1.0) -> Guide:
        """The guide for pictures (N, 3, H, W) in [-1, 1] and their masks (N, 1, H, W) in [0, 1]."""
        return Guide(self.network, torch.cat([pasted, mask.to(pasted)], 1), scale)

    def check(self, backbone: Backbone) -> None:
        config, name = self.network.config, self.name
        if config.conditioning_channels != _CHANNELS:
            raise InputError(
                f"The harmonizer {name} reads {config.conditioning_channels} channels, but a "
                f"pasted picture and its mask have {_CHANNELS}."
            )
        pairs = [(key, config.get(key), backbone.unet.config.get(key)) for key in _SHARED]
        factor = 2 ** (len(config.conditioning_embedding_out_channels) - 1)
        pairs.append(("number of pixels to a latent pixel", factor, backbone.factor))
        for key, mine, wanted in pairs:
            if _plain(mine) != _plain(wanted):
                raise InputError(
                    f"The harmonizer {name} does not fit the model {backbone.name}: its {key} is "
                    f"{_plain(mine)}, but the model's is {_plain(wanted)}."
                )


def _plain(value: Any) -> Any:
    """A value of a config, the same whether it was read from a file or not."""
    return list(value) if isinstance(value, tuple) else value


def new_harmonizer(backbone: Backbone) -> Any:
    """An untrained ControlNetModel (float32, on the CPU) that fits a backbone and changes nothing.

    The encoder's weights are the U-Net's; the layers that read the condition come from torch's
    generator. Raises InputError for a U-Net whose encoder cannot be copied so.
    """
    from diffusers import ControlNetModel

    unet, halvings = backbone.unet, backbone.factor.bit_length() - 1
    if 2**halvings != backbone.factor:
        raise InputError(
            f"The model {backbone.name} has {backbone.factor} pixels to a latent pixel, but a "
            "harmonizer can be made for powers of 2."
        )
    widths = (_WIDTHS + _WIDTHS[-1:] * halvings)[: halvings + 1]
    try:
        network = ControlNetModel.from_unet(
            unet,
            conditioning_embedding_out_channels=widths,
            conditioning_channels=_CHANNELS,
        )
    except (ValueError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"The U-Net of the model {backbone.name} is built in a way that a harmonizer cannot "
            "copy; take one of Stable Diffusion 1.x, 2.x or XL."
        ) from error
    return network.float().cpu()


def few_levels(backbone: Backbone, steps: int, strength: float = 1.0) -> list[Level]:
    """`steps` levels, noisiest first, evenly from `strength` of the schedule down.

    At strength 1 they begin with the very last one, where a schedule of zero terminal SNR (Lin et
    al. 2024, arXiv 2305.08891) has no signal left. Fewer come where the schedule has no more.
    """
    top = strength * len(backbone.levels)
    spaced = [round(top * (steps - i) / steps) - 1 for i in range(steps)]
    return [backbone.levels[t] for t in dict.fromkeys(max(0, t) for t in spaced)]


@torch.no_grad()
def correct(
    backbone: Backbone,
    conditions: Conditions,
    z_pasted: Tensor,
    levels: Sequence[Level],
    *,
    generator: torch.Generator,
    samples: int = 1,
    from_pasted: bool = False,
    progress: Callable[[Step], None] = lambda step: None,
) -> tuple[Tensor, Tensor]:
    """The latent of the pasted picture as the harmonizer would have it: mean and spread.

    DDIM over `levels`, noisiest first, to x0, from `samples` noises in ONE batch; with a single
    level x0 is that of the one prediction, an estimate of the conditional mean. z_pasted is
    (1, C, h, w); conditions are of one row, their guide the harmonizer at work and their mask 1
    where the latent may change. The run begins with pure noise, or with `from_pasted` with z_pasted
    noised to the first level. Noise is drawn from `generator`, on the CPU. After each step all
    outside the mask is z_pasted's again.

    Returns the mean over the samples and their standard deviation, float32 (1, C, h, w) each; the
    latter says how far the answers differ and is 0 outside the mask and for one sample.
    """
    noises = [level.noise for level in levels]
    if not noises or noises != sorted(set(noises), reverse=True):
        raise ValueError(f"levels of noise {noises}; expected falling ones, one or more")
    if conditions.mask is None:
        raise ValueError("what may change is for the conditions' mask to say")
    source = z_pasted.float().to(backbone.device)
    region = conditions.mask.float().to(backbone.device)
    shape = (samples, *source.shape[1:])
    noise = torch.randn(shape, generator=generator).to(backbone.device)
    made = sample(
        backbone.denoiser(conditions),
        levels[0].add_noise(source, noise) if from_pasted else noise,
        [*levels, CLEAN],
        noise=torch.zeros_like,
        on_x0=lambda step: region * step.x0 + (1 - region) * source,
        progress=progress,
    )
    return made.mean(0, keepdim=True), made.std(0, keepdim=True, correction=0)
