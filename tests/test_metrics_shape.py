"""Shape metrics against shapes whose distances are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from dreamkit.meshes import Mesh, join
from dreamkit.metrics.shape import likeness, seen_from_outside


def of(solid) -> Mesh:
    return Mesh(np.asarray(solid.vertices, np.float32), np.asarray(solid.faces, np.int32))


BALL = of(trimesh.creation.icosphere(subdivisions=4))
PLATE = of(trimesh.creation.box((2.0, 2.0, 1e-4)))


def moved(mesh: Mesh, by: tuple[float, float, float], scale: float = 1.0) -> Mesh:
    return Mesh((mesh.vertices * scale + np.float32(by)).astype(np.float32), mesh.faces)


def test_a_mesh_is_like_itself():
    same = likeness(BALL, BALL)
    assert same.f_score == same.precision == same.recall == 1.0
    assert same.chamfer < 1e-6  # float32


@pytest.mark.parametrize(("scale", "f"), [(1.1, 1.0), (1.2, 0.0), (0.9, 1.0), (0.8, 0.0)])
def test_a_ball_of_another_size_is_as_far_as_the_radii_differ(scale, f):
    """The tolerance is 0.05 of the diagonal 2 sqrt(3): 0.173."""
    found = likeness(moved(BALL, (0, 0, 0), scale), BALL)
    assert found.tolerance == pytest.approx(0.1732, abs=1e-3)
    assert found.f_score == f
    # The faceted ball's radius is 0.2 % short in the middle of its faces.
    assert found.chamfer == pytest.approx(abs(scale - 1), abs=3e-3)


def test_half_a_shape_has_full_precision_and_half_the_recall():
    left = moved(PLATE, (-1.0, 0.0, 0.0))
    right = moved(PLATE, (1.0, 0.0, 0.0))
    whole = Mesh(np.concatenate([left.vertices, right.vertices]), np.concatenate([left.faces, right.faces + 8]))
    found = likeness(left, whole, share=0.01)
    assert found.precision == 1.0
    # The tolerance, 0.01 of the diagonal sqrt(20), reaches 0.0447 of 4 beyond the half.
    assert found.recall == pytest.approx(0.5 + 0.0447 / 4, abs=0.011)  # three standard errors of 20,000 points
    assert found.f_score == pytest.approx(2 * found.recall / (1 + found.recall))
    # There 0; back half of the points are up to 2 away, 1/2 in the mean of all: three standard errors again.
    assert found.chamfer == pytest.approx(0.25, abs=0.007)


def test_what_is_hidden_inside_does_not_count_on_either_side():
    inner = moved(BALL, (0, 0, 0), 0.5)
    both = join(BALL, inner)
    for one, other in ((BALL, both), (both, BALL)):
        found = likeness(one, other)
        assert found.f_score == 1.0
        assert found.chamfer < 1e-6


def test_what_is_seen_from_a_few_sides_only_is_seen():
    """Of a box twice as high as wide the floor is seen if it has no lid."""
    box = of(trimesh.creation.box((1.0, 1.0, 2.0)))
    open_ = Mesh(box.vertices, box.faces[(box.vertices[box.faces][..., 2] < 1).any(1)])
    floor = torch.tensor([[0.1, 0.2, -1.0], [-0.3, 0.0, -1.0]]) + torch.tensor([0.0, 0.0, 1e-2])
    for mesh, want in ((open_, True), (box, False)):
        assert seen_from_outside(floor, torch.tensor(mesh.vertices), torch.tensor(mesh.faces)).tolist() == [want] * 2


def test_nothing_is_unlike_everything_and_the_truth_must_be_something():
    nothing = Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32))
    found = likeness(nothing, BALL)
    assert (found.f_score, found.chamfer) == (0.0, float("inf"))
    with pytest.raises(ValueError, match="no extent"):
        likeness(BALL, nothing)
    line = replace(BALL, vertices=BALL.vertices * np.array([0, 0, 1], np.float32))  # faces without area
    assert likeness(line, BALL).f_score == 0.0
    with pytest.raises(ValueError, match="no extent"):
        likeness(BALL, line)


def test_the_same_seed_measures_the_same():
    other = moved(BALL, (0.1, 0, 0))
    assert likeness(other, BALL) == likeness(other, BALL)
