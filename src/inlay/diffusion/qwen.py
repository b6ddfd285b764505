"""Qwen-Image and Qwen-Image-Edit: flow-matching checkpoints whose prompts a large model reads.

Wu et al. 2025 (Qwen-Image, arXiv 2508.02324). A prompt is put into a sentence that says what is to
be done; for editing the model looks at the picture, too. What either is fed is what diffusers'
pipelines feed it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BatchFeature

from inlay.diffusion.flow import FlowBackbone
from inlay.diffusion.text import Embedding, TextStack, join, plain_text
from inlay.errors import InputError

_LENGTH, _PICTURE = 1024, "<|image_pad|>"
# The longer side that Qwen-Image was trained at most at, and how many pixels of a picture its
# reader sees; those of Edit-Plus, which take several pictures, are smaller.
_NATIVE, _EDITS_AT, _SEEN, _SEEN_PLUS = 1328, 1024, 1024**2, 384**2


class QwenText(TextStack):
    """Qwen2.5-VL, whose last hidden states behind those of the sentence's beginning are read.

    pipeline is the class name of diffusers' pipeline, whose sentence is used; images makes patches
    of a picture, for editing. Of several prompts shorter ones end in zeros, which are not read.
    """

    chunks = False

    def __init__(
        self, tokenizers: Sequence[Any], encoders: Sequence[Any], *, pipeline: str, images: Any
    ) -> None:
        super().__init__(tokenizers, encoders)
        cls = getattr(diffusers, pipeline, None) if pipeline.startswith("QwenImage") else None
        if cls is None or ("Edit" in pipeline) != (images is not None):
            raise InputError(
                f"the model is made for {pipeline!r}, but of Qwen-Image inlay runs "
                "QwenImagePipeline and, with a processor, QwenImageEditPipeline and "
                "QwenImageEditPlusPipeline."
            )
        parts = {"text_encoder": self.encoders[0], "tokenizer": self.tokenizers[0]}
        parts |= {} if images is None else {"processor": self._process}
        self._pipeline = cls(scheduler=None, vae=None, transformer=None, **parts)
        self._images, self._seen = images, _SEEN_PLUS if "Plus" in pipeline else _SEEN

    def embed(
        self,
        prompts: Sequence[str],
        size: tuple[int, int],
        skip: int = 0,
        picture: Tensor | None = None,
    ) -> Embedding:
        """One row a prompt, hidden (N, L, D); see Backbone.embed()."""
        if skip:
            raise InputError("clip_skip is for CLIP text encoders; leave it at 0 on Qwen-Image.")
        if picture is None:
            return super().embed(prompts, size)
        scale = min(1.0, math.sqrt(self._seen / (picture.shape[-2] * picture.shape[-1])))
        small = (
            functional.interpolate(picture, scale_factor=scale, mode="area")
            if scale < 1
            else picture
        )
        levels = (small[0].permute(1, 2, 0).clamp(-1, 1) * 127.5 + 127.5).round().byte().cpu()
        return join(*(Embedding(self._read_prompt(each, image=levels.numpy())) for each in prompts))

    def _encode(self, prompt: str, skip: int) -> tuple[Tensor, Tensor | None]:
        return self._read_prompt(prompt), None

    @torch.no_grad()
    def _read_prompt(self, prompt: str, **shown: Any) -> Tensor:
        encode = self._pipeline.encode_prompt
        hidden: Tensor = encode([plain_text(prompt)], device=self.device, **shown)[0]
        return hidden

    def _process(self, text: Sequence[str], images: Any, **options: Any) -> BatchFeature:
        """What transformers' Qwen2VLProcessor makes of texts with a picture each."""
        shown = self._images(images=[images], return_tensors="pt")
        many = int(shown["image_grid_thw"].prod()) // self._images.merge_size**2
        texts = [each.replace(_PICTURE, many * _PICTURE) for each in text]
        return BatchFeature({**self.tokenizers[0](texts, **options), **shown})

    def length(self, number: int) -> int:
        return _LENGTH


class QwenBackbone(FlowBackbone):
    """A checkpoint of Qwen-Image, or of its kinds for editing (family "qwen"); see Backbone."""

    def set_up(self) -> None:
        config, told = self.network.config, self.vae.config
        self.family, self.prediction_type, self.kind = "qwen", "flow_prediction", "plain"
        self.packs, self.latent_channels = True, int(told.z_dim)
        self.multiple = 2 * self.factor
        width = int(self.text.encoders[0].config.text_config.hidden_size)
        made = config.in_channels // 4, config.out_channels, config.joint_attention_dim
        if made != (told.z_dim, told.z_dim, width) or config.guidance_embeds:
            raise InputError(
                f"The transformer of the model {self.name} reads {config.in_channels} channels and "
                f"text of width {config.joint_attention_dim}, which is not what Qwen-Image reads "
                "beside its autoencoder and text encoder."
            )
        mean, spread = (
            torch.tensor(each, device=self.device).view(1, -1, 1, 1)
            for each in (told.latents_mean, told.latents_std)
        )
        self._shift, self._scaling = mean, 1 / spread
        self.set_levels()
        self.native_size = min(self.native_size, _EDITS_AT if self.edits else _NATIVE)

    def _latent(self, vae: Any, x: Tensor) -> Tensor:
        # Of a film of one picture.
        return super()._latent(vae, x[:, :, None])[:, :, 0]

    def _decoded(self, vae: Any, z: Tensor) -> Tensor:
        return super()._decoded(vae, z[:, :, None])[:, :, 0]

    def embed(
        self,
        prompts: Sequence[str],
        size: tuple[int, int],
        skip: int = 0,
        picture: Tensor | None = None,
    ) -> Embedding:
        assert isinstance(self.text, QwenText)
        return self.text.embed(prompts, size, skip, picture if self.edits else None)

    def guide(self, negative: Tensor, positive: Tensor, scale: float, rescale: float) -> Tensor:
        """Guidance whose tokens have the length that they have without it."""
        guided = super().guide(negative, positive, scale, rescale)
        lengths = [
            functional.pixel_unshuffle(x, 2).norm(dim=1, keepdim=True) for x in (positive, guided)
        ]
        return guided * functional.interpolate(lengths[0] / lengths[1], scale_factor=2)

    def places(self, count: int, height: int, width: int, text: Tensor) -> dict[str, Any]:
        """See FlowBackbone; what a text leaves empty is said, too."""
        there = text.abs().sum(-1) > 0
        shapes = [[(1, height, width)] * count] * len(text)
        return {"img_shapes": shapes, "encoder_hidden_states_mask": None if there.all() else there}
