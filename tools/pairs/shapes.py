"""The objects: things of one to five materials that stand on z = 0, about one unit large."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pairs.mesh import Mesh, about, ball, block, dents, join, prism, revolve, tube

__all__ = ["FLAT", "SHAPES", "UPRIGHT", "Parts"]

Rng = np.random.Generator
Parts = dict[str, Mesh]
"""the meshes of a thing by the kind of their material; a number makes kinds differ"""


def _curve(points: list[tuple[float, float]], dense: int = 6) -> NDArray[np.float64]:
    """A smooth line through points (Catmull-Rom)."""
    knots = np.array([points[0], *points, points[-1]], float)
    t = np.linspace(0, 1, dense, endpoint=False)[:, None]
    spans = []
    for a, b, c, d in zip(knots, knots[1:], knots[2:], knots[3:], strict=False):
        spans.append(
            (
                2 * b
                + (c - a) * t
                + (2 * a - 5 * b + 4 * c - d) * t**2
                + (3 * (b - c) + d - a) * t**3
            )
            / 2
        )
    return np.concatenate([*spans, knots[-1:]])


def _closed(curve: NDArray[np.float64], wall: float = 0.0) -> NDArray[np.float64]:
    """A profile with a flat bottom and top, or, with a wall's thickness, hollow."""
    bottom = np.array([[0, curve[0, 1]]])
    if wall == 0:
        return np.concatenate([bottom, curve, [[0, curve[-1, 1]]]])
    inner = curve[::-1] - np.array([wall, 0])
    inner[:, 1] = np.maximum(inner[:, 1], curve[0, 1] + wall)
    inner[:, 0] = np.maximum(inner[:, 0], 0.01)
    return np.concatenate([bottom, curve, inner, [[0, curve[0, 1] + wall]]])


def _vase_curve(rng: Rng) -> NDArray[np.float64]:
    foot, belly, neck, lip = rng.uniform((0.1, 0.2, 0.05, 0.07), (0.22, 0.42, 0.18, 0.26))
    low = rng.uniform(0.25, 0.6)
    return _curve([(foot, 0), (foot + 0.01, 0.02), (belly, low), (neck, 0.85), (max(lip, neck), 1)])


def vase(rng: Rng) -> Parts:
    return {"main": revolve(_closed(_vase_curve(rng), 0.02))}


def bouquet(rng: Rng) -> Parts:
    curve = _vase_curve(rng) * (1, 0.6)
    top = curve[-1, 0]
    leaves, flowers = [], []
    for _ in range(rng.integers(7, 16)):
        tip = np.array([*rng.normal(0, 0.2, 2), rng.uniform(0.75, 1.05)])
        root = np.array([*(tip[:2] * top), 0.55])
        leaves.append(tube(np.linspace(root, tip, 5), 0.008, 6))
        size = rng.uniform(0.05, 0.1)
        bud = ball(size, 8).scaled((1, 1, rng.uniform(0.5, 1))).moved(tuple(tip))
        (flowers if rng.random() < 0.6 else leaves).append(bud)
    parts = {"main": revolve(_closed(curve, 0.015)), "leaf": join(*leaves)}
    return parts | ({"accent": join(*flowers)} if flowers else {})


def bottle(rng: Rng) -> Parts:
    r, neck = rng.uniform((0.12, 0.04), (0.2, 0.06))
    shoulder = rng.uniform(0.5, 0.68)
    body = np.array([(r * 0.95, 0), (r, 0.015), (r, shoulder)])
    curve = np.concatenate(
        [body, _curve([(r, shoulder), (r * 0.8, shoulder + 0.09), (neck, 0.8), (neck, 0.92)])[1:]]
    )
    cap = np.array([(neck * 1.25, 0.9), (neck * 1.25, 1.0)])
    low, high = shoulder * 0.25, shoulder * 0.85
    label = revolve(np.array([(r * 1.006, low), (r * 1.006, high)]), tiles=(2, 1))
    parts = {"main": revolve(_closed(curve)), "accent": revolve(_closed(cap))}
    return parts | ({"label": label} if rng.random() < 0.7 else {})


