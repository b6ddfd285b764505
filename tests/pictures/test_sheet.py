from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from skimage import data

from inlay.errors import InputError
from inlay.pictures.sheet import contact_sheet


def _photo(name: str) -> Image.Image:
    return Image.fromarray(getattr(data, name)())


def test_each_picture_lies_centred_in_its_cell_with_ink_below() -> None:
    photos = [_photo(name) for name in ("astronaut", "chelsea", "coffee")]
    sheet = contact_sheet(photos, ["one", "two", "three"], columns=3, cell=160)
    array = np.asarray(sheet)
    assert sheet.mode == "RGB"
    for number, photo in enumerate(photos):
        scale = 160 / max(photo.size)
        width, height = round(photo.width * scale), round(photo.height * scale)
        left = 8 + number * 168 + (160 - width) // 2
        top = 8 + (160 - height) // 2
        placed = array[top : top + height, left : left + width].astype(float)
        expected = np.asarray(photo.resize((width, height), Image.Resampling.LANCZOS), float)
        assert np.abs(placed - expected).mean() < 2
        label = array[168:, 8 + number * 168 : 168 + number * 168]
        assert label.min() < 100, "no label was drawn"
        # Nothing spills out of the cell.
        assert (array[8:168, 168 + number * 168 : 176 + number * 168] == 255).all()


def test_layout_is_the_squarest_and_columns_can_be_asked_for() -> None:
    small = [Image.new("RGB", (40, 30), "navy")] * 7
    assert contact_sheet(small, [""] * 7, cell=40).size[0] == 3 * 48 + 8
    assert contact_sheet(small, [""] * 7, columns=2, cell=40).size[0] == 2 * 48 + 8
    assert contact_sheet(small[:2], [""] * 2, columns=9, cell=40).size[0] == 2 * 48 + 8


def test_small_pictures_are_not_enlarged() -> None:
    array = np.asarray(contact_sheet([Image.new("RGB", (10, 10), "red")], [""], cell=100))
    assert (array == (255, 0, 0)).all(-1).sum() == 100


def test_transparent_parts_lie_over_white_without_a_fringe() -> None:
    picture = Image.new("RGBA", (200, 200), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 100, 200))
    array = np.asarray(contact_sheet([picture], [""], cell=64))[8:72, 8:72].astype(int)
    assert tuple(array[32, 4]) == (255, 0, 0)
    assert tuple(array[32, 60]) == (255, 255, 255)
    assert array[..., 0].min() >= 250, "black from under the transparency bled in"


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "RGBA", "I;16"])
def test_every_mode_is_accepted(mode: str) -> None:
    assert contact_sheet([Image.new(mode, (50, 20))], [mode], cell=32).size == (48, 45)


def test_a_long_label_stays_in_its_cell() -> None:
    sheets = [
        np.asarray(contact_sheet([Image.new("RGB", (9, 9), "white")] * 2, [text, ""], cell=100))
        for text in ("W" * 500, "two\nlines\tof text " * 9)
    ]
    for array in sheets:
        assert (array[108:, 108:] == 255).all()


@pytest.mark.parametrize(
    ("count", "labels", "columns", "cell"),
    [(0, 0, None, 320), (2, 1, None, 320), (1, 1, 0, 320), (1, 1, None, 0)],
)
def test_bad_requests(count: int, labels: int, columns: int | None, cell: int) -> None:
    with pytest.raises(InputError):
        contact_sheet([Image.new("RGB", (4, 4))] * count, [""] * labels, columns, cell)
