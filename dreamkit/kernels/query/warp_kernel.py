"""Ray casting on Warp's bounding volume hierarchy, on the CPU (two threads) and on CUDA."""

from concurrent.futures import ThreadPoolExecutor

import torch
import warp as wp
from torch import Tensor

from dreamkit.kernels.query import Hits, miss

wp.config.quiet = True
wp.init()
SLICES = 2


@wp.kernel
def _cast(
    mesh: wp.uint64,
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    distance: wp.array(dtype=wp.float32),
    face: wp.array(dtype=wp.int64),
    barycentric: wp.array(dtype=wp.vec3),
):
    i = wp.tid()
    hit = wp.mesh_query_ray(mesh, origins[i], directions[i], 1.0e6)
    if hit.result:
        distance[i] = hit.t
        face[i] = wp.int64(hit.face)
        # Warp's u and v weigh the first and second corner.
        barycentric[i] = wp.vec3(hit.u, hit.v, 1.0 - hit.u - hit.v)


class WarpSurface:
    def __init__(self, vertices: Tensor, faces: Tensor) -> None:
        self.points = vertices.detach().float().contiguous()
        self.indices = faces.detach().to(torch.int32).reshape(-1).contiguous()
        self.mesh = (
            wp.Mesh(wp.from_torch(self.points, dtype=wp.vec3), wp.from_torch(self.indices)) if len(faces) else None
        )

    def cast(self, origins: Tensor, directions: Tensor) -> Hits:
        hits = miss(len(origins), origins.device)
        if self.mesh is None or len(origins) == 0:
            return hits
        arguments = (origins.float(), directions.float(), hits.distance, hits.face, hits.barycentric)
        # A launch on the CPU runs on one thread but lets go of the interpreter: rays are independent, so cut in two.
        slices = SLICES if origins.device.type == "cpu" else 1
        bounds = [len(origins) * i // slices for i in range(slices + 1)]
        parts = [tuple(a[lo:hi].contiguous() for a in arguments[:2]) for lo, hi in zip(bounds, bounds[1:], strict=False)]

        def launch(part: int) -> None:
            lo, hi = bounds[part], bounds[part + 1]
            o, d = parts[part]
            outputs = [wp.from_torch(o, dtype=wp.vec3), wp.from_torch(d, dtype=wp.vec3)]
            outputs += [wp.from_torch(hits.distance[lo:hi]), wp.from_torch(hits.face[lo:hi])]
            outputs += [wp.from_torch(hits.barycentric[lo:hi], dtype=wp.vec3)]
            wp.launch(_cast, dim=hi - lo, inputs=[self.mesh.id, *outputs], device=self.mesh.device)

        wp.load_module(device=self.mesh.device)
        with ThreadPoolExecutor(slices) as pool:
            list(pool.map(launch, range(slices)))
        return hits
