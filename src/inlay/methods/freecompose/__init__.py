"""FreeCompose: settings, the method, and what it compares with what."""

from inlay.methods.base import Method, run_of
from inlay.methods.freecompose.settings import PRESETS, FreeComposeSettings

METHOD = Method(
    name="freecompose",
    summary="moves the picture's latent along a difference of noise predictions; removes and "
    "re-poses too",
    source="Chen et al. 2024, arXiv 2407.04947; Delta Denoising Score: arXiv 2304.07090",
    verbs=("compose", "harmonize", "remove"),
    settings=FreeComposeSettings,
    run=run_of("inlay.methods.freecompose.method"),
    presets=PRESETS,
)
