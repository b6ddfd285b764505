"""Perceptual terms: what they see, what they leave out, and that they lead back to the picture."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data
from torch import Tensor
from torch.nn import functional

from checkpoints import loaded
from inlay import InputError
from inlay.checkpoints.load import load_backbone
from inlay.diffusion.perceptual import (
    encoder_features,
    features_of,
    laplacian_pyramid,
    latent_loss,
    lpips_loss,
    perceptual_loss,
)


def photo(side: int = 32) -> Tensor:
    image = torch.from_numpy(np.ascontiguousarray(data.astronaut()[:256, 128:384]))
    small = functional.adaptive_avg_pool2d(image.permute(2, 0, 1)[None].float(), side)
    return small / 127.5 - 1


def half(side: int = 32) -> Tensor:
    mask = torch.zeros(1, 1, side, side)
    mask[..., : side // 2] = 1
    return mask


def rebuilt(bands: list[Tensor]) -> Tensor:
    x = bands[-1]
    for band in reversed(bands[:-1]):
        x = band + functional.interpolate(x, band.shape[-2:], mode="bilinear", align_corners=False)
    return x


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_a_pyramid_holds_the_whole_picture(height: int, width: int, levels: int) -> None:
    x = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height))
    bands = laplacian_pyramid(x, levels)
    torch.testing.assert_close(rebuilt(bands), x, atol=1e-5, rtol=1e-5)


def test_without_its_base_a_pyramid_does_not_see_the_overall_colour() -> None:
    x, tint = photo(), torch.tensor([0.2, -0.1, 0.05]).reshape(1, 3, 1, 1)
    without = [laplacian_pyramid(y, base=False) for y in (x, x + tint)]
    for a, b in zip(*without, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    whole = perceptual_loss(laplacian_pyramid, x)
    assert whole(x + tint) > 1e-3


def test_encoder_features_are_the_encoders_own() -> None:
    """Those that lead, through its middle and its end, to what the encoder gives."""
    vae = loaded("sd1").vae
    with torch.no_grad():
        features = encoder_features(vae, photo())
        encoder = vae.encoder
        end = encoder.conv_norm_out(encoder.mid_block(features[-1]))
        got = encoder.conv_out(encoder.conv_act(end))
        torch.testing.assert_close(got, encoder(photo()), atol=1e-5, rtol=1e-5)
    assert [f.shape[-1] for f in features] == [16, 8, 4, 4]


def extractors() -> list[Any]:
    return [features_of(loaded("sd1").vae), laplacian_pyramid]


@pytest.mark.parametrize("number", [0, 1])
def test_a_loss_is_the_literal_mean_over_levels_channels_and_pixels(number: int) -> None:
    extract, x = extractors()[number], photo()
    y = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    mask = half()
    got = float(perceptual_loss(extract, x, mask)(y))
    levels = []
    with torch.no_grad():
        for a, b in zip(extract(x), extract(y), strict=True):
            deviation = np.array([float(a[0, c].std(correction=0)) for c in range(a.shape[1])])
            deviation = np.maximum(np.maximum(deviation, 0.1 * deviation.mean()), 0.02)
            square = ((b - a)[0].numpy() / deviation[:, None, None]) ** 2
            # The mask at the level: the mean of what it covers of each pixel.
            step = mask.shape[-1] // a.shape[-1]
            m = mask[0, 0].numpy().reshape(a.shape[-2], step, a.shape[-1], step).mean((1, 3))
            levels.append((square.mean(0) * m).sum() / m.sum())
    assert got == pytest.approx(np.mean(levels), rel=1e-4)


@pytest.mark.parametrize("number", [0, 1])
def test_a_loss_is_zero_for_the_reference_and_grows_with_the_change(number: int) -> None:
    extract, x = extractors()[number], photo()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    loss = perceptual_loss(extract, x)
    values = [float(loss(x + s * noise)) for s in (0.0, 0.02, 0.1, 0.3)]
    assert values[0] == 0
    assert values == sorted(values) and values[1] > 0


def test_a_pyramids_loss_looks_only_near_its_mask() -> None:
    x, mask = photo(), half()
    y = x.clone()
    y[..., -4:] += 0.5
    fine = lambda z: laplacian_pyramid(z, levels=1, base=False)  # noqa: E731
    assert float(perceptual_loss(fine, x, mask)(y)) == pytest.approx(0, abs=1e-8)
    assert float(perceptual_loss(fine, x, 1 - mask)(y)) > 1e-3


def test_a_flat_picture_does_not_blow_up() -> None:
    flat = torch.zeros(1, 3, 16, 16)
    for extract in extractors():
        assert float(perceptual_loss(extract, flat)(flat + 0.01)) < 5


@pytest.mark.parametrize("name", ["sd1", "sdxl", "embedded"])
def test_the_gradient_leads_to_the_latent_and_down(name: str) -> None:
    backbone = load_backbone("embedded", device="cpu") if name == "embedded" else loaded(name)
    side = 8
    z = torch.randn(
        1, backbone.latent_channels, side, side, generator=torch.Generator().manual_seed(3)
    )
    loss = latent_loss(backbone, z, half(side * backbone.factor))
    assert float(loss(z)) == 0
    moved = (z + 0.1 * torch.randn(z.shape, generator=torch.Generator().manual_seed(4))).detach()
    moved.requires_grad_()
    before = loss(moved)
    (gradient,) = torch.autograd.grad(before, moved)
    assert gradient.isfinite().all() and gradient.any()
    # Along the gradient the loss falls by what the gradient promises.
    before = before.detach()
    step = 1e-3 * float(before) / float((gradient**2).sum())
    after = loss(moved - step * gradient).detach()
    assert float(before - after) == pytest.approx(1e-3 * float(before), rel=0.2)
    assert all(p.grad is None for p in backbone.vae.parameters())


@pytest.mark.parametrize("name", ["sd1", "embedded"])
def test_a_loss_of_the_latent_has_unit_curvature(name: str) -> None:
    """So that one weight is stable everywhere: no direction is steeper, and one is about so."""
    backbone = load_backbone("embedded", device="cpu") if name == "embedded" else loaded(name)
    shape = (1, backbone.latent_channels, 8, 8)
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(shape, generator=generator)
    loss = latent_loss(backbone, z, None)
    # Twice the loss over the squared step is the curvature along it.
    direction = torch.randn(shape, generator=generator)
    for _ in range(12):
        place = (z + 0.05 * direction / direction.norm() * z.norm()).requires_grad_()
        (direction,) = torch.autograd.grad(loss(place), place)
    steepest = direction / direction.norm() * 0.05 * z.norm()
    curvature = 2 * float(loss(z + steepest)) / float((steepest**2).sum())
    assert 0.3 < curvature < 1.7


def test_a_linear_autoencoder_has_a_pyramid_and_no_encoder_features() -> None:
    vae = load_backbone("embedded", device="cpu").vae
    for a, b in zip(features_of(vae)(photo()), laplacian_pyramid(photo()), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(InputError, match="linear"):
        features_of(vae, "encoder")
    assert len(features_of(loaded("sd1").vae, "laplacian")(photo())) == 5


def test_lpips_that_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(InputError, match="pip install lpips"):
        lpips_loss(photo())


def test_lpips_is_asked_for_a_map_and_averaged_over_the_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stand-in with the package's interface: its weights cannot be fetched in a test."""

    class LPIPS(torch.nn.Module):
        def __init__(self, net: str, spatial: bool, verbose: bool) -> None:
            super().__init__()
            assert net == "vgg" and spatial

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a - b).abs().mean(1, keepdim=True)

    package = types.ModuleType("lpips")
    package.LPIPS = LPIPS  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    x, mask = photo(), half()
    y = x.clone()
    y[..., :16] += 0.25
    assert float(lpips_loss(x, mask)(y)) == pytest.approx(0.25, abs=1e-5)
    assert float(lpips_loss(x, 1 - mask)(y)) == pytest.approx(0, abs=1e-6)
    assert float(lpips_loss(x)(y)) == pytest.approx(0.125, abs=1e-5)
