"""Flow-matching checkpoints: Stable Diffusion 3 and FLUX.1, a transformer in place of a U-Net.

A sample at t in [0, 1] is z = (1 - t) * x0 + t * eps, and the network tells its velocity
v = eps - x0 (Esser et al. 2024, arXiv 2403.03206, section 2). All else that is special to such a
checkpoint is here: its levels, what its network reads, its text encoders, its joint attention. FLUX
has no paper: what it is fed is what diffusers' pipelines feed it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from inlay.diffusion.attention import AttentionRule, HiddenRegion, Layer, SharedSource
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.conditions import Conditions, repeat_rows
from inlay.diffusion.sample import CLEAN, Level, Levels, Sampler
from inlay.diffusion.text import TextStack, plain_text
from inlay.errors import InputError

# The schedulers that sample a flow, with the share of fresh noise a step: on such levels DDIM's
# step is Euler's, and the ancestral one is DDIM's with all noise fresh.
_FRESH_NOISE = {
    "FlowMatchEulerDiscreteScheduler": 0.0,
    "EulerDiscreteScheduler": 0.0,
    "DDIMScheduler": 0.0,
    "EulerAncestralDiscreteScheduler": 1.0,
}


class FlowText(TextStack):
    """CLIP encoders and, as the last one, T5, whose padding the network reads too.

    SD3 has two of CLIP. It reads their last hidden states but one, side by side and widened with
    zeros to T5's width, and behind them 256 places of T5's; FLUX has one, and reads 512 places of
    T5's alone. CLIP's pooled outputs go along: added = {"pooled_projections": (N, P)}. Weights are
    passed over, and what is beyond the lengths is not read.
    """

    chunks = False

    def _added(self, pooled: Sequence[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        return {"pooled_projections": torch.cat(list(pooled))}

    @torch.no_grad()
    def _encode(self, prompt: str, skip: int) -> tuple[Tensor, Tensor | None]:
        outputs = self._outputs(prompt)
        hidden: Tensor = outputs.pop().last_hidden_state
        if len(outputs) == 1:
            return hidden, outputs[0].pooler_output
        short = torch.cat([output.hidden_states[-2 - skip] for output in outputs], -1)
        short = functional.pad(short, (0, hidden.shape[-1] - short.shape[-1]))
        return torch.cat([short, hidden], 1), torch.cat([x.text_embeds for x in outputs], -1)

    def token_ids(self, prompt: str, number: int = 0) -> list[int]:
        if number < len(self.encoders) - 1:
            return super().token_ids(prompt, number)
        options = {"padding": "max_length", "max_length": self.length(number), "truncation": True}
        text = plain_text(prompt)
        return list(self.tokenizers[number](text, verbose=False, **options).input_ids)

    def length(self, number: int) -> int:
        if number < len(self.encoders) - 1:
            return super().length(number)
        return 256 if len(self.encoders) == 3 else 512


class FlowLevels(Levels):
    """The levels (1 - t, t) of a checkpoint's FlowMatchEulerDiscreteScheduler.

    tokens is the number of image tokens that its shift of t goes by, where that depends on the
    picture's size (`use_dynamic_shifting`). With `even` a run's t are spread evenly from 1 to
    1 / steps before they are shifted, as FLUX's are; else down to the least noisy of training.
    """

    def __init__(self, config: Mapping[str, Any], tokens: int, even: bool) -> None:
        self._scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(dict(config))
        self._even = even
        c = self._scheduler.config
        share = (tokens - c.base_image_seq_len) / (c.max_image_seq_len - c.base_image_seq_len)
        self._shift = c.base_shift + share * (c.max_shift - c.base_shift)
        count = int(c.num_train_timesteps)
        # Those of training: t spread evenly, then shifted as a run's are.
        self._trained = self._spread(sigmas=np.linspace(1, 1 / count, count)).flip(0)[1:]

    def _spread(self, **how: Any) -> Tensor:
        """A run's t, shifted, noisiest first, with the 0 that it ends at."""
        self._scheduler.set_timesteps(mu=self._shift, **how)
        t: Tensor = self._scheduler.sigmas
        return t

    def __len__(self) -> int:
        return len(self._trained)

    def __getitem__(self, timestep: int, /) -> Level:
        t = float(self._trained[timestep])
        return Level(1 - t, t, t * len(self))

    def rows(self, timesteps: Tensor) -> Level:
        t = self._trained.to(timesteps.device)[timesteps]
        return Level(1 - t[:, None, None, None], t[:, None, None, None], t * len(self))

    def whole(self, steps: int) -> list[Level]:
        places = {"sigmas": np.linspace(1, 1 / steps, steps)}
        t = self._spread(**(places if self._even else {"num_inference_steps": steps}))
        return [*(Level(1 - each, each, each * len(self)) for each in t[:-1].tolist()), CLEAN]


