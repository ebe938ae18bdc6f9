"""Triangle rasterisation, differentiable: meshes in clip space -> which face every pixel sees, and where on it.

    clip = project(vertices, cameras, near, far)
    raster = rasterize(clip, faces, (height, width))
    picture = interpolate(colours, raster, faces)
    picture = antialias(picture, raster, clip, faces, neighbours)   # neighbours = edge_neighbours(faces), once a mesh

Conventions: clip space is OpenGL's (a point is seen where -w <= x, y, z <= w and w > 0; +y up); pictures are
[B, H, W, C], row 0 is the top, the centre of pixel (row, column) is (column + 0.5, row + 0.5) in pixels.

`rasterize` and `interpolate` give the derivative inside the faces; `antialias` gives the derivative of what is seen
where: the silhouettes. Both are needed to move a mesh.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.kernels import choose

DEPTH_STEPS = (
    2**29
)  # steps of z/w in which depths are compared, per unit: 31 bits, so that a face number fits beside it
WALK = 32  # faces on which antialias looks for the silhouette between two pixel centres


class Raster(NamedTuple):
    """What the pixels of B pictures see.

    face        [B, H, W] int32, the face that is seen, -1 where there is none
    barycentric [B, H, W, 3] weights of that face's corners, perspective-correct, sum 1; 0 where there is none
    depth       [B, H, W] z/w in [-1, 1]; 1, the far plane, where there is none
    """

    face: Tensor
    barycentric: Tensor
    depth: Tensor


def project(vertices: Tensor, cameras: Cameras, near: float = 0.1, far: float = 100.0) -> Tensor:
    """World positions [V, 3] -> clip space [B, V, 4], a view per camera; differentiable in vertices and cameras.

        x = X / (a tan(fov/2)),   y = Y / tan(fov/2),   z = -(f+n)/(f-n) Z - 2fn/(f-n),   w = -Z

    with (X, Y, Z) in the camera's frame, a = width/height: a pixel of `cameras.rays()` and a pixel of `rasterize` see
    the same point. near and far are distances along the camera's axis in world units; what is nearer or farther is not
    drawn. Raises ValueError for other shapes or unless 0 < near < far.
    """
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise ValueError(f"project expects vertices [V, 3]; got {tuple(vertices.shape)}")
    if not 0 < near < far:
        raise ValueError(f"project expects 0 < near < far; got near {near}, far {far}")
    pose, fov = cameras.camera_to_world.to(vertices.dtype), cameras.fov_degrees.to(vertices.dtype)
    tall = 1 / torch.tan(torch.deg2rad(fov) / 2)
    zero = torch.zeros_like(tall)
    # One matrix a camera, [B, 3, 4]: camera axes, each scaled to its clip coordinate.
    columns = torch.stack([tall * (cameras.height / cameras.width), tall, zero - (far + near) / (far - near)], dim=-1)
    axes = torch.cat([pose[:, :, :3] * columns[:, None], -pose[:, :, 2:3]], dim=-1)
    shift = -torch.einsum("bi,bij->bj", pose[:, :, 3], axes)
    lift = vertices.new_tensor([0.0, 0.0, -2 * far * near / (far - near), 0.0])
    return torch.baddbmm((shift + lift)[:, None], vertices.expand(len(cameras), -1, -1), axes)


def rasterize(clip: Tensor, faces: Tensor, size: tuple[int, int], *, backend: str = "auto") -> Raster:
    """The nearest face at every pixel centre, its barycentric coordinates and its depth.

    A pixel centre p = (x, y, 1) in normalised coordinates lies on the face (v_0, v_1, v_2), v = (x, y, w), where

        e_i = det(p, v_{i+1}, v_{i+2})

    all have the sign of det(v_0, v_1, v_2); then b_i = e_i / (e_0 + e_1 + e_2) (Olano and Greer, Triangle Scan
    Conversion using 2D Homogeneous Coordinates, 1997). Nothing is divided by w before, so a face may cross the camera
    plane. Pixels with z/w outside [-1, 1] are not drawn: that clips at the near and the far plane.

    - Both windings are seen.
    - Faces that share an edge share no pixel and leave none out: a centre on an edge belongs to the face on its right,
      or below if the edge is level (the top-left rule). Edges are evaluated in float64 and alike from both sides.
    - The smallest z/w is seen, in steps of 2^-29; among equals the lowest face number.
    - Faces without area, and with a corner that is not finite, are not drawn.

    Args:
        clip:    [B, V, 4] clip-space positions, float32 or float64.
        faces:   [F, 3] int32 into V, the same in all views. B, V and F may be 0.
        size:    (H, W) in pixels.
        backend: "auto", "warp" or "reference".

    Differentiable once in clip, through barycentric and depth, at pixels that stay on their face.

    The result depends neither on the number of threads nor on the run. The gradient neither on a CPU: it is summed in
    a few fixed parts. On CUDA it is summed by atomic adds, whose order may change the last bits; under
    torch.use_deterministic_algorithms it is sorted first (60 bytes a pixel more, in float32).
    Memory: 28 bytes a pixel, in float32; backward up to 4 gradients of the size of a view's clip. The reference takes
    some 200 bytes for every pixel in every face's bounding box.

    Raises ValueError for wrong shapes, dtypes, devices or face indices; InputError for a backend that is not there.
    """
    _check_clip("rasterize", clip)
    _check_faces("rasterize", faces, clip.shape[1], clip.device)
    height, width = size
    if height < 1 or width < 1 or height * width * max(len(clip), 1) >= 2**31:
        raise ValueError(f"rasterize expects at least 1 pixel and less than 2^31 in all; got {len(clip)} of {size}")
    return Raster(*choose.backend(__name__, backend).rasterize(clip, faces, height, width))


def interpolate(attributes: Tensor, raster: Raster, faces: Tensor, *, backend: str = "auto") -> Tensor:
    """Attributes of vertices -> pixels: sum_i b_i attributes[corner i of the pixel's face]; 0 where there is none.

    Args:
        attributes: [V, C], the same in all views, or [B, V, C]; float32 or float64 like raster.barycentric. C >= 1.
        raster:     of `rasterize`.
        faces:      [F, 3] int32, as given to `rasterize`.
        backend:    "auto", "warp" or "reference".

    Returns [B, H, W, C]. Differentiable once in attributes and raster.barycentric (and so in clip). Sums as in
    `rasterize`. Raises as `rasterize`.
    """
    _check_attributes("interpolate", attributes, raster, faces)
    return choose.backend(__name__, backend).interpolate(attributes, raster.face, raster.barycentric, faces)


def screen_derivatives(
    attributes: Tensor, raster: Raster, clip: Tensor, faces: Tensor, *, backend: str = "auto"
) -> Tensor:
    """How fast interpolated attributes change across the picture: [B, H, W, C, 2], d/dx and d/dy per pixel.

        db_i/dx = (de_i/dx - b_i sum_j de_j/dx) / sum_j e_j

    in the notation of `rasterize`; x counts columns to the right, y rows downwards; 0 where there is no face. Arguments
    as in `interpolate`.

    It is for choosing a level of detail: of texture coordinates it is the `footprint` of kernels.texture.sample. There
    is no gradient: the result is a constant to autograd, also where attributes and clip want one.
    """
    _check_attributes("screen_derivatives", attributes, raster, faces)
    _check_clip("screen_derivatives", clip, raster)
    _check_faces("screen_derivatives", faces, clip.shape[1], clip.device)
    with torch.no_grad():
        module = choose.backend(__name__, backend)
        return module.screen_derivatives(attributes, raster.face, raster.barycentric, clip, faces)


def antialias(
    picture: Tensor, raster: Raster, clip: Tensor, faces: Tensor, neighbours: Tensor, *, backend: str = "auto"
) -> Tensor:
    """Smooth the silhouettes of a picture by their exact position, so that the picture changes when they move.

    After Laine et al., Modular Primitives for High-Performance Differentiable Rendering (arXiv:2011.03277), section
    3.6. Two pixels side by side see different faces. Take the nearer one and walk over its surface towards the other
    pixel's centre. If that meets a silhouette edge at a share t of the way, the nearer surface covers 1/2 + t of the
    two pixels' facing halves instead of 1/2:

        t < 1/2:  near pixel += (1/2 - t) (far colour - near colour)
        t > 1/2:  far pixel  += (t - 1/2) (near colour - far colour)

    An edge counts for pairs of a row if it is rather upright, for pairs of a column if it is rather level, so that
    each counts once and a straight edge's coverage is exact, but for its ends. The rows are blended first, the columns
    of the result then; both take convex mixtures, so no value leaves the range of its neighbours.

    A silhouette edge has one face, or more than two, or two on one side of it as seen from the camera. The walk ends
    after 32 faces: silhouettes of surfaces finer than that between two pixels are missed. (Without it, looking at the
    nearer face's own edges only, a mesh of 6 faces a pixel keeps 4 % of the gradient of its outline.)

    Args:
        picture:    [B, H, W, C], float32 or float64 like clip. C >= 1.
        raster:     of `rasterize`; its gradients are not used.
        clip:       [B, V, 4], as given to `rasterize`.
        faces:      [F, 3] int32, likewise.
        neighbours: [F, 3] int32 of `edge_neighbours(faces)`.
        backend:    "auto", "warp" or "reference".

    Returns [B, H, W, C]. Differentiable once in picture and clip (x, y and w; z has none). Sums as in `rasterize`.
    Memory: 16 bytes a pixel, in float32 (in a deterministic backward 80 more). Raises as `rasterize`.
    """
    if picture.ndim != 4 or picture.shape[:3] != raster.face.shape or picture.shape[3] < 1:
        raise ValueError(
            f"antialias expects picture [B, H, W, C] for a raster of {tuple(raster.face.shape)}; "
            f"got {tuple(picture.shape)}"
        )
    if picture.dtype != clip.dtype or picture.device != clip.device:
        raise ValueError(
            f"antialias expects picture and clip of one dtype on one device; got {picture.dtype} on {picture.device} "
            f"and {clip.dtype} on {clip.device}"
        )
    _check_clip("antialias", clip, raster)
    _check_faces("antialias", faces, clip.shape[1], clip.device)
    if neighbours.shape != faces.shape or neighbours.dtype != torch.int32 or neighbours.device != faces.device:
        raise ValueError(
            f"antialias expects neighbours = edge_neighbours(faces), {tuple(faces.shape)} int32 on {faces.device}; "
            f"got {tuple(neighbours.shape)} {neighbours.dtype} on {neighbours.device}"
        )
    module = choose.backend(__name__, backend)
    result: Tensor = module.antialias(picture, raster.face, raster.depth.detach(), clip, faces, neighbours)
    return result


def edge_neighbours(faces: Tensor) -> Tensor:
    """The face across the edge opposite each corner: [F, 3] -> [F, 3] int32, -1 where there is none or more than one.

    >>> edge_neighbours(torch.tensor([[0, 1, 2], [2, 1, 3]], dtype=torch.int32)).tolist()
    [[1, -1, -1], [-1, -1, 0]]
    """
    corners = faces.long()
    one, other = corners[:, [1, 2, 0]].reshape(-1), corners[:, [2, 0, 1]].reshape(-1)
    edge = torch.minimum(one, other) * (corners.max() + 1 if len(faces) else 1) + torch.maximum(one, other)
    edge, order = edge.sort()
    same = edge[1:] == edge[:-1]
    no = same.new_zeros(1)
    # Two in a row and no more: neither the entry before the first nor the one after the second is the same edge.
    first = (same & ~torch.cat([no, same])[:-1] & ~torch.cat([same, no])[1:]).nonzero()[:, 0]
    result = torch.full_like(edge, -1)
    result[order[first]] = order[first + 1] // 3
    result[order[first + 1]] = order[first] // 3
    return result.view(-1, 3).int()


def _check_clip(name: str, clip: Tensor, raster: Raster | None = None) -> None:
    if clip.ndim != 3 or clip.shape[2] != 4 or clip.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} expects clip [B, V, 4], float32 or float64; got {tuple(clip.shape)} {clip.dtype}")
    if raster is not None and (len(raster.face) != len(clip) or raster.face.device != clip.device):
        raise ValueError(
            f"{name} expects the clip that the raster was made from, of {len(raster.face)} views on "
            f"{raster.face.device}; got {len(clip)} on {clip.device}"
        )


def _check_faces(name: str, faces: Tensor, vertices: int, device: torch.device) -> None:
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.dtype != torch.int32 or faces.device != device:
        raise ValueError(
            f"{name} expects faces [F, 3] int32 on {device}; got {tuple(faces.shape)} {faces.dtype} on {faces.device}"
        )
    suspect = len(faces) > 0
    if suspect and device.type == "cpu":  # in one pass, where negative numbers are the largest; numpy wakes no threads
        suspect = int(faces.numpy().view("uint32").max()) >= vertices
    if suspect:
        low, high = torch.stack(faces.aminmax()).tolist()  # one wait for a GPU, not two
        if low < 0 or high >= vertices:
            raise ValueError(f"{name}: faces name vertices {low} to {high}, but there are {vertices}")


def _check_attributes(name: str, attributes: Tensor, raster: Raster, faces: Tensor) -> None:
    weights = raster.barycentric
    if (
        attributes.ndim not in (2, 3)
        or attributes.shape[-1] < 1
        or attributes.shape[:-2] not in ((), weights.shape[:1])
    ):
        raise ValueError(
            f"{name} expects attributes [V, C] or [B, V, C] for {len(weights)} views; got {tuple(attributes.shape)}"
        )
    if attributes.dtype != weights.dtype or attributes.device != weights.device:
        raise ValueError(
            f"{name} expects attributes like raster.barycentric, {weights.dtype} on {weights.device}; "
            f"got {attributes.dtype} on {attributes.device}"
        )
    _check_faces(name, faces, attributes.shape[-2], attributes.device)
