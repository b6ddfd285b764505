"""What a method is: a settings class, a run function, and a few facts about it.

Nothing here imports torch: listing methods and checking settings must stay instant.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from inlay.checkpoints.folder import family_of
from inlay.scene.stitch import Painted, Window
from inlay.settings import default, tuned

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from inlay.diffusion.backbone import Backbone
    from inlay.diffusion.branches import ControlAdapter, Harmonizer
    from inlay.diffusion.conditions import IpAdapter


_OWN_HARMONIZER = Path(__file__).parents[1] / "assets" / "harmonizer" / "config.json"

Callback = Callable[[int, int, "Any | None"], None]
Importing = Callable[[], AbstractContextManager[None]]
# The class name of one of diffusers' schedulers.
Scheduler = Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]{2,60}Scheduler$")]


def _unwrap(schema: dict[str, Any]) -> None:
    """Take the line breaks of the source out of a schema's descriptions."""
    for knob in schema.get("properties", {}).values():
        if "description" in knob:
            knob["description"] = " ".join(knob["description"].split())


class Settings(BaseModel):
    """Every knob of a method, once: flags, forms and tables are generated from it.

    What stands below a knob as a docstring is its description. Defaults are the published values;
    what was tuned on the embedded checkpoint holds there alone.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        defer_build=True,
        json_schema_extra=_unwrap,
    )

    def works_on_background(self) -> bool:
        """Whether what is round the subject may change, and the window is the whole picture."""
        return False

    def follows_control(self) -> bool:
        """Whether a control picture makes a difference."""
        return False

    def stages(self, verb: str) -> dict[str, Settings]:
        """The stages whose pictures a method hands back in Painted.stages, in their order, each
        with the settings under which its picture is the result.
        """
        return {}

    def check_use(self, verb: str, control: bool) -> None:
        """Raises InputError where the settings do not go with the command, or with what was
        handed in; `control` says whether a control picture was. Called before a model is loaded.
        """


class ModelSettings(Settings, use_attribute_docstrings=True):
    """What every method that runs a diffusion model has, in diffusers' spelling."""

    prompt: str = Field("", max_length=2000)
    """what the picture should show; "(cat:1.4)" gives a word weight, see docs/checkpoints.md"""
    negative_prompt: str = Field("", max_length=2000)
    """what it should not show"""
    clip_skip: int = Field(0, ge=0, le=23)
    """how many of the text encoder's last layers are left out"""
    guidance_scale: float = default(7.5, embedded=5.0, ge=0, le=50)
    """how strongly the prompt steers (classifier-free guidance); 1 is off"""
    initial_latent: Literal["noise", "source"] = "noise"
    """what strength 1 starts from: noise alone, or the picture under the schedule's most noise,
    which keeps a little of it, as inpainting checkpoints of SDXL want
    """
    context: float = Field(0.5, ge=0, le=4)
    """surroundings seen on each side of the box, in units of the box's longer side"""
    decoding: Literal["residual", "plain"] = "residual"
    """residual adds the change to the picture's own detail; plain takes the decoder's output"""
    feather: float = Field(0.03, ge=0, le=0.5)
    """width of the rim over which the change fades out, in units of the crop's longer side"""


class DiffusionSettings(ModelSettings):
    """What every method that samples has besides."""

    num_inference_steps: int = Field(50, ge=1, le=1000)
    """denoising steps"""
    strength: float = Field(1.0, ge=0, le=1)
    """how far the picture goes back to noise first: 1 starts from pure noise, 0 changes nothing"""


