"""paste: the subject over the background, as its alpha says; the baseline of all."""

from __future__ import annotations

from typing import ClassVar

from inlay.methods.base import Context, Method, Settings
from inlay.scene.stitch import Painted, Window


class PasteSettings(Settings):
    """paste has nothing to set."""

    # It looks at nothing round the subject.
    context: ClassVar[float] = 0


def run(window: Window, backbone: object, settings: PasteSettings, context: Context) -> Painted:
    """alpha F + (1 - alpha) B (Porter and Duff 1984, "over"); for harmonize, the picture as is."""
    return Painted(window.pasted, window.alpha > 0)


METHOD = Method(
    name="paste",
    summary="lays the subject over the background by its alpha and changes nothing else",
    source="Porter and Duff, Compositing digital images, SIGGRAPH 1984",
    verbs=("compose", "harmonize"),
    settings=PasteSettings,
)
