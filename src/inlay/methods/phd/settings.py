"""The knobs of PhD: paste, inpaint the ring round the subject, harmonize."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from inlay.errors import InputError
from inlay.methods.base import DiffusionSettings, Settings

__all__ = ["PhdSettings"]


class PhdSettings(DiffusionSettings):
    inpaint: bool = Field(
        False,
        description="compose: paint the ring round the subject anew, which wants a prompt and a "
        "large checkpoint; off keeps the background, which is known",
    )
    harmonize: bool = Field(
        True, description="give the subject the light and the colours of its surroundings"
    )
    paste_blur: float = Field(
        0.002,
        ge=0,
        le=0.1,
        description="compose: sigma of a blur of the subject's alpha, in window sizes; 0 is off",
    )
    feather: float = Field(
        0.03, ge=0, le=0.5, description="inpaint: soft outer rim of the ring, in window sizes"
    )
    guidance_scale: float = Field(
        3.0, ge=0, le=50, description="inpaint: classifier-free guidance; 1 is off"
    )
    num_inference_steps: int = Field(
        30, ge=1, le=1000, description="inpaint: denoising steps of the whole noise schedule"
    )
    strength: float = Field(
        0.35,
        ge=0,
        le=1,
        description="inpaint: share of the noise schedule that is run; 1 forgets the background",
    )
    grow: float = Field(
        0.06, ge=0, le=0.5, description="inpaint: width of the ring, in window sizes; 0 is none"
    )
    ring_smoothing: float = Field(
        0.05,
        ge=0,
        le=0.5,
        description="inpaint, residual decoding: blur of the change in the ring, in window sizes; "
        "the background's own detail stays",
    )
    region: Literal["dilated", "box"] = Field(
        "dilated",
        description="inpaint: what is painted, the subject or its box grown by so much",
    )
    scheduler: str = Field(
        "auto",
        pattern=r"^(auto|[A-Z][A-Za-z0-9]{2,60}Scheduler)$",
        description="which of diffusers' schedulers samples, by class name; auto is DDIMScheduler "
        "for the ring and EulerAncestralDiscreteScheduler for a scene, whose flat parts stay clean",
    )
    harmonize_steps: int = Field(
        20,
        ge=1,
        le=1000,
        description="harmonize without a harmonizer: denoising steps of the whole noise schedule",
    )
    harmonize_guidance_scale: float = Field(
        1.0, ge=0, le=50, description="harmonize: classifier-free guidance; 1 is off"
    )
    harmonize_strength: float = Field(
        0.3,
        ge=0,
        le=1,
        description="harmonize without a harmonizer: noise level it begins at, below inpaint's",
    )
    harmonize_grow: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="harmonize: how far beyond the subject the model may change its picture, in "
        "window sizes; the background is as it was all the same",
    )
    smoothing: float = Field(
        0.2,
        ge=0,
        le=0.5,
        description="harmonize: blur of the change inside the subject, in window sizes",
    )
    correction: float = Field(
        1.0, ge=0, le=1.5, description="harmonize: factor on the change; 0 is none"
    )
    shadow_reach: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="harmonize: how far round the subject the background may darken, in window "
        "sizes; 0 leaves it alone",
    )
    harmonizer: str = Field(
        "auto",
        min_length=1,
        max_length=2000,
        description="trained module, a diffusers folder or a hub id of a ControlNetModel; none, or "
        "auto for that of the embedded checkpoint where there is one",
    )
    harmonizer_scale: float = Field(
        1.0, ge=0, le=2, description="how much the trained module counts; 0 is as without it"
    )
    harmonizer_strength: float = Field(
        0.5,
        gt=0,
        le=1,
        description="noise level that the trained module's answer begins at: the pasted picture "
        "under noise, at 1 noise alone, as it was trained",
    )
    harmonizer_steps: int = Field(
        1, ge=1, le=1000, description="denoising steps of the trained module's answer"
    )
    harmonizer_samples: int = Field(
        4,
        ge=1,
        le=64,
        description="harmonize: answers, each from another noise, whose mean is taken",
    )
    restraint: float = Field(
        1.0,
        ge=0,
        le=100,
        description="harmonize: how far the change is held back where the answers differ; 0 is off",
    )
    outpaint_tile_overlap: float = Field(
        0.5, ge=0, le=0.9, description="scene: how far tiles lie over each other, share of a tile"
    )
    refine_strength: float = Field(
        0.35, ge=0, le=1, description="scene: share of the noise schedule that refines; 0 is off"
    )
    refine_steps: int = Field(
        25, ge=1, le=1000, description="scene: denoising steps of the refining's whole schedule"
    )

    @model_validator(mode="after")
    def _harmonizes_more_gently(self) -> PhdSettings:
        if self.inpaint and self.harmonize and 0 < self.strength <= self.harmonize_strength:
            raise ValueError(
                f"harmonize_strength is {self.harmonize_strength:g}; expected a number below "
                f"strength ({self.strength:g})."
            )
        return self

    def sampler(self, scene: bool) -> str:
        """The scheduler's class name."""
        if self.scheduler != "auto":
            return self.scheduler
        return "EulerAncestralDiscreteScheduler" if scene else "DDIMScheduler"

    def stages(self, verb: str) -> dict[str, Settings]:
        if verb == "scene":
            return self._scene_stages()
        if verb != "compose":
            return {}
        made: dict[str, Settings] = {
            "paste": self.model_copy(update={"inpaint": False, "harmonize": False})
        }
        if self.inpaint:
            made["inpaint"] = self.model_copy(update={"harmonize": False})
        if self.harmonize:
            made["harmonize"] = self
        return made

    def _scene_stages(self) -> dict[str, Settings]:
        made: dict[str, Settings] = {
            "coarse": self.model_copy(update={"refine_strength": 0.0, "harmonize": False}),
            "refine": self.model_copy(update={"harmonize": False}),
        }
        if self.harmonize:
            made["harmonize"] = self
        return made

    def check_use(self, verb: str, control: bool) -> None:
        if verb == "harmonize" and not self.harmonize:
            raise InputError(
                "harmonize=false leaves the command harmonize nothing to do; leave it on."
            )
