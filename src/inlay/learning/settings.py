"""What training can be told, and what learning a concept can; and the prompts of a concept."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from inlay.checkpoints.folder import family_of
from inlay.diffusion.text import TextStack
from inlay.settings import default, tuned_defaults

# Words that hardly any caption has. The single letters are for small vocabularies.
_RARE = ("sks", "zwx", "ohwx", "q", "x", "z")


# What differs between kinds of training is the default alone.
Steps = Annotated[int, Field(ge=1, description="steps in all")]
Batch = Annotated[int, Field(ge=1, description="pictures a step, over all processes")]
Rate = Annotated[float, Field(gt=0, description="after warm-up")]
Warmup = Annotated[int, Field(ge=1, description="steps of linear warm-up")]
Share = Annotated[float, Field(ge=0, le=1, description="share of steps of linear decay")]
Decay = Annotated[
    float, Field(ge=0, lt=1, description="moving average of the weights; 0 keeps the last ones")
]
Optimizer = Annotated[Literal["adamw", "muon"], Field(description="of the weight matrices")]


class TrainingConfig(BaseModel):
    """What every training run can be told; it is written next to, or into, the weights it made."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    steps: Steps = 4000
    batch: Batch = 16
    learning_rate: Rate = 3e-4
    warmup_steps: Warmup = 100
    cooldown_share: Share = 0.25
    ema_decay: Decay = 0.999
    max_minutes: float | None = Field(None, gt=0, description="stop (resumable) after this time")
    save_every: int = Field(500, ge=1, description="steps between resumable states")
    seed: int = Field(0, ge=0, description="of weights, order of pictures, crops, masks and noise")


class LearnConfig(TrainingConfig):
    """The whole recipe of learning a concept."""

    preset: Literal["paper", "released"] | None = None
    """paper: the whole U-Net, by the published values; released: with the code's prompt, too"""
    model: str = Field("embedded", description="checkpoint that the object is learnt for")
    steps: Steps = default(400, embedded=150)
    batch: Batch = default(1, embedded=4)
    resolution: int | None = Field(None, ge=16)
    """picture side in pixels; None is the checkpoint's own"""
    train: Literal["lora", "full"] = "lora"
    """what learns: a LoRA, or the whole U-Net, as in the paper"""
    full_dtype: Literal["float16", "float32"] = "float16"
    """what a whole U-Net is written in"""
    text_encoder: bool = False
    """a LoRA of the text encoder's attention learns, too"""
    learning_rate: float = default(1e-4, embedded=1e-3, gt=0)
    """after warm-up; with train=full 5e-6 unless given"""
    warmup_steps: Warmup = default(1, embedded=10)
    cooldown_share: Share = default(0.0, embedded=0.5)
    ema_decay: Decay = default(0.0, embedded=0.98)
    rank: int = Field(16, ge=1, le=512, description="of the LoRA")
    layers: Literal["cross", "attention", "all"] = "all"
    """what the LoRA changes: cross-attention, all attention, or all blocks"""
    prompt: str = Field("a photo of {token} {class}", description="with {token} and {class} in it")
    token: str | None = None
    """word for the object; None is a rare one that the tokenizer has whole"""
    layout: Literal["plain", "released"] = "plain"
    """of the prompt: as it is, or as the authors' code lays it out"""
    background_prompt: str = "background"
    """released layout: what fills the muted half"""
    mask_cross_attention: bool = True
    """nothing outside the box attends to the prompt (paper, eq. 2)"""
    hole_weight: float = default(0.0, embedded=1.0, ge=0, le=1)
    """loss share that counts in the hole alone; 0 in the paper"""
    context: float = Field(0.5, ge=0, le=4)
    """margin seen round the box, in box sizes, before augmentation"""
    variants: int = Field(64, ge=1, le=256, description="crops of each photo, encoded once")
    scale_min: float = Field(0.8, ge=0.25, le=1, description="of augmentation")
    scale_max: float = Field(1.2, ge=1, le=4, description="of augmentation")
    shift: float = Field(0.1, ge=0, le=1, description="of crops, in crop sizes, besides scaling")
    flip: bool = Field(False, description="mirror half of the crops; not for what bears letters")
    least_inside: float = Field(0.8, ge=0, le=1)
    """share of the object that a crop must hold"""
    prior_weight: float = Field(1.0, ge=0)
    """of the loss on class pictures, where there are any"""
    keep_photos: bool = True
    """the file holds a small picture of the object from each photo"""
    gradient_checkpointing: bool = Field(False, description="less memory, more time")
    held_out: int = Field(0, ge=0, le=9, description="photos, the last ones, kept for reports")
    preview_every: int = Field(0, ge=0, description="steps between preview pictures; 0 is none")
    preview_steps: int = Field(20, ge=1, le=1000, description="denoising steps of a preview")
    save_every: int = Field(200, ge=1, description="steps between resumable states")

    @model_validator(mode="before")
    @classmethod
    def _for_the_model(cls, given: dict[str, Any]) -> dict[str, Any]:
        """What is not given: the preset's values, or those that were tuned."""
        values, preset = dict[str, Any](), given.get("preset")
        if preset is not None:
            values = {"train": "full", "layout": "released" if preset == "released" else "plain"}
        elif family_of(str(given.get("model", "embedded"))):
            values = tuned_defaults(cls)
        if {**values, **given}.get("train") == "full":
            # The paper's rate; a LoRA's would wreck the checkpoint.
            values["learning_rate"] = 5e-6
        return {**values, **given}

    @field_validator("prompt")
    @classmethod
    def _names_both(cls, prompt: str) -> str:
        if "{token}" not in prompt or "{class}" not in prompt or len(prompt) > 2000:
            raise ValueError("expected a text with {token} and {class} in it, no longer than 2000.")
        return prompt

    @field_validator("token")
    @classmethod
    def _is_a_word(cls, token: str | None) -> str | None:
        if token is not None and (not 1 <= len(token) <= 200 or any(map(str.isspace, token))):
            raise ValueError("expected one word of at most 200 letters, without spaces.")
        return token

    @model_validator(mode="after")
    def _goes_together(self) -> LearnConfig:
        if self.layout == "released" and not self.mask_cross_attention:
            raise ValueError("layout is released, which needs mask_cross_attention.")
        return self

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed: all but when it ends and what it tells."""
        free = {"steps", "max_minutes", "save_every", "preview_every", "preview_steps"}
        free |= {"gradient_checkpointing", "keep_photos", "full_dtype", "preset"}
        return self.model_dump(mode="json", exclude=free)


def pick_token(text: TextStack) -> str:
    """A rare word that every tokenizer of a checkpoint has whole; else the paper's "sks" as it is.

    DreamBooth (arXiv 2208.12242, section 3.2) takes a rare token, as one that means something
    already would have to be unlearnt.
    """
    numbers = range(len(text.tokenizers))
    return next((w for w in _RARE if all(len(text.word_ids(w, n)) == 1 for n in numbers)), "sks")


def prompt_for(pattern: str, token: str, class_name: str) -> str:
    """The prompt for a concept, or with an empty token the one for its whole class."""
    return " ".join(pattern.replace("{token}", token).replace("{class}", class_name).split())
