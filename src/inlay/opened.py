"""A checkpoint and what goes with it: opened when first needed, and then kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

    from inlay.diffusion.backbone import Backbone
    from inlay.diffusion.harmonizer import Harmonizer
    from inlay.diffusion.t2i_adapter import ControlAdapter

__all__ = ["Opened"]

_OWN_HARMONIZER = Path(__file__).parent / "assets" / "harmonizer" / "config.json"


class Opened:
    """A checkpoint by name, with its LoRA and textual-inversion files, adapters and harmonizers."""

    def __init__(
        self,
        model: str = "embedded",
        *,
        device: str = "auto",
        dtype: str = "auto",
        loras: Sequence[tuple[str, float]] = (),
        textual_inversions: Sequence[str] = (),
    ) -> None:
        self.model, self.device, self.dtype = model, device, dtype
        self.loras, self.textual_inversions = tuple(loras), tuple(textual_inversions)
        self._backbone: Backbone | None = None
        self._adapters: dict[str, ControlAdapter] = {}
        self._harmonizers: dict[str, Harmonizer | None] = {}

    @classmethod
    def from_pretrained(
        cls,
        model: str = "embedded",
        *,
        device: str = "auto",
        dtype: str = "auto",
        loras: Sequence[tuple[str, float]] = (),
        textual_inversions: Sequence[str] = (),
    ) -> Self:
        """A composer on "embedded", a diffusers folder, a single file or a hub id.

        device is auto, cpu, cuda or mps; dtype auto, float32, bfloat16 or float16. Raises
        InputError when the checkpoint is first needed and cannot be loaded.
        """
        return cls(
            model, device=device, dtype=dtype, loras=loras, textual_inversions=textual_inversions
        )

    @property
    def backbone(self) -> Backbone:
        """The loaded checkpoint."""
        if self._backbone is None:
            from inlay.checkpoints.load import load_backbone

            self._backbone = load_backbone(
                self.model,
                device=self.device,
                dtype=self.dtype,
                loras=self.loras,
                textual_inversions=self.textual_inversions,
            )
        return self._backbone

    def adapter(self, name: str) -> ControlAdapter:
        """A T2I-Adapter for the checkpoint, by folder, hub id or "embedded"; loaded once."""
        if name not in self._adapters:
            from inlay.diffusion.t2i_adapter import load_adapter

            self._adapters[name] = load_adapter(name, self.backbone)
        return self._adapters[name]

    def harmonizer(self, name: str = "auto") -> Harmonizer | None:
        """A trained harmonizer for the checkpoint, by folder, hub id or "embedded"; loaded once.

        "auto" is that of the embedded checkpoint; None where there is none.
        """
        if name not in self._harmonizers:
            from inlay.diffusion.harmonizer import load_harmonizer

            found: Harmonizer | None = None
            if name != "auto":
                found = load_harmonizer(name, self.backbone)
            elif self.backbone.name == "embedded" and _OWN_HARMONIZER.is_file():
                found = self.harmonizer("embedded")
            self._harmonizers[name] = found
        return self._harmonizers[name]
