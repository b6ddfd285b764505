"""What the training of a harmonizer can be told, and which timesteps it learns at."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from inlay.training.disturb import KINDS
from inlay.training.disturbed import Policy

__all__ = ["HarmonizerConfig", "guided_timesteps"]


class HarmonizerConfig(BaseModel):
    """The whole recipe; it is written next to the weights it made."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field("embedded", description="checkpoint that the harmonizer is for")
    steps: int = Field(6000, ge=1, description="steps in all")
    batch: int = Field(16, ge=1, description="batch size, over all processes")
    resolution: int | None = Field(
        None,
        ge=16,
        description="picture side in pixels; None is half of the checkpoint's own, where light "
        "and colour are learnt at a quarter of the cost",
    )
    optimizer: Literal["adamw", "muon"] = Field("muon", description="of the weight matrices")
    learning_rate: float = Field(5e-4, gt=0, description="after warm-up")
    warmup_steps: int = Field(50, ge=1, description="linear warm-up")
    cooldown_share: float = Field(0.4, ge=0, le=1, description="share of steps of linear decay")
    caption_dropout: float = Field(0.5, ge=0, le=1, description="share trained without caption")
    start: Literal["pasted", "noise"] = Field(
        "pasted",
        description="what the branch is asked to correct: the pasted picture under some noise, "
        "which the checkpoint by itself gives back, or, as in the paper, the truth under noise",
    )
    t_min: int = Field(200, ge=0, le=999, description="pasted: least noisy timestep")
    t_max: int = Field(800, ge=1, le=1000, description="pasted: end of the timesteps, exclusive")
    noisiest_share: float = Field(
        0.5, ge=0, le=1, description="noise: share of timesteps from the noisiest tenth alone"
    )
    kinds: tuple[str, ...] = Field(KINDS, description="of disturbance, drawn alike")
    least_strength: float = Field(0.3, gt=0, le=1, description="of a disturbance; the most is 1")
    undisturbed_share: float = Field(
        0.1, ge=0, lt=1, description="share whose object is left as it was"
    )
    whole_picture_augmentation: float = Field(
        0.5, ge=0, le=1, description="share recoloured as a whole before the object is disturbed"
    )
    blob_share: float = Field(
        0.1, ge=0, le=1, description="share of random shapes in place of whole objects"
    )
    mask_jitter: float = Field(
        0.02, ge=0, le=0.2, description="how far masks are off, in picture sizes"
    )
    rendered: int = Field(300, ge=0, le=20000, description="how many pictures are rendered")
    rendered_share: float = Field(
        0.1, ge=0, lt=1, description="share of samples that are rendered pictures"
    )
    start_from: str | None = Field(
        None, description="harmonizer whose weights are begun with, as for --model"
    )
    channel_weight_power: float = Field(
        2.0, ge=0, le=2, description="latent channels weigh by their deviation to this power"
    )
    smooth_share: float = Field(
        0.8, ge=0, le=1, description="loss share that is of the error's local mean, not of detail"
    )
    ema_decay: float = Field(0.999, ge=0, lt=1, description="exponential moving average")
    max_minutes: float | None = Field(None, gt=0, description="stop (resumable) after this time")
    save_every: int = Field(500, ge=1, description="steps between resumable states")
    seed: int = Field(0, ge=0, description="of weights, data order, disturbances and noise")

    @field_validator("kinds")
    @classmethod
    def _known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if not kinds or any(kind not in KINDS for kind in kinds):
            raise ValueError(f"expected some of {', '.join(KINDS)}")
        return kinds

    @model_validator(mode="after")
    def _ranges_hold_a_timestep(self) -> HarmonizerConfig:
        if self.t_max <= self.t_min:
            raise ValueError(f"t_min is {self.t_min}; expected less than t_max ({self.t_max}).")
        return self

    def timesteps(self, u: NDArray[np.float64], total: int) -> NDArray[np.int64]:
        """Numbers in [0, 1) to timesteps to learn at, of a schedule of `total`."""
        if self.start == "noise":
            return guided_timesteps(u, self.noisiest_share, total)
        low, high = (t * total / 1000 for t in (self.t_min, self.t_max))
        return np.clip((low + u * (high - low)).astype(np.int64), 0, total - 1)

    def learns_at(self, t: int) -> bool:
        """Whether a timestep of 1000 is one that it learns at."""
        return self.start == "noise" or self.t_min <= t < self.t_max

    def answers_from(self, total: int) -> int | None:
        """The timestep that a single step answers from; None is the last one, from pure noise."""
        if self.start == "noise":
            return None
        return round((self.t_min + self.t_max) / 2 * total / 1000)

    def policy(self) -> Policy:
        """How samples to train on are made."""
        return Policy(
            kinds=self.kinds,
            strength=(self.least_strength, 1.0),
            undisturbed_share=self.undisturbed_share,
            restyled_share=self.whole_picture_augmentation,
            blob_share=self.blob_share,
            mask_jitter=self.mask_jitter,
        )


def guided_timesteps(
    u: NDArray[np.float64], noisiest_share: float, total: int = 1000
) -> NDArray[np.int64]:
    """Numbers in [0, 1) to timesteps: uniform, but for a share that is in the last tenth alone.

    There colour and light are settled, and the answer of a single step comes from there.
    """
    low = 0.9 * (1 - noisiest_share)
    bounds = np.interp(u, [0.0, low, 1.0], [0.0, 0.9 * total, total])
    return np.clip(bounds.astype(np.int64), 0, total - 1)
