"""The rooms of rank 0: conventions, schedules, random streams, view words, meshes, messages."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dreamkit import device as devices
from dreamkit.cameras import Cameras, Orbit, orbit, ring
from dreamkit.errors import InputError, nearest
from dreamkit.images import on_background
from dreamkit.meshes import Mesh, coloured, join
from dreamkit.prompts import EIGHT, ViewWords, read_list, with_view
from dreamkit.schedule import DreamTime, Geometric, Linear, Polyline, Sigmoid, Sqrt, Switch, resolve
from dreamkit.streams import Streams

# ---- Cameras. Positions are products of a few float32 roundings, 6e-8 each: 1e-6 relative holds easily.


@pytest.mark.parametrize(
    ("azimuth", "elevation", "position"),
    [
        (0.0, 0.0, (2.0, 0.0, 0.0)),  # in front of the object
        (90.0, 0.0, (0.0, 2.0, 0.0)),  # at its left
        (180.0, 0.0, (-2.0, 0.0, 0.0)),
        (-90.0, 0.0, (0.0, -2.0, 0.0)),
        (0.0, 90.0, (0.0, 0.0, 2.0)),  # above
        (0.0, -90.0, (0.0, 0.0, -2.0)),
        (0.0, 30.0, (math.sqrt(3.0), 0.0, 1.0)),
    ],
)
def test_azimuth_and_elevation_are_where_the_camera_stands(azimuth, elevation, position):
    torch.testing.assert_close(
        orbit([azimuth], elevation, distance=2.0).positions[0], torch.tensor(position), rtol=1e-6, atol=1e-6
    )


def test_from_the_front_right_is_plus_y_and_up_is_plus_z():
    expected = torch.tensor([[0.0, 0.0, 1.0, 3.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(orbit([0.0], 0.0).camera_to_world[0], expected, rtol=0, atol=1e-6)


@given(st.floats(-720, 720), st.floats(-90, 90), st.floats(0.1, 50))
def test_every_orbit_camera_is_a_rotation_that_looks_at_the_origin_upright(azimuth, elevation, distance):
    cameras = orbit([azimuth], elevation, distance)
    rotation, position = cameras.camera_to_world[0, :, :3].double(), cameras.positions[0].double()
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(3).double(), rtol=0, atol=1e-6)
    assert torch.linalg.det(rotation) > 0
    near = 1e-6 * max(distance, 1.0)  # eight times the rounding of a float32 of that size
    torch.testing.assert_close(position, distance * rotation[:, 2], rtol=0, atol=near)  # looks along -z
    assert abs(rotation[2, 0]) < 1e-6  # the picture's right is level
    assert rotation[2, 1] > -1e-6  # and its top is not below its bottom


def test_the_ray_through_the_centre_meets_the_origin():
    """An odd picture has a pixel in the middle."""
    cameras = orbit([10.0, 200.0], [-30.0, 85.0], distance=2.5, size=(5, 7))
    origins, directions = cameras.rays()
    middle = origins[:, 2, 3] + 2.5 * directions[:, 2, 3]
    torch.testing.assert_close(middle, torch.zeros(2, 3), rtol=0, atol=1e-6)


def test_rays_are_unit_and_start_at_the_camera():
    cameras = orbit([10.0, 200.0], 20.0, size=(4, 6))
    origins, directions = cameras.rays()
    assert origins.shape == directions.shape == (2, 4, 6, 3)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(2, 4, 6), rtol=1e-6, atol=0)
    assert origins.equal(cameras.positions[:, None, None].expand(2, 4, 6, 3))


def test_rays_land_in_their_own_pixels():
    """Round trip: projecting a point of every ray by the textbook formula gives back the pixel's centre."""
    cameras = orbit([30.0, -100.0], [10.0, -50.0], fov_degrees=torch.tensor([40.0, 70.0]), size=(4, 6))
    origins, directions = cameras.rays()
    for i in range(2):
        points = (origins + 1.7 * directions)[i].double().reshape(-1, 3)
        local = (points - cameras.positions[i].double()) @ cameras.camera_to_world[i, :, :3].double()
        focal = 0.5 * 4 / math.tan(math.radians(float(cameras.fov_degrees[i])) / 2)  # in pixels, from the height
        columns = 3 + focal * local[:, 0] / -local[:, 2]
        rows = 2 - focal * local[:, 1] / -local[:, 2]
        grid = torch.stack(torch.meshgrid(torch.arange(4) + 0.5, torch.arange(6) + 0.5, indexing="ij"), -1)
        # pixels are counted to 6, positions to 3 units: float32 leaves about 1e-6 of that
        torch.testing.assert_close(torch.stack([rows, columns], -1), grid.double().reshape(-1, 2), rtol=0, atol=1e-5)


