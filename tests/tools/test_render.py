import itertools
import re

import numpy as np
import pytest

from rendered import raycast as rc
from rendered.radiance import (
    Light,
    Material,
    Scene,
    Thing,
    radiance,
)
from rendered.render import (
    COLOURS,
    MATERIALS,
    SHAPES,
    render,
)

GREY = Material("", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), rough=0.9)
WORDS = "|".join((*COLOURS, *MATERIALS))
GRAMMAR = re.compile(
    rf"a rendering of an? ({WORDS}) ({'|'.join(SHAPES)})( on an? ({WORDS}) floor)?"
)


@pytest.fixture(scope="module")
def pictures():
    return {seed: render(seed, 64) for seed in range(24)}


def test_same_seed_same_bytes_and_others_differ(pictures):
    for seed in (0, 7):
        again = render(seed, 64)
        assert again.image.tobytes() == pictures[seed].image.tobytes()
        assert again.mask.tobytes() == pictures[seed].mask.tobytes()
        assert again.caption == pictures[seed].caption
    assert len({picture.image.tobytes() for picture in pictures.values()}) == len(pictures)


def test_pictures_have_the_promised_kind_and_a_plausible_exposure(pictures):
    for picture in pictures.values():
        assert picture.image.shape == (64, 64, 3) and picture.image.dtype == np.uint8
        assert picture.mask.shape == (64, 64) and set(np.unique(picture.mask)) == {0, 255}
        assert 40 < picture.image.mean() < 225
        assert picture.image.std() > 5


def test_mask_covers_a_share_and_lies_near_the_middle(pictures):
    for seed, picture in pictures.items():
        mask = picture.mask > 0
        assert 0.03 <= mask.mean() <= 0.45, seed
        middle = np.argwhere(mask).mean(axis=0) / 64
        assert (np.abs(middle - 0.5) < 0.25).all(), seed


def test_captions_follow_the_grammar_and_name_many_things(pictures):
    found = [GRAMMAR.fullmatch(picture.caption) for picture in pictures.values()]
    assert all(found)
    assert len({match[2] for match in found if match}) >= 6
    for picture in pictures.values():
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", picture.caption)


def test_size_and_seed_are_checked():
    with pytest.raises(ValueError, match="size"):
        render(0, 8)
    with pytest.raises(ValueError, match="seed"):
        render(-1)


def cone_field(p, bottom, top):
    """Below 0 inside the frustum from z = 0 to 1; not a distance, but of the right sign."""
    return np.maximum(
        np.hypot(p[0], p[1]) - (bottom + (top - bottom) * p[2]), abs(p[2] - 0.5) - 0.5
    )


TURN = rc.turned(0.7, 0.3)
PLACED = {"centre": (0.2, -0.1, 0.3), "turn": TURN}
CASES = {
    "sphere": (rc.Ball(scale=(1, 1, 1), **PLACED), lambda p: np.linalg.norm(p, axis=0) - 1),
    "ellipsoid": (rc.Ball(scale=(1, 0.5, 0.8), **PLACED), lambda p: np.linalg.norm(p, axis=0) - 1),
    "box": (rc.Box(scale=(0.5, 0.8, 0.6), **PLACED), lambda p: np.abs(p).max(axis=0) - 1),
    "cylinder": (rc.Frustum(scale=(0.6, 0.6, 1.2), **PLACED), lambda p: cone_field(p, 1, 1)),
    "cone": (
        rc.Frustum(scale=(0.9, 0.9, 1.3), bottom=1, top=0, **PLACED),
        lambda p: cone_field(p, 1, 0),
    ),
    "ring": (
        rc.Ring(scale=(0.8, 0.8, 0.8), tube=0.35, **PLACED),
        lambda p: np.hypot(np.hypot(p[0], p[1]) - 1, p[2]) - 0.35,
    ),
}


def marched(solid, field, origin, direction):
    """First change of sign along each ray in small steps, then bisection; the step's length too."""
    local = (np.array(solid.scale)[:, None], np.array(solid.centre)[:, None])

    def value(t):
        return field(TURN.astype(float) @ (origin + t * direction - local[1]) / local[0])

    steps = np.linspace(0, 8, 1601)
    found = np.full(direction.shape[1], np.inf)
    for low, high in itertools.pairwise(steps):
        new = np.isinf(found) & (value(high) < 0)
        found[new] = low
    hits = np.isfinite(found)
    low, high = np.where(hits, found, 0), np.where(hits, found, 0) + steps[1]
    for _ in range(20):
        middle = (low + high) / 2
        inside = value(middle) < 0
        low, high = np.where(inside, low, middle), np.where(inside, middle, high)
    return np.where(hits, high, np.inf)


