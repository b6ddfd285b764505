"""The network for shadows: how its answers are applied, and what the shipped one says."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage import data

from inlay.scene.network import Layers, load_layers, shadow
from inlay.scene.shadow import predict_shadow
from inlay.training.network import Learner
from inlay.training.shadow import stops

Floats = NDArray[np.float32]
SIDE = 96


def drawn(scale: float) -> Layers:
    """A network of random weights whose answers are not nothing."""
    torch.manual_seed(3)
    weights = Learner(shadow, (4, SIDE, SIDE)).state_dict()
    weights["head.weight"].normal_(std=scale)
    return Layers("shadow", {name: value.numpy() for name, value in weights.items()})


def photo(size: int = SIDE) -> Floats:
    return (cv2.resize(data.coffee(), (size, size), interpolation=cv2.INTER_AREA) / 255).astype(
        np.float32
    )


def disc(size: int = SIDE) -> Floats:
    y, x = np.mgrid[:size, :size] / size - 0.5
    return np.float32(x**2 + y**2 < 0.06)


def test_stops_are_a_softplus() -> None:
    maps = torch.linspace(-4, 8, 12).reshape(1, 3, 2, 2)
    got = stops(maps, (2, 2))
    torch.testing.assert_close(got, torch.log1p(torch.exp(maps - 3)))


@pytest.mark.parametrize("shape", [(90, 300), (500, 128), (17, 16), (128, 128)])
def test_windows_of_any_shape_and_their_mirror_images(shape: tuple[int, int]) -> None:
    rgb = cv2.resize(photo(), shape[::-1])
    alpha = cv2.resize(disc(), shape[::-1])
    net = drawn(2.0)
    factor, touches = predict_shadow(rgb, alpha, net)
    assert factor.shape == (*shape, 3) and 0 < factor.min() < factor.max() <= 1
    mirrored, also = predict_shadow(rgb[:, ::-1].copy(), alpha[:, ::-1].copy(), net)
    np.testing.assert_allclose(mirrored[:, ::-1], factor, atol=2e-3)
    assert touches == pytest.approx(also, abs=1e-3)


def test_the_shipped_weights_are_whole() -> None:
    weights = load_layers(shadow).weights.values()
    assert all(np.isfinite(value).all() for value in weights)


def ball(standing: bool) -> tuple[Floats, Floats]:
    """A lit ball on a table before a wall, or high up before the wall, and its alpha."""
    picture = np.empty((256, 256, 3), np.float32)
    picture[:130], picture[130:] = (0.75, 0.74, 0.72), (0.62, 0.55, 0.47)
    picture += np.random.default_rng(0).normal(0, 0.01, picture.shape).astype(np.float32)
    cy = 160 if standing else 45
    y, x = np.mgrid[:256, :256].astype(np.float32)
    radius = np.hypot(x - 128, y - cy) / 36
    alpha = np.clip((1 - radius) * 36 + 0.5, 0, 1).astype(np.float32)
    light = np.clip(0.75 - 0.4 * ((x - 128) * 0.5 + (y - cy)) / 36, 0.1, 1)[..., None]
    colour = np.float32([0.8, 0.25, 0.2]) * light
    return np.clip(picture * (1 - alpha[..., None]) + colour * alpha[..., None], 0, 1), alpha


def test_what_stands_darkens_the_ground_at_its_foot_and_what_floats_does_not() -> None:
    picture, alpha = ball(standing=True)
    factor, touches = predict_shadow(picture, alpha)
    foot, far = factor[198:204, 110:146].mean(), factor[5:60, 5:250].mean()
    assert foot < 0.9 < far and touches > 0.5
    picture, alpha = ball(standing=False)
    _, also = predict_shadow(picture, alpha)
    assert also < touches
