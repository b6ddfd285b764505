"""Scenes through Mitsuba 3 (variant scalar_rgb): linear pictures, exact alpha, sRGB triples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import drjit
import mitsuba as mi
import numpy as np
from numpy.typing import NDArray

from pairs.mesh import corners
from pairs.paint import Texture
from pairs.scene import Scene, View
from pairs.world import Solid

mi.set_variant("scalar_rgb")
mi.set_log_level(mi.LogLevel.Error)
drjit.set_thread_count(1)
cv2.setNumThreads(1)

__all__ = ["Triple", "render_triple"]

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]
LUMA = np.array([0.2126, 0.7152, 0.0722])
OVER = 2
"""Pictures are traced at this many times their size, so that rims and noise can be told apart."""


@dataclass(frozen=True, eq=False)
class Triple:
    """sRGB pictures (S, S, 3), the object's alpha (S, S), and the share of the truth that clips."""

    place: Bytes
    truth: Bytes
    other: Bytes
    alpha: Bytes
    clipped: float


def _loaded(node: Any) -> Any:
    """A node as Mitsuba wants it: colours, textures and matrices become its own."""
    if isinstance(node, Texture):
        u, v = node.tiles
        bitmap = mi.Bitmap(np.ascontiguousarray(node.image[::-1]))
        scale = mi.ScalarTransform4f().scale([u, v, 1])
        return {"type": "bitmap", "bitmap": bitmap, "raw": False, "to_uv": scale}
    if isinstance(node, tuple):
        return {"type": "rgb", "value": list(map(float, node))}
    if isinstance(node, dict):
        return {
            key: mi.ScalarTransform4f(value)
            if key == "to_world"
            else mi.Bitmap(value)
            if key == "bitmap"
            else _loaded(value)
            for key, value in node.items()
        }
    return node


