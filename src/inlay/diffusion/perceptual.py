"""How different two pictures look, differentiably, without weights of its own.

The features are the checkpoint's: those of its encoder after each level, or, where the autoencoder
is linear and has none, a Laplacian pyramid (Burt and Adelson 1983). LPIPS (Zhang et al. 2018, arXiv
1801.03924) serves where its package is installed. Pictures are (1, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from inlay.diffusion.backbone import Backbone
from inlay.errors import InputError

Features = Callable[[Tensor], list[Tensor]]
Kind = Literal["auto", "encoder", "laplacian", "lpips"]

# Where a channel of the reference hardly varies, this share of what its level's channels vary by
# on average stands for its own: dividing by next to nothing would make noise the loss.
_FLOOR = 0.1
# The same for a level without any variation, in the units of a picture in [-1, 1].
_LEAST = 0.02


def encoder_features(vae: Any, x: Tensor) -> list[Tensor]:
    """Features (N, C_l, h_l, w_l), float32, after each down block of an AutoencoderKL's encoder."""
    first = vae.encoder.conv_in(x.to(vae.device, vae.dtype))
    levels = itertools.accumulate(vae.encoder.down_blocks, lambda h, down: down(h), initial=first)
    return [level.float() for level in levels][1:]


def laplacian_pyramid(x: Tensor, levels: int = 4, base: bool = True) -> list[Tensor]:
    """Band-pass pictures (N, 3, h_l, w_l) from fine to coarse, then, with `base`, the low-pass.

    Each level halves the size (rounded up), as far as both sides are above 1. Without the base
    the pyramid does not see a change of overall colour or of light that varies slowly.
    """
    bands = list[Tensor]()
    while len(bands) < levels and min(x.shape[-2:]) > 1:
        small = functional.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        up = functional.interpolate(small, x.shape[-2:], mode="bilinear", align_corners=False)
        bands.append(x - up)
        x = small
    return [*bands, x] if base or not bands else bands


def features_of(vae: Any, kind: Kind = "auto", *, base: bool = True) -> Features:
    """The features of a kind; "auto" is the encoder's where there is one, else the pyramid, whose
    `base` it is. Raises InputError for "encoder" on a linear autoencoder.
    """
    # That of Qwen-Image is for films.
    deep = hasattr(getattr(vae, "encoder", None), "down_blocks") and "z_dim" not in vae.config
    if kind == "encoder" and not deep:
        raise InputError(
            "perceptual is 'encoder', but this model's autoencoder is linear or for films; "
            "use laplacian or auto."
        )
    if kind == "laplacian" or not deep:
        return lambda x: laplacian_pyramid(x, base=base)
    return lambda x: encoder_features(vae, x)


def _mean_inside(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of (N, C, h, w) over what a picture mask (1, 1, H, W) covers."""
    if mask is None:
        return values.mean()
    small = functional.adaptive_avg_pool2d(mask.to(values), (values.shape[-2], values.shape[-1]))
    return (values.mean(1, keepdim=True) * small).sum() / small.sum().clamp_min(1e-6)


def perceptual_loss(
    features: Features, reference: Tensor, mask: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """A function of a picture: how far its features are from those of `reference`, a scalar >= 0.

    At each level the squared difference, each channel divided by its standard deviation over the
    reference, is averaged over channels and over the mask (1, 1, H, W), then over the levels. The
    loss is differentiable in its picture; it is 0 for the reference itself.
    """
    known = []
    with torch.no_grad():
        for feature in features(reference):
            spread = feature.std((0, 2, 3), correction=0, keepdim=True)
            least = float(spread.mean()) * _FLOOR
            known.append((feature, spread.clamp_min(least).clamp_min(_LEAST)))

    def loss(x: Tensor) -> Tensor:
        parts = [
            _mean_inside(((feature - there) / spread) ** 2, mask)
            for feature, (there, spread) in zip(features(x), known, strict=True)
        ]
        return torch.stack(parts).mean()

    return loss


def lpips_loss(reference: Tensor, mask: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """LPIPS (VGG) from `reference`, averaged over the mask (1, 1, H, W); a scalar >= 0. Raises
    InputError where the package `lpips`, or the weights it fetches on first use, are not there.
    """
    try:
        import lpips  # type: ignore[import-not-found, unused-ignore]

        network = lpips.LPIPS(net="vgg", spatial=True, verbose=False)
    except ImportError:
        raise InputError(
            "perceptual is 'lpips', but the package lpips is not installed; "
            "pip install lpips, which needs torchvision, or use auto."
        ) from None
    except OSError as error:
        raise InputError(f"the weights of lpips could not be loaded ({error}); use auto.") from None
    network = network.requires_grad_(False).eval().to(reference.device)

    def loss(x: Tensor) -> Tensor:
        return _mean_inside(network(x.to(reference), reference), mask)

    return loss


def latent_loss(
    backbone: Backbone, z: Tensor, mask: Tensor | None, kind: Kind = "auto", *, base: bool = True
) -> Callable[[Tensor], Tensor]:
    """A function of a latent: how differently it decodes from the latent z (1, C, h, w).

    mask (1, 1, H, W), in pixels, limits it; kind and base are features_of()'s, or kind is "lpips".
    It is scaled to a largest curvature of about 1 at its minimum, z: a step of s times its gradient
    is stable for s < 2, whatever the features, the checkpoint, the size and the mask.
    """
    with torch.no_grad():
        # The decoder's picture, not the one that was encoded: its own error is nobody's fault.
        reference = backbone.decode(z)
    if kind == "lpips":
        distance = lpips_loss(reference, mask)
    else:
        distance = perceptual_loss(features_of(backbone.vae, kind, base=base), reference, mask)

    def loss(moved: Tensor) -> Tensor:
        return distance(backbone.decode(moved))

    scale = 1 / _curvature(loss, z)
    return lambda moved: loss(moved) * scale


def _curvature(loss: Callable[[Tensor], Tensor], z: Tensor, rounds: int = 6) -> float:
    """The largest eigenvalue of a loss's Hessian at its minimum z, by power iteration.

    Hessian times vector is a difference of gradients, of which the one at the minimum is 0. The
    start, a checkerboard, is where detail weighs most. 1 where the loss does not feel the latent.
    """
    c, y, x = (torch.arange(n) for n in z.shape[1:])
    direction = (1 - 2 * ((c[:, None, None] + y[:, None] + x) % 2)).to(z)[None]
    # A small part of a latent's own deviation a pixel.
    step, size = 0.02 * direction.numel() ** 0.5, 0.0
    for _ in range(rounds):
        direction = direction / direction.norm()
        with torch.enable_grad():
            place = (z + step * direction).detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(place), place)
        direction = gradient / step
        size = float(direction.norm())
        if not 0 < size < float("inf"):
            return 1.0
    return size
