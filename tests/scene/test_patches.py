"""Holes filled with pieces of the picture: cuts, shifts, sources, and seams evened out."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow
from skimage import data

from inlay import Composer
from inlay.cli import main
from inlay.pictures.arrays import grow
from inlay.scene import shiftmap
from inlay.scene.fill import copy_pieces, fill_hole, shadow_of
from inlay.scene.patches import find_sources

Array = NDArray[np.float32]


def disc(shape: tuple[int, int], y: int, x: int, radius: float) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.hypot(rows - y, columns - x) <= radius


def filled(picture: Array, hole: NDArray[np.bool_], seed: int = 0) -> Array:
    sources = find_sources(picture, hole, seed)
    assert sources is not None
    return copy_pieces(picture, hole, sources)


def energy(picture: Array, hole: NDArray[np.bool_]) -> float:
    down, across = np.gradient(picture.mean(-1))
    return float(np.mean((down**2 + across**2)[hole]))


# --- the cut


def grid_links(height: int, width: int) -> NDArray[np.int32]:
    numbers = np.pad(np.arange(height * width).reshape(height, width), 1, constant_values=-1)
    inner = slice(1, -1)
    sides = (numbers[2:, inner], numbers[:-2, inner], numbers[inner, 2:], numbers[inner, :-2])
    return np.stack(sides, -1).reshape(-1, 4).astype(np.int32)


@pytest.mark.parametrize("seed", range(12))
def test_the_cut_costs_what_scipys_flow_carries(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(2, 9, 2)
    count, links = height * width, grid_links(height, width)
    ends = rng.integers(-9, 10, count)
    ways = np.where(links >= 0, rng.integers(0, 7, (count, 4)), 0)
    source, sink = count, count + 1
    graph = np.zeros((count + 2, count + 2), np.int32)
    for i, k in itertools.product(range(count), range(4)):
        if links[i, k] >= 0:
            graph[i, links[i, k]] = ways[i, k]
    graph[source, :count], graph[:count, sink] = np.maximum(ends, 0), np.maximum(-ends, 0)
    carried = maximum_flow(csr_matrix(graph), source, sink).flow_value
    on_sink = shiftmap._flow(ends.astype(float), ways.astype(float), links) > 0
    cost = np.maximum(ends, 0)[on_sink].sum() + np.maximum(-ends, 0)[~on_sink].sum()
    cost += sum(
        ways[i, k]
        for i, k in itertools.product(range(count), range(4))
        if links[i, k] >= 0 and not on_sink[i] and on_sink[links[i, k]]
    )
    assert cost == carried


# --- sources


def test_a_periodic_picture_is_completed_exactly() -> None:
    tile = cv2.resize(data.coffee()[100:200, 200:300], (13, 11), interpolation=cv2.INTER_AREA)
    picture = np.tile(tile / 255, (12, 10, 1)).astype(np.float32)
    hole = disc(picture.shape[:2], 66, 65, 17)
    broken = np.where(hole[..., None], np.float32(0.3), picture)
    np.testing.assert_allclose(filled(broken, hole), picture, atol=2e-3)


def test_an_edge_goes_on_through_the_hole() -> None:
    rng = np.random.default_rng(0)
    picture = np.full((120, 160, 3), 0.75, np.float32)
    picture[70:] = 0.25
    picture += rng.normal(0, 0.02, picture.shape).astype(np.float32)
    hole = disc((120, 160), 68, 80, 25)
    result = filled(np.where(hole[..., None], np.float32(0), picture), hole)
    wrong = np.abs(result.mean(-1) - np.where(np.arange(120) < 70, 0.75, 0.25)[:, None]) > 0.25
    assert wrong[hole].mean() < 0.02


@pytest.mark.parametrize("name", ["grass", "gravel", "brick"])
def test_texture_is_as_rough_as_round_the_hole(name: str) -> None:
    grey = cv2.resize(getattr(data, name)(), (256, 256), interpolation=cv2.INTER_AREA)
    picture = np.repeat(grey[..., None] / 255, 3, -1).astype(np.float32)
    hole = disc((256, 256), 120, 130, 40)
    broken = np.where(hole[..., None], np.float32([1, 0, 0]), picture)
    truth = energy(picture, hole)
    assert abs(np.log2(energy(filled(broken, hole), hole) / truth)) < 0.7
    assert abs(np.log2(energy(fill_hole(broken, hole), hole) / truth)) > 2


def test_a_thing_beside_the_hole_is_not_put_into_it() -> None:
    grey = cv2.resize(data.gravel(), (256, 256), interpolation=cv2.INTER_AREA) / 255
    picture = np.repeat(grey[..., None] * 0.3 + 0.5, 3, -1).astype(np.float32)
    cat = cv2.resize(data.chelsea()[20:280, 120:380], (130, 130), interpolation=cv2.INTER_AREA)
    thing = disc((256, 256), 128, 128, 60)
    picture[63:193, 63:193][thing[63:193, 63:193]] = cat[thing[63:193, 63:193]] / 255
    # Gravel lies all round the hole, and the cat in the same rows.
    hole = disc((256, 256), 128, 45, 34) & ~thing
    sources = find_sources(np.where(hole[..., None], np.float32(0.2), picture), hole)
    assert sources is not None and thing[tuple(sources[hole].T)].mean() < 0.05


def test_how_strange_a_colour_is() -> None:
    rng = np.random.default_rng(0)
    colours, rim = rng.random((9, 7, 3), np.float32), rng.random((5, 3), np.float32)
    wanted = np.linalg.norm(colours[:, :, None] - rim, axis=-1).min(-1)
    np.testing.assert_allclose(shiftmap.strangeness(colours, rim), wanted, rtol=1e-5)


def test_what_a_shift_map_costs() -> None:
    rng = np.random.default_rng(0)
    shape = (20, 24)
    colours = rng.integers(0, 256, (*shape, 3)).astype(np.float32)
    guide = rng.integers(0, 256, (*shape, 2)).astype(np.float32)
    hole, usable = disc(shape, 10, 9, 3), np.zeros(shape, np.bool_)
    usable[1:-1, 1:-1] = ~grow(hole, 1)[1:-1, 1:-1]
    rows = np.zeros(shape, np.float32)
    sources, cost = shiftmap.shift_map(colours, rows, guide, usable, hole)
    shifts = sources - np.stack(np.indices(shape), -1)

    def apart(one: NDArray[np.int32], two: NDArray[np.int32]) -> float:
        known = [usable[tuple(place)] for place in (one, two)]
        if not all(known):
            return 500.0 * any(known)
        return float(round(min(500, np.linalg.norm(colours[tuple(one)] - colours[tuple(two)]))))

    total = 0.0
    for point in np.argwhere(hole):
        source = sources[tuple(point)]
        total += round(np.linalg.norm(guide[tuple(point)] - guide[tuple(source)]))
        for step in np.array([(1, 0), (-1, 0), (0, 1), (0, -1)]):
            beside = point + step
            if not hole[tuple(beside)]:
                far = np.linalg.norm(colours[tuple(beside)] - colours[tuple(source + step)])
                total += 2 * round(min(500, far))
            elif step.sum() > 0:
                other = sources[tuple(beside)]
                total += apart(source, other - step) + apart(source + step, other)
    assert shifts[hole].any(1).all() and cost == pytest.approx(total / hole.sum())


def test_nothing_comes_from_the_hole_and_nothing_else_changes() -> None:
    picture = (data.astronaut()[:200, 150:380] / 255).astype(np.float32)
    hole = disc((200, 230), 90, 100, 45)
    # What the hole held before has no say, whatever it was.
    broken, changed = picture.copy(), picture.copy()
    broken[hole], changed[hole] = 0.5, np.random.default_rng(0).random((hole.sum(), 3))
    sources = find_sources(broken, hole)
    assert sources is not None and not hole[tuple(sources[hole].T)].any()
    result = copy_pieces(broken, hole, sources)
    np.testing.assert_array_equal(result[~hole], picture[~hole])
    np.testing.assert_array_equal(result, filled(changed, hole))


@pytest.mark.parametrize(
    ("shape", "place"), [((9, 40), (4, 20)), ((33, 31), (0, 0)), ((61, 15), (60, 14))]
)
def test_small_and_odd_pictures(shape: tuple[int, int], place: tuple[int, int]) -> None:
    picture = np.random.default_rng(1).random((*shape, 3), np.float32)
    hole = disc(shape, *place, 3)
    result = filled(picture, hole)
    assert np.isfinite(result).all() and result.min() >= 0 and result.max() <= 1
    np.testing.assert_array_equal(result[~hole], picture[~hole])


def test_where_no_patch_is_whole_there_are_no_sources() -> None:
    hole = np.zeros((40, 40), np.bool_)
    hole[::4, ::4] = True
    assert find_sources(np.full((40, 40, 3), 0.5, np.float32), hole) is None


def test_a_large_hole_is_mapped_at_half_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inlay.scene.patches._MOST", 500)
    tile = np.kron(np.random.default_rng(0).random((4, 4, 3)), np.ones((4, 4, 1)))
    picture = np.tile(tile, (10, 10, 1)).astype(np.float32)
    hole = disc((160, 160), 80, 80, 25)
    broken = np.where(hole[..., None], np.float32(0), picture)
    np.testing.assert_allclose(filled(broken, hole), picture, atol=5e-3)


# --- seams


def test_a_ramp_copied_from_beside_meets_the_ramp() -> None:
    columns = np.linspace(0.1, 0.9, 120, dtype=np.float32)
    picture = np.broadcast_to(columns[:, None], (80, 120, 3)).copy()
    hole = disc((80, 120), 40, 70, 14)
    sources = np.stack(np.indices(hole.shape), -1).astype(np.int32)
    # Ten pixels to the left are 0.067 darker; two pieces meet in the middle.
    sources[..., 1] -= np.where(np.arange(80) < 40, 10, 14)[:, None]
    np.testing.assert_allclose(copy_pieces(picture, hole, sources), picture, atol=0.01)


def test_an_edge_is_no_step_to_be_evened_out() -> None:
    picture = np.zeros((60, 90, 3), np.float32)
    picture[:, :45] = 0.9
    hole = disc((60, 90), 30, 60, 8)
    sources = np.stack(np.indices(hole.shape), -1).astype(np.int32)
    sources[..., 1] -= 35
    # White in black stays white: it does not bleed out.
    assert copy_pieces(picture, hole, sources)[30, 60, 0] > 0.85


def test_a_hole_at_the_border_is_held_by_it() -> None:
    picture = np.full((60, 90, 3), 0.5, np.float32)
    picture[:, :45] = 0.45
    hole = np.zeros((60, 90), np.bool_)
    hole[20:, 60:] = True
    sources = np.stack(np.indices(hole.shape), -1).astype(np.int32)
    # Every step goes up, and three sides of the picture are no end to it.
    sources[20:, 60:, 1] -= np.where(np.arange(40) % 2, 30, 15)[:, None]
    result = copy_pieces(picture, hole, sources)
    assert result.min() > 0.44 and result.max() < 0.56


# --- the shadow


def shaded_ball() -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
    """A ball on plain ground, its mask, and its shadow to the lower right; a dark spot far away."""
    rng = np.random.default_rng(0)
    picture = (0.6 + rng.normal(0, 0.01, (160, 200, 1)) * np.ones(3)).astype(np.float32)
    ball = disc((160, 200), 70, 80, 30)
    shadow = disc((160, 200), 95, 105, 18) & ~ball
    picture[shadow | disc((160, 200), 140, 180, 8)] *= 0.6
    picture[ball] = (0.8, 0.1, 0.1)
    return picture, ball, shadow


def test_a_shadow_is_what_is_darker_beside_the_lower_half() -> None:
    picture, ball, shadow = shaded_ball()
    found = shadow_of(picture, ball, 0.5)
    assert (found & shadow).sum() > 0.7 * shadow.sum()
    assert (found & ~shadow).sum() < 0.2 * shadow.sum()
    assert not (found & ball).any()
    blue = picture.copy()
    blue[shadow] = (0.1, 0.2, 0.6)
    assert shadow_of(blue, ball, 0.5).sum() < 0.2 * shadow.sum()


def test_the_shadow_goes_where_it_is_asked_for() -> None:
    picture, ball, shadow = shaded_ball()
    shown, mask = (picture * 255).astype(np.uint8), ball.astype(np.uint8) * 255
    composer = Composer()
    results = [
        composer.remove(shown, mask=mask, method="patches", shadow=reach) for reach in (0, 0.5)
    ]
    kept, gone = (np.asarray(each.image)[shadow].mean() / 255 for each in results)
    assert kept < 0.5 and gone > 0.55
    assert "patches: a shadow goes too beside what is taken out" in results[1].record["notes"]


# --- the method


def test_remove_is_the_same_twice_and_exact_outside() -> None:
    picture = data.chelsea()
    mask = (disc(picture.shape[:2], 120, 220, 40) * 255).astype(np.uint8)
    composer = Composer()
    one, two = (composer.remove(picture, mask=mask, method="patches") for _ in range(2))
    first, second = (np.asarray(each.image) for each in (one, two))
    np.testing.assert_array_equal(first, second)
    outside = ~disc(picture.shape[:2], 120, 220, 46)
    np.testing.assert_array_equal(first[outside], picture[outside])


def test_the_command_needs_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.coffee()[:200, :300]).save("coffee.png")
    Image.fromarray(disc((200, 300), 90, 140, 30)).save("mask.png")
    told = ["remove", "coffee.png", "--mask", "mask.png", "-o", "r.png", "--method", "patches"]
    assert main(told) == 0
    assert Image.open("r.png").size == (300, 200)


def test_a_mask_that_leaves_next_to_nothing_says_so() -> None:
    picture = data.coffee()[:60, :60]
    mask = np.full((60, 60), 255, np.uint8)
    mask[:, :3] = 0
    result = Composer().remove(picture, mask=mask, method="patches", dilate=0)
    assert any("too little of the picture" in note for note in result.record["notes"])