def can(rng: Rng) -> Parts:
    r = rng.uniform(0.22, 0.4)
    rim = _closed(np.array([(r * 0.92, 0), (r, 0.03), (r, 0.97), (r * 0.93, 1), (r * 0.9, 0.97)]))
    side = revolve(np.array([(r * 1.004, 0.05), (r * 1.004, 0.95)]), tiles=(2, 1))
    return {"metal": revolve(rim), "label": side}


def mug(rng: Rng) -> Parts:
    r, top = rng.uniform((0.26, 0.9), (0.4, 1.15))
    h = rng.uniform(0.65, 0.95)
    body = revolve(_closed(np.array([(r * 0.96, 0), (r, 0.03), (r * top, h)]), 0.04), tiles=(2, 1))
    angle = np.linspace(-1.7, 1.7, 16)
    loop = np.stack([np.cos(angle) * 0.2 + r * 0.97, 0 * angle, np.sin(angle) * h * 0.3 + h / 2], 1)
    handle = tube(loop, rng.uniform(0.03, 0.05)).turned(about("z", rng.uniform(0, 360)))
    drink = revolve(np.array([(0.001, h * 0.85), (r * 0.93, h * 0.85)]))
    return {"main": join(body, handle), "dark": drink}


def bowl(rng: Rng) -> Parts:
    r, h = rng.uniform((0.4, 0.25), (0.55, 0.5))
    curve = _curve([(r * 0.4, 0), (r * 0.42, 0.03), (r * 0.85, h * 0.55), (r, h)])
    parts: Parts = {"main": revolve(_closed(curve, 0.03))}
    if rng.random() < 0.5:
        size = r * rng.uniform(0.25, 0.38)
        spots = [(np.cos(a) * r * 0.45, np.sin(a) * r * 0.45, h * 0.75) for a in (0, 1.6, 3.1, 4.7)]
        parts["accent"] = join(*(ball(size, 12).moved(s) for s in [*spots, (0, 0, h * 0.95)]))
    return parts


def plant(rng: Rng) -> Parts:
    r, h = rng.uniform((0.18, 0.28), (0.28, 0.42))
    pot = revolve(
        _closed(np.array([(r * 0.7, 0), (r, h * 0.85), (r * 1.1, h * 0.85), (r * 1.1, h)]))
    )
    leaves = []
    for _ in range(rng.integers(9, 22)):
        heading, lean = rng.uniform(0, 360), rng.uniform(5, 75)
        length = rng.uniform(0.35, 0.75)
        t = np.linspace(0, 1, 8)
        bend = np.radians(lean) * t * rng.uniform(0.5, 1.4)
        path = np.stack([np.sin(bend) * t, 0 * t, np.cos(bend) * t], axis=1) * length
        width = 0.007 + rng.uniform(0.03, 0.08) * np.sin(np.pi * t**0.7)
        leaf = tube(path, width, 8)
        leaves.append(leaf.turned(about("z", heading)).moved((0, 0, h * 0.95)))
    return {"main": pot, "leaf": join(*leaves)}


def box(rng: Rng) -> Parts:
    w, d, h = rng.uniform((0.4, 0.2, 0.3), (1, 0.8, 1))
    return {"label": block(w, d, h, rng.choice([0, 0.01, 0.03]))}


def carton(rng: Rng) -> Parts:
    w, h = rng.uniform((0.32, 0.6), (0.45, 0.75))
    roof = prism(np.array([(-w / 2, h), (w / 2, h), (0.02, 0.93), (-0.02, 0.93)]), w)
    lid = block(0.04, w, 0.08).moved((0, 0, 0.92))
    return {"label": block(w, w, h), "accent": join(roof, lid)}


