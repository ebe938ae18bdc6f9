"""From the raw surface of a noisy field to a mesh worth unwrapping: whole, smooth, and within a face budget."""

import warnings
from dataclasses import replace

import numpy as np

from dreamkit.assets.extract import signed_volume
from dreamkit.errors import RunError
from dreamkit.meshes import Mesh


def clean(mesh: Mesh, faces: int = 12_000, *, keep: float = 0.02, smoothing: int = 8) -> Mesh:
    """The mesh without floaters, inner shells and degenerate faces, smoothed, and with about `faces` faces or fewer.

    Vertex colours are carried along; texture coordinates would not survive, so clean before unwrapping.

    Args:
        mesh: closed components, facing outward.
        faces: the budget, at least 4; where the shape would be lost, more are kept.
        keep: the smallest component kept, as a share of the area of the largest.
        smoothing: Taubin iterations; 0 leaves the positions alone.

    Raises RunError if nothing is left, ValueError if the mesh is textured.
    """
    if mesh.uv is not None:
        raise ValueError("clean changes the faces, so the texture coordinates would be lost: clean before unwrapping")
    mesh = drop_degenerate(mesh)
    if not len(mesh.faces):
        raise RunError(
            "The mesh is empty: no surface lies at the chosen density level. Look at the run's images: if they show an "
            "object, give a lower level or a finer grid; if they do not, train longer or from another seed."
        )
    mesh = drop_enclosed(drop_floaters(mesh, keep))
    # Smoothing first: decimation then spends its faces on the shape, not on the noise.
    return decimate(smooth(mesh, smoothing), faces)


def drop_degenerate(mesh: Mesh) -> Mesh:
    """Without faces of no area (or of no finite position), and without vertices that no face uses."""
    a, b, c = (mesh.vertices[mesh.faces[:, i]].astype(np.float64) for i in range(3))
    doubled = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    longest = np.maximum(np.linalg.norm(b - a, axis=1), np.linalg.norm(c - a, axis=1))
    # Relative to its own size: a height below a ten-millionth of its length is float32 rounding.
    good = np.isfinite(doubled) & (doubled > 1e-7 * longest**2) & (longest > 0)
    return _with_faces(mesh, mesh.faces[good])


def drop_floaters(mesh: Mesh, keep: float) -> Mesh:
    """Without components whose area is below `keep` times that of the largest. keep = 1 keeps the largest only."""
    label = components(mesh)
    area = np.bincount(label, weights=_areas(mesh))
    return _with_faces(mesh, mesh.faces[(area >= keep * area.max())[label]]) if len(area) else mesh


def drop_enclosed(mesh: Mesh) -> Mesh:
    """Without components that lie inside another: walls of cavities, and what floats in them. No camera outside sees
    them, yet they would cost faces and texels."""
    label = components(mesh)
    groups = [mesh.faces[label == i] for i in range(int(label.max(initial=-1)) + 1)]
    volumes = [signed_volume(mesh.vertices, g) for g in groups]
    shells = [i for i, v in enumerate(volumes) if v > 0]  # walls of cavities face inward: negative
    kept = [
        group
        for i, group in enumerate(groups)
        if not any(
            abs(volumes[i]) < volumes[j] and winding_number(mesh, groups[j], mesh.vertices[group[0, 0]]) > 0.5
            for j in shells
            if j != i
        )
    ]
    return _with_faces(mesh, np.concatenate(kept)) if kept else mesh


def winding_number(mesh: Mesh, faces: np.ndarray, point: np.ndarray) -> float:
    """How often a closed surface goes round a point: 1 inside, 0 outside.

    The sum of the faces' solid angles over 4 pi; each by van Oosterom and Strackee, "The solid angle of a plane
    triangle", 1983, eq. 8.
    """
    a, b, c = (mesh.vertices[faces[:, i]].astype(np.float64) - point for i in range(3))
    la, lb, lc = (np.linalg.norm(v, axis=1) for v in (a, b, c))
    above = (a * np.cross(b, c)).sum(1)
    below = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
    return float(np.arctan2(above, below).sum() / (2 * np.pi))


