"""What a network is told besides a sample and its level, as rows of one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from inlay.diffusion.text import Embedding, join


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