def book_stack(rng: Rng) -> Parts:
    parts: dict[str, list[Mesh]] = {}
    z = 0.0
    for k in range(rng.integers(1, 5)):
        w, d, h = rng.uniform((0.65, 0.45, 0.06), (0.95, 0.65, 0.17))
        turn = about("z", rng.normal(0, 9))
        cover = [block(w, d, 0.012), block(w, d, 0.012).moved((0, 0, h - 0.012))]
        spine = block(0.012, d, h).moved((-w / 2, 0, 0))
        pages = block(w * 0.96, d * 0.94, h - 0.02).moved((-0.005, 0, 0.01))
        for name, mesh in (("label" if k % 2 else "main", join(*cover, spine)), ("paper", pages)):
            parts.setdefault(name, []).append(mesh.turned(turn).moved((0, 0, z)))
        z += h
    return {name: join(*meshes) for name, meshes in parts.items()}


def stone(rng: Rng) -> Parts:
    squash = tuple(rng.uniform(0.6, 1, 3) * 0.5)
    return {"main": dents(ball(1, 32), rng, rng.uniform(0.1, 0.35), 1.6).scaled(squash)}


def fruit(rng: Rng) -> Parts:
    t = np.linspace(0, np.pi, 25)
    dimple, long = rng.uniform((0, 0.8), (0.16, 1.2))
    r = 0.45 * np.sin(t) * (1 - 0.12 * np.cos(t))
    z = -0.45 * long * np.cos(t) - dimple * np.cos(t) * np.exp(-((r / 0.12) ** 2))
    body = revolve(np.stack([r, z], axis=1))
    stalk = tube(
        np.array([(0, 0, z[-1] - 0.02), (0.01, 0, z[-1] + 0.07), (0.05, 0, z[-1] + 0.14)]), 0.015
    )
    return {"main": dents(body, rng, 0.04, 3), "dark": stalk}


def sphere(rng: Rng) -> Parts:
    return {"main": ball(0.5, 32)}


def ring(rng: Rng) -> Parts:
    thick = rng.uniform(0.08, 0.2)
    angle = np.linspace(0, 2 * np.pi, 49)[:-1]
    path = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1) * (0.5 - thick / 2)
    return {"main": tube(path, thick, 20, closed=True)}


def knot(rng: Rng) -> Parts:
    t = np.linspace(0, 2 * np.pi, 121)[:-1]
    r = 0.33 + 0.13 * np.cos(3 * t)
    path = np.stack([r * np.cos(2 * t), r * np.sin(2 * t), 0.16 * np.sin(3 * t)], axis=1)
    return {"main": tube(path, rng.uniform(0.06, 0.1), 14, closed=True)}


def teddy_bear(rng: Rng) -> Parts:
    fat = rng.uniform(0.85, 1.2)
    body = ball(0.27 * fat, 20).scaled((1, 0.9, 1.15)).moved((0, 0, 0.3))
    head = ball(0.22, 20).moved((0, 0, 0.74))
    ears = [ball(0.08, 10).moved((s * 0.16, 0, 0.93)) for s in (-1, 1)]
    arms = [ball(0.1, 12).scaled((1, 1, 1.9)).moved((s * 0.3 * fat, -0.06, 0.38)) for s in (-1, 1)]
    legs = [ball(0.12, 12).scaled((1, 1.7, 1)).moved((s * 0.17, -0.22, 0.12)) for s in (-1, 1)]
    snout = ball(0.09, 12).moved((0, -0.18, 0.7))
    eyes = [ball(0.025, 8).moved((s * 0.08, -0.2, 0.8)) for s in (-1, 1)]
    nose = ball(0.03, 8).moved((0, -0.27, 0.72))
    return {
        "fabric": join(body, head, *ears, *arms, *legs),
        "accent": snout,
        "dark": join(*eyes, nose),
    }


def _legs(w: float, d: float, h: float, thick: float, splay: float) -> Mesh:
    legs = []
    for x in (-1, 1):
        for y in (-1, 1):
            top, foot = np.array([x * w, y * d, h]), np.array([x * w * splay, y * d * splay, 0])
            legs.append(tube(np.linspace(foot, top, 4), thick, 10))
    return join(*legs)


