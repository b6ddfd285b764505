"""The offline tour: photographs that scikit-image ships, the embedded checkpoint, no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inlay.pictures.box import Box

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


@dataclass(frozen=True)
class _Stop:
    """One composition of the tour: pictures by their name in skimage.data, and where."""

    name: str
    background: str
    subject: str
    box: Box
    settings: dict[str, Any] = field(default_factory=dict)


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


def _mask(name: str) -> Photo | None:
    """The mask of a photograph's subject; None where the picture has an alpha of its own."""
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
    return None


def run(out: Path, log: Callable[[str], None]) -> Path:
    """Make every picture of the tour in `out` and return the contact sheet's path.

    Raises InputError when the folder cannot be written.
    """
    from PIL import Image as PilImage

    from inlay.composer import Composer
    from inlay.pictures.read import read_picture
    from inlay.pictures.sheet import contact_sheet
    from inlay.pictures.write import check_output, write_picture

    sheet_path = out / "contact-sheet.png"
    out.mkdir(parents=True, exist_ok=True)
    check_output(sheet_path)
    composer = Composer.from_pretrained("embedded")
    pictures: list[Image] = []
    labels: list[str] = []

    def show(label: str, picture: Any) -> None:
        pictures.append(
            picture if isinstance(picture, PilImage.Image) else PilImage.fromarray(picture)
        )
        labels.append(label)

    for stop in _TOUR:
        log(f"compose: {stop.name}")
        background, subject = _photo(stop.background), _photo(stop.subject)
        request: dict[str, Any] = {"mask": _mask(stop.subject), "box": stop.box}
        paste = composer.compose(background, subject, method="paste", **request)
        result = composer.compose(background, subject, method="phd", **request)
        result.save(out / f"{stop.name}.png")
        paste.save(out / f"{stop.name}-paste.png")
        crop = _frame(result.window, background.shape)
        show("background", background[crop.slices])
        show("plain paste", np.asarray(paste.image)[crop.slices])
        show("inlay (phd)", np.asarray(result.image)[crop.slices])

    log("harmonize: a cup under the wrong light")
    picture, mask = _wrong_light()
    result = composer.harmonize(picture, mask=mask, method="phd")
    result.save(out / "cup-harmonized.png")
    reinhard = composer.harmonize(picture, mask=mask, method="reinhard")
    show("wrong light", picture)
    show("reinhard", reinhard.image)
    show("inlay (phd)", result.image)

    log("remove: a lightning tower")
    launch = _photo("rocket")
    tower = _tower_mask(launch.shape)
    telea = composer.remove(launch, mask=tower, method="telea")
    painted = composer.remove(launch, mask=tower, method="freecompose")
    telea.save(out / "tower-removed-telea.png")
    painted.save(out / "tower-removed-freecompose.png")
    crop = _frame(painted.window, launch.shape)
    show("with the tower", launch[crop.slices])
    show("telea", np.asarray(telea.image)[crop.slices])
    show("inlay (freecompose)", np.asarray(painted.image)[crop.slices])

    log("sweep: T_in from free to faithful")
    sweep = []
    stop = _TOUR[0]
    background, subject = _photo(stop.background), _photo(stop.subject)
    for t_in in (0.0, 0.25, 0.5, 0.75, 1.0):
        swept = composer.compose(
            background, subject, mask=_mask(stop.subject), box=stop.box, method="cdc",
            preset="stylize", T_in=t_in,
        )  # fmt: skip
        crop = _frame(swept.window, background.shape)
        sweep.append(PilImage.fromarray(np.asarray(swept.image)[crop.slices]))
    names = [f"T_in = {t}" for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    write_picture(read_picture(contact_sheet(sweep, names, columns=5)), out / "sweep.png")

    write_picture(read_picture(contact_sheet(pictures, labels, columns=3)), sheet_path)
    log(f"contact sheet: {sheet_path}")
    return sheet_path


def _frame(window: Box, shape: tuple[int, ...]) -> Box:
    """The window and a little of what lies round it, for the sheet."""
    margin = max(window.width, window.height) // 10
    return window.grown(margin).intersect(Box(0, 0, shape[1], shape[0])) or window


def _wrong_light() -> tuple[Photo, Photo]:
    """The coffee photograph with its cup in a colder, darker light, and the cup's mask."""
    coffee, mask = _photo("coffee"), _mask("coffee")
    assert mask is not None
    weight = (mask / 255.0)[..., None]
    tinted = np.clip(coffee * np.array([0.62, 0.8, 1.15]), 0, 255)
    return np.round(tinted * weight + coffee * (1 - weight)).astype(np.uint8), mask


def _tower_mask(shape: tuple[int, ...]) -> Photo:
    import cv2

    mask = np.zeros(shape[:2], np.uint8)
    outline = np.array([[440, 112], [456, 112], [464, 352], [434, 352]], np.int32)
    cv2.fillPoly(mask, [outline], 255)
    return np.asarray(mask, np.uint8)
