"""Ray casting on Warp's bounding volume hierarchy, on the CPU and on CUDA."""

from typing import no_type_check

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


class MeshSurface:
    def __init__(self, vertices: Tensor, faces: Tensor) -> None:
        self.points = vertices.detach().float().contiguous()
        self.indices = faces.detach().to(torch.int32).reshape(-1).contiguous()
        self.mesh = (
            wp.Mesh(wp.from_torch(self.points, dtype=wp.vec3), wp.from_torch(self.indices))  # type: ignore[arg-type]
            if len(faces)
            else None
        )

    def cast(self, origins: Tensor, directions: Tensor) -> Hits:
        hits = miss(len(origins), origins.device)
        if self.mesh is None:
            return hits
        rays = [x.detach().float().contiguous() for x in (origins, directions)]
        arguments = [self.mesh.id, *(array(x, wp.vec3) for x in rays), array(hits.distance, wp.float32)]
        arguments += [array(hits.face, wp.int64), array(hits.barycentric, wp.vec3)]
        launch(_cast, len(origins), arguments, origins.device)
        return hits