def _shape(solid: Solid) -> mi.Mesh:
    points, normals, uv = corners(solid.mesh)
    properties = mi.Properties()
    properties["bsdf"] = mi.load_dict(_loaded(solid.material))
    count = len(points)
    mesh = mi.Mesh("part", count, count // 3, properties, True, True)
    parameters = mi.traverse(mesh)
    parameters["vertex_positions"] = points.ravel().astype(np.float32)
    parameters["vertex_normals"] = normals.ravel().astype(np.float32)
    parameters["vertex_texcoords"] = uv.ravel().astype(np.float32)
    parameters["faces"] = np.arange(count, dtype=np.uint32)
    parameters.update()
    return mesh


def _camera(view: View, size: int, samples: int, seed: int) -> dict[str, Any]:
    eye = mi.ScalarTransform4f().look_at(list(view.origin), list(view.target), [0, 0, 1])
    lens = {"type": "perspective"}
    if view.aperture:
        away = float(np.linalg.norm(np.subtract(view.origin, view.target)))
        lens = {"type": "thinlens", "aperture_radius": view.aperture, "focus_distance": away}
    return lens | {
        "fov": view.field,
        "to_world": eye @ mi.ScalarTransform4f().rotate([0, 0, 1], view.roll),
        "film": {
            "type": "hdrfilm",
            "width": size,
            "height": size,
            "pixel_format": "rgba",
            "rfilter": {"type": "box"},
        },
        "sampler": {"type": "multijitter", "sample_count": samples, "seed": seed},
    }


def _load(shapes: list[Any], camera: dict[str, Any], integrator: dict[str, Any]) -> Any:
    numbered = {f"shape{k}": shape for k, shape in enumerate(shapes)}
    return mi.load_dict({"type": "scene", "integrator": integrator, "camera": camera} | numbered)


def _image(scene: Any, samples: int, seed: int) -> Floats:
    return np.asarray(mi.render(scene, spp=samples, seed=seed), np.float64)


@dataclass(frozen=True, eq=False)
class Trace:
    """Two independent halves (H, W, 3) of a picture; its albedo, normals and depth (H, W, 7)."""

    halves: tuple[Floats, Floats]
    guide: Floats

    def part(self, window: tuple[slice, slice]) -> Trace:
        first, second = self.halves
        return Trace((first[window], second[window]), self.guide[window])


def _trace(shapes: list[Any], camera: dict[str, Any], samples: int, seed: int) -> Trace:
    scene = _load(shapes, camera, {"type": "path", "max_depth": 5, "rr_depth": 3})
    halves = (_image(scene, samples, seed)[..., :3], _image(scene, samples, seed + 1)[..., :3])
    aovs = _load(shapes, camera, {"type": "aov", "aovs": "a:albedo,n:sh_normal,d:depth"})
    return Trace(halves, _image(aovs, 4, seed)[..., -7:])


def _clean(traces: list[Trace]) -> list[Floats]:
    """The pictures less their noise, by one edge-stopping filter over all of them.

    The light that falls on surfaces (the picture over its albedo) is blurred with the à-trous
    wavelet of Dammertz et al. 2010; differences of any picture's light beyond its noise, which the
    halves tell (as the variance does in Schied et al. 2017), of depth and of normals stop it. As
    all share its weights, pictures that agree in a place still agree there.
    """
    lights, noises, albedos = [], [], []
    for trace in traces:
        albedo = np.maximum(trace.guide[..., :3], 0.02)
        light = [half / albedo for half in trace.halves]
        mean = sum(light) / 2
        around = [_shift(mean, dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        # Bright specks of one or two pixels are paths that hardly any sample found.
        cap = 1.05 * np.partition(np.stack(around), 6, axis=0)[6] + 0.01 * mean.mean()
        kept = np.minimum(1, cap / np.maximum(mean, 1e-6))
        light = [half * kept for half in light]
        spread = cv2.GaussianBlur(((light[0] - light[1]) @ LUMA / 2) ** 2, (0, 0), 3)
        lights.append((light[0] + light[1]) / 2)
        noises.append(spread)
        albedos.append(albedo)
    count = len(traces)
    light = np.concatenate(lights, axis=2).astype(np.float32)
    noise = np.stack(noises, axis=2).astype(np.float32) + np.float32(1e-8)
    shape = np.concatenate([t.guide[..., 3:6] * 4 for t in traces], axis=2)
    depth = np.stack([np.log(t.guide[..., 6] + 0.05) * 20 for t in traces], axis=2)
    shape = np.concatenate([shape, depth], axis=2).astype(np.float32)
    for step in (1, 2, 4, 8):
        luma = light.reshape(*light.shape[:2], count, 3) @ LUMA.astype(np.float32)
        luma = cv2.GaussianBlur(luma, (0, 0), 0.8).reshape(luma.shape)
        total, weights, variance = 0 * light, 0 * noise[..., :1], 0 * noise
        limit = 2.5 * np.sqrt(cv2.GaussianBlur(noise, (0, 0), 1).reshape(noise.shape)) + 1e-6
        for dy in (-2, -1, 0, 1, 2):
            for dx in (-2, -1, 0, 1, 2):
                kernel = (6, 4, 1)[abs(dy)] * (6, 4, 1)[abs(dx)]
                here = [
                    _shift(array, dy * step, dx * step) for array in (light, luma, shape, noise)
                ]
                apart = (np.abs(here[1] - luma) / limit).sum(axis=2, keepdims=True)
                apart += ((here[2] - shape) ** 2).sum(axis=2, keepdims=True)
                weight = kernel * np.exp(-apart)
                total += weight * here[0]
                weights += weight
                variance += weight**2 * here[3]
        light, noise = total / weights, variance / weights**2
    return [light[..., 3 * k : 3 * k + 3].astype(np.float64) * albedos[k] for k in range(count)]


def _shift(array: Floats, dy: int, dx: int) -> Floats:
    """The array (H, W, C) moved by dy and dx, its border repeated."""
    rows = np.clip(np.arange(array.shape[0]) + dy, 0, array.shape[0] - 1)
    columns = np.clip(np.arange(array.shape[1]) + dx, 0, array.shape[1] - 1)
    return array[rows[:, None], columns[None]]


def _gains(light: Floats, rng: np.random.Generator) -> Floats:
    """A camera's gains of red, green and blue: a part of the cast goes, and the exposure suits."""
    grey = np.median(light.reshape(-1, 3), axis=0)
    balance = ((grey @ LUMA + 1e-6) / (grey + 1e-6)) ** rng.uniform(0.1, 0.7)
    luma = np.maximum(light @ LUMA, 1e-6)
    wanted = rng.uniform(0.13, 0.32) / np.exp(np.log(luma).mean())
    most = rng.uniform(0.8, 1.05) / np.percentile(light * balance, 98)
    return np.asarray(np.clip(balance, 0.5, 2) * min(wanted, most))


def _coded(light: Floats) -> Bytes:
    """Linear light as sRGB bytes; what is beyond 0.8 bends and ends at white."""
    bent = np.where(light > 0.8, 1 - 0.2 * np.exp(-(np.maximum(light, 0.8) - 0.8) / 0.2), light)
    coded = np.where(
        bent <= 0.0031308, bent * 12.92, 1.055 * np.maximum(bent, 0) ** (1 / 2.4) - 0.055
    )
    return np.asarray(np.round(255 * coded.clip(0, 1)), np.uint8)


def _reduce(array: Floats) -> Floats:
    h, w = array.shape[:2]
    return array.reshape(h // OVER, OVER, w // OVER, OVER, -1).mean(axis=(1, 3))


def _spread(light: Floats, cover: Floats) -> Floats:
    """The object's colours, carried on from where it covers all to its rim and beyond."""
    inside = (cover > 0.99).astype(np.float64)
    found, filled = light * inside[..., None], inside
    for blur in (1.0, 3.0, 9.0, 27.0):
        share = cv2.GaussianBlur(inside, (0, 0), blur)
        near = (
            cv2.GaussianBlur(light * inside[..., None], (0, 0), blur)
            / np.maximum(share, 1e-9)[..., None]
        )
        hit = (filled == 0) & (share > 0.02)
        found[hit], filled = near[hit], np.where(hit, 1.0, filled)
    return np.where(filled[..., None] > 0, found, light[inside > 0].mean(axis=0))


def render_triple(scene: Scene, number: int, size: int, samples: int = 32) -> Triple | None:
    """The pictures of a scene, `samples` rays a pixel; None where the object hardly shows."""
    rays = max(2, samples // OVER**2 // 2)
    seed = 4 * number
    camera = _camera(scene.view, size * OVER, rays, seed)
    thing = [_shape(solid) for solid in scene.thing]
    cover = _image(_load(thing, camera, {"type": "depth"}), 16, seed)[..., 3].clip(0, 1)
    shown = np.argwhere(cover > 0.5)
    if len(shown) < 0.03 * cover.size:
        return None
    home = [*map(_loaded, scene.home.nodes), *map(_shape, scene.home.solids)]
    away = [*map(_loaded, scene.away.nodes), *map(_shape, scene.away.solids)]
    bare, full = _trace(home, camera, rays, seed), _trace([*home, *thing], camera, rays, seed)
    place, truth = _clean([bare, full])
    (top, left), (bottom, right) = shown.min(0), shown.max(0) + 1
    top, left = max(0, top - 24), max(0, left - 24)
    bottom, right = min(size * OVER, bottom + 24), min(size * OVER, right + 24)
    window = (slice(top, bottom), slice(left, right))
    # What the object hides is cleaned alone, or its outline would show in the empty place.
    hidden = cover[window][..., None]
    place[window] += hidden * (_clean([bare.part(window)])[0] - place[window])
    part = camera | {"film": dict(camera["film"])}
    part["film"] |= {"crop_offset_x": int(left), "crop_offset_y": int(top)}
    part["film"] |= {"crop_width": int(right - left), "crop_height": int(bottom - top)}
    (near,) = _clean([_trace([*away, *thing], part, rays, seed + 2)])
    rng = np.random.default_rng([number, 3])
    gains, other_gains = _gains(truth, rng), _gains(near, rng)
    lit = np.zeros_like(truth)
    lit[window] = near
    lit = _spread(lit, cover * (lit.sum(axis=2) > 0))
    alpha = _reduce(cover[..., None])
    own = _reduce(lit * cover[..., None]) / np.maximum(alpha, 1e-6)
    own = np.where(alpha > 0.02, own, _reduce(lit))
    shot = _reduce(truth) * gains
    return Triple(
        _coded(_reduce(place) * gains),
        _coded(shot),
        _coded(own * other_gains),
        np.asarray(np.round(alpha[..., 0] * 255), np.uint8),
        float((shot.min(axis=2) > 1).mean()),
    )
