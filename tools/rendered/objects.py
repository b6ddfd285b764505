"""The objects of rendered scenes, each a few solids that stand on the floor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rendered import raycast as rc
from rendered.radiance import Material, Thing
from rendered.raycast import turned

__all__ = ["SHAPES", "build"]

Rng = np.random.Generator

SHAPES = ("sphere", "box", "cylinder", "cone", "ellipsoid", "ring", "mug", "vase", "bottle", "lamp")


def build(shape: str, at: tuple[float, float], s: float, rng: Rng, material: Material) -> Thing:
    """One of SHAPES, about 2 `s` tall, standing on the floor z = 0 at `at`; sizes drawn from `rng`.

    A shape that is not in SHAPES raises ValueError.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape is {shape!r}; expected one of {', '.join(SHAPES)}")
    x, y = at
    yaw = float(rng.uniform(-np.pi, np.pi))
    turn = turned(yaw)

    def stack(
        profile: list[tuple[float, float]], smooth: bool = True, round_: bool = False
    ) -> list[rc.Solid]:
        """Frustums through (radius, height) pairs; smooth ones hide the joints in their shading."""
        rs, zs = np.array(profile).T
        if round_:
            # Halves of the steps on a cubic through the knots, for a rounder outline.
            bend = np.gradient(rs, zs)
            step = np.diff(zs)
            between = (rs[1:] + rs[:-1]) / 2 + step * (bend[:-1] - bend[1:]) / 8
            rs = np.insert(rs, np.arange(1, len(rs)), between)
            zs = np.insert(zs, np.arange(1, len(zs)), zs[:-1] + step / 2)
        slope = np.gradient(rs, zs)
        found: list[rc.Solid] = []
        for k in range(len(rs) - 1):
            tall = float(zs[k + 1] - zs[k])
            ends = (float(slope[k] * tall), float(slope[k + 1] * tall)) if smooth else None
            # Only the first has a bottom; what follows closes the others.
            holes = (0.0 if k == 0 else float(rs[k]), 0.0)
            place, scale = (x, y, float(zs[k]) * s), (s, s, tall * s)
            sides = float(rs[k]), float(rs[k + 1])
            found.append(rc.Frustum(place, scale, turn, *sides, holes, ends))
        return found

    def tube(wide: float, low: float, high: float) -> rc.Solid:
        """The inside of an open vessel."""
        scale = (s, s, (high - low) * s)
        return rc.Frustum((x, y, low * s), scale, turn, wide, wide, (0.0, wide))

    solids: list[rc.Solid]
    tall, reach, wraps = 1.0, 1.0, True
    a, b = float(rng.uniform(0.8, 1.2)), float(rng.uniform(0.8, 1.25))
    if shape == "sphere":
        solids = [rc.Ball((x, y, s), (s, s, s), turn)]
    elif shape == "ellipsoid":
        sizes = (a * s, 0.75 * b * s, float(rng.uniform(0.45, 0.7)) * s)
        if rng.random() < 0.4:
            sizes = (0.62 * s, 0.62 * s, a * s)
        solids, tall, reach = [rc.Ball((x, y, sizes[2]), sizes, turn)], sizes[2] / s, max(sizes) / s
    elif shape == "box":
        sizes = (0.75 * a * s, 0.75 * b * s, float(rng.uniform(0.4, 1.0)) * s)
        solids, tall, wraps = [rc.Box((x, y, sizes[2]), sizes, turn)], sizes[2] / s, False
        reach = float(np.linalg.norm(sizes)) / s
    elif shape == "cylinder":
        tall = float(rng.uniform(0.4, 1.0))
        solids, reach = stack([(0.6 * a, 0), (0.6 * a, 2 * tall)], False), 1.3
    elif shape == "cone":
        solids, reach = stack([(0.75 * a, 0), (0.002, 1.9)], False), 1.4
        tall = 0.95
    elif shape == "ring":
        width = float(rng.uniform(0.2, 0.4))
        big = 0.85 * s / (1 + width) * 1.3
        flat = rng.random() < 0.6
        lift = big * (width if flat else 1 + width)
        turn = turned(yaw, 0 if flat else np.pi / 2)
        solids = [rc.Ring((x, y, lift), (big, big, big), turn, width)]
        tall, reach, wraps = lift / s, 1.15, False
    elif shape == "mug":
        w, h = 0.62 * a, 1.4
        yaw = float(rng.choice([rng.uniform(-0.9, 0.7), rng.uniform(2.4, 4.0)]))
        grip = turned(yaw) if rng.random() < 0.9 else turn
        # The ring's axis lies level, so that it stands upright at the mug's side.
        axes = np.stack([grip[0], np.array([0, 0, 1], np.float32), -grip[1]])
        out = grip[0] * w * s
        solids = [rc.Frustum((x, y, 0), (s, s, h * s), turn, w, w, (0.0, w - 0.07))]
        solids += [tube(w - 0.07, 0.12, h)]
        size = 0.4 * s
        place = (x + float(out[0]), y + float(out[1]), 0.5 * h * s)
        solids += [rc.Ring(place, (size, size, size), axes, 0.2, True)]
        tall, reach = 0.7, 1.35
    elif shape == "vase":
        belly, neck = float(rng.uniform(0.55, 0.75)), float(rng.uniform(0.2, 0.35))
        knots = [0.38, belly * 0.9, belly, belly * 0.75, neck, neck * 1.1, neck * 1.5]
        heights = [0, 0.35, 0.75, 1.2, 1.6, 1.8, 2.0]
        solids = stack(list(zip(knots, heights, strict=True)), round_=True)
        rim = neck * 1.5 - 0.04
        last = solids[-1]
        assert isinstance(last, rc.Frustum)
        solids[-1] = replace(last, holes=(last.bottom, rim))
        solids += [rc.Frustum((x, y, 1.3 * s), (s, s, 0.7 * s), turn, neck * 0.8, rim, (0.0, rim))]
        reach = 1.25
    elif shape == "bottle":
        w, neck = float(rng.uniform(0.34, 0.46)), float(rng.uniform(0.12, 0.16))
        knots = [w * 0.95, w, w, w * 0.85, neck * 1.3, neck, neck]
        heights = [0, 0.05, 1.0, 1.25, 1.5, 1.65, 2.0]
        solids = stack(list(zip(knots, heights, strict=True)))
        reach = 1.15
    else:
        wide, top = float(rng.uniform(0.6, 0.8)), float(rng.uniform(0.3, 0.5))
        solids = stack([(0.45, 0), (0.4, 0.1)], False)
        solids += stack([(0.07, 0.1), (0.07, 1.3)], False)
        shade = rc.Frustum((x, y, 1.15 * s), (s, s, 0.85 * s), turn, wide, top, (wide, top - 0.03))
        solids, reach = [*solids, shade], 1.3
    return Thing(rc.Group(solids, (x, y, tall * s), reach * s * 1.02), material, wraps)
