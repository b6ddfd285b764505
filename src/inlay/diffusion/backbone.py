"""A checkpoint as the methods see it: encode, decode, embed, predict the noise.

Nothing here knows where weights come from (checkpoints.py does) or how to sample (denoise.py).
Notation: z is a latent times the checkpoint's scaling factor, a the cumulative alpha at timestep
t, so that z = sqrt(a) * x0 + sqrt(1 - a) * eps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from inlay.diffusion.branch import Guide
from inlay.diffusion.text import Conditioning, TextStack, join
from inlay.errors import InputError

__all__ = ["Backbone", "Conditioning", "Kind"]

Kind = Literal["plain", "inpaint"]


class Backbone:
    """One loaded checkpoint. Its weights are frozen; gradients flow to inputs that ask for them.

    Attributes: name; device; dtype (of the U-Net and the text encoders; the autoencoder may run
    in float32); kind, "plain" or "inpaint"; family, "sd1", "sd2", "sdxl" or "embedded";
    latent_channels; factor, pixels per latent pixel; native_size, the window side in pixels that
    the checkpoint was trained at; multiple, what window sides must be multiples of;
    alphas_cumprod, float32 (T,) on the CPU; prediction_type, timestep_spacing, set_alpha_to_one
    and steps_offset of the checkpoint's scheduler; and unet, vae, text, scheduler_config as loaded.

    Raises InputError for a U-Net that this package cannot drive (a number of input channels that
    is neither plain nor inpainting, added conditions other than SDXL's, an unknown schedule).
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        text: TextStack,
        scheduler_config: Mapping[str, Any],
        *,
        name: str,
        hasher: Callable[[], str] = lambda: "",
    ) -> None:
        self.unet, self.vae, self.text = unet, vae, text
        self.name = name
        self._hasher = hasher
        self._hash: str | None = None
        for module in (unet, vae, *text.encoders):
            module.requires_grad_(False).eval()
        self.device: torch.device = unet.device
        self.dtype: torch.dtype = unet.dtype
        self.latent_channels = int(unet.config.out_channels)
        self.factor = _vae_factor(vae)
        self.multiple = self.factor * 2 ** (len(unet.config.down_block_types) - 1)
        self.native_size = _sample_size(unet) * self.factor
        _check(unet, vae, text, name)
        self.kind: Kind = "plain" if unet.config.in_channels == self.latent_channels else "inpaint"
        self.family = _family(unet, vae)
        self.scheduler_config = dict(scheduler_config)
        self._read_schedule()
        self._scaling: float = vae.config.scaling_factor
        self._shift: float = getattr(vae.config, "shift_factor", None) or 0.0

    def _read_schedule(self) -> None:
        from diffusers import DDIMScheduler

        # DDIM stands in for any scheduler of the config: it shares their noise levels.
        ddim: Any = DDIMScheduler
        scheduler = ddim.from_config(self.scheduler_config, clip_sample=False)
        config = scheduler.config
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod.float().cpu()
        self.prediction_type: str = config.prediction_type
        self.timestep_spacing: str = config.timestep_spacing
        self.set_alpha_to_one: bool = config.set_alpha_to_one
        self.steps_offset: int = config.steps_offset
        if self.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise InputError(
                f"The model {self.name} predicts {self.prediction_type!r}, but inlay runs models "
                "that predict epsilon, v_prediction or sample."
            )

    @property
    def hash(self) -> str:
        """SHA-256 over the bytes of every weight file that was loaded; read once, when asked."""
        if self._hash is None:
            self._hash = self._hasher()
        return self._hash

    def encode(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to scaled latents (N, C, H / factor, W / factor), float32.

        The mode of the posterior, so no randomness. H and W must be multiples of `factor`.
        """
        output = self.vae.encode(x.to(self.vae.device, self.vae.dtype))
        z = output.latent_dist.mode() if hasattr(output, "latent_dist") else output.latents
        scaled: Tensor = (z.float() - self._shift) * self._scaling
        return scaled

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (N, C, h, w) to (N, 3, H, W) around [-1, 1], not clamped, float32."""
        raw = z.float() / self._scaling + self._shift
        image: Tensor = self.vae.decode(raw.to(self.vae.device, self.vae.dtype)).sample
        return image.float()

    def embed(self, prompts: Sequence[str], size: tuple[int, int]) -> Conditioning:
        """Embed prompts for a window of (height, width) pixels; rows in the prompts' order."""
        return self.text.embed(prompts, size)

    def predict(
        self,
        z: Tensor,
        t: int | Tensor,
        conditioning: Conditioning,
        mask: Tensor | None = None,
        masked_latent: Tensor | None = None,
        control: Sequence[Tensor] | None = None,
        harmonizer: Guide | None = None,
    ) -> Tensor:
        """The U-Net's raw output (N, C, h, w) in float32, whatever it predicts.

        z is (N, C, h, w), t one timestep or N of them, conditioning has N rows. An inpainting
        checkpoint also needs mask (1 or N, 1, h, w), 1 where content is made, and masked_latent
        (1 or N, C, h, w), the encoded picture with the hole set to 0, and is fed [z, mask,
        masked_latent]; a plain one takes neither. Anything else raises ValueError. control are
        the features of a T2I-Adapter, level by level, each of 1 or N rows; harmonizer is a trained
        branch with what it reads, and one of scale 0 is not run.
        """
        inpaint = self.kind == "inpaint"
        if (mask is not None) != inpaint or (masked_latent is not None) != inpaint:
            raise ValueError(f"a checkpoint of kind {self.kind!r} got the wrong mask inputs")
        if len(conditioning) != len(z):
            raise ValueError(f"{len(conditioning)} rows of conditioning for {len(z)} latents")
        extra = [x.expand(len(z), -1, -1, -1) for x in (mask, masked_latent) if x is not None]
        inputs = torch.cat([x.to(self.device, self.dtype) for x in (z, *extra)], 1)
        added = conditioning.added and {
            key: value.to(self.device) for key, value in conditioning.added.items()
        }
        step = torch.as_tensor(t, device=self.device)
        hidden = conditioning.hidden.to(self.device, self.dtype)
        guided = {}
        if harmonizer is not None and harmonizer.scale != 0:
            guided = harmonizer.residuals(inputs, step, hidden, added)
        output: Tensor = self.unet(
            inputs,
            step,
            encoder_hidden_states=hidden,
            added_cond_kwargs=added,
            down_intrablock_additional_residuals=self._residuals(control, len(z)),
            **guided,
            return_dict=False,
        )[0]
        return output.float()

    def _residuals(self, control: Sequence[Tensor] | None, rows: int) -> list[Tensor] | None:
        """Features as the U-Net takes them: a new list, as it empties the one that it is given,
        and all rows, as it passes over those for its middle whose shape is not that of its own.
        """
        if control is None:
            return None
        return [level.to(self.device, self.dtype).expand(rows, -1, -1, -1) for level in control]

    def predict_both(
        self,
        z: Tensor,
        t: int,
        cond: Conditioning,
        uncond: Conditioning | None = None,
        guidance_scale: float = 1.0,
        mask: Tensor | None = None,
        masked_latent: Tensor | None = None,
        control: Sequence[Tensor] | None = None,
        harmonizer: Guide | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(eps, x0) in float32 after classifier-free guidance (Ho and Salimans, arXiv 2207.12598).

        out = uncond + guidance_scale * (cond - uncond), both rows in ONE batch [uncond, cond];
        without `uncond`, or at guidance_scale 1, only cond is run. x0 comes from the raw output,
        so it is right at zero terminal SNR too, where eps does not determine it.
        """
        n = len(z)
        if uncond is None or guidance_scale == 1:
            rows = cond.rows(n)
            output = self.predict(z, t, rows, mask, masked_latent, control, harmonizer)
        else:
            both = join(uncond.rows(n), cond.rows(n))
            hole, seen = (None if x is None else _twice(x) for x in (mask, masked_latent))
            levels = None if control is None else [_twice(level) for level in control]
            guide = harmonizer
            if guide is not None:
                guide = replace(guide, condition=_twice(guide.condition))
            out = self.predict(torch.cat([z, z]), t, both, hole, seen, levels, guide)
            output = out[:n] + guidance_scale * (out[n:] - out[:n])
        return self.to_noise(output, z, t), self.output_to_x0(output, z, t)

    def predict_noise(
        self,
        z: Tensor,
        t: int,
        cond: Conditioning,
        uncond: Conditioning | None = None,
        guidance_scale: float = 1.0,
        mask: Tensor | None = None,
        masked_latent: Tensor | None = None,
        control: Sequence[Tensor] | None = None,
        harmonizer: Guide | None = None,
    ) -> Tensor:
        """The first item of predict_both(): eps (N, C, h, w) in float32."""
        masks = (mask, masked_latent)
        return self.predict_both(z, t, cond, uncond, guidance_scale, *masks, control, harmonizer)[0]

    def to_noise(self, output: Tensor, z: Tensor, t: int) -> Tensor:
        """A raw output as eps; for v (arXiv 2202.00512, app. D) sqrt(a) * v + sqrt(1 - a) * z."""
        output, z = output.float(), z.float()
        if self.prediction_type == "epsilon":
            return output
        signal, noise = self._levels(t)
        if self.prediction_type == "v_prediction":
            return signal * output + noise * z
        return (z - signal * output) / noise

    def output_to_x0(self, output: Tensor, z: Tensor, t: int) -> Tensor:
        """A raw output as x0; for v it is sqrt(a) * z - sqrt(1 - a) * v, exact at a = 0 too."""
        output, z = output.float(), z.float()
        if self.prediction_type == "sample":
            return output
        signal, noise = self._levels(t)
        if self.prediction_type == "v_prediction":
            return signal * z - noise * output
        return self.to_x0(output, z, t)

    def to_x0(self, eps: Tensor, z: Tensor, t: int) -> Tensor:
        """(z - sqrt(1 - a) * eps) / sqrt(a); ValueError where a = 0, as eps says nothing there."""
        signal, noise = self._levels(t)
        if signal == 0:
            raise ValueError(f"at timestep {t} the signal is 0: eps does not determine x0")
        return (z.float() - noise * eps.float()) / signal

    def alpha(self, t: int) -> float:
        """The cumulative alpha at timestep t."""
        return float(self.alphas_cumprod[t])

    def _levels(self, t: int) -> tuple[float, float]:
        """sqrt(a) and sqrt(1 - a) at timestep t."""
        a = self.alpha(t)
        return math.sqrt(a), math.sqrt(1 - a)


def _twice(x: Tensor) -> Tensor:
    """The rows once for either half of a guided batch; a single one serves all as it is."""
    return x if len(x) == 1 else torch.cat([x, x])


def _vae_factor(vae: Any) -> int:
    patch = getattr(vae.config, "patch_size", None)
    if isinstance(patch, int):
        return patch
    channels = getattr(vae.config, "block_out_channels", None) or vae.config.down_block_out_channels
    return int(2 ** (len(channels) - 1))


def _sample_size(unet: Any) -> int:
    size = unet.config.sample_size
    return int(max(size) if isinstance(size, list | tuple) else size or 64)


def _check(unet: Any, vae: Any, text: TextStack, name: str) -> None:
    """Refuse what this package cannot drive, before a tensor of the wrong shape does."""
    config, latent = unet.config, int(unet.config.out_channels)
    labels = config.class_embed_type or config.num_class_embeds
    if labels or config.addition_embed_type not in (None, "text_time"):
        raise InputError(
            f"The U-Net of the model {name} wants conditions other than text, but inlay runs "
            "Stable Diffusion 1.x, 2.x and XL checkpoints."
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


def _family(unet: Any, vae: Any) -> str:
    if unet.config.addition_embed_type == "text_time":
        return "sdxl"
    if type(vae).__name__ == "PatchAutoencoder":
        return "embedded"
    return "sd2" if unet.config.use_linear_projection else "sd1"
