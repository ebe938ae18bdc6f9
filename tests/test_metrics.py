"""Mesh health and picture metrics on cases counted by hand."""

import numpy as np
import pytest
import torch
import trimesh

from dreamkit.meshes import Mesh
from dreamkit.metrics.health import health
from dreamkit.metrics.pictures import colour_error, diversity, saturation

BOX = trimesh.creation.box()
VERTICES, FACES = np.asarray(BOX.vertices, np.float32), np.asarray(BOX.faces, np.int32)


def test_a_box_is_healthy():
    found = health(Mesh(VERTICES, FACES))
    assert (found.faces, found.components, found.open_edges, found.crowded_edges, found.degenerate) == (12, 1, 0, 0, 0)
    assert found.watertight
    assert found.facts()["watertight"] is True
    assert found.texture_use is None


def test_a_missing_face_leaves_three_open_edges():
    found = health(Mesh(VERTICES, FACES[1:]))
    assert found.open_edges == 3
    assert not found.watertight


def test_faces_collapsed_to_an_edge_leave_a_closed_surface_closed():
    found = health(Mesh(VERTICES, np.concatenate([FACES, FACES[:1, [0, 0, 1]], FACES[:1, [2, 2, 2]]])))
    assert found.watertight
    assert found.degenerate == 2


def test_a_face_too_many_crowds_its_edges():
    found = health(Mesh(VERTICES, np.concatenate([FACES, FACES[:1]])))
    assert found.crowded_edges == 3
    assert not found.watertight


def test_two_boxes_are_two_components_and_a_flat_face_is_degenerate():
    two = Mesh(np.concatenate([VERTICES, VERTICES + 5]), np.concatenate([FACES, FACES + 8]))
    assert health(two).components == 2
    assert health(Mesh(VERTICES, np.array([[0, 0, 1]], np.int32))).degenerate == 1
    assert not health(Mesh(VERTICES, FACES[:0])).watertight
    assert health(Mesh(VERTICES, FACES[:0])).components == 0


def test_texture_seams_are_no_holes_and_texture_use_is_an_area():
    apart = Mesh(
        VERTICES[FACES].reshape(-1, 3),
        np.arange(36, dtype=np.int32).reshape(12, 3),
        uv=np.tile(np.array([[0, 0], [0.25, 0], [0, 0.25]], np.float32), (12, 1)),
        texture=np.zeros((4, 4, 3), np.uint8),
    )
    found = health(apart)
    assert found.watertight
    assert found.texture_use == pytest.approx(12 * 0.25**2 / 2)


def test_saturation_is_that_of_hsv_over_the_object():
    rgb = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.8, 0.4, 0.4], [0.0, 1.0, 0.0]]).T.reshape(1, 3, 2, 2)
    alpha = torch.tensor([1.0, 1.0, 1.0, 0.0]).reshape(1, 1, 2, 2)
    assert saturation(rgb, alpha) == pytest.approx((1 + 0 + 0.5) / 3)
    assert saturation(rgb, alpha * 0) == 0


def test_colour_error_looks_where_both_are():
    a, b = torch.zeros(1, 3, 1, 3), torch.zeros(1, 3, 1, 3)
    b[0, :, 0, 0] = 0.3
    b[0, :, 0, 2] = 1.0
    alpha, true = torch.tensor([1.0, 1.0, 0.0]).reshape(1, 1, 1, 3), torch.ones(1, 1, 1, 3)
    assert colour_error(a, b, alpha, true) == pytest.approx((0.09 / 2) ** 0.5)
    assert np.isnan(colour_error(a, b, alpha * 0, true))


def test_diversity_is_the_mean_distance_of_pairs():
    pictures = torch.stack([torch.full((1, 3, 2, 2), value) for value in (0.0, 0.1, 0.4)])
    assert diversity(pictures) == pytest.approx((0.1 + 0.4 + 0.3) / 3)
    assert diversity(pictures[[0, 0]]) == 0
    with pytest.raises(ValueError, match="two seeds"):
        diversity(pictures[:1])
