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

# The outline of a lightning tower beside the rocket, in pixels, as a user's mask would draw it.
_TOWER = ((440, 112), (456, 112), (464, 352), (434, 352))
# Where the cup is cut out of the coffee photograph.
_CUP = Box(60, 5, 430, 390)
_CONTACT = {"shadow": "contact"}


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
    _Stop("cup-cut-from-a-photo", "stone", {"coffee": Box(80, 90, 230, 218)}, _CONTACT),
    _Stop(
        "teapot-and-cup",
        "stone",
        {"teapot": Box(30, 60, 200, 134), "coffee": Box(190, 190, 180, 170)},
        _CONTACT,
    ),
    _Stop(
        "vase-and-hat",
        "table",
        {"vase": Box(250, 70, 134, 210), "hat": Box(20, 165, 220, 134)},
        {"together": True, **_CONTACT},
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


def astronaut_mask() -> Photo:
    """Of the astronaut's photograph: a point finds her head, a box her suit and helmet."""
    from inlay import cut

    photo = picture("astronaut")
    cuts = cut(photo, points=[(227, 80)]), cut(photo, box=Box(20, 140, 492, 372))
    head, suit = (np.asarray(found)[..., 3] for found in cuts)
    mask: Photo = np.maximum(head, suit)
    return mask


def _tower_mask(photo: Photo) -> Photo:
    import cv2

    mask = np.zeros(photo.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.array(_TOWER, np.int32)], 255)
    return mask


def run(out: Path, log: Callable[[str], None]) -> Path:
    """Make every picture of the tour in the folder `out` and return the contact sheet's path.

    Of each NAME there are NAME.png and what it is to be compared with, NAME-before.png. Raises
    InputError when they cannot be written.
    """
    from PIL import Image as PilImage

    from inlay import Composer
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
    mask = astronaut_mask()
    weight = (mask / 255.0)[..., None]
    lamp = np.round(astronaut * (1 - weight * (0, 0.25, 0.5))).astype(np.uint8)
    result = composer.harmonize(lamp, mask=mask)
    keep("astronaut-harmonized", PilImage.fromarray(lamp), result, "in another light")

    log("remove: a lightning tower")
    launch = np.asarray(picture("rocket"))
    result = composer.remove(launch, mask=_tower_mask(launch))
    keep("tower-removed", PilImage.fromarray(launch), result, "with the tower")

    path = out / "contact-sheet.png"
    write_picture(read_picture(contact_sheet(pictures, labels, columns=6, cell=384)), path)
    log(f"contact sheet: {path}")
    return path