def test_the_top_row_looks_up_and_the_last_column_right():
    _, directions = orbit([0.0], 0.0, size=3).rays()
    assert directions[0, 0, 1, 2] > 0 > directions[0, 2, 1, 2]
    assert directions[0, 1, 2, 1] > 0 > directions[0, 1, 0, 1]


def test_the_field_of_view_is_the_vertical_one():
    """The rays at the picture's edges, half a pixel further out than the outermost centres, span fov_degrees."""
    _, directions = orbit([0.0], 0.0, fov_degrees=50.0, size=(2, 8)).rays()
    slope = float(directions[0, 0, 4, 2] / -directions[0, 0, 4, 0])  # pixel centres lie at half of the half height
    assert math.degrees(2 * math.atan(2 * slope)) == pytest.approx(50.0, abs=1e-4)


def test_cameras_are_cut_and_moved_whole(device):
    cameras = orbit([0.0, 90.0, 180.0], 20.0, size=(4, 6)).to(device)
    part = cameras[1:]
    assert (len(cameras), len(part)) == (3, 2)
    assert isinstance(part, Cameras)
    assert part.azimuth_degrees.tolist() == [90.0, 180.0]
    assert part.positions.equal(cameras.positions[1:])
    assert (part.height, part.width) == (4, 6)
    assert part.rays()[1].device.type == device
    assert len(cameras[3:]) == 0


def test_a_ring_is_even_and_starts_in_front():
    cameras = ring(8, elevation_degrees=0.0, distance=2.0)
    assert cameras.azimuth_degrees.tolist() == [0, 45, 90, 135, 180, 225, 270, 315]
    torch.testing.assert_close(cameras.positions[0], torch.tensor([2.0, 0.0, 0.0]))
    torch.testing.assert_close(cameras.positions.mean(0), torch.zeros(3), rtol=0, atol=1e-6)


def test_a_random_orbit_stays_within_its_bounds_and_sees_all_sides():
    spec = Orbit(distance=(2.0, 2.5), fov_degrees=(30.0, 50.0), elevation_degrees=(-20.0, 70.0), size=8)
    for step in range(20):
        cameras = spec.sample(4, Streams(0, step))
        for values, (low, high) in (
            (cameras.positions.norm(dim=-1), spec.distance),
            (cameras.fov_degrees, spec.fov_degrees),
            (cameras.elevation_degrees, spec.elevation_degrees),
            (cameras.azimuth_degrees, spec.azimuth_degrees),
        ):
            assert (values >= low - 1e-5).all()
            assert (values <= high + 1e-5).all()
        # One camera in each of four equal sectors, turned together: neighbours are less than two sectors apart.
        around = cameras.azimuth_degrees.sort().values
        gaps = torch.diff(around, append=around[:1] + 360)
        assert gaps.max() < 180


def test_over_many_steps_a_random_orbit_is_uniform():
    draws = [Orbit().sample(4, Streams(0, step)) for step in range(500)]
    azimuth = torch.cat([cameras.azimuth_degrees for cameras in draws])
    elevation = torch.cat([cameras.elevation_degrees for cameras in draws])
    # Means of 2000 draws, whose standard errors are at most 360 / sqrt(12 * 500) = 4.6 (a turn is common to a batch)
    # and 70 / sqrt(12 * 2000) = 0.5 degrees; 5 of them.
    assert abs(float(azimuth.mean())) < 23
    assert abs(float(elevation.mean()) - 25) < 2.5
    assert 0.2 < float((azimuth.abs() < 45).float().mean()) < 0.3  # a quarter in front


def test_the_same_stream_draws_the_same_cameras():
    first, again, other = (Orbit().sample(3, Streams(1, step)) for step in (5, 5, 6))
    assert first.camera_to_world.equal(again.camera_to_world)
    assert not first.camera_to_world.equal(other.camera_to_world)


