"""Masks of the whole objects in pictures, looked for once and kept in a file.

Looking costs more than a tenth of a second a picture, so it happens when a picture is first drawn,
and what was found is written beside the run's states. It is done at half size, the one that masks
are kept at: outlines come out alike, in two thirds of the time.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from inlay.training.objects_found import find_objects

__all__ = ["Wholes"]

Image = NDArray[np.uint8]


class Wholes:
    """The objects of pictures: those that find_objects() finds, or the one that came along.

    `cache` is the file they are kept in (safetensors, one tensor a picture by the hash of its
    bytes: masks at half size, a bit a pixel).
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._packed: dict[str, Image] = {}
        self._new = False
        if cache.is_file():
            from safetensors.numpy import load_file

            self._packed = load_file(cache)

    def of(self, picture: Image) -> list[Image]:
        """Masks (H, W), uint8, 255 on the object, of a picture (H, W, 3); perhaps none.

        A picture (H, W, 4) brings its one object in the last channel.
        """
        if picture.shape[2] == 4:
            return [np.ascontiguousarray(picture[..., 3])]
        height, width = picture.shape[:2]
        half = (height + 1) // 2, (width + 1) // 2
        name = hashlib.blake2b(picture.tobytes(), digest_size=16).hexdigest() + f"-{width}"
        if name not in self._packed:
            reduced = cv2.resize(picture, half[::-1], interpolation=cv2.INTER_AREA)
            small = [mask > 0.5 for mask in find_objects(np.asarray(reduced, np.uint8))]
            self._packed[name] = np.packbits(np.array(small, bool).reshape(-1, *half), axis=2)
            self._new = True
        bits = np.unpackbits(self._packed[name], axis=2, count=half[1]) * np.uint8(255)
        found = [cv2.resize(m, (width, height), interpolation=cv2.INTER_LINEAR) for m in bits]
        return [np.asarray(mask, np.uint8) for mask in found]

    def save(self) -> None:
        """Write what was found since the last time, with what was known, renamed into place."""
        if not self._new:
            return
        from safetensors.numpy import save_file

        self._new = False
        temporary = self.cache.with_name(self.cache.name + ".tmp")
        # A copy, as a thread may be looking at the next pictures.
        save_file(dict(self._packed), temporary)
        temporary.replace(self.cache)
