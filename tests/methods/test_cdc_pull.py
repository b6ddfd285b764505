"""Cross-domain Compositing's equations against slow references written out from the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.diffusion.sample import Level, Step
from inlay.methods.cdc import CdcSettings, LocalizedPull, low_pass
from inlay.methods.workspace import ramp


def _cubic(x: float) -> float:
    """Keys' cubic kernel with a = -1/2."""
    a, x = -0.5, abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return 0.0


def _weights(source: int, target: int) -> np.ndarray:
    """Antialiased cubic resampling of one axis, weight by weight: (target, source)."""
    scale = source / target
    stretch = max(scale, 1.0)
    matrix = np.zeros((target, source))
    for i in range(target):
        center = scale * (i + 0.5)
        low = max(int(center - 2 * stretch + 0.5), 0)
        high = min(int(center + 2 * stretch + 0.5), source)
        for j in range(low, high):
            matrix[i, j] = _cubic((j + 0.5 - center) / stretch)
        matrix[i] /= matrix[i].sum()
    return matrix


def _literal_low_pass(x: np.ndarray, factor: float) -> np.ndarray:
    height, width = x.shape
    if factor == 1:
        return x
    small = max(1, round(height / factor)), max(1, round(width / factor))
    down = _weights(height, small[0]) @ x @ _weights(width, small[1]).T
    return _weights(small[0], height) @ down @ _weights(small[1], width).T


def _literal_ramp(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The mask and each of `pixels` - 1 dilations by the 3x3 neighbourhood add 1 / pixels."""
    if pixels == 0:
        return mask
    height, width = mask.shape
    total, grown = mask / pixels, mask
    for _ in range(pixels - 1):
        bigger = np.zeros_like(grown)
        for y in range(height):
            for x in range(width):
                bigger[y, x] = grown[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max()
        grown = bigger
        total = total + grown / pixels
    return total


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5.5, 16, 64])
@pytest.mark.parametrize("shape", [(16, 16), (12, 20), (9, 7)])
def test_low_pass(factor: float, shape: tuple[int, int]) -> None:
    x = np.random.default_rng(1).normal(size=shape)
    got = low_pass(torch.from_numpy(x).float()[None, None], factor)[0, 0].numpy()
    np.testing.assert_allclose(got, _literal_low_pass(x, factor), atol=1e-5)


@given(st.integers(0, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_ramp(pixels: int, seed: int) -> None:
    mask = (np.random.default_rng(seed).random((11, 13)) > 0.93).astype(np.float64)
    got = ramp(torch.from_numpy(mask)[None, None], pixels)[0, 0].numpy()
    np.testing.assert_allclose(got, _literal_ramp(mask, pixels), atol=1e-6)


def test_the_ramp_of_a_step_falls_by_equal_parts() -> None:
    step = torch.zeros(1, 1, 3, 8)
    step[..., :3] = 1
    assert ramp(step, 1).equal(step)
    assert ramp(step, 4)[0, 0, 1].tolist() == [1, 1, 1, 0.75, 0.5, 0.25, 0, 0]


CASES = [
    (0.8, 1.0, 1.0, 1.0, 0), (0.2, 1.0, 4.0, 1.0, 2), (0.0, 0.5, 1.0, 2.0, 0),
    (0.5, 0.1, 2.0, 3.0, 3), (1.0, 1.0, 1.0, 1.0, 1),
]  # fmt: skip


@pytest.mark.parametrize(("T_in", "T_out", "N_in", "N_out", "blend"), CASES)
@pytest.mark.parametrize("number", [0, 2, 5, 9])
def test_cdc_step(
    T_in: float, T_out: float, N_in: float, N_out: float, blend: int, number: int
) -> None:
    rng = np.random.default_rng(number)
    total, alpha = 10, 0.37
    z, reference, noise = rng.normal(size=(3, 3, 12, 16))
    mask = np.zeros((12, 16))
    mask[3:8, 5:12] = 1

    r = math.sqrt(alpha) * reference + math.sqrt(1 - alpha) * noise
    active = np.zeros_like(mask)
    for y in range(12):
        for x in range(16):
            active[y, x] = number < total * ((T_in - T_out) * mask[y, x] + T_out)
    share, inside = _literal_ramp(active, blend), _literal_ramp(mask, blend)
    expected = np.empty_like(z)
    for c in range(3):
        delta = r[c] - z[c]
        pulled = inside * _literal_low_pass(delta, N_in)
        pulled += (1 - inside) * _literal_low_pass(delta, N_out)
        expected[c] = z[c] + share * pulled

    def t(a: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(a).float()[None]

    told = CdcSettings(T_in=T_in, T_out=T_out, N_in=N_in, N_out=N_out, blend_pixels=blend)
    pull = LocalizedPull(t(reference), t(mask[None]), told, lambda like: t(noise))
    to = Level(math.sqrt(alpha), math.sqrt(1 - alpha), 0)
    step = Step(number, total, Level(0.4, 0.9, 0), to, x0=t(z), eps=t(z), z=t(z))
    np.testing.assert_allclose(pull.on_step(step)[0].numpy(), expected, atol=1e-5)
    # The x0 variant is the same pull with the clean reference.
    for c in range(3):
        delta = reference[c] - z[c]
        pulled = inside * _literal_low_pass(delta, N_in)
        pulled += (1 - inside) * _literal_low_pass(delta, N_out)
        expected[c] = z[c] + share * pulled
    np.testing.assert_allclose(pull.on_x0(step)[0].numpy(), expected, atol=1e-5)


def test_noise_is_drawn_even_when_no_pull_is_left() -> None:
    """A smaller T must not shift the random numbers of later steps."""
    draws = []

    def noise(like: torch.Tensor) -> torch.Tensor:
        draws.append(1)
        return torch.zeros_like(like)

    z = torch.zeros(1, 2, 4, 4)
    pull = LocalizedPull(z, torch.ones(1, 1, 4, 4), CdcSettings(T_in=0.1, T_out=0.1), noise)
    pull.on_step(Step(9, 10, Level(0.4, 0.9, 0), Level(0.5, 0.8, 0), z, z, z))
    assert len(draws) == 1