def test_cameras_may_be_counted_round_another_point():
    cameras = orbit([0.0, 90.0], 0.0, distance=2.0).about((1.0, 1.0, -1.0))
    # Offsets (1, -1, 1) and (-1, 1, 1).
    torch.testing.assert_close(cameras.azimuth_degrees, torch.tensor([-45.0, 135.0]), rtol=1e-5, atol=0)
    elevation = math.degrees(math.atan(math.sqrt(0.5)))
    torch.testing.assert_close(cameras.elevation_degrees, torch.full((2,), elevation), rtol=1e-5, atol=0)


def test_a_ray_through_a_point_of_the_picture_is_that_of_its_pixel():
    cameras = replace(orbit([30.0], 20.0, size=4), width=8)
    rows, columns = torch.tensor([0.0, 0.625, 1.0]), torch.tensor([0.5, 0.3125])
    origins, directions = cameras.rays_through(rows, columns)
    assert origins.shape == directions.shape == (1, 3, 2, 3)
    assert torch.equal(directions[:, 1, 1], cameras.rays()[1][:, 2, 2])  # the centre of row 2 of 4, column 2 of 8
    middle = (directions[:, 0, 0] + directions[:, 2, 0]) / 2  # top and bottom, in the middle column: the axis
    axis = -cameras.camera_to_world[:, :, 2]
    torch.testing.assert_close(torch.nn.functional.normalize(middle, dim=-1), axis, rtol=0, atol=1e-6)


# ---- Schedules


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Linear(2.0, 4.0), {-1.0: 2.0, 0.0: 2.0, 0.25: 2.5, 1.0: 4.0, 2.0: 4.0}),
        (Linear(2.0, 4.0, 0.5, 0.75), {0.0: 2.0, 0.5: 2.0, 0.625: 3.0, 0.75: 4.0, 1.0: 4.0}),
        (Linear(2.0, 4.0, 0.5, 0.5), {0.49: 2.0, 0.5: 4.0}),
        (Geometric(1.0, 100.0), {0.0: 1.0, 0.5: 10.0, 1.0: 100.0}),
        (Sqrt(1.0, 0.0), {0.0: 1.0, 0.25: 0.5, 1.0: 0.0}),
        (Sigmoid(2.0, 4.0), {0.0: 2.0, 0.25: 3.0 - math.tanh(1.25) / math.tanh(2.5), 0.5: 3.0, 1.0: 4.0}),
        (Sigmoid(2.0, 4.0, 5000.0), {0.0: 2.0, 0.4: 2.0, 0.5: 3.0, 0.6: 4.0, 1.0: 4.0}),
        (Switch(1.0, 2.0, 0.2), {0.0: 1.0, 0.19: 1.0, 0.2: 2.0, 1.0: 2.0}),
        (
            Polyline(((0.1, 1.0), (0.3, 3.0), (1.0, 10.0))),
            {0.0: 1.0, 0.2: 2.0, 0.3: 3.0, 0.65: 6.5, 1.0: 10.0, 2.0: 10.0},
        ),
    ],
)
def test_a_schedule_has_these_values(schedule, values):
    assert {progress: schedule.at(progress) for progress in values} == pytest.approx(values, rel=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Geometric(0.0, 1.0),
        lambda: Geometric(1.0, 0.0),
        lambda: Sigmoid(1.0, 2.0, 0.0),
        lambda: Polyline(()),
        lambda: Polyline(((0.5, 1.0), (0.2, 2.0))),
    ],
)
def test_a_schedule_without_values_is_refused(make):
    with pytest.raises(InputError):
        make()


@dataclass(frozen=True)
class Inner:
    rate: object
    name: str = "inner"
    derived: object = field(default="derived", init=False)


@dataclass(frozen=True)
class Outer:
    inner: Inner
    pair: tuple
    plain: float = 1.0


def test_resolve_reaches_every_depth_and_leaves_the_rest_as_it_is():
    plain = Inner(3.0)
    tree = Outer(Inner((Linear(0.0, 1.0), Inner(Switch(1.0, 2.0, 0.5)))), (plain, "text", None, Linear(0.0, 2.0)))
    now = resolve(tree, 0.5)
    assert now == Outer(Inner((0.5, Inner(2.0))), (plain, "text", None, 1.0))
    assert now.pair[0] is plain
    assert tree.pair[3] == Linear(0.0, 2.0)  # the recipe is as it was


