"""What a run gives back: pictures, and a record inside each of how it was made.

A record is a plain dict that travels inside the picture as JSON. Its keys: inlay (version), verb,
method, seed; request (what makes this picture again, with every setting; paths as they were given,
so that a picture that is passed on tells no more about a disk than its maker typed); model (name,
hash, kind, family, loras, textual_inversions; null where none ran), device, dtype; adapter,
harmonizer, ip_adapter, cutter and shadow (name, hash) where one had a part; window and region (x,
y, width, height in background pixels); subjects (box: where each one lies); inputs ({place in the
request: {path, sha256}}); notes; timings (seconds); batch_size where several pictures were made
together.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image as PILImage

from inlay.errors import __version__
from inlay.methods.base import Checkpoint
from inlay.methods.registry import Model
from inlay.pictures.arrays import Box, Image, to_uint8
from inlay.pictures.colour import convert
from inlay.pictures.picture import Picture
from inlay.pictures.read import file_sha256
from inlay.pictures.write import write_picture
from inlay.request import Request
from inlay.scene.stitch import Layer

if TYPE_CHECKING:
    from inlay.diffusion.backbone import Backbone
    from inlay.diffusion.branches import ControlAdapter, Harmonizer
    from inlay.diffusion.conditions import IpAdapter
    from inlay.scene.network import Layers


@dataclass(frozen=True, eq=False)
class Used:
    """What had a part in a picture besides its checkpoint, and what methods had to say; networks
    are our own small ones, by kind.
    """

    adapter: ControlAdapter | None = None
    harmonizer: Harmonizer | None = None
    ip_adapter: IpAdapter | None = None
    networks: Mapping[str, Layers] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class State:
    """A picture on its way.

    region and mask say where it may differ from the picture handed in: a box, and 0 or 1 (h, w) in
    it. window is the smallest box round all that methods saw of it so far. stages are what the last
    pass's method made on its way, by name.
    """

    picture: Picture
    region: Box
    mask: Image
    window: Box
    used: Used = field(default_factory=Used)
    stages: Mapping[str, State] = field(default_factory=dict)

    def then(self, later: State) -> State:
        """The state after another pass, which began with this one's picture."""
        window = self.window.hull(later.window)
        if not later.mask.any():
            return replace(later, window=window, region=self.region, mask=self.mask)
        if not self.mask.any():
            return replace(later, window=window)
        region = self.region.hull(later.region)
        mask = np.zeros((region.height, region.width), np.float32)
        for part in (self, later):
            here = part.region.shifted(-region.x, -region.y).slices
            mask[here] = np.maximum(mask[here], part.mask)
        return replace(later, window=window, region=region, mask=mask)


class Laid(NamedTuple):
    """A subject as it was laid: PIL "RGBA", and the box in the picture that it fills."""

    image: PILImage.Image
    box: Box

    @property
    def mask(self) -> PILImage.Image:
        """Where it lies in its box, not where its method or shadow had an effect: PIL "L"."""
        return self.image.getchannel("A")