def rays_at(count):
    rng = np.random.default_rng(3)
    origin = rc.unit(rng.standard_normal((3, count)).astype(np.float32)) * np.float32(4)
    target = rng.uniform(-1, 1, (3, count)).astype(np.float32)
    return origin, rc.unit(target - origin)


@pytest.mark.parametrize("name", CASES)
def test_hits_agree_with_a_march_along_the_ray(name):
    solid, field = CASES[name]
    origin, direction = rays_at(300)
    found = solid.hit(origin, direction)
    wanted = marched(solid, field, origin, direction)
    both = np.isfinite(found) & np.isfinite(wanted)
    assert both.sum() > 60
    # A march in steps may miss the rays that graze.
    assert (np.isfinite(found) == np.isfinite(wanted)).mean() > 0.98
    off = np.abs(found[both] - wanted[both])
    # The ring is found in steps itself, which end early where a ray runs along its surface.
    assert np.quantile(off, 0.95 if name == "ring" else 0.99) < 1e-3


@pytest.mark.parametrize("name", CASES)
def test_normals_point_where_the_field_grows(name):
    solid, field = CASES[name]
    origin, direction = rays_at(300)
    t = solid.hit(origin, direction)
    hits = np.isfinite(t)
    p = (origin + t * direction)[:, hits]
    normal = solid.normal(p)
    local = [
        field(
            TURN
            @ (p + step * normal - np.array(solid.centre)[:, None])
            / np.array(solid.scale)[:, None]
        )
        for step in (-0.01, 0.01)
    ]
    assert np.allclose(np.linalg.norm(normal, axis=0), 1, atol=1e-5)
    assert ((local[0] < 0) & (local[1] > 0)).mean() > 0.98
    assert (np.sum(normal * direction[:, hits], axis=0) < 0).mean() > 0.98


def ball_scene(light=(3.0, 3.0, 3.0), sky=(0.2, 0.2, 0.2)):
    floor = Thing(rc.Group([rc.Plane()]), GREY, shades=False)
    ball = Thing(rc.Group([rc.Ball((0, 0, 1))], (0, 0, 1), 1.01), GREY)
    return Scene([floor, ball], Light((-20, 0, 20), 0.5, light), sky, sky)


def looking_down(places, scene):
    """Light from the floor at places (N, 2), seen from straight above each."""
    origin = np.array([[x, y, 0.5] for x, y in places], np.float32).T
    down = np.zeros_like(origin)
    down[2] = -1
    return radiance(scene, origin, down, np.random.default_rng(0))[0].mean(axis=0)


def test_floor_is_darker_on_the_side_away_from_the_light():
    shaded, lit, far = looking_down([(1.6, 0), (-1.6, 0), (0, 9)], ball_scene())
    assert shaded < 0.4 * min(lit, far)


def test_shadow_has_a_soft_edge_and_contact_is_dark():
    # The ray from the light that just touches the ball (radius 1 at height 1) ends the shadow.
    low = np.arctan2(19, 20) - np.arcsin(1 / np.hypot(19, 20))
    edge = 20 / np.tan(low) - 20
    scene = ball_scene()
    line = looking_down([(x, 0) for x in np.linspace(1.5, 3.5, 400)], scene)
    middle = (line > line.min() * 1.3) & (line < line.max() * 0.9)
    assert middle.any() and np.linspace(1.5, 3.5, 400)[middle].mean() == pytest.approx(
        edge, abs=0.05
    )
    near, away = looking_down([(0.95, 0.0), (5.0, 0.0)], ball_scene(light=(0, 0, 0)))
    assert near < 0.75 * away


def test_light_adds_up():
    rng = np.random.default_rng(5)
    direction = rc.unit(rng.uniform((-1, 1, -1), (1, 3, 1), (500, 3)).T.astype(np.float32))
    origin = np.array([[0], [-4], [1.2]], np.float32)

    def seen(light, sky):
        scene = ball_scene((light,) * 3, (sky,) * 3)
        return radiance(scene, origin, direction, np.random.default_rng(1))[0]

    key, sky = seen(2.0, 0.0), seen(0.0, 0.3)
    assert np.allclose(seen(4.0, 0.0), 2 * key, rtol=1e-4)
    assert np.allclose(seen(2.0, 0.3), key + sky, rtol=1e-4, atol=1e-5)
    assert key.min() >= 0 and sky.min() >= 0
