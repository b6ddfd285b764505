"""Paste, Inpaint and Harmonize (PhD): the method, and its knobs."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from inlay.errors import InputError
from inlay.methods.base import DiffusionSettings, Method, Settings
from inlay.settings import default, published


class PhdSettings(DiffusionSettings):
    inpaint: bool = default(True, embedded=False)
    """compose: paint the ring round the subject anew, which wants a prompt and a large model"""
    harmonize: bool = True
    """give the subject the light and the colours of its surroundings"""
    paste_blur: float = default(0.002, embedded=0.0005, ge=0, le=0.1)
    """compose: blur (sigma) of the subject's edge, in units of the crop's longer side; 0 is off"""
    feather: float = Field(0.03, ge=0, le=0.5)
    """inpaint: width of the ring's soft outer rim, in units of the crop's longer side"""
    guidance_scale: float = default(7.5, embedded=3.0, ge=0, le=50)
    """inpaint: how strongly the prompt steers (classifier-free guidance); 1 is off"""
    num_inference_steps: int = default(50, embedded=30, ge=1, le=1000)
    """inpaint: denoising steps from pure noise on; `strength` takes the last ones of them"""
    strength: float = default(1.0, embedded=0.35, ge=0, le=1)
    """inpaint: how far the ring goes back to noise first; 1 forgets the background"""
    grow: float = Field(0.06, ge=0, le=0.5)
    """inpaint: width of the ring, in units of the crop's longer side; 0 is none"""
    ring_smoothing: float = default(0.0, embedded=0.05, ge=0, le=0.5)
    """inpaint, residual decoding: blur of the change in the ring, in units of the crop's longer
    side; the background's own detail stays
    """
    region: Literal["dilated", "box"] = "dilated"
    """inpaint: what is painted, the subject or its box grown by so much"""
    scheduler: str = Field("auto", pattern=r"^(auto|[A-Z][A-Za-z0-9]{2,60}Scheduler)$")
    """which of diffusers' schedulers samples, by class name; auto is DDIMScheduler for the ring and
    EulerAncestralDiscreteScheduler for a scene, whose flat parts stay clean
    """
    harmonize_steps: int = Field(20, ge=1, le=1000)
    """harmonize without a harmonizer: denoising steps from pure noise on"""
    harmonize_guidance_scale: float = default(7.5, embedded=1.0, ge=0, le=50)
    """harmonize: how strongly the prompt steers (classifier-free guidance); 1 is off"""
    harmonize_strength: float = Field(0.3, ge=0, le=1)
    """harmonize without a harmonizer: how far back to noise it goes; less than inpaint's"""
    harmonize_grow: float = Field(0.0, ge=0, le=0.5)
    """harmonize: how far beyond the subject the model may change its picture, in units of the
    crop's longer side; the background is as it was all the same
    """
    smoothing: float = default(0.0, embedded=0.2, ge=0, le=0.5)
    """harmonize: blur of the change inside the subject, in units of the crop's longer side"""
    amount: float = Field(1.0, ge=0, le=1.5)
    """harmonize: factor on the change; 0 is none"""
    shadow_reach: float = Field(0.0, ge=0, le=0.5)
    """harmonize: reach of shadows round the subject, in units of the crop's longer side; 0: none"""
    harmonizer: str = Field("auto", min_length=1, max_length=2000)
    """trained module, a diffusers folder or a hub id of a ControlNetModel; none, or auto for that
    of the embedded checkpoint where there is one
    """
    harmonizer_scale: float = Field(1.0, ge=0, le=2)
    """how much the trained module counts; 0 is as without it"""
    harmonizer_strength: float = default(1.0, embedded=0.5, gt=0, le=1)
    """how noisy the paste is that the trained module begins with; 1, as trained, is noise alone"""
    harmonizer_steps: int = default(50, embedded=1, ge=1, le=1000)
    """denoising steps of the trained module's answer"""
    harmonizer_samples: int = default(1, embedded=4, ge=1, le=64)
    """harmonize: answers, each from another noise, whose mean is taken"""
    restraint: float = default(0.0, embedded=1.0, ge=0, le=100)
    """harmonize: how far the change is held back where the answers differ; 0 is off"""
    outpaint_tile_overlap: float = Field(0.5, ge=0, le=0.9)
    """scene: how far tiles lie over each other, as a part of a tile"""
    refine_strength: float = Field(0.35, ge=0, le=1)
    """scene: how far the enlarged picture goes back to noise before it is refined; 0 is off"""
    refine_steps: int = Field(25, ge=1, le=1000)
    """scene: denoising steps of the refining, from pure noise on"""
    ip_adapter: str = Field("none", min_length=1, max_length=2000)
    """inpaint, scene: IP-Adapter for SD 1.x or SDXL that makes the subject's picture a prompt, its
    .safetensors file beside its folder image_encoder; or none
    """
    ip_adapter_scale: float = Field(0.5, ge=0, le=1)
    """how much the subject's picture counts as a prompt; 0 is as without it"""

    def sampler(self, scene: bool) -> str:
        """The scheduler's class name."""
        if self.scheduler != "auto":
            return self.scheduler
        return "EulerAncestralDiscreteScheduler" if scene else "DDIMScheduler"

    def stages(self, verb: str) -> dict[str, Settings]:
        updates: dict[str, dict[str, object]] = {}
        if verb == "scene":
            updates["coarse"] = {"refine_strength": 0.0, "harmonize": False}
            updates["refine"] = {"harmonize": False}
        elif verb == "compose":
            updates["paste"] = {"inpaint": False, "harmonize": False, "ip_adapter": "none"}
            if self.inpaint:
                updates["inpaint"] = {"harmonize": False}
        if updates and self.harmonize:
            updates["harmonize"] = {}
        return {name: self.model_copy(update=update) for name, update in updates.items()}

    def check_use(self, verb: str, control: bool) -> None:
        if verb == "harmonize" and not self.harmonize:
            raise InputError(
                "harmonize=false leaves the command harmonize nothing to do; leave it on."
            )
        paints = verb == "compose" and self.inpaint and self.harmonize
        if paints and 0 < self.strength <= self.harmonize_strength:
            raise InputError(
                f"harmonize_strength is {self.harmonize_strength:g}; expected a number below "
                f"strength ({self.strength:g})."
            )


METHOD = Method(
    name="phd",
    summary="Paste, Inpaint and Harmonize: paints the ring round the subject, then relights it",
    source="Zhang et al. 2023, arXiv 2306.07596",
    verbs=("compose", "harmonize", "scene"),
    settings=PhdSettings,
    invents=("scene",),
    module="inlay.methods.phd.method",
    presets={"paper": published(PhdSettings, decoding="plain")},
)
# A concept as one of its photos shows it, in the light of the place.
EXEMPLAR = replace(
    METHOD,
    name="exemplar",
    summary="lays in the photo of a learnt object that fits the place, and relights it",
    verbs=("compose",),
    concepts=True,
    invents=(),
)
