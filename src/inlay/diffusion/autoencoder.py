"""A linear patch autoencoder in the interface of diffusers' autoencoders.

Principal components of small RGB patches are a usable latent space that needs no gradient
training: encoding is one strided convolution, decoding one transposed convolution, and both are
exact on whatever lies in the span of the kept components.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, IdentityDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn
from torch.nn import functional


class PatchAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Linear autoencoder over non-overlapping patches.

    Images are (N, 3, H, W) in [-1, 1] with H and W multiples of `patch_size`; latents are
    (N, latent_channels, H / patch_size, W / patch_size).
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, patch_size: int = 4, latent_channels: int = 16, scaling_factor: float = 1.0
    ) -> None:
        super().__init__()
        shape = (latent_channels, 3, patch_size, patch_size)
        self.encoder_weight = nn.Parameter(torch.zeros(shape), requires_grad=False)
        self.encoder_bias = nn.Parameter(torch.zeros(latent_channels), requires_grad=False)
        self.decoder_weight = nn.Parameter(torch.zeros(shape), requires_grad=False)
        self.decoder_bias = nn.Parameter(
            torch.zeros(3, patch_size, patch_size), requires_grad=False
        )

    @classmethod
    def fit(
        cls, patches: Tensor, patch_size: int = 4, latent_channels: int = 16
    ) -> PatchAutoencoder:
        """Fit to patches (n, 3 * patch_size ** 2), values in [-1, 1], channel-major.

        Component k is divided by the square root of its standard deviation: full whitening would
        spend the diffusion model on noise, none would leave it with the mean colour alone.
        """
        patches = patches.double()
        mean = patches.mean(0)
        covariance = torch.cov((patches - mean).T)
        values, vectors = torch.linalg.eigh(covariance)
        values = values.flip(0)[:latent_channels].clamp_min(1e-8)
        vectors = vectors.flip(1)[:, :latent_channels]
        # The sign of an eigenvector is arbitrary: fix it, so that a fit is reproducible.
        vectors = vectors * torch.sign(vectors.sum(0) + 1e-12)
        scale = values.sqrt().sqrt()
        encoder = (vectors / scale).T
        latents = (patches - mean) @ encoder.T
        model = cls(patch_size, latent_channels, scaling_factor=float(1.0 / latents.std()))
        shape = (latent_channels, 3, patch_size, patch_size)
        model.encoder_weight.data = encoder.reshape(shape).float().contiguous()
        model.encoder_bias.data = (-(mean @ encoder.T)).float().contiguous()
        model.decoder_weight.data = (vectors * scale).T.reshape(shape).float().contiguous()
        model.decoder_bias.data = mean.reshape(3, patch_size, patch_size).float().contiguous()
        fitted: PatchAutoencoder = model
        return fitted

    def encode(self, x: Tensor) -> AutoencoderKLOutput:
        """(N, 3, H, W) -> a distribution over (N, C, H / p, W / p), a point mass."""
        size: int = self.config.patch_size
        z = functional.conv2d(x, self.encoder_weight, self.encoder_bias, stride=size)
        return AutoencoderKLOutput(latent_dist=IdentityDistribution(z))

    def decode(self, z: Tensor) -> DecoderOutput:
        """(N, C, h, w) -> (N, 3, h * p, w * p), not clamped."""
        size: int = self.config.patch_size
        image = functional.conv_transpose2d(z, self.decoder_weight, stride=size)
        bias = self.decoder_bias.repeat(1, z.shape[-2], z.shape[-1])
        return DecoderOutput(sample=image + bias)