def test_resolve_gives_back_the_same_object_where_nothing_changes():
    for value in (Outer(Inner(1.0), (1, 2)), (1, (2, 3)), "text", None, 3, Outer, [Linear(0.0, 1.0)]):
        assert resolve(value, 0.5) is value


# ---- Streams


def test_a_stream_is_a_function_of_seed_step_and_name():
    draw = Streams(1, 2).normal("noise", (4,))
    assert draw.equal(Streams(1, 2).normal("noise", (4,)))
    others = [Streams(2, 2).normal("noise", (4,)), Streams(1, 3).normal("noise", (4,)), Streams(1, 2).normal("t", (4,))]
    assert not any(bool((draw == other).any()) for other in others)
    # numbers that run together in text must not run together as streams
    assert not Streams(1, 12).normal("t", (4,)).equal(Streams(11, 2).normal("t", (4,)))


def test_a_new_consumer_shifts_nobody():
    streams = Streams(0, 0)
    before = streams.uniform("level", (3,))
    streams.normal("something new", (1000,))
    torch.randn(10)
    assert streams.uniform("level", (3,)).equal(before)


def test_the_global_generator_is_left_alone():
    state = torch.random.get_rng_state()
    Streams(0, 0).normal("noise", (100,))
    assert torch.random.get_rng_state().equal(state)


def test_draws_are_the_same_in_every_dtype_and_on_every_device(device):
    single = Streams(0, 1).normal("noise", (5,), like=torch.zeros(1, device=device))
    double = Streams(0, 1).normal("noise", (5,), like=torch.zeros(1, dtype=torch.float64))
    assert (single.device.type, single.dtype, double.dtype) == (device, torch.float32, torch.float64)
    assert single.cpu().equal(double.float())


def test_draws_have_the_distribution_they_say():
    normal, uniform = Streams(0, 0).normal("a", (100_000,)), Streams(0, 0).uniform("a", (100_000,))
    # 5 standard errors: of a mean of N(0, 1) 0.0032 each, of its variance 0.0045, of a mean of U 0.00091
    assert abs(float(normal.mean())) < 0.016
    assert abs(float(normal.var()) - 1) < 0.023
    assert abs(float(uniform.mean()) - 0.5) < 0.0046
    assert 0 <= float(uniform.min()) < float(uniform.max()) <= 1


def test_draws_of_neighbouring_steps_are_independent():
    rows = torch.stack([Streams(0, step).normal("noise", (1000,)) for step in range(20)])
    correlation = torch.corrcoef(rows) - torch.eye(20)
    assert float(correlation.abs().max()) < 5 / math.sqrt(1000)  # 5 standard errors of a correlation of 1000 pairs


def test_dream_time_spends_its_steps_as_its_density_says():
    """Against the density summed over a fine grid: the share of it above at(progress) is the progress."""
    u = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    high, low = torch.exp(-((u - 0.8) ** 2) / (2 * 0.3**2)), torch.exp(-((u - 0.5) ** 2) / (2 * 0.1**2))
    density = torch.where(u > 0.8, high, torch.where(u < 0.5, low, torch.ones_like(u)))
    above = 1 - density.cumsum(0) / density.sum()
    values = [DreamTime().at(i / 50) for i in range(51)]
    assert values == sorted(values, reverse=True)
    assert (values[0], values[-1]) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-6))
    for i, value in enumerate(values):
        share = float(above[round(value * 200_000)])
        assert share == pytest.approx(i / 50, abs=2e-5)  # the grid's cell has 5e-6 of u, and a density of 1.6 at most


# ---- Prompts


