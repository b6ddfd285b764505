"""What a network is told besides a sample and its level, as rows of one batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from inlay.diffusion.attention import HeadsRule, Layer
from inlay.diffusion.text import Embedding, join
from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.diffusion.backbone import Backbone
    from inlay.diffusion.sample import Level

# How wide what an IP-Adapter reads is, by the encoder's config, for a tensor that tells its kind.
_READS = {"proj.weight": "projection_dim", "proj.3.weight": "hidden_size", "latents": "hidden_size"}


@dataclass(frozen=True, eq=False)
class Guide:
    """A harmonizer at work on one picture: diffusers' ControlNetModel, its condition (1 or N, 4, H,
    W), and what its answer is multiplied by; at scale 0 it is not run.
    """

    network: Any
    condition: Tensor
    scale: float = 1.0

    def residuals(
        self, inputs: Tensor, t: Tensor, hidden: Tensor, added: Mapping[str, Tensor] | None
    ) -> dict[str, Any]:
        """What the branch adds to a U-Net call on `inputs` (N, C, h, w), as that call's options."""
        if self.scale == 0:
            return {}
        condition = repeat_rows(self.condition.to(inputs.device, inputs.dtype), len(inputs))
        down, middle = self.network(
            inputs,
            t,
            encoder_hidden_states=hidden,
            controlnet_cond=condition,
            conditioning_scale=self.scale,
            added_cond_kwargs=added,
            return_dict=False,
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


@dataclass(frozen=True, eq=False)
class Conditions:
    """What a network is told besides a sample and its level: all of it of 1 row, or of N.

    text and negative are embedded prompts; without `negative`, or at guidance_scale 1, there is no
    guidance. guidance_rescale is the share in which guided predictions get the spread of unguided
    ones. mask (h, w), 1 where content is made, and masked_latent (C, h, w), the encoded picture
    without what the mask covers, may always be given: networks that do not read them pass over
    them. control are a T2I-Adapter's features, level by level; guide is a harmonizer;
    reference (1 or N, C, h, w) is the encoded picture that a checkpoint for editing is to change.
    """

    text: Embedding
    negative: Embedding | None = None
    guidance_scale: float = 1.0
    guidance_rescale: float = 0.0
    mask: Tensor | None = None
    masked_latent: Tensor | None = None
    control: Sequence[Tensor] | None = None
    guide: Guide | None = None
    reference: Tensor | None = None

    @property
    def guided(self) -> bool:
        return self.negative is not None and self.guidance_scale != 1

    def rows(self, count: int) -> Conditions:
        """With the text of ONE batch of `count` latents; where guided of twice as many, [negative,
        text]. The rest stays as it is: see repeat_rows().
        """
        text = self.text.rows(count)
        if self.negative is not None and self.guided:
            text = join(self.negative.rows(count), text)
        return replace(self, text=text, negative=None)

    @staticmethod
    def join(*parts: Conditions) -> Conditions:
        """The rows of several, in order, as those of one batch; guidance is the first one's, and
        the network of its guide. What one of them has all must have; ValueError otherwise.
        """
        rows: dict[str, Any] = {}
        for name in ("text", "negative", "mask", "masked_latent", "control", "guide", "reference"):
            values = [getattr(part, name) for part in parts]
            if len({value is None for value in values}) > 1:
                raise ValueError(f"all conditions of a batch must have {name}, or none")
            rows[name] = _stack(values)
        return replace(parts[0], **rows)


@dataclass(eq=False)
class ImagePrompt(HeadsRule):
    """A picture as a prompt beside the text: where a layer attends to the text it attends to the
    picture's tokens as well, and `scale` times what comes of that is added.

    seen are each such layer's key and value of the tokens, (2, heads, tokens, width), by its name;
    the first row is the unconditional one. Source: Ye et al. 2023 (IP-Adapter, arXiv 2308.06721,
    equation 5).
    """

    seen: Mapping[str, Sequence[Tensor]]
    scale: float = 1.0
    guided: bool = False

    def layers(self, layers: Sequence[Layer]) -> Iterable[Layer]:
        return [layer for layer in layers if layer.name in self.seen]

    def begin(self, level: Level, samples: int, guided: bool) -> None:
        self.guided = guided

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attend, first = functional.scaled_dot_product_attention, len(query) // 2 * self.guided
        rows = [int(row >= first) for row in range(len(query))]
        own, shown = (x[rows] for x in self.seen[layer.name])
        return attend(query, key, value) + self.scale * attend(query, own, shown)


class IpAdapter:
    """An IP-Adapter beside a U-Net, the CLIP image encoder that it reads, and their files' hash.

    tensors are those of its file: image_proj.* turn what the encoder says of a picture into tokens,
    ip_adapter.N.to_k_ip.weight and to_v_ip are keys and values for the U-Net's layers that attend
    to the text, N = 1, 3, 5, ... in diffusers' order. All of it waits on the CPU. Raises InputError
    where it does not fit the backbone or the encoder.
    """

    def __init__(
        self, encoder: Any, tensors: Mapping[str, Tensor], backbone: Backbone, name: str, hash: str
    ) -> None:
        self.encoder, self.name, self.hash, unet = encoder, name, hash, backbone.unet
        self.device, self.dtype, start = backbone.device, backbone.dtype, "image_proj."
        own = {k.removeprefix(start): x for k, x in tensors.items() if k.startswith(start)}
        layers = {layer.name: layer for layer in backbone.layers() if layer.kind == "cross"}
        # Numbered as they are registered, which is not how they run.
        names = [place for place in unet.attn_processors if place in layers]
        try:
            [reads] = [word for key, word in _READS.items() if key in own]
            project = unet._convert_ip_adapter_image_proj_to_diffusers(own, low_cpu_mem_usage=False)
            self.projection = project.to("cpu", self.dtype).eval().requires_grad_(False)
            self.pooled, width = reads == "projection_dim", getattr(encoder.config, reads)
            blank = torch.zeros(1, *() if self.pooled else (1,), width, dtype=self.dtype)
            shape = self.projection(blank).shape[-1:]
            self.pairs = {
                layers[place]: [tensors[f"ip_adapter.{number}.to_{x}_ip.weight"] for x in "kv"]
                for number, place in zip(range(1, 2 * len(names), 2), names, strict=True)
            }
            fits = len(own) + 2 * len(names) == len(tensors) and encoder.config.num_channels == 3
            for layer, pair in self.pairs.items():
                wanted = layer.attn.to_k.weight.shape
                fits &= all(x.shape == wanted and x.shape[1:] == shape for x in pair)
        except (ValueError, KeyError, RuntimeError):
            fits = False
        if not fits:
            raise InputError(
                f"The IP-Adapter {name} does not fit the model {backbone.name} or the encoder "
                "beside it, or is for faces; give one for both, such as ip-adapter_sd15."
            )

    @torch.no_grad()
    def prompt(self, picture: Image, scale: float = 1.0) -> ImagePrompt:
        """The prompt of an RGB picture, of which the middle square is seen."""
        from transformers import CLIPImageProcessorPil

        side, device = self.encoder.config.image_size, self.device
        look = CLIPImageProcessorPil(size=side, crop_size=side)
        shown = look(picture, return_tensors="pt").pixel_values
        rows = torch.cat([torch.zeros_like(shown), shown]).to(device, self.dtype)
        told = self.encoder.to(device)(rows, output_hidden_states=True)
        seen = told.hidden_states[-2]
        if self.pooled:
            # Here no picture is an embedding of 0, there a grey one.
            seen = told.image_embeds * torch.arange(2, device=device)[:, None]
        tokens = self.projection.to(device)(seen)
        for network in (self.encoder, self.projection):
            network.to("cpu")
        pairs = {
            layer.name: [layer.split(functional.linear(tokens, x.to(device))) for x in pair]
            for layer, pair in self.pairs.items()
        }
        return ImagePrompt(pairs, scale)


def repeat_rows(x: Tensor, count: int) -> Tensor:
    """(N, C, h, w) as `count` rows: one serves all, N serve either half of a guided batch."""
    return x.repeat(count // len(x), 1, 1, 1)


def _stack(values: Sequence[Any]) -> Any:
    """The rows of embeddings, guides, tensors, lists of tensors or None, in order."""
    if isinstance(values[0], Embedding):
        return join(*values)
    if isinstance(values[0], Guide):
        return replace(values[0], condition=torch.cat([guide.condition for guide in values]))
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    return values[0] and [torch.cat(x) for x in zip(*values, strict=True)]