class Checkpoint:
    """A checkpoint, and what stands beside it, that is opened when it is first needed and kept."""

    def __init__(
        self,
        model: str = "embedded",
        *,
        family: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        memory: str = "auto",
        loras: Sequence[tuple[str, float]] = (),
        textual_inversions: Sequence[str] = (),
    ) -> None:
        self.model, self.device, self.dtype = os.fspath(model), device, dtype
        self.memory = memory
        self.named = {"name": self.model, "family": family or family_of(self.model)}
        self.loras, self.textual_inversions = tuple(loras), tuple(textual_inversions)
        self.lock = RLock()
        # What libraries are imported and the checkpoint is loaded in.
        self.importing: Importing = nullcontext
        self._backbone: Backbone | None = None
        self._adapters: dict[str, ControlAdapter] = {}
        self._ip_adapters: dict[str, IpAdapter] = {}
        self._harmonizers: dict[str, Harmonizer | None] = {}

    @property
    def backbone(self) -> Backbone:
        """The loaded checkpoint."""
        # Jobs of a batch ask for it while another thread holds the lock for them.
        if self._backbone is not None:
            return self._backbone
        with self.lock, self.importing():
            if self._backbone is None:
                from inlay.checkpoints.load import load_backbone

                self._backbone = load_backbone(
                    self.model,
                    device=self.device,
                    dtype=self.dtype,
                    memory=self.memory,
                    loras=self.loras,
                    textual_inversions=self.textual_inversions,
                )
            return self._backbone

    def adapter(self, name: str) -> ControlAdapter:
        """A T2I-Adapter for the checkpoint, by folder, hub id or "embedded"; loaded once."""
        if name not in self._adapters:
            from inlay.checkpoints.load import load_branch
            from inlay.diffusion.branches import ControlAdapter

            self._adapters[name] = load_branch(ControlAdapter, name, self.backbone)
        return self._adapters[name]

    def ip_adapter(self, name: str) -> IpAdapter:
        """An IP-Adapter for the checkpoint, by file; loaded once."""
        if name not in self._ip_adapters:
            from inlay.checkpoints.load import load_ip_adapter

            self._ip_adapters[name] = load_ip_adapter(name, self.backbone)
        return self._ip_adapters[name]

    def harmonizer(self, name: str = "auto") -> Harmonizer | None:
        """A trained harmonizer for the checkpoint, by folder, hub id or "embedded"; loaded once.

        "auto" is that of the embedded checkpoint; None where there is none.
        """
        if name not in self._harmonizers:
            from inlay.checkpoints.load import load_branch
            from inlay.diffusion.branches import Harmonizer

            own = self.backbone.name == "embedded" and _OWN_HARMONIZER.is_file()
            if name != "auto":
                self._harmonizers[name] = load_branch(Harmonizer, name, self.backbone)
            else:
                self._harmonizers[name] = self.harmonizer("embedded") if own else None
        return self._harmonizers[name]


@dataclass
class Context:
    """What a run may draw on besides its inputs: randomness, progress, notes, what it is for.

    All randomness comes from `seed`, on the CPU, one draw after the other. `verb` is the command,
    for methods that serve several. Of `total` steps `done` were made by earlier samplings; a total
    of 0 is that of the one sampling. `control` is a drawing (H, W) of the background's size in
    [0, 1], lines 1, where the user gave one; `models` opens what stands beside the checkpoint, and
    a method puts what it opened into `adapter`, `harmonizer` and `ip_adapter`, for the record.
    """

    seed: int = 0
    callback: Callback | None = None
    previews: bool = False
    notes: list[str] = field(default_factory=list)
    verb: str = "compose"
    done: int = 0
    total: int = 0
    control: NDArray[np.float32] | None = None
    models: Checkpoint | None = None
    adapter: ControlAdapter | None = None
    harmonizer: Harmonizer | None = None
    ip_adapter: IpAdapter | None = None

    @cached_property
    def generator(self) -> torch.Generator:
        """The one torch generator of this run, on the CPU."""
        import torch

        return torch.Generator("cpu").manual_seed(self.seed)

    def progress(self, step: int, total: int, preview: Any | None = None) -> None:
        """Tell the listener; whatever it raises (inlay.Cancelled) ends the run."""
        if self.callback is not None:
            self.callback(step, total, preview)

    def note(self, line: str) -> None:
        """Say something a user should know, once; it ends in the record and the log."""
        if line not in self.notes:
            self.notes.append(line)


@dataclass(frozen=True)
class Method:
    """One way to make a picture.

    `verbs` are the commands it serves (compose, harmonize, remove, scene); `presets` map a task's
    name to the settings that differ from the defaults for it. `concepts`: the subject is a file
    that `inlay learn` wrote, not a picture; `paints_concepts`: and it is painted anew. `invents`
    are the presets, variants and verbs, or the method itself, that paint what is not there yet, for
    which the embedded checkpoint is too small.
    `module` is the one with run(); where it is empty, that of the settings.
    """

    name: str
    summary: str
    source: str
    verbs: tuple[str, ...]
    settings: type[Settings]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    concepts: bool = False
    paints_concepts: bool = False
    invents: tuple[str, ...] = ()
    module: str = ""

    def settings_on(self, family: str | None) -> type[Settings]:
        """The settings with their defaults for the family "embedded", or for all others."""
        return tuned(self.settings) if family else self.settings

    @property
    def run(self) -> Callable[[Window, Any, Any, Context], Painted]:
        """What makes the picture of a window, the backbone (None for methods that run no model),
        the settings and a context; its module, which may load torch, is imported now.
        """
        module: Any = importlib.import_module(self.module or self.settings.__module__)
        return module.run  # type: ignore[no-any-return]

    @property
    def needs_model(self) -> bool:
        """Whether it runs a diffusion model."""
        return issubclass(self.settings, ModelSettings)