def chair(rng: Rng) -> Parts:
    w, h, thick = rng.uniform((0.22, 0.38, 0.018), (0.28, 0.46, 0.03))
    seat = block(2 * w, 2 * w, 0.05, 0.01).moved((0, 0, h))
    legs = _legs(w - 0.03, w - 0.03, h, thick, rng.uniform(1, 1.2))
    lean = rng.uniform(0.02, 0.1)
    posts = [
        tube(
            np.array(
                [
                    (s * (w - 0.03), w - 0.03, h),
                    (s * (w - 0.03), w + lean / 2, 0.7),
                    (s * (w - 0.03), w + lean, 1),
                ]
            ),
            thick,
            10,
        )
        for s in (-1, 1)
    ]
    back = block(2 * w, 0.03, rng.uniform(0.12, 0.42), 0.01)
    back = back.turned(about("x", -5)).moved((0, w + lean * 0.6, 0.97 - np.ptp(back.points[:, 2])))
    return {
        "main": join(legs, *posts),
        "fabric" if rng.random() < 0.5 else "wood": join(seat, back),
    }


def stool(rng: Rng) -> Parts:
    r, h = rng.uniform((0.25, 0.5), (0.42, 0.95))
    seat = revolve(_closed(np.array([(r, 0), (r + 0.01, 0.03), (r, 0.07)]))).moved((0, 0, h))
    return {"main": _legs(r * 0.6, r * 0.6, h + 0.02, 0.028, rng.uniform(1, 1.5)), "wood": seat}


def lamp(rng: Rng) -> Parts:
    r, low, top = rng.uniform((0.14, 0.22, 0.1), (0.24, 0.36, 0.24))
    start = rng.uniform(0.5, 0.65)
    foot = _closed(np.array([(r, 0), (r, 0.03), (0.03, 0.06)]))
    pole = tube(np.linspace((0, 0, 0.03), (0, 0, 0.9), 6), rng.choice([0.015, 0.03, 0.07]))
    shade = revolve(np.array([(low, start), (top, 1.0)]), tiles=(2, 1))
    return {"main": join(revolve(foot), pole), "fabric": shade}


def bag(rng: Rng) -> Parts:
    w, d, h = rng.uniform((0.5, 0.2, 0.5), (0.75, 0.32, 0.7))
    body = block(w, d, h, 0.09)
    taper = 1 - 0.25 * (body.points[:, 2:] / h) ** 2
    body = Mesh(body.points * np.concatenate([taper**0.3, taper, taper**0], 1), body.uv, body.faces)
    angle = np.linspace(0, np.pi, 16)
    loop = np.stack([np.cos(angle) * w * 0.25, 0 * angle, np.sin(angle) * 0.28 + h * 0.97], axis=1)
    loops = [tube(loop, 0.018, 8).moved((0, s * d * 0.22, 0)) for s in (-1, 1)]
    return {"fabric": body, "accent": join(*loops)}


def hat(rng: Rng) -> Parts:
    r, h = rng.uniform((0.2, 0.22), (0.27, 0.36))
    curve = [
        (0.5, 0.01),
        (0.4, 0.02),
        (r + 0.02, 0.03),
        (r, h * 0.7),
        (r * 0.8, h),
        (0.001, h * 0.97),
    ]
    return {
        "fabric": revolve(_curve(curve)),
        "accent": revolve(np.array([(r + 0.024, 0.03), (r + 0.012, 0.11)])),
    }


def shoe(rng: Rng) -> Parts:
    long, tall = rng.uniform((0.9, 0.28), (1.05, 0.42))
    upper = ball(1, 28)
    x = upper.points[:, 0]
    shape = np.stack(
        [x * long / 2, upper.points[:, 1] * (0.17 + 0.02 * x), upper.points[:, 2] * tall], 1
    )
    shape[:, 2] = np.maximum(shape[:, 2] * np.where(x > 0, 1 - 0.55 * x, 1 + 0.1 * x), 0) + 0.07
    top = shape[:, 2] > tall * 0.86
    shape[top, 2] = tall * 0.72
    outline = np.linspace(0, 2 * np.pi, 33)[:-1]
    sole = np.stack([np.cos(outline) * long * 0.52, np.sin(outline) * 0.19], axis=1)
    base = prism(sole, 0.08).turned(about("x", 90)).moved((0, 0, 0.04))
    flat = np.stack([shape[:, 0] / long + 0.5, shape[:, 2] / tall], axis=1)
    return {"fabric": Mesh(shape, flat, upper.faces), "accent": base}


