"""Scenes of rendered pairs: what stands where, how it is lit, what is said of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from inlay.learning.folder import Row
from inlay.learning.folder import is_held_out as kept_by_inlay
from pairs.mesh import Mesh, about, ball, block, corners, join, prism, rest, revolve, tube, turn_to
from pairs.paint import Photos, kelvin, linear
from pairs.scene import Scene, View, build_scene
from pairs.shapes import SHAPES
from render_pairs import facts, is_held_out, names, write_pairs

NUMBERS = range(60)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Photos]:
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(data.astronaut()[::4, ::4]).save(folder / "a.png")
    Image.fromarray(data.chelsea()[::3, ::3]).save(folder / "b.png")
    return [Photos(folder, 128), Photos(folder, 64)]


@pytest.fixture(scope="module")
def scenes(photos: list[Photos]) -> dict[int, Scene]:
    return {number: build_scene(number, 0, *photos) for number in NUMBERS}


def points(scene: Scene) -> np.ndarray:
    return join(*(solid.mesh for solid in scene.thing)).points


def test_a_number_gives_one_scene_and_attempts_give_others(
    scenes: dict[int, Scene], photos: list[Photos]
) -> None:
    again, other = build_scene(7, 0, *photos), build_scene(7, 1, *photos)
    np.testing.assert_array_equal(points(again), points(scenes[7]))
    assert facts(7, again) == facts(7, scenes[7]) != facts(7, other)
    assert len({scene.view for scene in scenes.values()}) == len(scenes)


def test_what_has_contact_stands_on_the_support_and_the_rest_floats(
    scenes: dict[int, Scene],
) -> None:
    for scene in scenes.values():
        lowest = points(scene)[:, 2].min()
        assert lowest == pytest.approx(scene.gap, abs=1e-9)
        assert (scene.gap >= 0.3) == (scene.pose == "floating")
    poses = [scene.pose for scene in scenes.values()]
    assert set(poses) == {"standing", "lying", "leaning", "floating"}
    assert 4 <= poses.count("floating") <= 22


def test_what_leans_touches_a_wall_in_both_places(scenes: dict[int, Scene]) -> None:
    leaning = [scene for scene in scenes.values() if scene.pose == "leaning"]
    assert leaning
    for scene, world in itertools.product(leaning, (0, 1)):
        nodes = (scene.home, scene.away)[world].nodes
        walls = [n["to_world"] for n in nodes if n["type"] == "rectangle" and "bsdf" in n]
        reach = [wall[1, 3] for wall in walls if abs(wall[1, 2]) > 0.99 and wall[1, 3] > 0]
        assert 0 <= min(reach) - points(scene)[:, 1].max() < 0.01


def test_nothing_else_enters_the_object(scenes: dict[int, Scene]) -> None:
    for scene in scenes.values():
        near = np.linalg.norm(points(scene)[:, :2], axis=1).max()
        for solid in (*scene.home.solids, *scene.away.solids):
            above = solid.mesh.points[solid.mesh.points[:, 2] > 1e-3]
            away = np.hypot(above[:, 0], above[:, 1])
            assert (away > near - 1e-6).all() or above[:, 1].min() > points(scene)[:, 1].max() - 0.1


def test_the_camera_sees_the_object_from_above_the_support(scenes: dict[int, Scene]) -> None:
    for scene in scenes.values():
        view = scene.view
        behind = np.subtract(view.origin, view.target)
        behind = behind / np.linalg.norm(behind)
        middle = (points(scene).min(0) + points(scene).max(0)) / 2
        x, y, z = view.toward(tuple(middle - view.origin))
        half = np.tan(np.radians(view.field / 2))
        assert z < 0 and abs(x / z) < half and abs(y / z) < half
        assert view.origin[2] >= 0.15


def test_directions_are_told_as_the_camera_sees_them() -> None:
    view = View((0, -2, 0), (0, 0, 0), 40, 0, 0)
    assert view.toward((1, 0, 0)) == (1, 0, 0)
    assert view.toward((0, 0, 1)) == (0, 1, 0)
    assert view.toward((0, -1, 0)) == (0, 0, 1)


def test_every_place_has_light_and_facts_that_an_image_folder_reads(
    scenes: dict[int, Scene],
) -> None:
    for number, scene in scenes.items():
        line = json.dumps(facts(number, scene))
        row = Row.model_validate_json(line)
        assert row.file_name == names(number)["truth"]
        assert row.text and row.text.startswith("a rendering of a ")
        told = json.loads(line)
        for light in told["lights"] + told["other_lights"]:
            assert np.linalg.norm(light["direction"]) == pytest.approx(1, abs=1e-3)
            assert light["irradiance"] > 0
        assert told["lights"] and told["other_lights"] and told["lights"] != told["other_lights"]


def test_a_tenth_is_held_out_and_what_inlay_holds_out_is_among_it() -> None:
    held = [number for number in range(4000) if is_held_out(number)]
    assert 330 < len(held) < 470
    assert {n for n in range(4000) if kept_by_inlay(names(n)["truth"])} <= set(held)


SOLIDS: dict[str, Callable[[], Mesh]] = {
    "ball": lambda: ball(0.7),
    "block": lambda: block(0.5, 1, 0.8).moved((0, 0, -0.4)),
    "rounded": lambda: block(0.5, 1, 0.8, 0.1).moved((0, 0, -0.4)),
    "cylinder": lambda: revolve(np.array([(0, -1), (0.5, -1), (0.5, 1), (0, 1)], float)),
    "prism": lambda: prism(np.array([(-1, -0.5), (1, -0.5), (0, 0.9)], float), 0.7),
    "tube": lambda: tube(np.linspace((0, 0, -1), (0, 0, 1), 5), 0.3),
}
VOLUMES = {
    "ball": 4 / 3 * np.pi * 0.7**3,
    "block": 0.4,
    "rounded": 0.8 * 0.3 * 0.6
    + 2 * 0.1 * (0.3 * 0.8 + 0.3 * 0.6 + 0.8 * 0.6)
    + np.pi * 0.01 * (0.3 + 0.8 + 0.6)
    + 4 / 3 * np.pi * 0.001,
    "cylinder": np.pi * 0.25 * 2,
    "prism": 0.5 * 2 * 1.4 * 0.7,
    "tube": np.pi * 0.09 * 2,
}


@pytest.mark.parametrize("name", SOLIDS)
def test_solids_are_closed_and_face_outward(name: str) -> None:
    """The volume by the divergence theorem is that of the closed form only if they do."""
    mesh = SOLIDS[name]()
    a, b, c = np.moveaxis(mesh.points[mesh.faces], 1, 0)
    volume = (a * np.cross(b, c)).sum() / 6
    assert volume == pytest.approx(VOLUMES[name], rel=0.05)


def test_normals_are_smooth_on_a_ball_and_sharp_on_a_block() -> None:
    at, normals, _ = corners(ball(2.0, 40))
    assert ((at / 2 * normals).sum(axis=1) > 0.995).all()
    _, normals, _ = corners(block(1, 1, 1))
    assert np.abs(normals).max(axis=1) == pytest.approx(1)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_about_one_unit_large_and_finite(name: str) -> None:
    for seed in range(4):
        parts = SHAPES[name](np.random.default_rng(seed))
        extent = np.ptp(join(*parts.values()).points, axis=0).max()
        assert 0.3 < extent < 1.6
        for mesh in parts.values():
            assert all(np.isfinite(values).all() for values in corners(mesh))


def test_what_is_laid_rests_on_a_face() -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        tilted = block(0.5, 1, 0.8).turned(about("x", 33)).turned(about("y", 21))
        laid = tilted.turned(rest(tilted.points, rng)).points
        low = np.unique(np.round(laid[laid[:, 2] < laid[:, 2].min() + 1e-6], 5), axis=0)
        assert len(low) == 4


def test_turns_keep_lengths_and_take_one_direction_into_another() -> None:
    rng = np.random.default_rng(0)
    for start, end in rng.normal(size=(20, 2, 3)):
        start, end = start / np.linalg.norm(start), end / np.linalg.norm(end)
        matrix = turn_to(start, end)
        np.testing.assert_allclose(matrix @ start, end, atol=1e-9)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-9)


def test_warm_light_is_red_daylight_is_nearly_white_and_both_have_luminance_one() -> None:
    for temperature in (2400, 4000, 6600, 9000):
        assert np.dot(kelvin(temperature), [0.2126, 0.7152, 0.0722]) == pytest.approx(1)
    assert kelvin(2400)[0] > 3 * kelvin(2400)[2]
    assert kelvin(6600) == pytest.approx((1, 1, 1), abs=0.05)
    assert linear(0.5) == pytest.approx(0.21404, abs=1e-4)


def test_triples_are_rendered_once_and_agree_outside_the_shadow(
    photos: list[Photos], tmp_path: Path
) -> None:
    write_pairs(tmp_path, range(2), 32, 16, photos)
    first = {path: path.read_bytes() for path in tmp_path.rglob("*.webp")}
    (tmp_path / names(1)["other"]).unlink()
    write_pairs(tmp_path, range(2), 32, 16, photos)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.webp")} == first
    assert len((tmp_path / "metadata.jsonl").read_text().splitlines()) == 2
    for number in range(2):
        place, truth, other = (
            np.asarray(Image.open(tmp_path / names(number)[kind]), float)
            for kind in ("place", "truth", "other")
        )
        np.testing.assert_array_equal(truth[..., 3], other[..., 3])
        apart = np.abs(truth[..., :3] - place).mean(axis=2)
        assert np.median(apart[truth[..., 3] == 0]) < 6 < np.median(apart[truth[..., 3] == 255])
