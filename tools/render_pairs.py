"""Render triples of pictures on which light and shadow are learnt: a place, a truth, an object.

    pip install mitsuba scipy
    python tools/render_pairs.py OUT --count 4000 --textures PHOTOS --scenes LANDSCAPES

Each number gives one scene, always the same for the same folders: a room, a terrace or open ground
with lamps, windows, a sky of one of the scenes and mostly a sun; an object that stands, lies, leans
or floats; a camera. Mitsuba 3 traces its paths on one core, some four seconds a triple. Of number 7
OUT gets, S pixels wide and high, in sRGB, as lossless WebP:

    place/000007.webp   RGB: the place without the object
    truth/000007.webp   RGBA: the place with the object, its shading, contact and shadow; the alpha
                        covers the object
    other/000007.webp   RGBA: the object from the same camera in another place's light; its alpha is
                        the same, its colours run on beyond it (this is what gets pasted)

and a line of metadata.jsonl, so that OUT is an image folder too: file_name (the truth), text,
place, other, contact (whether the object touches anything), pose, gap (to the ground, in objects),
box (of the alpha: x, y, width, height), held_out (one in ten, by the hash of file_name), lights and
other_lights (kind; direction from the object: right, up, toward the camera; kelvin; irradiance) and
more. Triples that are there are left alone, so a run that was cut off can be called again, and
several may fill one folder by ranges of numbers.

    inlay train embedded PHOTOS -o RUN --set rendered=OUT --set rendered_share=0.1
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pairs.paint import Photos
from pairs.scene import Scene, View, build_scene

if TYPE_CHECKING:
    from pairs.render import Triple
    from pairs.world import World

__all__ = ["facts", "is_held_out", "names", "write_pairs"]

KINDS = ("place", "truth", "other")


def names(number: int) -> dict[str, str]:
    """The files of a triple, relative to the folder."""
    return {kind: f"{kind}/{number:06d}.webp" for kind in KINDS}


def is_held_out(number: int) -> bool:
    """Whether a triple is one of the tenth that is never trained on.

    Those that inlay's image folders hold out, a twentieth by the hash of the name, are among them.
    """
    digest = hashlib.sha256(names(number)["truth"].encode()).digest()
    return int.from_bytes(digest[:8], "big") % 10 == 0


def facts(number: int, scene: Scene) -> dict[str, Any]:
    """What metadata.jsonl says of a triple, but for what only its pictures tell."""
    files = names(number)
    return {
        "file_name": files["truth"],
        "text": scene.caption,
        "number": number,
        "place": files["place"],
        "other": files["other"],
        "held_out": is_held_out(number),
        "contact": scene.pose != "floating",
        "pose": scene.pose,
        "gap": round(scene.gap, 3),
        "setting": scene.home.place,
        "support": scene.home.support,
        "lights": _lights(scene.home, scene.view),
        "other_setting": scene.away.place,
        "other_lights": _lights(scene.away, scene.view),
    }


def _lights(world: World, view: View) -> list[dict[str, Any]]:
    return [
        {
            "kind": light.kind,
            "direction": view.toward(light.direction),
            "kelvin": round(light.kelvin),
            "irradiance": round(light.irradiance, 3),
        }
        for light in world.lights
    ]


def _save(folder: Path, number: int, triple: Triple) -> None:
    pictures = {
        "place": triple.place,
        "truth": np.dstack([triple.truth, triple.alpha]),
        "other": np.dstack([triple.other, triple.alpha]),
    }
    for kind, name in names(number).items():
        part = folder / f"{name}.{os.getpid()}.part"
        picture = Image.fromarray(pictures[kind])
        picture.save(part, "WEBP", lossless=True, exact=True, quality=60, method=4)
        part.replace(folder / name)


def write_pairs(
    folder: Path, numbers: range, size: int, samples: int, photos: list[Photos]
) -> None:
    """Write the triples of those numbers that are not there; `photos`: of scenes, of textures."""
    from pairs.render import render_triple

    for kind in KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    listing = folder / "metadata.jsonl"
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    there = {json.loads(line)["number"] for line in lines}
    for number in numbers:
        if number in there and all((folder / name).is_file() for name in names(number).values()):
            continue
        attempt, triple = 0, None
        while triple is None:
            scene = build_scene(number, attempt, *photos)
            triple = render_triple(scene, number, size, samples)
            attempt += 1
        _save(folder, number, triple)
        rows, columns = (np.flatnonzero((triple.alpha > 0).any(axis=axis)) for axis in (1, 0))
        x, y = int(columns[0]), int(rows[0])
        box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
        line = facts(number, scene) | {"box": box, "clipped": round(triple.clipped, 4)}
        if number not in there:
            with listing.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="OUT", help="folder to write to, or to go on in")
    add("--count", type=int, default=4000, metavar="N", help="triples (default 4000)")
    add("--first", type=int, default=0, metavar="K", help="number of the first (default 0)")
    add("--size", type=int, default=128, metavar="S", help="side in pixels (default 128)")
    add("--samples", type=int, default=32, metavar="R", help="rays a pixel (default 32)")
    add(
        "--textures",
        type=Path,
        required=True,
        metavar="DIR",
        help="photos that things are printed with",
    )
    add("--scenes", type=Path, required=True, metavar="DIR", help="photos that skies are made of")
    options = parser.parse_args()
    if options.count < 1 or options.first < 0 or options.size < 32 or options.samples < 16:
        parser.error("expected --count from 1, --first from 0, --size from 32, --samples from 16")
    numbers = range(options.first, options.first + options.count)
    photos = [Photos(options.scenes, 1024), Photos(options.textures, 256)]
    write_pairs(options.folder, numbers, options.size, options.samples, photos)


if __name__ == "__main__":
    main()