def toy_car(rng: Rng) -> Parts:
    long, h = rng.uniform((0.9, 0.16), (1.1, 0.24))
    body = block(long, 0.45, h, 0.05).moved((0, 0, 0.1))
    cabin = block(long * rng.uniform(0.4, 0.6), 0.4, 0.2, 0.05).moved((-0.05, 0, 0.08 + h))
    wheel = revolve(_closed(np.array([(0.1, -0.04), (0.11, -0.03), (0.11, 0.03), (0.1, 0.04)])))
    wheel = wheel.turned(about("x", 90))
    spots = [(s * long * 0.3, t * 0.21, 0.11) for s in (-1, 1) for t in (-1, 1)]
    return {"main": body, "accent": cabin, "dark": join(*(wheel.moved(s) for s in spots))}


def toy_house(rng: Rng) -> Parts:
    w, d, h = rng.uniform((0.5, 0.45, 0.35), (0.8, 0.7, 0.55))
    roof = prism(
        np.array([(-w * 0.58, h), (w * 0.58, h), (0, h + rng.uniform(0.2, 0.4))]), d * 1.15
    )
    chimney = block(0.08, 0.08, 0.3).moved((w * 0.25, 0, h))
    return {"main": block(w, d, h), "accent": roof, "wood": chimney}


def mushroom(rng: Rng) -> Parts:
    r, h = rng.uniform((0.3, 0.35), (0.48, 0.6))
    cap = _curve(
        [(0.08, h * 0.95), (r, h), (r * 0.95, h + 0.08), (r * 0.5, h + 0.25), (0.001, h + 0.3)]
    )
    stem = _closed(_curve([(0.14, 0), (0.09, h * 0.5), (0.1, h)]))
    return {"accent": revolve(cap), "paper": revolve(stem)}


def teapot(rng: Rng) -> Parts:
    r = rng.uniform(0.28, 0.36)
    body = revolve(_closed(_curve([(r * 0.6, 0), (r, 0.22), (r * 0.85, 0.42), (r * 0.4, 0.52)])))
    lid = revolve(
        _closed(
            _curve([(r * 0.45, 0.51), (r * 0.35, 0.56), (0.03, 0.58), (0.05, 0.63), (0.02, 0.67)])
        )
    )
    spout = tube(
        _space([(r * 0.8, 0, 0.15), (r + 0.14, 0, 0.25), (r + 0.22, 0, 0.48)]),
        np.linspace(0.07, 0.03, 13),
    )
    grip = tube(
        _space(
            [(-r * 0.8, 0, 0.42), (-r - 0.2, 0, 0.4), (-r - 0.15, 0, 0.18), (-r * 0.9, 0, 0.12)]
        ),
        0.03,
    )
    return {"main": join(body, spout, grip), "accent" if rng.random() < 0.4 else "main 2": lid}


def _space(points: list[tuple[float, float, float]]) -> NDArray[np.float64]:
    return np.asarray(_curve(points))  # type: ignore[arg-type]


def snowman(rng: Rng) -> Parts:
    a, b, c = 0.26, 0.19, 0.14
    balls = [
        ball(a, 20).moved((0, 0, a * 0.95)),
        ball(b, 20).moved((0, 0, 0.62)),
        ball(c, 20).moved((0, 0, 0.88)),
    ]
    nose = revolve(np.array([(0.03, 0), (0.001, 0.16)])).turned(about("x", 90)).moved((0, -c, 0.88))
    return {"main": join(*balls), "accent": nose}


