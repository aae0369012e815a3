"""Intersections, normals and depth against implicit equations that know nothing of rays."""

from __future__ import annotations

import math

import attrs
import numpy as np
import pytest

from ppap_plugin_shapes.world import SHAPES
from ppap_plugin_shapes.world.render import ground_truth
from ppap_plugin_shapes.world.sampling import sample_scene
from ppap_plugin_shapes.world.scene import FIRST_SOLID, FLOOR, WALL, Camera, Scene, trace
from ppap_plugin_shapes.world.solids import Solid

HEIGHTS = {"sphere": 1.0, "cube": 1.0, "cylinder": 1.3, "cone": 1.2}


def solid(shape: str) -> Solid:
    yaw = 0.6 if shape == "cube" else 0.0
    return Solid(SHAPES.index(shape), 0, x=0.3, z=-0.2, radius=0.5, height=HEIGHTS[shape], yaw=yaw)


def implicit(solid: Solid, points: np.ndarray) -> np.ndarray:
    """Negative inside, zero on the surface, positive outside, for world points (3, n)."""
    x, y, z = points[0] - solid.x, points[1], points[2] - solid.z
    axis = np.hypot(x, z)
    match SHAPES[solid.shape]:
        case "sphere":
            return np.sqrt(x**2 + (y - solid.radius) ** 2 + z**2) - solid.radius
        case "cylinder":
            return np.maximum(axis - solid.radius, np.maximum(-y, y - solid.height))
        case "cone":
            return np.maximum(axis - solid.radius * (1 - y / solid.height), -y)
        case _:
            # Turning by yaw takes the x axis towards -z.
            right = x * math.cos(solid.yaw) - z * math.sin(solid.yaw)
            ahead = x * math.sin(solid.yaw) + z * math.cos(solid.yaw)
            across = np.maximum(np.abs(right), np.abs(ahead)) - solid.radius
            return np.maximum(across, np.maximum(-y, y - solid.height))


