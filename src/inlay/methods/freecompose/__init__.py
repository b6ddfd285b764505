"""FreeCompose: the method, its knobs, and the prompts that stand in where none is given."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from inlay.errors import InputError
from inlay.methods.base import Method, ModelSettings
from inlay.settings import default, published

HARMONIOUS, PUBLISHED = "A harmonious scene", "A harmonious scene."
COLLAGE = "A collage with an object pasted into another picture"
WITH_OBJECT, WITHOUT_OBJECT = "Something in some place.", "Some place."

FirstLayer = Annotated[str, Field(pattern="^(decoder|[0-9]{1,3})$", coerce_numbers_to_str=True)]


class FreeComposeSettings(ModelSettings):
    prompt: str = Field("", max_length=2000)
    """what the picture should show; "A harmonious scene" by default (the variant empty ends it in a
    full stop, as published), "Some place." for remove
    """
    source_prompt: str | None = Field(None, max_length=2000)
    """what the picture shows as it is; may be empty; by default the prompt, for the variant collage
    "A collage with an object pasted into another picture", for remove "Something in some place."
    """
    guidance_scale: float = default(7.5, embedded=1.0, ge=0, le=50)
    """how strongly the prompts steer (classifier-free guidance); 1 is off"""
    decoding: Literal["residual", "plain"] = "residual"
    """residual adds the change to the picture's own detail; remove and semantic are always plain"""
    amount: float = Field(1.0, ge=0, le=1)
    """how much of its change is made; 0 is the picture as it was"""
    variant: Literal["background", "collage", "empty", "score", "semantic"] = default(
        "empty", embedded="score"
    )
    """what the picture is compared with at each step: the background before pasting, the picture
    itself under a prompt that calls it a collage or under none (empty, as published), or the noise
    alone (score); to remove something, the picture itself or the noise (score); semantic (compose
    alone) gives the subject the pose of a control picture, or what the prompts say
    """
    surroundings: Literal["auto", "none", "target", "both"] = "auto"
    """inpainting checkpoints: which side of the comparison sees the picture round the region, the
    picture as it becomes (target) or that one and what it is compared with; auto is both for the
    variants background and semantic, else target
    """
    num_iterations: int = default(200, embedded=40, ge=0, le=5000)
    """steps by which the picture moves; 0 is none"""
    eta: float = default(0.49, embedded=0.075, ge=0, le=10)
    """how far a step follows its gradient; AdamW's learning rate"""
    optimizer: Literal["SGD", "AdamW"] = "SGD"
    """which rule makes the steps; AdamW wants an eta of about 0.02"""
    t_min: int = Field(50, ge=0, le=999)
    """least noisy timestep at which the model is asked (0 is clean, 999 pure noise)"""
    t_max: int = Field(950, ge=1, le=1000)
    """the timesteps lie below this"""
    late_share: float = Field(0.0, ge=0, le=1)
    """the last part of the steps, 0 to 1, that uses late_t_max; 0 is none"""
    late_t_max: int = Field(150, ge=1, le=1000)
    """the timesteps of the last part lie below this"""
    pool_size: int = default(0, embedded=32, ge=0, le=1000)
    """pairs of timestep and noise that are used in turn, so that what the picture is compared with
    is predicted once for each; 0 draws anew at every step
    """
    plateau: float = Field(0.0, ge=0, le=1)
    """stop once the latent moves less than this in `patience` steps; 0 never stops early"""
    patience: int = Field(20, ge=1, le=1000)
    """steps over which `plateau` looks at the movement"""
    blend_pixels: int = Field(1, ge=0, le=32)
    """how far beyond the region the pull fades out, in the model's (latent) pixels"""
    outside_weight: float = default(0.2, embedded=0.0, ge=0, le=1)
    """how much of the pull is left beyond that"""
    perceptual: Literal["auto", "encoder", "laplacian", "lpips"] = "auto"
    """how looks are compared: by the checkpoint's encoder, a Laplacian pyramid, or LPIPS (extra
    package); auto is the encoder where there is one, else the pyramid
    """
    foreground_weight: float = default(0.1, embedded=0.25, ge=0, le=10)
    """harmonizing: how strongly the object keeps its look; 0 is off; stable while its product with
    eta and perceptual_every is below 2
    """
    background_weight: float = default(0.3, embedded=0.0, ge=0, le=10)
    """how strongly what lies round the region keeps its look; 0 is off"""
    perceptual_every: int = default(1, embedded=4, ge=1, le=100)
    """looks are compared at every so many steps"""
    start: Literal["object", "smooth"] = "smooth"
    """remove: start from the object as it is, or from a smooth fill, which large holes need"""
    grow: float = Field(0.02, ge=0, le=0.5)
    """remove: how far the hole that the model fills is widened (what is written reaches 8 pixels
    beyond the mask at most); semantic: how far the region is; in units of the crop's longer side
    """
    texture: float = default(0.0, embedded=0.4, ge=0, le=1)
    """remove: how far the fill goes back to noise, to be sampled for fine texture, which is laid in
    as strongly as it is round the hole; 1 is pure noise, 0 is off
    """
    hide_region: bool = True
    """remove: the fill comes from its surroundings alone; the decoder does not attend to it"""
    hide_from_iteration: float = Field(0.0, ge=0, le=1)
    """remove: part of the steps, 0 to 1, that are made before `hide_region`"""
    hide_from_layer: FirstLayer = "decoder"
    """remove: first layer of self-attention that does not see the hole, from 0, or decoder"""
    redraw: float = Field(0.0, ge=0, le=1)
    """semantic: how far the picture goes back to noise at the end, to be sampled by the lines,
    which makes edges that the steps alone leave soft; 1 is pure noise, 0 is off
    """
    redraw_steps: int = Field(30, ge=1, le=1000)
    """semantic: steps of this sampling"""
    region: Literal["box", "mask"] = "box"
    """semantic: what may change, the subject's bounding box or its mask"""
    adapter: str = Field("", max_length=2000)
    """semantic: T2I-Adapter, a diffusers folder or a hub id; by default that of the embedded
    checkpoint, which other checkpoints do not have
    """
    control_type: Literal["canny", "sketch"] = "canny"
    """semantic: which lines the adapter was trained on: edges, or soft ones"""
    adapter_conditioning_scale: float = Field(0.9, ge=0, le=5)
    """semantic: how strongly the lines steer; 0 is off"""
    control_t_min: int = Field(100, ge=0, le=999)
    """semantic: least noisy timestep at which the lines steer"""
    control_t_max: int = Field(600, ge=1, le=1000)
    """semantic: the timesteps at which they do lie below this"""
    share: bool = True
    """semantic: self-attention sees the subject as it was, so that it stays itself"""
    share_from_iteration: float = Field(0.08, ge=0, le=1)
    """semantic: part of the steps, 0 to 1, that are made before `share`"""
    share_from_layer: FirstLayer = "decoder"
    """semantic: first layer of self-attention that shares, from 0; decoder: all of the decoder"""
    share_t_min: int = Field(0, ge=0, le=999)
    """semantic: least noisy timestep at which it shares"""
    rim: float = Field(0.0, ge=0, le=0.5)
    """residual decoding: how far beyond the object the change fades out, in units of the crop's
    longer side; shadows need some, coarse models leave a halo there
    """
    smoothing: float = default(0.03, embedded=0.3, ge=0, le=0.5)
    """residual decoding: sigma of the blur inside the object, in units of the crop's longer side"""

    @model_validator(mode="after")
    def _ranges_hold_a_timestep(self) -> FreeComposeSettings:
        late = f" and late_t_max ({self.late_t_max})" if self.late_share > 0 else ""
        if self.t_min >= (min(self.t_max, self.late_t_max) if late else self.t_max):
            below = f"expected a whole number below t_max ({self.t_max}){late}."
            raise ValueError(f"t_min is {self.t_min}; {below}")
        if self.control_t_max <= self.control_t_min:
            raise ValueError(
                f"control_t_min is {self.control_t_min}; expected a whole number below "
                f"control_t_max ({self.control_t_max})."
            )
        return self

    def follows_control(self) -> bool:
        return self.variant == "semantic"

    def sees_surroundings(self, verb: str) -> tuple[bool, bool]:
        """Whether source and target see the picture round the region."""
        both = self.surroundings == "both"
        if self.surroundings == "auto":
            both = verb != "remove" and self.variant in ("background", "semantic")
        return both, self.surroundings != "none"

    def prompts(self, verb: str, control: bool = False) -> tuple[str, str]:
        """The source's and the target's prompt; semantic's differ without a control picture."""
        usual = PUBLISHED if self.variant == "empty" else HARMONIOUS
        target = self.prompt or (WITHOUT_OBJECT if verb == "remove" else usual)
        if self.source_prompt is not None:
            return self.source_prompt, target
        if verb == "remove":
            return WITH_OBJECT, target
        source = {"collage": COLLAGE, "empty": ""}
        source["semantic"] = target if control else HARMONIOUS
        return source.get(self.variant, target), target

    def check_use(self, verb: str, control: bool) -> None:
        if self.variant != "semantic":
            return
        if verb != "compose":
            raise InputError(
                f"the variant semantic serves compose, not {verb}; use background, collage or "
                "score."
            )
        source, target = self.prompts(verb, control)
        if not control and source == target:
            raise InputError(
                "the variant semantic has nothing to change: give a control picture, or prompt and "
                "source_prompt that differ."
            )


