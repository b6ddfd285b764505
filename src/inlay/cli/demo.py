"""The offline tour: photographs that scikit-image ships, rendered places and things, no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inlay.pictures.arrays import Box

if TYPE_CHECKING:
    from PIL.Image import Image

    from inlay.composer import Composer
    from inlay.result import Result

Photo = NDArray[np.uint8]

# Outlines of what is found in a photograph, in its pixels, as a user's mask would draw them.
ASTRONAUT = (
    (45, 511), (30, 500), (20, 440), (33, 343), (56, 263), (100, 215), (114, 180), (132, 160),
    (165, 147), (177, 143), (175, 130), (158, 112), (155, 86), (165, 55), (187, 29), (227, 14),
    (255, 18), (279, 36), (298, 75), (300, 100), (288, 126), (268, 132), (258, 150), (276, 170),
    (298, 198), (306, 236), (335, 257), (354, 300), (360, 347), (395, 344), (430, 346), (465, 369),
    (494, 411), (504, 450), (511, 470), (511, 511),
)  # fmt: skip
_TOWER = ((440, 112), (456, 112), (464, 352), (434, 352))
# Where the cup is cut out of the coffee photograph.
_CUP = Box(60, 5, 430, 390)


class _Stop(NamedTuple):
    """One composition of the tour: the place, the things and their boxes there, further options."""

    name: str
    place: str
    things: dict[str, Box]
    options: Mapping[str, Any] = MappingProxyType({})

    def made(self, composer: Composer, **options: Any) -> Result:
        from inlay.scene.subject import Subject

        subjects = [
            Subject(picture(name), box=box, **({"cut_box": _CUP} if name == "coffee" else {}))
            for name, box in self.things.items()
        ]
        return composer.compose(picture(self.place), subjects, **{**self.options, **options})


_TOUR = (
    _Stop("hat-on-a-table", "table", {"hat": Box(60, 120, 257, 156)}),
    _Stop("vase-on-a-table", "table", {"vase": Box(130, 50, 172, 270)}),
    _Stop("teapot-on-a-table", "table", {"teapot": Box(90, 165, 232, 156)}),
    _Stop("cup-cut-from-a-photo", "stone", {"coffee": Box(80, 90, 230, 218)}),
    _Stop(
        "teapot-and-cup",
        "stone",
        {"teapot": Box(30, 60, 200, 134), "coffee": Box(190, 190, 180, 170)},
    ),
    _Stop(
        "vase-and-hat",
        "table",
        {"vase": Box(250, 70, 134, 210), "hat": Box(20, 165, 220, 134)},
        {"together": True},
    ),
    _Stop(
        "plant-in-the-sun",
        "terrace",
        {"plant": Box(150, 64, 185, 208)},
        {"shadow": "cast,direction=160,length=1.2,softness=0.3,opacity=1"},
    ),
)


def picture(name: str) -> Photo | Image:
    """One of ours by its name in assets/demo, or a photograph by its name in skimage.data."""
    from PIL import Image as PilImage
    from skimage import data

    own = resources.files("inlay") / "assets" / "demo" / f"{name}.webp"
    if not own.is_file():
        return np.asarray(getattr(data, name)())
    with own.open("rb") as file:
        opened = PilImage.open(file)
        opened.load()
    return opened


def mask_of(outline: tuple[tuple[int, int], ...], photo: Photo) -> Photo:
    import cv2

    mask = np.zeros(photo.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.array(outline, np.int32)], 255, cv2.LINE_AA)
    return mask


def run(out: Path, log: Callable[[str], None]) -> Path:
    """Make every picture of the tour in the folder `out` and return the contact sheet's path.

    Of each NAME there are NAME.png and what it is to be compared with, NAME-before.png. Raises
    InputError when they cannot be written.
    """
    from PIL import Image as PilImage

    from inlay.composer import Composer
    from inlay.pictures.read import read_picture
    from inlay.pictures.sheet import contact_sheet
    from inlay.pictures.write import write_picture

    composer, pictures, labels = Composer.from_pretrained("embedded"), list[Any](), list[str]()

    def keep(name: str, before: Image, after: Result, what: str) -> None:
        write_picture(read_picture(before), out / f"{name}-before.png")
        after.save(out / f"{name}.png")
        pictures.extend((before, after.image))
        labels.extend((what, name.replace("-", " ")))

    for stop in _TOUR:
        log(f"compose: {stop.name}")
        pasted = stop.made(composer, method="paste", shadow="none")
        keep(stop.name, pasted.image, stop.made(composer), "pasted")

    log("harmonize: an astronaut in a lamp's light")
    astronaut = np.asarray(picture("astronaut"))
    mask = mask_of(ASTRONAUT, astronaut)
    weight = (mask / 255.0)[..., None]
    lamp = np.round(astronaut * (1 - weight * (0, 0.25, 0.5))).astype(np.uint8)
    result = composer.harmonize(lamp, mask=mask)
    keep("astronaut-harmonized", PilImage.fromarray(lamp), result, "in another light")

    log("remove: a lightning tower")
    launch = np.asarray(picture("rocket"))
    result = composer.remove(launch, mask=mask_of(_TOWER, launch))
    keep("tower-removed", PilImage.fromarray(launch), result, "with the tower")

    path = out / "contact-sheet.png"
    write_picture(read_picture(contact_sheet(pictures, labels, columns=4, cell=384)), path)
    log(f"contact sheet: {path}")
    return path