def rays_from_outside(solid: Solid, reach: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    origins = rng.uniform(-reach, reach, (3, 4 * count))
    origins[1] = rng.uniform(0.0, reach, 4 * count)
    origins = origins[:, implicit(solid, origins) > 1e-3][:, :count]
    aims = np.array(solid.centre)[:, None] + rng.uniform(-0.7, 0.7, (3, count))
    return origins, aims - origins


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reach", [0.8, 4.0], ids=["within the bounding sphere", "far"])
def test_a_ray_meets_the_solid_where_it_first_enters_it(shape: str, reach: float) -> None:
    body = solid(shape)
    origins, directions = rays_from_outside(body, reach, 3000)
    entry = body.intersect(origins, directions)
    hit = np.isfinite(entry)
    assert 0.2 < hit.mean() < 0.95

    on_surface = origins[:, hit] + entry[hit] * directions[:, hit]
    np.testing.assert_allclose(implicit(body, on_surface), 0.0, atol=1e-9)

    steps = np.linspace(0.0, 4.0, 400)[:, None]
    inside = implicit(body, origins[:, None, :] + steps * directions[:, None, :]) < -1e-9
    before_entry = steps < np.where(hit, entry, np.inf) - 1e-9
    assert not (inside & before_entry).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_vertical_and_axis_parallel_rays(shape: str) -> None:
    body = solid(shape)
    origins = np.array([[0.3, 0.3, 9.0], [5.0, 0.4, 5.0], [-0.2, -6.0, -0.2]])
    directions = np.array([[0.0, 0.0, 0.0], [-1.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    down, ahead, aside = body.intersect(origins, directions)
    assert down == pytest.approx(5.0 - body.height)
    assert implicit(body, np.array([[0.3], [0.4], [-6.0 + ahead]])) == pytest.approx(0.0, abs=1e-9)
    assert aside == math.inf


@pytest.mark.parametrize("shape", SHAPES)
def test_normals_are_gradients(shape: str) -> None:
    body = solid(shape)
    origins, directions = rays_from_outside(body, 4.0, 500)
    entry = body.intersect(origins, directions)
    hit = np.isfinite(entry)
    points = origins[:, hit] + entry[hit] * directions[:, hit]
    step = 1e-6
    gradient = np.stack(
        [
            (implicit(body, points + offset) - implicit(body, points - offset)) / (2 * step)
            for offset in step * np.eye(3)[:, :, None]
        ]
    )
    gradient /= np.linalg.norm(gradient, axis=0)
    np.testing.assert_allclose(body.normal(points), gradient, atol=1e-4)


def sphere_before_wall(pitch: float) -> Scene:
    """The camera looks straight at the centre of a sphere, four units away."""
    x, y, z = 0.0, 0.5, 0.0
    position = (x, y + 4 * math.sin(pitch), z - 4 * math.cos(pitch))
    grey = (0.5, 0.5, 0.5)
    return Scene(
        solids=(Solid(SHAPES.index("sphere"), 0, x, z, radius=0.5, height=1.0),),
        camera=Camera(position, pitch, tan_half_fov=0.4),
        wall_distance=2.5,
        wall_yaw=0.0,
        light=(3.0, 5.0, -4.0),
        floor=grey,
        wall=grey,
        floor_name="slate",
        wall_name="slate",
    )


@pytest.mark.parametrize("pitch", [0.0, 0.3, 0.6])
def test_depth_in_closed_form(pitch: float) -> None:
    scene = sphere_before_wall(pitch)
    size = 33
    depth, segmentation, _ = ground_truth(scene, size)
    assert depth[16, 16] == pytest.approx(3.5, abs=1e-6)
    # In the middle column a ray falls by sin + v cos and advances by cos - v sin per unit of depth.
    height, back = 0.5 + 4 * math.sin(pitch), 4 * math.cos(pitch)
    slope = 0.4 * ((2 * np.arange(size) + 1) / size - 1)
    with np.errstate(divide="ignore"):
        floor = height / (math.sin(pitch) + slope * math.cos(pitch))
    wall = (back + 2.5) / (math.cos(pitch) - slope * math.sin(pitch))
    behind = np.where((floor > 0) & (floor < wall), floor, wall)
    bare = segmentation[:, 16] < FIRST_SOLID
    np.testing.assert_allclose(depth[bare, 16], behind[bare], rtol=1e-6)
    # Half the angle that a sphere fills has the sine radius / distance.
    outline = np.arctan(slope) ** 2 < math.asin(0.5 / 4) ** 2
    np.testing.assert_array_equal(~bare, outline)
    # Which is as far to the left and right as up and down.
    first, last = np.flatnonzero(outline)[[0, -1]]
    own, *others = ground_truth(scene, size)[2]
    edges = np.array([first, first, last + 1, last + 1]) / size
    np.testing.assert_allclose(own, [scene.solids[0].kind, *edges], rtol=1e-6)
    assert (np.array(others) == -1).all()


@pytest.mark.parametrize("index", range(12))
def test_depth_puts_each_pixel_on_the_surface_that_segmentation_names(index: int) -> None:
    scene = sample_scene(11, index)
    size = 32
    depth, segmentation, _ = ground_truth(scene, size)
    forward = np.array([0.0, -math.sin(scene.camera.pitch), math.cos(scene.camera.pitch)])
    right = np.array([1.0, 0.0, 0.0])
    up = np.cross(forward, right)
    rows, columns = np.mgrid[0:size, 0:size]
    across = ((columns + 0.5) / size * 2 - 1) * scene.camera.tan_half_fov
    above = (1 - (rows + 0.5) / size * 2) * scene.camera.tan_half_fov
    rays = sum(
        vector[:, None] * weight.ravel()
        for vector, weight in ((forward, np.ones_like(across)), (right, across), (up, above))
    )
    points = np.array(scene.camera.position)[:, None] + depth.ravel() * rays

    wall = np.array(scene.wall_normal) @ points + scene.wall_distance
    distances = [wall, points[1], *(implicit(solid, points) for solid in scene.solids)]
    surfaces = np.array([WALL, FLOOR, *(FIRST_SOLID + solid.shape for solid in scene.solids)])
    for surface in np.unique(segmentation):
        named = np.abs([d for d, s in zip(distances, surfaces, strict=True) if s == surface])
        assert named.min(axis=0)[segmentation.ravel() == surface].max() < 2e-6
    assert min(distance.min() for distance in distances) > -2e-6  # nothing nearer was missed


def test_nearer_solids_hide_farther_ones() -> None:
    scene = sphere_before_wall(0.3)
    behind = Solid(SHAPES.index("cube"), 1, x=0.0, z=1.4, radius=0.5, height=1.0)
    crowded = attrs.evolve(scene, solids=(behind, *scene.solids))
    rays = scene.camera.directions(np.zeros(1), np.zeros(1))
    for order in (crowded.solids, crowded.solids[::-1]):
        depth, surface = trace(attrs.evolve(crowded, solids=order), rays)
        assert depth == pytest.approx(3.5)
        assert order[surface[0] - FIRST_SOLID].shape == SHAPES.index("sphere")
