"""What a caller may hand to a Composer, and what is refused before any work is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from inlay import Box, Composer, InputError
from inlay.pictures.mask import read_mask
from inlay.pictures.read import read_picture
from inlay.scene.cutout import guess_mask
from photos import cup


@pytest.mark.parametrize(
    "box", [(100, 120, 90, 80), [100.0, 120, 90, 80], np.array([100, 120, 90, 80])]
)
def test_four_numbers_are_a_box(box: Any) -> None:
    composer = Composer()
    result = composer.compose(data.astronaut(), cup(), box=box, cut_box=(0, 0, 200, 200),
                              method="paste")  # fmt: skip
    wanted = composer.compose(data.astronaut(), cup(), box=Box(100, 120, 90, 80),
                              cut_box=Box(0, 0, 200, 200), method="paste")  # fmt: skip
    assert np.array_equal(result.picture.samples, wanted.picture.samples)
    assert result.record["request"] == wanted.record["request"]
    assert result.record["request"]["subjects"][0]["box"] == [100, 120, 90, 80]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("box", (1, 2, 3)), ("box", "1,2,3,4"), ("box", (1, 2, 3, "4")), ("box", 5),
        ("box", (1, 2, 3, float("nan"))), ("cut_box", (True, 0, 1, 1)), ("cut_box", {"x": 1}),
        ("at", ("a", "b")), ("at", 5), ("at", (1, 2, 3)), ("at", (1, float("inf"))),
        ("scale", "1"), ("scale", 0), ("scale", -1.0), ("scale", float("nan")),
        ("scale", float("inf")), ("scale", 1e308), ("scale", 10**400), ("scale", True),
        ("rotate", None), ("rotate", "9"), ("random", "yes"), ("random", 1), ("flip", None),
        ("preset", ["x"]), ("method", ["paste"]), ("cut", 3), ("trust_remote_code", "no"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name.split("_")[0]) as caught:
        Composer().compose(data.astronaut(), cup(), **{"method": "paste", name: value})
    assert "\n" not in str(caught.value)


def test_so_many_large_pictures_at_once_are_refused() -> None:
    large = np.zeros((5600, 5600), np.uint8)
    with pytest.raises(InputError, match=r"num_images is 64.*5600 x 5600.*at most 63\."):
        Composer().compose(large, cup(), method="paste", num_images=64)


def test_bands_give_the_mask_that_the_whole_picture_gives() -> None:
    photo = np.tile(data.astronaut(), (2, 2, 1))
    mask = read_mask(photo, size=None)
    brightest = read_picture(photo).rgb().max(-1)
    assert np.array_equal(mask, brightest * (brightest >= 0.05))
    clear = np.dstack([photo, photo[..., 0]])
    red = read_picture(photo[..., 0]).rgb()[..., 0]
    assert np.array_equal(guess_mask(read_picture(clear), []), red * (red >= 0.05))
    with pytest.raises(InputError, match="give a mask"):
        guess_mask(read_picture(photo), [])


def test_masks_do_not_need_floats_of_the_whole_picture() -> None:
    import tracemalloc

    photo = np.tile(data.astronaut(), (4, 4, 1))
    pixels = photo.shape[0] * photo.shape[1]
    picture = read_picture(np.dstack([photo, photo[..., 0]]))
    for work in (lambda: guess_mask(picture, []), lambda: read_mask(photo, size=None)):
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # The mask itself is 4 bytes a pixel; the colours of everything as floats are 12.
        assert peak < 12 * pixels


def test_code_of_a_segmenter_runs_only_when_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from inlay.cli import main

    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("model/config.json").write_text(
        '{"model_type": "foreign", "auto_map": {"AutoConfig": "own.Own", '
        '"AutoModelForImageSegmentation": "own.Net"}, "architectures": ["Net"]}'
    )
    Path("model/own.py").write_text("open('ran', 'w').close()\nraise ValueError('no more')\n")
    Image.fromarray(data.coffee()).save("coffee.png")
    commands = (
        ["cut", "coffee.png", "--model", "./model", "-o", "o.png"],
        ["compose", "coffee.png", "coffee.png", "--cut", "./model", "--method", "paste",
         "-o", "o.png"],
    )  # fmt: skip
    for command in commands:
        assert main(command) == 2
        assert not Path("ran").exists()
        capsys.readouterr()
        main([*command, "--trust-remote-code"])
        assert "has no option" not in capsys.readouterr().err
        assert Path("ran").exists()
        Path("ran").unlink()


def test_the_cut_takes_four_numbers_for_a_box() -> None:
    import inlay

    alpha = np.asarray(inlay.cut(data.coffee(), box=(70, 8, 420, 385)))[..., 3]
    assert alpha[200, 280] == 255
    assert alpha[5, 5] == 0
    with pytest.raises(InputError, match="four numbers"):
        inlay.cut(data.coffee(), box=(1, 2, 3))
