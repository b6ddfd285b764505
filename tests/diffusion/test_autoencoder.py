"""The linear patch autoencoder against principal components computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import data

from inlay.diffusion.unet import PatchAutoencoder


def _patches(photo: np.ndarray, patch: int = 4) -> torch.Tensor:
    height, width = (side // patch * patch for side in photo.shape[:2])
    x = torch.from_numpy(photo[:height, :width].copy()).float().permute(2, 0, 1) / 127.5 - 1
    tiles = x.unfold(1, patch, patch).unfold(2, patch, patch)
    return tiles.permute(1, 2, 0, 3, 4).reshape(-1, 3 * patch * patch)


def test_round_trip_is_the_projection_on_the_first_components() -> None:
    patches = _patches(data.coffee())
    model = PatchAutoencoder.fit(patches, 4, 16)
    x = torch.from_numpy(data.coffee()[:64, :96].copy()).float().permute(2, 0, 1)[None] / 127.5 - 1
    got = model.decode(model.encode(x).latent_dist.mode()).sample
    mean = patches.double().mean(0)
    _, _, v = torch.linalg.svd(patches.double() - mean, full_matrices=False)
    rows = _patches(data.coffee()[:64, :96]).double()
    expected = (rows - mean) @ v[:16].T @ v[:16] + mean
    tiles = _patches(((got[0].permute(1, 2, 0).double().numpy()) + 1) * 127.5)
    torch.testing.assert_close(tiles.double(), expected, atol=2e-4, rtol=0)


def test_all_components_are_lossless() -> None:
    model = PatchAutoencoder.fit(_patches(data.astronaut()), 4, 48)
    x = torch.randn(2, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    back = model.decode(model.encode(x).latent_dist.sample()).sample
    torch.testing.assert_close(back, x, atol=1e-4, rtol=1e-4)


def test_scaled_latents_have_unit_variance() -> None:
    patches = _patches(data.astronaut())
    model = PatchAutoencoder.fit(patches)
    x = torch.from_numpy(data.astronaut().copy()).float().permute(2, 0, 1)[None] / 127.5 - 1
    z = model.encode(x).latent_dist.mode() * model.config.scaling_factor
    assert z.var().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("photo", "bound"), [("chelsea", 34.0), ("rocket", 31.0), ("coffee", 31.0)]
)
def test_the_shipped_autoencoder_reconstructs_foreign_photos(photo: str, bound: float) -> None:
    from importlib.resources import files

    model = PatchAutoencoder.from_pretrained(str(files("inlay") / "assets" / "embedded" / "vae"))
    image = getattr(data, photo)()
    height, width = (side // 4 * 4 for side in image.shape[:2])
    x = torch.from_numpy(image[:height, :width].copy()).float().permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        y = model.decode(model.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
    psnr = 10 * np.log10(4 / float(((x - y) ** 2).mean()))
    assert psnr > bound
