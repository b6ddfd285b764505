"""Paste, Inpaint and Harmonize: settings, the method, its stages, scenes in tiles."""

from inlay.methods.base import Method, run_of
from inlay.methods.phd.settings import PhdSettings

METHOD = Method(
    name="phd",
    summary="Paste, Inpaint and Harmonize: paints the ring round the subject, then relights it",
    source="Zhang et al. 2023, arXiv 2306.07596",
    verbs=("compose", "harmonize", "scene"),
    settings=PhdSettings,
    run=run_of("inlay.methods.phd.method"),
)