@pytest.mark.parametrize(
    ("azimuth", "elevation", "view"),
    [
        (0.0, 0.0, "front"),
        (44.9, 0.0, "front"),
        (-44.9, 0.0, "front"),
        (45.0, 0.0, "side"),
        (-45.0, 0.0, "front"),
        (45.1, 0.0, "side"),
        (-45.1, 0.0, "side"),
        (90.0, 0.0, "side"),
        (135.0, 0.0, "back"),
        (-135.0, 0.0, "side"),
        (135.1, 0.0, "back"),
        (-135.1, 0.0, "back"),
        (180.0, 0.0, "back"),
        (-180.0, 0.0, "back"),
        (225.1, 0.0, "side"),
        (315.1, 0.0, "front"),
        (360.0, 0.0, "front"),
        (540.0, 0.0, "back"),
        (0.0, 60.0, "front"),
        (0.0, 60.1, "overhead"),
        (180.0, 60.1, "overhead"),
        (180.0, 60.0, "back"),
        (90.0, 90.0, "overhead"),
        (0.0, -90.0, "front"),
    ],
)
def test_the_view_word_changes_at_its_boundaries(azimuth, elevation, view):
    assert ViewWords().at(azimuth, elevation) == view


def test_a_batch_of_cameras_has_a_word_each():
    cameras = orbit([0.0, 90.0, 180.0, 0.0], [0.0, 0.0, 0.0, 80.0])
    assert ViewWords().of(cameras) == ["front", "side", "back", "overhead"]
    assert with_view("a red mug", "front") == "a red mug, front view"


def test_eight_words_go_round_the_object_by_its_left_side():
    cameras = orbit([45.0 * i + 10 for i in range(8)], 0.0)
    assert tuple(ViewWords(EIGHT).of(cameras)) == EIGHT
    left = cameras.positions[EIGHT.index("left side")]  # +x is the front and +z up, so the left is +y
    assert left[1] > 2.5
    assert ViewWords(EIGHT).at(90.0, 61.0) == "overhead"


@pytest.mark.parametrize(
    ("elevation", "view"),
    [(-30, "low back"), (0, "low back"), (29.9, "low back"), (30, "high back"), (60, "high back"), (61, "overhead")],
)
def test_a_height_is_said_before_the_direction_from_where_it_begins(elevation, view):
    """And the lowest below that, too."""
    assert ViewWords(heights=(("low", 0.0), ("high", 30.0))).at(180.0, elevation) == view


@pytest.mark.parametrize(
    "words",
    [ViewWords(), ViewWords(EIGHT), ViewWords(("all round",)), ViewWords(EIGHT, (("low", -15.0), ("high", 30.0)))],
)
def test_every_view_is_said_from_somewhere_and_no_other(words):
    said = {words.at(azimuth, elevation) for azimuth in range(-180, 540, 10) for elevation in range(-90, 91, 5)}
    assert said == set(words.every)
    assert len(words.every) == len(said)


@pytest.mark.parametrize(
    "wrong", [{"directions": ()}, {"heights": (("a", 5.0), ("b", 5.0))}, {"heights": (("a", 60.0),)}]
)
def test_view_words_that_could_not_be_said_are_refused(wrong):
    with pytest.raises(InputError, match="ascending order"):
        ViewWords(**wrong)


