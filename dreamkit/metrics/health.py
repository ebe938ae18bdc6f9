"""The health of a mesh by itself: what makes it hard to print, to simulate or to light."""

from dataclasses import asdict, dataclass

import numpy as np

from dreamkit.meshes import Mesh


@dataclass(frozen=True)
class Health:
    vertices: int
    faces: int
    components: int
    """Pieces of the surface that share no corner."""
    open_edges: int
    """Edges of one face only: the rims of holes."""
    crowded_edges: int
    """Edges of three faces or more."""
    degenerate: int
    """Faces without area."""
    texture_use: float | None
    """Share of the texture that some face covers; None without a texture."""

    @property
    def watertight(self) -> bool:
        """Every edge has exactly two faces."""
        return self.faces > 0 and not self.open_edges and not self.crowded_edges

    def facts(self) -> dict[str, object]:
        """The report as JSON values."""
        return {**asdict(self), "watertight": self.watertight}


def health(mesh: Mesh) -> Health:
    """Count what is wrong with a mesh. Corners at one place count as one, so that texture seams are no holes."""
    _, place = np.unique(mesh.vertices, axis=0, return_inverse=True)
    faces = place.reshape(-1)[mesh.faces]
    faces = faces[(faces != np.roll(faces, 1, axis=1)).all(1)]  # those collapsed to an edge or a point bound nothing
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    shared, count = np.unique(edges, axis=0, return_counts=True) if len(edges) else (edges, np.zeros(0))
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    return Health(
        vertices=len(mesh.vertices),
        faces=len(mesh.faces),
        components=_components(shared, faces),
        open_edges=int((count == 1).sum()),
        crowded_edges=int((count > 2).sum()),
        degenerate=int((area <= 1e-14).sum()),
        texture_use=_texture_use(mesh),
    )


def _components(edges: np.ndarray, faces: np.ndarray) -> int:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not len(faces):
        return 0
    used, renamed = np.unique(edges, return_inverse=True)
    renamed = renamed.reshape(-1, 2)
    graph = coo_matrix((np.ones(len(renamed)), (renamed[:, 0], renamed[:, 1])), shape=(len(used), len(used)))
    return int(connected_components(graph, directed=False)[0])


def _texture_use(mesh: Mesh) -> float | None:
    """The area of the faces in texture space; charts do not overlap."""
    if mesh.texture is None or mesh.uv is None or not len(mesh.faces):
        return None
    a, b, c = (mesh.uv[mesh.faces[:, i]].astype(np.float64) for i in range(3))
    doubled = np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0])
    return float(min(doubled.sum() / 2, 1.0))