_PUBLISHED = published(FreeComposeSettings)
METHOD = Method(
    name="freecompose",
    summary="moves the picture's latent along a difference of noise predictions; removes and "
    "re-poses too",
    source="Chen et al. 2024, arXiv 2407.04947; Delta Denoising Score: arXiv 2304.07090",
    verbs=("compose", "harmonize", "remove"),
    settings=FreeComposeSettings,
    invents=("semantic",),
    module="inlay.methods.freecompose.method",
    presets={
        "released": {**_PUBLISHED, "start": "object"},
        "paper": {
            **_PUBLISHED,
            "start": "object",
            "optimizer": "AdamW",
            "eta": 0.05,
            "share_from_iteration": 0.0,
            "share_t_min": 401,
        },
        # What measured best on the shipped checkpoint: sampled, not moved there.
        "semantic": {
            "variant": "semantic",
            "num_iterations": 0,
            "redraw": 0.9,
            "control_t_min": 0,
            "control_t_max": 1000,
            "adapter_conditioning_scale": 1.5,
            "grow": 0.1,
        },
        # As released for this task: half that step, and the end on fine noise alone.
        "semantic-released": {
            **_PUBLISHED,
            "variant": "semantic",
            "num_iterations": 300,
            "eta": 0.245,
            "late_share": 0.167,
            "late_t_max": 150,
            "grow": 0.05,
        },
    },
)