def test_a_prompt_list_is_its_lines(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("# mugs\na red mug\n\n   a blue mug  \n  # not this\nein grüner Würfel", encoding="utf-8")
    assert read_list(file) == ["a red mug", "a blue mug", "ein grüner Würfel"]
    file.write_bytes("\ufeff# mugs\r\na red mug\r\na red mug\r\n".encode())  # as an editor on Windows writes it
    assert read_list(file) == ["a red mug"]


@pytest.mark.parametrize("data", [b"", b"# only words about it\n\n", b"\xff\xfe\x00"])
def test_a_prompt_list_without_prompts_is_told(tmp_path, data):
    (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(InputError, match=r"prompt list .*list\.txt"):
        read_list(tmp_path / "list.txt")
    with pytest.raises(InputError, match=r"cannot read the prompt list .*none\.txt.*one prompt a line"):
        read_list(tmp_path / "none.txt")


# ---- Messages, devices, images


@pytest.mark.parametrize(
    ("name", "known", "says"),
    [
        ("sdss", ["sds", "csd"], "Did you mean 'sds'? Known: csd, sds."),
        ("sds", ["SDS", "CSD"], "Did you mean 'SDS' or 'CSD'? Known: CSD, SDS."),
        ("xyz", ["b", "a"], "Known: a, b."),
        ("x", [], "Known: none."),
    ],
)
def test_an_unknown_name_is_told_the_nearest_and_all(name, known, says):
    assert nearest(name, known) == says


def test_a_device_is_one_there_is():
    assert devices.choose("cpu") == torch.device("cpu")
    assert devices.choose("auto").type in ("cpu", "cuda")
    for request in ("gpu", "cuda:99", "", "meta"):
        with pytest.raises(InputError, match=f"device '{request}'"):
            devices.choose(request)


def test_a_package_is_found_without_being_imported():
    assert devices.installed("torch")
    assert not devices.installed("no_such_package")


def test_sums_of_a_pixel_become_its_depth_its_direction_and_its_colour_on_a_background():
    """One half covered by something red, 3 away, whose normals partly cancel; and one where nothing is."""
    alpha = torch.tensor([0.5, 0.0]).reshape(1, 1, 1, 2)
    colour = torch.tensor([[0.5, 0.0], [0.0, 0.0], [0.0, 0.0]]).reshape(1, 3, 1, 2)
    normal = torch.tensor([[0.3, 0.0], [0.4, 0.0], [0.0, 0.0]]).reshape(1, 3, 1, 2)
    images = on_background(colour, alpha, 3 * alpha, 0.2 * normal, torch.tensor([[0.0, 1.0, 0.5]]))
    assert images.rgb[0, :, 0].T.tolist() == [[0.5, 0.5, 0.25], [0.0, 1.0, 0.5]]
    assert images.depth.flatten().tolist() == [3.0, 0.0]
    torch.testing.assert_close(images.normal, normal)  # as long as alpha: 0.5
    with pytest.raises(ValueError, match="background must be"):
        on_background(colour, alpha, alpha, None, torch.zeros(1, 3, 2, 2))


# ---- Meshes

CORNER = Mesh(np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]), np.int32([[0, 1, 2], [0, 2, 3]]))


def test_a_face_that_winds_counter_clockwise_faces_you():
    assert CORNER.face_normals.tolist() == [[0, 0, 1], [1, 0, 0]]  # seen from +z and from +x


def test_a_degenerate_face_has_no_normal():
    line = Mesh(np.float32([[0, 0, 0], [1, 0, 0], [2, 0, 0]]), np.int32([[0, 1, 2]]))
    assert line.face_normals.tolist() == [[0, 0, 0]]


def test_an_empty_mesh_is_a_mesh():
    empty = Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32))
    assert empty.face_normals.shape == (0, 3)


@pytest.mark.parametrize(
    ("vertices", "faces", "says"),
    [
        (np.zeros((3, 2)), np.zeros((1, 3), int), r"got \(3, 2\), \(1, 3\)"),
        (np.zeros((3, 3)), np.zeros((1, 4), int), r"got \(3, 3\), \(1, 4\)"),
        (np.zeros((3, 3)), np.array([[0, 1, 3]]), r"faces name vertices 0\.\.3, but there are 3"),
        (np.zeros((3, 3)), np.array([[-1, 1, 2]]), r"faces name vertices -1\.\.2"),
        (np.zeros((0, 3)), np.array([[0, 0, 0]]), "but there are 0"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(vertices, faces, says):
    with pytest.raises(ValueError, match=says):
        Mesh(vertices, faces)


def test_joined_meshes_keep_their_places_and_colours():
    red = coloured(CORNER, (1.0, 0.0, 0.0))
    whole = join(red, replace(CORNER, vertices=CORNER.vertices + 5), red)
    assert (len(whole.vertices), len(whole.faces)) == (12, 6)
    assert (whole.vertices.dtype, whole.faces.dtype, whole.colours.dtype) == (np.float32, np.int32, np.float32)
    assert whole.faces.tolist() == [[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7], [8, 9, 10], [8, 10, 11]]
    assert whole.colours[[0, 4, 8]].tolist() == [[1, 0, 0], [1, 1, 1], [1, 0, 0]]
    np.testing.assert_array_equal(whole.face_normals, np.concatenate([CORNER.face_normals] * 3))


def test_another_attempt_draws_other_numbers_but_what_is_kept_stays():
    first, second = Streams(1, 2), Streams(1, 2, attempt=1)
    assert not (first.normal("noise", (4,)) == second.normal("noise", (4,))).any()
    assert first.still().normal("noise", (4,)).equal(second.still().normal("noise", (4,)))
    assert second.within("guide0").attempt == 1
