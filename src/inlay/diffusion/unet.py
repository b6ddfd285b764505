"""Checkpoints whose network is a U-Net: Stable Diffusion 1.x, 2.x and XL, and the embedded one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, IdentityDistribution
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn
from torch.nn import functional

from inlay.diffusion.attention import Layer, unet_layers
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.conditions import Conditions, repeat_rows
from inlay.diffusion.sample import Level, Levels, Sampler
from inlay.diffusion.text import TextStack
from inlay.errors import InputError

# Settings that the U-Nets of Stable Diffusion are without, and the blocks that they consist of.
_STRANGE = (
    "class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "timestep_post_act",
)  # fmt: skip
_BLOCKS = re.compile("(CrossAttn)?(Down|Up)Block2D|UNetMidBlock2DCrossAttn|None")


class DdpmLevels(Levels):
    """The levels of a scheduler config: signal sqrt(a), noise sqrt(1 - a) for the cumulative alpha
    a of a timestep. Spacing, offset and the level that a run ends at are those of diffusers'
    DDIMScheduler; of a latent consistency model (Luo et al. 2023, arXiv 2310.04378) a run's levels
    are some of those that it was distilled at.
    """

    def __init__(self, scheduler_config: Mapping[str, Any]) -> None:
        # DDIM stands in for any other scheduler of the config: it shares their noise levels.
        consistent = scheduler_config.get("_class_name") == "LCMScheduler"
        kind: Any = diffusers.LCMScheduler if consistent else diffusers.DDIMScheduler
        self.scheduler = kind.from_config(dict(scheduler_config), clip_sample=False)
        self.alphas_cumprod: Tensor = self.scheduler.alphas_cumprod.float().cpu()
        self.most = self.scheduler.config.get("original_inference_steps") or len(self)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def __getitem__(self, timestep: int) -> Level:
        return Level.of_alpha(float(self.alphas_cumprod[timestep]), timestep)

    def rows(self, timesteps: Tensor) -> Level:
        alphas = self.alphas_cumprod.to(timesteps.device)[timesteps].view(-1, 1, 1, 1)
        return Level(alphas.sqrt(), (1 - alphas).sqrt(), timesteps)

    def whole(self, steps: int) -> list[Level]:
        self.scheduler.set_timesteps(min(steps, self.most))
        # Leading spacing plus an offset can name a timestep beyond the last one.
        timesteps = [min(int(t), len(self) - 1) for t in self.scheduler.timesteps]
        # Always the final level last: diffusers steps to t - T // S, which for step counts that do
        # not divide T ends a little short of it.
        end = Level.of_alpha(float(self.scheduler.final_alpha_cumprod), 0)
        return [*(self[t] for t in timesteps), end]


class UNetBackbone(Backbone):
    """diffusers' UNet2DConditionModel with its autoencoder, text encoders and schedule. family is
    "sd1", "sd2", "sdxl" or "embedded".
    """

    levels: DdpmLevels

    def set_up(self) -> None:
        unet, vae = self.network, self.vae
        self.latent_channels = int(unet.config.out_channels)
        # On its way up it takes the sizes of its way down, whatever they halve to.
        self.multiple = self.factor
        side = unet.config.sample_size or 64
        self.native_size = self.factor * int(max(side) if isinstance(side, list | tuple) else side)
        _check(unet, vae, self.text, self.name)
        self.kind = "plain" if unet.config.in_channels == self.latent_channels else "inpaint"
        if unet.config.addition_embed_type == "text_time":
            self.family = "sdxl"
        elif isinstance(vae, PatchAutoencoder):
            self.family = "embedded"
            # So small a network does worse on what it never saw: odd sizes, enlarged pixels.
            self.multiple *= 2 ** (len(unet.config.down_block_types) - 1)
            self.least_window = self.native_size
        else:
            self.family = "sd2" if unet.config.use_linear_projection else "sd1"
        self.levels = DdpmLevels(self.scheduler_config)
        self.told_scale = bool(unet.config.time_cond_proj_dim)
        config = self.levels.scheduler.config
        # As those of Turbo, Lightning and Hyper are; such with zero terminal SNR are spaced so too.
        trailing = config.get("timestep_spacing") == "trailing"
        self.few_steps = self.told_scale or (trailing and not config.get("rescale_betas_zero_snr"))
        self.prediction_type = str(self.levels.scheduler.config.prediction_type)
        if self.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise InputError(
                f"The model {self.name} predicts {self.prediction_type!r}, but inlay runs models "
                "that predict epsilon, v_prediction or sample."
            )

    def layers(self) -> list[Layer]:
        return unet_layers(self.network)

    def predict(self, z: Tensor, timestep: float | Tensor, conditions: Conditions) -> Tensor:
        """See Backbone; an inpainting U-Net is fed [z, mask, masked_latent]."""
        seen, text = self.seen(z, conditions), conditions.text
        inputs = torch.cat([x.to(self.device, self.dtype) for x in seen], 1)
        step = torch.as_tensor(timestep, device=self.device)
        hidden = text.hidden.to(self.device, self.dtype)
        added = text.added and {key: value.to(self.device) for key, value in text.added.items()}
        guide = conditions.guide
        residuals = {} if guide is None else guide.residuals(inputs, step, hidden, added)
        # A new list, as the U-Net empties the one that it is given, and of all rows, as it passes
        # over features for its middle whose shape is not that of its own.
        features = conditions.control and [
            repeat_rows(x.to(self.device, self.dtype), len(z)) for x in conditions.control
        ]
        scale, width = None, self.network.config.time_cond_proj_dim
        if width:
            scale = torch.full((len(z),), 1000 * (conditions.guidance_scale - 1))
            scale = get_timestep_embedding(scale, width, downscale_freq_shift=1).to(inputs)
        output: Tensor = self.network(
            inputs,
            step,
            timestep_cond=scale,
            encoder_hidden_states=hidden,
            added_cond_kwargs=added,
            down_intrablock_additional_residuals=features,
            **residuals,
            return_dict=False,
        )[0]
        return output.float()

    def solver(self, name: str, steps: int) -> Sampler:
        """See Backbone. It is tried on a few numbers with a network that knows the answer."""
        kind: Any = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
        # Runge-Kutta warm-up evaluates the network between its levels: SD checkpoints skip it.
        config = {**self.scheduler_config, "clip_sample": False, "skip_prk_steps": True}
        try:
            trial, solver = (
                Sampler(self.levels, steps, scheduler=kind.from_config(config)) for _ in range(2)
            )
            if _finds_the_answer(trial):
                return solver
        except Exception:
            # Schedulers of other kinds of model, or with needs not installed, fail in many ways.
            pass
        raise InputError(
            f"scheduler {name!r} does not sample this model in {steps} steps; use for example "
            "DDIMScheduler, EulerDiscreteScheduler or UniPCMultistepScheduler."
        )


def _finds_the_answer(solver: Sampler) -> bool:
    clean = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)

    def oracle(z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        alpha = float(solver.scheduler.alphas_cumprod[level.timestep])
        return (z - alpha**0.5 * clean) / max((1 - alpha) ** 0.5, 1e-3), clean

    generator = torch.Generator().manual_seed(0)
    result = solver(oracle, torch.zeros_like(clean), strength=1.0, generator=generator)
    # NaN is not below anything.
    return bool((result - clean).abs().max() < 0.3)


def _check(unet: Any, vae: Any, text: TextStack, name: str) -> None:
    """Refuse what this package cannot drive, before a tensor of the wrong shape does."""
    config, latent = unet.config, int(unet.config.out_channels)
    strange = [key for key in _STRANGE if config.get(key)]
    blocks = map(str, (*config.down_block_types, config.mid_block_type, *config.up_block_types))
    strange += [block for block in blocks if not _BLOCKS.fullmatch(block)]
    if strange or config.addition_embed_type not in (None, "text_time"):
        raise InputError(
            f"The U-Net of the model {name} wants conditions other than text, or has other blocks "
            f"({', '.join(strange[:3])}), but inlay runs those of Stable Diffusion 1.x, "
            "2.x and XL."
        )
    if int(vae.config.latent_channels) != latent:
        raise InputError(
            f"The model {name} pairs a U-Net of {latent} latent channels with an autoencoder of "
            f"{vae.config.latent_channels}, but both must have the same number."
        )
    if config.in_channels not in (latent, 2 * latent + 1):
        raise InputError(
            f"The U-Net of the model {name} reads {config.in_channels} channels, but inlay runs "
            f"plain ({latent}) and inpainting ({2 * latent + 1}) checkpoints."
        )
    width = sum(int(encoder.config.hidden_size) for encoder in text.encoders)
    if config.cross_attention_dim != width:
        raise InputError(
            f"The U-Net of the model {name} attends to text of width {config.cross_attention_dim}, "
            f"but its text encoders give {width}."
        )
    if config.addition_embed_type == "text_time":
        expected = int(text.encoders[-1].config.projection_dim) + 6 * config.addition_time_embed_dim
        if len(text.encoders) != 2 or config.projection_class_embeddings_input_dim != expected:
            raise InputError(
                f"The U-Net of the model {name} does not take SDXL's two text encoders and six "
                "sizes, but inlay runs SDXL base and inpainting checkpoints, not refiners."
            )


class PatchAutoencoder(diffusers.ModelMixin, diffusers.ConfigMixin):  # type: ignore[misc]
    """Linear autoencoder over non-overlapping patches, in the interface of diffusers' own.

    Principal components of small RGB patches are a latent space that needs no gradient training;
    both ways are exact on whatever lies in the span of the kept ones. Images are (N, 3, H, W) in
    [-1, 1], latents (N, latent_channels, H / patch_size, W / patch_size).
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, patch_size: int = 4, latent_channels: int = 16, scaling_factor: float = 1.0
    ) -> None:
        super().__init__()
        pixels = (3, patch_size, patch_size)
        shape = (latent_channels, *pixels)
        # Empty takes no memory until it is filled, however much a config asks for.
        self.encoder_weight = nn.Parameter(torch.empty(shape), requires_grad=False)
        self.encoder_bias = nn.Parameter(torch.empty(latent_channels), requires_grad=False)
        self.decoder_weight = nn.Parameter(torch.empty(shape), requires_grad=False)
        self.decoder_bias = nn.Parameter(torch.empty(pixels), requires_grad=False)

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
        values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
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
        """The latents of images as a distribution, a point mass."""
        size: int = self.config.patch_size
        z = functional.conv2d(x, self.encoder_weight, self.encoder_bias, stride=size)
        return AutoencoderKLOutput(latent_dist=IdentityDistribution(z))

    def decode(self, z: Tensor) -> DecoderOutput:
        """The images of latents, not clamped."""
        size: int = self.config.patch_size
        image = functional.conv_transpose2d(z, self.decoder_weight, stride=size)
        bias = self.decoder_bias.repeat(1, z.shape[-2], z.shape[-1])
        return DecoderOutput(sample=image + bias)