def components(mesh: Mesh) -> np.ndarray:
    """The number [F] of the connected component of every face; faces are connected by shared vertices."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not len(mesh.faces):
        return np.zeros(0, np.int64)
    first, second, third = mesh.faces.T
    ends = np.concatenate([first, second]), np.concatenate([second, third])
    graph = coo_matrix((np.ones(len(ends[0]), bool), ends), shape=(len(mesh.vertices),) * 2)
    label = connected_components(graph, directed=False)[1][mesh.faces[:, 0]]
    return np.unique(label, return_inverse=True)[1]


def smooth(mesh: Mesh, iterations: int, shrink: float = 0.5, grow: float = -0.53) -> Mesh:
    """Taubin smoothing: steps of Laplacian smoothing, each followed by a slightly larger step back, which takes out
    noise of the size of the edges and leaves the volume (G. Taubin, "A signal processing approach to fair surface
    design", 1995, section 3). Uniform weights."""
    from scipy.sparse import coo_matrix, diags

    ends = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    count = len(mesh.vertices)
    graph = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count)).tocsr()
    graph = ((graph + graph.T) > 0).astype(np.float64)
    degree = np.asarray(graph.sum(axis=1)).ravel()
    mean = diags(1 / np.maximum(degree, 1)) @ graph
    used = (degree > 0)[:, None]
    vertices = mesh.vertices.astype(np.float64)
    for step in (shrink, grow) * iterations:
        vertices = vertices + step * used * (mean @ vertices - vertices)
    return replace(mesh, vertices=vertices.astype(np.float32))


def decimate(mesh: Mesh, faces: int) -> Mesh:
    """At most about `faces` faces, by quadric edge collapse; the mesh itself if it has no more than that.

    If the collapse damages the shape (loses everything, leaves the bounding box, or changes a closed volume by a
    tenth), it is tried again gently; if that fails as well, the mesh stays as it is and a warning says so.
    """
    if faces < 4:
        raise ValueError(f"a closed mesh needs at least 4 faces; the budget is {faces}")
    if len(mesh.faces) <= faces:
        return mesh
    for aggression in (7.0, 3.0):
        fewer = _collapse(mesh, faces, aggression)
        if fewer is not None:
            return fewer
    warnings.warn(
        f"Decimation from {len(mesh.faces)} to {faces} faces would have damaged the shape, so all faces are kept. "
        "A larger face budget may work.",
        stacklevel=2,
    )
    return mesh


def _collapse(mesh: Mesh, faces: int, aggression: float) -> Mesh | None:
    """The decimated mesh, or None if it no longer has the shape of the given one."""
    import fast_simplification
    from scipy.spatial import cKDTree

    points, triangles = fast_simplification.simplify(
        mesh.vertices.astype(np.float64), mesh.faces.astype(np.int32), target_count=faces, agg=aggression
    )
    fewer = drop_degenerate(Mesh(np.asarray(points, np.float32), np.asarray(triangles, np.int32)))
    if not len(fewer.faces) or len(fewer.faces) > 1.1 * faces or not _same_shape(mesh, fewer):
        return None
    if mesh.colours is None:
        return fewer
    return replace(fewer, colours=mesh.colours[cKDTree(mesh.vertices).query(fewer.vertices)[1]])


def _same_shape(a: Mesh, b: Mesh) -> bool:
    """Whether two meshes have the same bounding box up to 5 % of its diagonal, and the same volume up to 10 %."""
    corners = [np.stack([m.vertices.min(0), m.vertices.max(0)]) for m in (a, b)]
    near = np.abs(corners[0] - corners[1]).max() <= 0.05 * np.linalg.norm(corners[0][1] - corners[0][0])
    volumes = [signed_volume(m.vertices, m.faces) for m in (a, b)]
    return bool(near and abs(volumes[0] - volumes[1]) <= 0.1 * abs(volumes[0]) + 1e-9)


def _areas(mesh: Mesh) -> np.ndarray:
    a, b, c = (mesh.vertices[mesh.faces[:, i]].astype(np.float64) for i in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


def _with_faces(mesh: Mesh, faces: np.ndarray) -> Mesh:
    """The mesh with these faces only, and the vertices they use."""
    used, inverse = np.unique(faces, return_inverse=True)
    return replace(
        mesh,
        vertices=mesh.vertices[used],
        faces=inverse.reshape(-1, 3).astype(np.int32),
        colours=None if mesh.colours is None else mesh.colours[used],
        uv=None if mesh.uv is None else mesh.uv[used],
    )
