"""The offline tour: photographs that scikit-image ships, the embedded checkpoint, no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inlay.pictures.arrays import Box

if TYPE_CHECKING:
    from PIL.Image import Image

Photo = NDArray[np.uint8]

# Outlines of what is cut out, in pixels of its photograph, as a user's mask would draw them.
_ASTRONAUT = (
    (45, 511), (30, 500), (20, 440), (33, 343), (56, 263), (100, 215), (114, 180), (132, 160),
    (165, 147), (177, 143), (175, 130), (158, 112), (155, 86), (165, 55), (187, 29), (227, 14),
    (255, 18), (279, 36), (298, 75), (300, 100), (288, 126), (268, 132), (258, 150), (276, 170),
    (298, 198), (306, 236), (335, 257), (354, 300), (360, 347), (395, 344), (430, 346), (465, 369),
    (494, 411), (504, 450), (511, 470), (511, 511),
)  # fmt: skip


class _Stop(NamedTuple):
    """One composition of the tour: pictures by their name in skimage.data, and where."""

    name: str
    background: str
    subject: str
    box: Box

    def pictures(self) -> dict[str, Any]:
        """What Composer.compose takes of it."""
        place = {"mask": _mask(self.subject), "box": self.box}
        return {"background": _photo(self.background), "subject": _photo(self.subject), **place}


_TOUR = (
    _Stop("cup-in-the-garage", "stereo_motorcycle", "coffee", Box(15, 325, 195, 165)),
    _Stop("astronaut-at-the-launch", "rocket", "astronaut", Box(30, 167, 300, 260)),
    _Stop("snake-on-the-door", "stereo_motorcycle", "logo", Box(200, 12, 90, 88)),
)


def _photo(name: str) -> Photo:
    """A photograph by its name in skimage.data, all of them inside scikit-image's own files."""
    from skimage import data

    found = getattr(data, name)()
    # The stereo pair comes as left, right and disparity.
    return np.asarray(found[0] if isinstance(found, tuple) else found)


def _mask(name: str) -> Any:
    """The mask of what a photograph shows; None where the picture has an alpha of its own."""
    import cv2

    if name == "coffee":
        mask = np.zeros((400, 600), np.uint8)
        cv2.ellipse(mask, (276, 236), (200, 150), 0, 0, 360, 255, -1, cv2.LINE_AA)
        cv2.ellipse(mask, (290, 120), (117, 102), 0, 0, 360, 255, -1, cv2.LINE_AA)
        return mask
    if name == "astronaut":
        mask = np.zeros((512, 512), np.uint8)
        cv2.fillPoly(mask, [np.array(_ASTRONAUT, np.int32)], 255, cv2.LINE_AA)
        return mask
    if name == "rocket":
        # Of what stands round it, a lightning tower.
        mask = np.zeros((427, 640), np.uint8)
        outline = np.array([[440, 112], [456, 112], [464, 352], [434, 352]], np.int32)
        cv2.fillPoly(mask, [outline], 255)
        return mask
    return None


class _Sheet:
    """Labelled pictures for a contact sheet."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.pictures: list[Image] = []

    def show(self, label: str, picture: Any, window: Box | None = None) -> None:
        """Add a picture, or of it the window and a little of what lies round that."""
        from PIL import Image as PilImage

        samples = np.asarray(picture)
        if window is not None:
            around = window.grown(max(window.width, window.height) // 10)
            whole = Box(0, 0, samples.shape[1], samples.shape[0])
            samples = samples[(around.intersect(whole) or window).slices]
        self.labels.append(label)
        self.pictures.append(PilImage.fromarray(samples))

    def write(self, path: Path, columns: int) -> None:
        from inlay.pictures.read import read_picture
        from inlay.pictures.sheet import contact_sheet
        from inlay.pictures.write import write_picture

        sheet = contact_sheet(self.pictures, self.labels, columns=columns)
        write_picture(read_picture(sheet), path)


def run(out: Path, log: Callable[[str], None]) -> Path:
    """Make every picture of the tour in the folder `out` and return the contact sheet's path.

    Raises InputError when they cannot be written.
    """
    from inlay.composer import Composer

    composer, sheet, sweep = Composer.from_pretrained("embedded"), _Sheet(), _Sheet()
    for stop in _TOUR:
        log(f"compose: {stop.name}")
        pictures = stop.pictures()
        paste = composer.compose(**pictures, method="paste")
        result = composer.compose(**pictures, method="phd")
        result.save(out / f"{stop.name}.png")
        paste.save(out / f"{stop.name}-paste.png")
        sheet.show("background", pictures["background"], result.window)
        sheet.show("plain paste", paste.image, result.window)
        sheet.show("inlay (phd)", result.image, result.window)

    log("harmonize: a cup under the wrong light")
    picture, mask = _wrong_light()
    result = composer.harmonize(picture, mask=mask, method="phd")
    result.save(out / "cup-harmonized.png")
    reinhard = composer.harmonize(picture, mask=mask, method="reinhard")
    sheet.show("wrong light", picture)
    sheet.show("reinhard", reinhard.image)
    sheet.show("inlay (phd)", result.image)

    log("remove: a lightning tower")
    launch, tower = _photo("rocket"), _mask("rocket")
    telea = composer.remove(launch, mask=tower, method="telea")
    painted = composer.remove(launch, mask=tower, method="freecompose")
    telea.save(out / "tower-removed-telea.png")
    painted.save(out / "tower-removed-freecompose.png")
    sheet.show("with the tower", launch, painted.window)
    sheet.show("telea", telea.image, painted.window)
    sheet.show("inlay (freecompose)", painted.image, painted.window)

    log("sweep: T_in from free to faithful")
    pictures = _TOUR[0].pictures()
    for t_in in (0.0, 0.25, 0.5, 0.75, 1.0):
        swept = composer.compose(**pictures, method="cdc", preset="stylize", T_in=t_in)
        sweep.show(f"T_in = {t_in}", swept.image, swept.window)
    sweep.write(out / "sweep.png", 5)
    path = out / "contact-sheet.png"
    sheet.write(path, 3)
    log(f"contact sheet: {path}")
    return path


def _wrong_light() -> tuple[Photo, Photo]:
    """The coffee photograph with its cup in a colder, darker light, and the cup's mask."""
    coffee, mask = _photo("coffee"), _mask("coffee")
    weight = (mask / 255.0)[..., None]
    tinted = np.clip(coffee * np.array([0.62, 0.8, 1.15]), 0, 255)
    return np.round(tinted * weight + coffee * (1 - weight)).astype(np.uint8), mask