def candlestick(rng: Rng) -> Parts:
    """A chess piece, candlestick or spindle: a wavy profile."""
    heights = np.linspace(0.08, 0.95, rng.integers(5, 9))
    radii = rng.uniform(0.05, 0.2, len(heights))
    foot = rng.uniform(0.16, 0.26)
    curve = _curve([(foot, 0), (foot, 0.05), *zip(radii, heights, strict=True), (0.02, 1.0)])
    return {"main": revolve(_closed(curve))}


def tower(rng: Rng) -> Parts:
    """Blocks of a toy, one on the other."""
    parts: dict[str, list[Mesh]] = {}
    z = 0.0
    for name in rng.permutation(["main", "accent", "wood"])[: rng.integers(2, 4)]:
        size = rng.uniform(0.24, 0.38)
        kind = rng.integers(3)
        if kind == 0:
            mesh = block(size, size, size, 0.015)
        elif kind == 1:
            mesh = revolve(_closed(np.array([(size / 2, 0), (size / 2, size)])))
        else:
            mesh = prism(
                np.array([(-size / 1.8, 0), (size / 1.8, 0), (0.09, size), (-0.09, size)]), size
            )
        turn = about("z", rng.uniform(0, 90))
        parts.setdefault(name, []).append(mesh.turned(turn).moved((0, 0, z)))
        z += size
    return {name: join(*meshes) for name, meshes in parts.items()}


def cone(rng: Rng) -> Parts:
    r, top = rng.uniform((0.25, 0.01), (0.4, 0.06))
    return {"main": revolve(_closed(np.array([(r, 0), (top, 1)])), tiles=(3, 3))}


def plate(rng: Rng) -> Parts:
    r = rng.uniform(0.4, 0.5)
    curve = _curve([(r * 0.55, 0), (r * 0.6, 0.015), (r * 0.9, 0.06), (r, 0.08)])
    return {"main": revolve(_closed(curve, 0.015))}


def picture_frame(rng: Rng) -> Parts:
    """A board, or a picture in its frame, lying."""
    w, h, t = rng.uniform((0.5, 0.5, 0.03), (0.9, 0.9, 0.06))
    e = 0.06
    bars = [block(w, e, t).moved((0, s * (h - e) / 2, 0)) for s in (-1, 1)]
    bars += [block(e, h - 2 * e, t).moved((s * (w - e) / 2, 0, 0)) for s in (-1, 1)]
    return {"wood": join(*bars), "label": block(w - 2 * e, h - 2 * e, t * 0.6)}


def pillow(rng: Rng) -> Parts:
    w, h = rng.uniform((0.65, 0.2), (1, 0.32))
    mesh = ball(1, 40)
    x, y, z = mesh.points.T
    round_ = np.maximum(np.abs(x), np.abs(y)) / np.maximum(np.hypot(x, y), 1e-9)
    grow = 1 / np.maximum(round_, 0.7) ** 0.85
    dip = 1 - 0.25 * np.abs(x * y)
    points = np.stack(
        [x * grow * dip / 2, y * grow * dip * w / 2, z * h * (1 - 0.5 * (x**2 + y**2)) ** 0.5], 1
    )
    flat = np.stack([points[:, 0] + 0.5, points[:, 1] / w + 0.5], axis=1)
    return {"fabric": dents(Mesh(points, flat, mesh.faces), rng, 0.06, 3)}


SHAPES: dict[str, Callable[[Rng], Parts]] = {
    build.__name__.replace("_", " "): build
    for build in (
        *(
            vase,
            bouquet,
            bottle,
            can,
            mug,
            bowl,
            plant,
            box,
            carton,
            book_stack,
            stone,
            fruit,
            sphere,
        ),
        *(
            ring,
            knot,
            teddy_bear,
            chair,
            stool,
            lamp,
            bag,
            hat,
            shoe,
            toy_car,
            toy_house,
            mushroom,
            teapot,
        ),
        *(snowman, candlestick, tower, cone, plate, picture_frame, pillow),
    )
}
FLAT = ("picture frame", "plate", "book stack", "box")
"""what may lean on a wall"""
UPRIGHT = ("bouquet", "plant", "lamp", "hat")
"""what never lies on its side"""
