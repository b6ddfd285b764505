"""Put an object into a photograph, make it belong there, or take it out.

Everything is loaded when it is first used: `import inlay` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inlay.errors import Cancelled, InputError, __version__

if TYPE_CHECKING:
    from PIL.Image import Image

    from inlay.composer import Composer as Composer
    from inlay.pictures.arrays import Box as Box
    from inlay.pictures.read import Source
    from inlay.request import Request as Request
    from inlay.result import Result as Result
    from inlay.scene.subject import Subject as Subject

__all__ = [
    "Box",
    "Cancelled",
    "Composer",
    "InputError",
    "Request",
    "Result",
    "Subject",
    "__version__",
    "cut",
    "methods",
]

_LAZY = {
    "Box": "inlay.pictures.arrays",
    "Composer": "inlay.composer",
    "Request": "inlay.request",
    "Result": "inlay.result",
    "Subject": "inlay.scene.subject",
}


def cut(picture: Source, **options: Any) -> Image:
    """Cut the subject out of its picture: PIL "RGBA" of the picture's size.

    Options are those of inlay.scene.subject.cut: by ("auto", "alpha", "mask", "box", "grabcut",
    "rembg" or the name of a segmentation model), mask, box, points, max_pixels. Raises InputError.
    """
    from inlay.pictures.read import DEFAULT_MAX_PIXELS, read_picture
    from inlay.scene.cutout import cleared
    from inlay.scene.subject import as_box, cut

    if "box" in options:
        options["box"] = as_box(options["box"], "box")
    most = options.get("max_pixels", DEFAULT_MAX_PIXELS)
    whole = read_picture(picture, role="subject", max_pixels=most)
    whole = whole.converted(shallow=True, srgb=True)
    return cleared(whole, cut(whole, **options)).to_pil()


def __getattr__(name: str) -> Any:
    import importlib

    if name == "methods":
        return importlib.import_module("inlay.methods")
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'inlay' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
