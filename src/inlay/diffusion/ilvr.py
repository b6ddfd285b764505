"""The maths of localized ILVR, on which Cross-domain Compositing rests.

Sources: Choi et al. 2021 (ILVR, arXiv 2108.02938) for the low-frequency pull; Hachnochi et al. 2023
(arXiv 2302.10167) for its localized form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from inlay.diffusion.sample import Step

__all__ = ["LocalizedPull", "low_pass", "ramp"]


@lru_cache(maxsize=64)
def _resampling(source: int, target: int) -> Tensor:
    """Antialiased cubic (Keys, a = -1/2) resampling of one axis as a matrix (target, source).

    Our own matrix, not torch's interpolate: that one is wrong where an axis shrinks to one pixel,
    and its antialiased kernels are missing on some devices.
    """
    stretch = max(source / target, 1.0)
    center = (torch.arange(target, dtype=torch.float64)[:, None] + 0.5) * source / target
    distance = (torch.arange(source, dtype=torch.float64) + 0.5 - center).abs() / stretch
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weight = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    return (weight / weight.sum(1, keepdim=True)).float()


def low_pass(x: Tensor, factor: float) -> Tensor:
    """phi_N: resample (N, C, h, w) down by `factor`, then up again, antialiased bicubic.

    A factor of 1 is the identity; the small size is rounded and at least one pixel.
    """
    if factor <= 1:
        return x
    height, width = x.shape[-2:]
    rows, columns = max(1, round(height / factor)), max(1, round(width / factor))
    vertical = _resampling(rows, height) @ _resampling(height, rows)
    horizontal = _resampling(columns, width) @ _resampling(width, columns)
    return vertical.to(x) @ x @ horizontal.T.to(x)


def ramp(mask: Tensor, pixels: int) -> Tensor:
    """Grow a mask (1, 1, h, w) outward by `pixels` with a linear ramp.

    The mean of its 1st to `pixels`-th repeated 3x3 dilation: each dilation adds 1 / pixels. 0 is
    the identity.
    """
    if pixels <= 0:
        return mask
    grown, total = mask, torch.zeros_like(mask)
    for _ in range(pixels):
        grown = functional.max_pool2d(grown, 3, stride=1, padding=1)
        total = total + grown
    return total / pixels


@dataclass(frozen=True)
class LocalizedPull:
    """Pull a sample toward a reference latent, differently inside and outside a mask.

    z <- z + A_i * (B * phi_in(d) + (1 - B) * phi_out(d)) with d = r - z, r the reference noised
    to the sample's level, B the mask's ramp and A_i the ramp of
    [i < S * ((T_in - T_out) * M + T_out)]. mask is (1, 1, h, w), 1 inside; reference
    (1, C, h, w). noise(like) draws n, already scaled by a temperature where there is one.
    """

    reference: Tensor
    mask: Tensor
    T_in: float
    T_out: float
    N_in: float
    N_out: float
    blend_pixels: int
    noise: Callable[[Tensor], Tensor]

    def share(self, number: int, total: int) -> Tensor:
        """A_i, (1, 1, h, w)."""
        until = total * ((self.T_in - self.T_out) * self.mask + self.T_out)
        # Half a thousandth of a step: T = 0.28 of 25 steps must not gain a step by rounding.
        active = (number < until - 5e-4).to(self.mask.dtype)
        return ramp(active, self.blend_pixels)

    def correction(self, delta: Tensor, number: int, total: int) -> Tensor:
        """A_i * (B * phi_in(delta) + (1 - B) * phi_out(delta))."""
        inside = ramp(self.mask, self.blend_pixels)
        pulled = inside * low_pass(delta, self.N_in) + (1 - inside) * low_pass(delta, self.N_out)
        return self.share(number, total) * pulled

    def on_step(self, step: Step) -> Tensor:
        """The pull on z, at the level the step arrived at."""
        # Drawn whether or not it is used: the noise of later steps must not hang on T.
        noise = self.noise(step.z)
        if step.number >= step.total * max(self.T_in, self.T_out):
            return step.z
        target = step.to.add_noise(self.reference, noise)
        return step.z + self.correction(target - step.z, step.number, step.total)

    def on_x0(self, step: Step) -> Tensor:
        """The same pull on the x0 estimate; the DDIM step then re-noises it."""
        if step.number >= step.total * max(self.T_in, self.T_out):
            return step.x0
        delta = self.reference - step.x0
        return step.x0 + self.correction(delta, step.number, step.total)
