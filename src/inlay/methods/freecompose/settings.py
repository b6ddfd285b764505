"""The knobs of FreeCompose, and the prompts that stand in where none is given."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from inlay.errors import InputError
from inlay.methods.base import ModelSettings

__all__ = [
    "COLLAGE",
    "HARMONIOUS",
    "PRESETS",
    "WITHOUT_OBJECT",
    "WITH_OBJECT",
    "FreeComposeSettings",
]

HARMONIOUS = "A harmonious scene"
COLLAGE = "A collage with an object pasted into another picture"
WITH_OBJECT, WITHOUT_OBJECT = "Something in some place.", "Some place."


class FreeComposeSettings(ModelSettings):
    prompt: str = Field(
        "",
        max_length=2000,
        description=f'what the picture should show; by default "{HARMONIOUS}", '
        f'for remove "{WITHOUT_OBJECT}"',
    )
    source_prompt: str = Field(
        "",
        max_length=2000,
        description="what the picture shows as it is; by default the prompt, for the variant "
        f'collage "{COLLAGE}", for remove "{WITH_OBJECT}"',
    )
    guidance_scale: float = Field(
        1.0, ge=0, le=50, description="classifier-free guidance of both branches; 1 is off"
    )
    decoding: Literal["residual", "plain"] = Field(
        "residual",
        description="residual keeps the picture's own detail and adds the change; plain takes the "
        "decoder's output as it is, as remove and semantic always do",
    )
    variant: Literal["background", "collage", "score", "semantic"] = Field(
        "score",
        description="what the picture is compared with: to be harmonized the background before "
        "pasting, itself under a prompt that calls it a collage, or the noise alone (score), "
        "to remove itself or (score) the noise; semantic (compose alone) gives the subject the "
        "pose of a control picture, or what the prompts say",
    )
    surroundings: Literal["auto", "none", "target", "both"] = Field(
        "auto",
        description="inpainting checkpoints: which branch is shown the picture round the region; "
        "auto is both for the variants background and semantic, else target",
    )
    num_iterations: int = Field(40, ge=0, le=5000, description="steps of the latent; 0 is none")
    eta: float = Field(
        0.075, ge=0, le=10, description="length of a step over its gradient; AdamW's learning rate"
    )
    optimizer: Literal["SGD", "AdamW"] = Field(
        "SGD", description="how the steps are taken; AdamW wants an eta of about 0.02"
    )
    t_min: int = Field(50, ge=0, le=999, description="least noisy timestep that is drawn")
    t_max: int = Field(950, ge=1, le=1000, description="end of the range of timesteps, exclusive")
    late_share: float = Field(
        0.0, ge=0, le=1, description="share of the steps, at the end, that use late_t_max; 0 off"
    )
    late_t_max: int = Field(150, ge=1, le=1000, description="end of the range of the late steps")
    pool_size: int = Field(
        32,
        ge=0,
        le=1000,
        description="pairs of timestep and noise that are used in turn, so that the source is "
        "predicted once for each; 0 draws anew at every step",
    )
    plateau: float = Field(
        0.0,
        ge=0,
        le=1,
        description="stop once the latent moves less than this in `patience` steps; 0 off",
    )
    patience: int = Field(
        20, ge=1, le=1000, description="steps over which the plateau is looked at"
    )
    blend_pixels: int = Field(
        1, ge=0, le=32, description="latent pixels beyond the region over which the pull fades out"
    )
    perceptual: Literal["auto", "encoder", "laplacian", "lpips"] = Field(
        "auto",
        description="features of the perceptual terms: the checkpoint's encoder, a Laplacian "
        "pyramid, or LPIPS (extra package); auto is the encoder where there is one",
    )
    foreground_weight: float = Field(
        0.25,
        ge=0,
        le=10,
        description="harmonizing: holds the look of the object; 0 off; stable while its product "
        "with eta and perceptual_every is below 2",
    )
    background_weight: float = Field(
        0.0, ge=0, le=10, description="holds the look of what lies round the region; 0 off"
    )
    perceptual_every: int = Field(
        4, ge=1, le=100, description="the perceptual terms are taken at every so many steps"
    )
    start: Literal["object", "smooth"] = Field(
        "smooth",
        description="remove starts from the picture as it is, or from a smooth fill of the hole, "
        "which large holes need",
    )
    grow: float = Field(
        0.02,
        ge=0,
        le=0.5,
        description="remove: how far the hole is widened, over shadows too; semantic: how far the "
        "region is; in window sizes",
    )
    texture: float = Field(
        0.4,
        ge=0,
        le=1,
        description="remove: share of the noise schedule that is sampled at the end for fine "
        "texture, which is laid in as strongly as it is round the hole; 0 off",
    )
    hide_region: bool = Field(
        True, description="remove: the decoder's self-attention does not see into the hole"
    )
    redraw: float = Field(
        0.0,
        ge=0,
        le=1,
        description="semantic: share of the noise schedule that is sampled at the end, by the "
        "lines and with what is shared, which makes edges where the loop leaves them soft; 0 off",
    )
    redraw_steps: int = Field(30, ge=1, le=1000, description="semantic: steps of that sampling")
    region: Literal["box", "mask"] = Field(
        "box", description="semantic: what may change, the subject's bounding box or its mask"
    )
    adapter: str = Field(
        "",
        max_length=2000,
        description="semantic: T2I-Adapter, a diffusers folder or a hub id; by default that of the "
        "embedded checkpoint, which other checkpoints do not have",
    )
    control_type: Literal["canny", "sketch"] = Field(
        "canny", description="semantic: the lines that the adapter knows, edges or soft ones"
    )
    adapter_conditioning_scale: float = Field(
        0.9, ge=0, le=5, description="semantic: how much the adapter counts; 0 is off"
    )
    control_t_min: int = Field(
        100, ge=0, le=999, description="semantic: least noisy timestep that sees the lines"
    )
    control_t_max: int = Field(
        600, ge=1, le=1000, description="semantic: end of the range of those timesteps, exclusive"
    )
    share: bool = Field(
        True, description="semantic: self-attention sees the subject as it was, which keeps it so"
    )
    share_from_iteration: float = Field(
        0.08, ge=0, le=1, description="semantic: share of the steps that are made before it does"
    )
    share_from_layer: str = Field(
        "decoder",
        pattern="^(decoder|[0-9]{1,3})$",
        coerce_numbers_to_str=True,
        description="semantic: first layer of self-attention that does, 0 the first to run; "
        "decoder is all on the way up",
    )
    rim: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="residual decoding: how far beyond the object the change fades out, in window "
        "sizes; shadows need some, coarse models leave a halo there",
    )
    smoothing: float = Field(
        0.3,
        ge=0,
        le=0.5,
        description="residual decoding: blur of the change inside the object, in window sizes",
    )

    @model_validator(mode="after")
    def _ranges_hold_a_timestep(self) -> FreeComposeSettings:
        last = self.late_t_max if self.late_share > 0 else self.t_max
        if min(self.t_max, last) <= self.t_min:
            raise ValueError(
                f"t_min is {self.t_min}; expected a whole number below t_max ({self.t_max})"
                + (f" and late_t_max ({last})." if self.late_share > 0 else ".")
            )
        if self.control_t_max <= self.control_t_min:
            raise ValueError(
                f"control_t_min is {self.control_t_min}; expected a whole number below "
                f"control_t_max ({self.control_t_max})."
            )
        return self

    def follows_control(self) -> bool:
        return self.variant == "semantic"

    def semantic_prompts(self, control: bool) -> tuple[str, str]:
        """The source's and the target's prompt; without a control picture they must differ."""
        prompt = self.prompt or HARMONIOUS
        return self.source_prompt or (prompt if control else HARMONIOUS), prompt

    def check_use(self, verb: str, control: bool) -> None:
        if self.variant != "semantic":
            return
        if verb != "compose":
            raise InputError(
                f"the variant semantic serves compose, not {verb}; use background, collage or "
                "score."
            )
        source, target = self.semantic_prompts(control)
        if not control and source == target:
            raise InputError(
                "the variant semantic has nothing to change: give a control picture, or prompt and "
                "source_prompt that differ."
            )


PRESETS: dict[str, dict[str, Any]] = {
    # The step, the number of steps and the guidance that were released for Stable Diffusion.
    "released": {
        "variant": "collage",
        "num_iterations": 200,
        "eta": 0.49,
        "guidance_scale": 7.5,
        "smoothing": 0.03,
        "texture": 0.0,
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
        "variant": "semantic",
        "num_iterations": 300,
        "eta": 0.245,
        "guidance_scale": 7.5,
        "late_share": 0.167,
        "late_t_max": 150,
        "grow": 0.05,
    },
}
