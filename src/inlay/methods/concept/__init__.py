"""What DreamCom and DreamEdit share: a box filled with a concept, blended in, with details."""

from typing import Literal

from pydantic import Field

from inlay.methods.base import DiffusionSettings, Scheduler
from inlay.settings import default


class ConceptSettings(DiffusionSettings):
    prompt: str = Field("", max_length=2000)
    """what the box should show; {object} is the concept's words; empty: what it was learnt under"""
    context: float | None = Field(None, ge=0, le=4)  # type: ignore[assignment]
    """surroundings seen on each side of the box, in units of the box's longer side; by default as
    many as while the concept was learnt
    """
    guidance_scale: float = default(7.5, embedded=3.0, ge=0, le=50)
    """how strongly the prompt steers (classifier-free guidance); 1 is off"""
    lora_scale: float = Field(1.0, ge=0, le=2)
    """how strongly what was learnt acts; 0 is not at all"""
    mask_cross_attention: Literal["learnt", "on", "off"] = "learnt"
    """whether nothing outside the box attends to the prompt; learnt: as it was while learning"""
    self_attention: Literal["paper", "released", "a", "b", "c", "d"] = "paper"
    """the layers in which box and background do not see each other; a is none, b all, c the
    decoder's outer layers, d and paper all but these, released the last 5 of the decoder
    """
    scheduler: Scheduler = "EulerAncestralDiscreteScheduler"
    """which of diffusers' schedulers samples, by class name"""
    region: Literal["box", "object"] = "box"
    """what is laid in: the whole box, or the object alone, cut out where it stands out"""
    details: float = Field(0.0, ge=0, le=1)
    """how much fine detail (text, pattern) the best fitting photo lends the object; 0 is none"""
    details_agreement: float = Field(0.7, ge=0, le=1)
    """details: least correlation of a photo with what was painted; 1 is the same picture"""

    def needs_photos(self) -> tuple[str, str] | None:
        """What needs the concept's photos, and what does without them; None where nothing does."""
        return ("details", "details=0") if self.details > 0 else None