class FlowBackbone(Backbone):
    """A checkpoint of SD3 (family "sd3") or FLUX.1 (family "flux"); see Backbone.

    FLUX reads a latent packed: 2 x 2 of its pixels are one token; FLUX.1 Fill also the latent of
    what is to stay and the mask of its patches, Kontext tokens of the picture that it is to change.
    FLUX.1 [dev], Fill and Kontext are told the guidance scale in place of being guided, so they do
    not read the negative prompt. Raises InputError for a transformer that this package cannot
    drive.
    """

    levels: FlowLevels
    # Whether 2 x 2 pixels of a latent are one token, and text stands before them in attention.
    packs: bool

    def set_up(self) -> None:
        network, vae, text, name = self.network, self.vae, self.text, self.name
        config = network.config
        self.family = "flux" if type(network).__name__.startswith("Flux") else "sd3"
        self.prediction_type = "flow_prediction"
        self.latent_channels = int(vae.config.latent_channels)
        self.told_scale = bool(config.get("guidance_embeds"))
        self.packs = packs = self.family == "flux"
        # FLUX.1 [schnell].
        self.few_steps = packs and not self.told_scale
        self.multiple = self.factor * (2 if packs else int(config.patch_size))
        read, made = int(config.in_channels), int(config.out_channels or config.in_channels)
        if packs:
            read, made = read // 4, made // 4
        masked = 2 * self.latent_channels + self.factor**2
        width = int(text.encoders[-1].config.d_model)
        fits = made == self.latent_channels and config.joint_attention_dim == width
        if not fits or read not in (made, masked if packs else made):
            raise InputError(
                f"The transformer of the model {name} reads {config.in_channels} channels and text "
                f"of width {config.joint_attention_dim}, which is not what Stable Diffusion 3 or "
                "FLUX.1 [dev], [schnell], Fill or Kontext read beside these text encoders."
            )
        self.kind = "plain" if read == made else "inpaint"
        self.set_levels()

    def set_levels(self) -> None:
        """The native size, and the levels that follow from it."""
        config, packs = self.network.config, self.packs
        if packs:
            # It has no size of its own: that of the longest sequence it was trained at.
            tokens = int(self.scheduler_config.get("max_image_seq_len", 4096))
            self.native_size = int(tokens**0.5) * self.multiple
        else:
            self.native_size = int(config.sample_size) * self.factor
        tokens = (self.native_size // self.multiple) ** 2
        self.levels = FlowLevels(self.scheduler_config, tokens, even=packs)

    @property
    def unet(self) -> Any:
        """InputError, for all that is made for a U-Net."""
        raise InputError(
            f"the model {self.name} is a transformer, but T2I-Adapters, harmonizers and concepts "
            "are for U-Nets."
        )

    def layers(self) -> list[Layer]:
        """The joint attention layers in their order; the latter half stands for a decoder."""
        names, part = list(self.network.attn_processors), self.network.get_submodule
        return [
            Layer(name, "self", 2 * number >= len(names), part(name.removesuffix(".processor")))
            for number, name in enumerate(names)
        ]

    def change(self, rule: AttentionRule) -> nullcontext[None]:
        """Picture and text attend to one sequence here, so of the rules only those go that say
        which places of the picture are seen; InputError for any other. predict() minds them.
        """
        if not isinstance(rule, HiddenRegion | SharedSource):
            raise InputError(
                f"the model {self.name} attends to text and picture at once, so words cannot be "
                "steered to a place (words_inside, words_outside) and concepts cannot be used."
            )
        return nullcontext()

    def predict(self, z: Tensor, timestep: float | Tensor, conditions: Conditions) -> Tensor:
        """The velocity (N, C, h, w) in float32, without guidance; see Backbone.predict()."""
        seen, text, reference = self.seen(z, conditions), conditions.text, conditions.reference
        step = torch.as_tensor(timestep, dtype=torch.float32, device=self.device).expand(len(z))
        told = {"encoder_hidden_states": text.hidden, **(text.added or {})}
        inputs: dict[str, Any] = {name: x.to(self.device, self.dtype) for name, x in told.items()}
        inputs["return_dict"] = False
        tokens = z.shape[-2] * z.shape[-1] // (self.multiple // self.factor) ** 2
        behind = 0 if reference is None else tokens
        rules = [rule for rule in self.rules if isinstance(rule, HiddenRegion | SharedSource)]
        with _JointAttention(rules[-1], self, tokens, behind) if rules else nullcontext():
            if not self.packs:
                z = z.to(self.device, self.dtype)
                velocity: Tensor = self.network(hidden_states=z, timestep=step, **inputs)[0]
                return velocity.float()
            if self.told_scale:
                inputs["guidance"] = torch.full_like(step, conditions.guidance_scale)
            # The mask of a patch's pixels, one channel each: here they are all the patch's own.
            mask = [x.repeat(1, self.factor**2, 1, 1) for x in seen[1:2]]
            pictures = [torch.cat([*seen[:1], *seen[2:], *mask], 1)]
            if reference is not None:
                pictures.append(repeat_rows(reference, len(z)))
            return self._packed(pictures, step, inputs)

    def _packed(self, pictures: list[Tensor], step: Tensor, inputs: dict[str, Any]) -> Tensor:
        """The velocity for the first of some latents, of which the others are references."""
        height, width = (side // 2 for side in pictures[0].shape[-2:])
        parts = [
            functional.pixel_unshuffle(x.to(self.device, self.dtype), 2).flatten(2).transpose(1, 2)
            for x in pictures
        ]
        output = self.network(
            hidden_states=torch.cat(parts, 1),
            timestep=step / len(self.levels),
            **self.places(len(pictures), height, width, inputs["encoder_hidden_states"]),
            **inputs,
        )[0][:, : height * width]
        tokens = output.float().transpose(1, 2).unflatten(2, (height, width))
        return functional.pixel_shuffle(tokens, 2)

    def places(self, count: int, height: int, width: int, text: Tensor) -> dict[str, Tensor]:
        """How a packed network is told where the tokens of `count` pictures of one size are."""
        axes = (torch.arange(n) for n in (count, height, width))
        ids = torch.cartesian_prod(*axes).to(self.device, torch.float32)
        return {"img_ids": ids, "txt_ids": ids.new_zeros(text.shape[1], 3)}

    def solver(self, name: str, steps: int) -> Sampler:
        """Euler's steps on the checkpoint's levels, or ancestral ones; InputError for any other."""
        if name not in _FRESH_NOISE:
            raise InputError(
                f"scheduler {name!r} does not sample this model in {steps} steps; use for example "
                "FlowMatchEulerDiscreteScheduler or EulerAncestralDiscreteScheduler."
            )
        return Sampler(self.levels, steps, _FRESH_NOISE[name])


class _JointAttention(TorchFunctionMode):
    """Puts a rule's views in force while the network runs, in the layers that it is for.

    In FLUX and Qwen-Image the text stands first and the `behind` tokens of a reference last, in SD3
    the picture stands first; some layers of SD3.5 hold the picture alone.
    Each of diffusers' layers makes one fused call, which is changed here, so that no processor of
    ours needs to know how a family projects and turns its queries.
    """

    def __init__(
        self,
        rule: HiddenRegion | SharedSource,
        backbone: FlowBackbone,
        tokens: int,
        behind: int,
    ) -> None:
        super().__init__()
        self.rule, self.tokens, self.behind = rule, tokens, behind
        layers = backbone.layers()
        chosen = {layer.name for layer in rule.layers(layers)}
        self.acts = iter([layer.name in chosen for layer in layers])
        self.text_first = backbone.packs

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention or not next(self.acts):
            return func(*args, **kwargs)
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        query, key, value = given["query"], given["key"], given["value"]
        start = key.shape[2] - self.tokens - self.behind if self.text_first else 0
        return self.rule.heads(query, key, value, start, self.tokens, given.get("attn_mask"))
