"""Concepts as subjects: which of their photos is laid in, and how."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from skimage import data

from checkpoints import built
from concepts import learnt
from inlay import Box, Composer, InputError, Subject
from inlay.checkpoints.concept import Sight, read_concept, write_concept
from inlay.cli import main
from photos import cup

TALL, WIDE = Box(200, 40, 60, 180), Box(150, 150, 200, 70)


def ellipse(width: int, height: int, level: float) -> Image.Image:
    """Something of a grey level, with a print on it, on nothing."""
    y, x = np.mgrid[:height, :width]
    inside = ((x + 0.5) / width - 0.5) ** 2 + ((y + 0.5) / height - 0.5) ** 2 < 0.25
    rgb = np.full((height, width, 3), level) + 0.05 * np.sin(x / 5)[..., None]
    return Image.fromarray(np.uint8(255 * np.dstack([rgb, inside])))


def concept(path: Path, images: Sequence[Image.Image], **more: Any) -> str:
    """A file whose photos show these."""
    sights = []
    for number, image in enumerate(images):
        file = BytesIO()
        image.save(file, "WEBP", lossless=True)
        told = {"photo": f"{number}.jpg", "sha256": "0", "size": 0.5, **more}
        picture = base64.b64encode(file.getvalue()).decode()
        sights.append(Sight(aspect=image.width / image.height, picture=picture, **told))
    said = read_concept(learnt()).model_copy(update={"sights": tuple(sights)})
    write_concept(path, said, load_file(learnt()))
    return str(path)


def background(level: int = 128) -> NDArray[np.uint8]:
    return np.full((240, 400, 3), level, np.uint8)


def view(made: Any) -> str:
    (note,) = (note for note in made.record["notes"] if ": view " in note)
    return str(note)


def test_the_view_is_that_of_the_boxs_aspect_and_of_its_light(tmp_path: Path) -> None:
    shapes = concept(tmp_path / "a.safetensors", [ellipse(60, 180, 0.5), ellipse(200, 70, 0.5)])
    lights = concept(tmp_path / "b.safetensors", [ellipse(90, 90, 0.9), ellipse(90, 90, 0.15)])
    composer, bare = Composer(), {"method": "paste", "shadow": "none"}
    for box, best in ((TALL, "view 1 of 2, 0.jpg"), (WIDE, "view 2 of 2, 1.jpg")):
        assert best in view(composer.compose(background(), shapes, box=box, **bare))
    for level, best in ((240, "view 1 of 2"), (20, "view 2 of 2")):
        place = background(128)
        place[60:200, 100:300] = level
        made = composer.compose(place, lights, box=(150, 90, 90, 90), **bare)
        assert best in view(made)


def test_a_view_is_a_picture_like_any_other(tmp_path: Path) -> None:
    images = [ellipse(60, 180, 0.3), ellipse(200, 70, 0.7)]
    file, composer = concept(tmp_path / "a.safetensors", images), Composer()
    for method in ("paste", "phd"):
        told: dict[str, Any] = {"method": method, "shadow": "contact"}
        for number, image in enumerate(images, 1):
            subject = Subject(file, box=WIDE, view=number, rotate=20, flip=True)
            one = composer.compose(data.chelsea(), subject, **told)
            other = composer.compose(
                data.chelsea(), Subject(image, box=WIDE, rotate=20, flip=True), **told
            )
            assert np.array_equal(np.asarray(one.image), np.asarray(other.image))
            assert not [note for note in one.record["notes"] if ": view " in note]
    phases = composer.compose(data.chelsea(), file, box=WIDE, phases="paste,harmonize")
    assert "view 2 of 2" in view(phases)
    both = [Subject(file, box=WIDE), Subject(cup(), box=TALL)]
    assert composer.compose(data.chelsea(), both, together=True).record["method"] == "phd"


def test_a_photo_that_cuts_the_object_off_is_the_last_choice(tmp_path: Path) -> None:
    one, other = (concept(tmp_path / f"{n}.safetensors", [ellipse(90, 90, 0.5)]) for n in (0, 1))
    cut_off = read_concept(Path(one)).sights[0].model_copy(update={"whole": False})
    whole = read_concept(Path(other)).sights[0]
    said = read_concept(learnt()).model_copy(update={"sights": (cut_off, whole)})
    write_concept(tmp_path / "c.safetensors", said, load_file(learnt()))
    made = Composer().compose(
        background(), tmp_path / "c.safetensors", box=WIDE, method="paste", shadow="none"
    )
    assert "view 2 of 2" in view(made)


def test_the_embedded_checkpoint_lays_concepts_in_and_others_paint_them(tmp_path: Path) -> None:
    file = concept(tmp_path / "a.safetensors", [ellipse(90, 90, 0.5)])
    assert Composer().compose(data.chelsea(), file, box=WIDE).record["method"] == "exemplar"
    large = Composer(str(built("sd1_inpaint")))
    made = large.compose(data.chelsea(), learnt(), box=WIDE, num_inference_steps=2)
    assert made.record["method"] == "dreamcom"


def test_a_file_without_photos_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = concept(tmp_path / "a.safetensors", [ellipse(90, 90, 0.5)])
    bare = tuple(s.model_copy(update={"picture": None}) for s in read_concept(Path(file)).sights)
    said = read_concept(learnt()).model_copy(update={"sights": bare})
    write_concept(Path(file), said, load_file(learnt()))
    Image.fromarray(data.chelsea()).save(tmp_path / "cat.png")
    out = tmp_path / "out.png"
    assert main(["compose", str(tmp_path / "cat.png"), file, "-o", str(out), "--quiet"]) == 2
    assert "holds none of its photos; learn it with keep_photos=true" in capsys.readouterr().err
    with pytest.raises(InputError, match="view is 2; expected 1 to 1"):
        Composer().compose(data.chelsea(), Subject(file, view=2))
    assert not out.exists()