@dataclass(eq=False)
class Result:
    """What a call made: one picture for each seed.

    pictures keep the background's size, depth, mode and profile; records say how each was made.
    window is the crop the method saw (of several passes, the smallest box that holds their crops),
    region the box outside which no byte differs, changes the mask inside that box (float32, 0 or
    1). laid are the subjects as they lie in the first picture. kept holds, where it was asked for,
    each picture's phases or stages: name to picture and record.
    """

    pictures: list[Picture]
    records: list[dict[str, Any]]
    window: Box
    region: Box
    changes: Image = field(repr=False)
    laid: Sequence[Layer] = field(default=(), repr=False)
    kept: list[dict[str, tuple[Picture, dict[str, Any]]]] = field(default_factory=list, repr=False)

    @property
    def picture(self) -> Picture:
        return self.pictures[0]

    @property
    def record(self) -> dict[str, Any]:
        return self.records[0]

    @property
    def image(self) -> PILImage.Image:
        """The (first) picture as PIL."""
        return self.pictures[0].to_pil()

    @property
    def images(self) -> list[PILImage.Image]:
        return [picture.to_pil() for picture in self.pictures]

    @property
    def phases(self) -> dict[str, Picture]:
        """What the first picture was after each phase; empty unless it was to be kept."""
        return {name: picture for name, (picture, _) in (self.kept or [{}])[0].items()}

    @property
    def layers(self) -> list[Laid]:
        """Each subject by itself, as it was laid into the first picture."""
        space = self.picture.space
        samples = (np.dstack([convert(each.rgb, space, None), each.alpha]) for each in self.laid)
        images = (PILImage.fromarray(to_uint8(each)) for each in samples)
        return [Laid(image, layer.box) for image, layer in zip(images, self.laid, strict=True)]

    @property
    def mask(self) -> PILImage.Image:
        """Where the first picture may differ from the background: PIL "L", 255 = may."""
        whole = np.zeros((self.picture.height, self.picture.width), np.uint8)
        whole[self.region.slices] = to_uint8(self.changes)
        return PILImage.fromarray(whole)

    def save(self, path: str | Path) -> None:
        """Write the first picture, with its record inside; atomic."""
        write_picture(self.picture, path, record=record_text(self.record))


def record_of(
    request: Request,
    backbone: Backbone | None,
    checkpoint: Checkpoint,
    state: State,
    inputs: Mapping[str, Mapping[str, Any]],
    layers: Sequence[Layer],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The record of one picture, which the request makes; see the top of this file."""
    model: Model | None = None
    if backbone is not None:
        model = Model(
            name=backbone.name,
            device=str(backbone.device),
            dtype=str(backbone.dtype).removeprefix("torch."),
            loras=tuple(checkpoint.loras),
            textual_inversions=tuple(checkpoint.textual_inversions),
        )
    request, used = request.model_copy(update={"model": model}), state.used
    data = request.model_dump(mode="json")
    record: dict[str, Any] = {
        "inlay": __version__,
        "verb": request.verb,
        "method": request.method.name,
        "seed": request.seed,
        "request": data,
        "model": None,
        "device": None,
        "dtype": None,
        "window": state.window.as_dict(),
        "region": state.region.as_dict(),
        "subjects": [{"box": layer.box.as_dict()} for layer in layers],
        "inputs": dict(inputs),
        "notes": list(used.notes),
        "timings": dict(seconds),
    }
    if backbone is not None:
        own = data["model"]
        record |= {key: own[key] for key in ("device", "dtype")}
        known = {key: getattr(backbone, key) for key in ("name", "hash", "kind", "family")}
        record["model"] = known | {key: own[key] for key in ("loras", "textual_inversions")}
    branches = {key: getattr(used, key) for key in ("adapter", "harmonizer", "ip_adapter")}
    for word, network in (branches | dict(used.networks)).items():
        if network is not None:
            record[word] = {"name": network.name, "hash": network.hash}
    return record


def identify(source: Any) -> dict[str, Any]:
    """{path, sha256} of a file, a Picture, a Cutout, a PIL image or an array."""
    if isinstance(source, (str, os.PathLike)):
        return {"path": os.fspath(source), "sha256": file_sha256(Path(source))}
    known = getattr(source, "sha256", None)
    if known is not None:
        return {"path": getattr(source, "path", None), "sha256": str(known)}
    samples = np.ascontiguousarray(np.asarray(source))
    return {"path": None, "sha256": hashlib.sha256(samples.data).hexdigest()}


def record_text(record: Mapping[str, Any]) -> str:
    """The record as it goes into a picture: one line of ASCII JSON, without the timings.

    They alone differ between two runs of one request, and such runs must give the same file.
    """
    lasting = {key: value for key, value in record.items() if key != "timings"}
    return json.dumps(lasting, allow_nan=False, separators=(",", ":"))
