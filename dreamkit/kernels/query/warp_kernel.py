"""Ray casting and closest points on Warp's bounding volume hierarchy, on the CPU and on CUDA."""

from contextlib import nullcontext
from typing import Any, no_type_check

import torch
import warp as wp
from torch import Tensor

from dreamkit.kernels.launch import OPTIONS, array, launch
from dreamkit.kernels.query import Hits, miss


@wp.kernel(**OPTIONS)
@no_type_check
def _cast(
    first: int,
    mesh: wp.uint64,
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    distance: wp.array(dtype=wp.float32),
    face: wp.array(dtype=wp.int64),
    barycentric: wp.array(dtype=wp.vec3),
):
    i = first + wp.tid()
    hit = wp.mesh_query_ray(mesh, origins[i], directions[i], 1.0e6)
    if hit.result:
        distance[i] = hit.t
        face[i] = wp.int64(hit.face)
        # Warp's u and v weigh the first and second corner.
        barycentric[i] = wp.vec3(hit.u, hit.v, 1.0 - hit.u - hit.v)


@wp.kernel(**OPTIONS)
@no_type_check
def _closest(
    first: int,
    mesh: wp.uint64,
    points: wp.array(dtype=wp.vec3),
    distance: wp.array(dtype=wp.float32),
    face: wp.array(dtype=wp.int64),
    barycentric: wp.array(dtype=wp.vec3),
):
    i = first + wp.tid()
    found = wp.mesh_query_point_no_sign(mesh, points[i], 1.0e6)
    if found.result:
        place = wp.mesh_eval_position(mesh, found.face, found.u, found.v)
        distance[i] = wp.length(points[i] - place)
        face[i] = wp.int64(found.face)
        barycentric[i] = wp.vec3(found.u, found.v, 1.0 - found.u - found.v)


@wp.kernel(**OPTIONS)
@no_type_check
def _inside(first: int, mesh: wp.uint64, points: wp.array(dtype=wp.vec3), inside: wp.array(dtype=wp.bool)):
    i = first + wp.tid()
    found = wp.mesh_query_point_sign_winding_number(mesh, points[i], 1.0e6)
    inside[i] = found.result and found.sign < 0.0


class MeshSurface:
    def __init__(self, vertices: Tensor, faces: Tensor) -> None:
        self.points = vertices.detach().float().contiguous()
        self.indices = faces.detach().to(torch.int32).reshape(-1).contiguous()
        self.mesh = self._built() if len(faces) else None

    def _built(self) -> wp.Mesh:
        points: Any = wp.from_torch(self.points, dtype=wp.vec3)
        with wp.ScopedStream(wp.stream_from_torch(self.points.device)) if self.points.is_cuda else nullcontext():
            return wp.Mesh(points, wp.from_torch(self.indices), support_winding_number=True)  # type: ignore[arg-type]

    def cast(self, origins: Tensor, directions: Tensor) -> Hits:
        return self._ask(_cast, origins, directions)

    def closest(self, points: Tensor) -> Hits:
        return self._ask(_closest, points)

    def inside(self, points: Tensor) -> Tensor:
        inside = torch.zeros(len(points), dtype=torch.bool, device=points.device)
        if self.mesh is not None:
            points = points.detach().float().contiguous()
            launch(_inside, len(points), [self.mesh.id, array(points, wp.vec3), array(inside, wp.bool)], points.device)
        return inside

    def _ask(self, kernel: wp.Kernel, *questions: Tensor) -> Hits:
        hits = miss(len(questions[0]), questions[0].device)
        if self.mesh is None:
            return hits
        asked = [x.detach().float().contiguous() for x in questions]
        arguments = [self.mesh.id, *(array(x, wp.vec3) for x in asked), array(hits.distance, wp.float32)]
        arguments += [array(hits.face, wp.int64), array(hits.barycentric, wp.vec3)]
        launch(kernel, len(asked[0]), arguments, asked[0].device)
        return hits
