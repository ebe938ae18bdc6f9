"""One scene taught by another, of any kind: an L2 fit, first to points, then to pictures.

A volume that is taught by pictures alone is fog for most of the time it takes. So it is first told, point by point, how
far the other scene's surface is and which colour is seen there, which needs no rendering; then a few pictures (colour,
alpha and depth, from random cameras all round) mend what the surface cannot say. A network of colours needs the points
only. Everything is drawn from named streams, so that equal streams give equal bits.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamkit.cameras import Orbit
from dreamkit.meshes import Mesh
from dreamkit.representations.representation import Scene, Solid, Volume
from dreamkit.representations.surface import seen_colour, signed_distance, surface_of
from dreamkit.streams import Streams
from dreamkit.triangles import face_normals, on_surface

FACES, GRID = 20_000, 96
"""Largest number of faces, and nodes along each side, when the surface of the teacher is sought."""
NEAR, FAR, BATCH = 1 << 14, 1 << 12, 1 << 13
"""Points round the surface, points anywhere, and how many a step looks at."""
SPREAD = 0.04
"""World units: deviation of the points round the surface, along its normal."""
STEPS, PICTURES = 150, 60
RATE, LAST = 2e-2, 0.1
"""Adam's learning rate, and the share of it that is left in the end."""
CAMERAS = Orbit(elevation_degrees=(-80.0, 80.0), size=64)
HOLD = 0.1
"""What the points weigh beside the pictures, so that these do not undo what they cannot see."""
DEPTH = 0.5
"""Weight of depth, in world units, beside colour and alpha."""


class Student(Scene, Protocol):
    """A volume that can be told what is where."""

    def misfit(self, points: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 3] points and signed distances [N] -> by how much, squared, it is not what a surface at these distances
        wants, a mean; and its colours there [N, 3]. Differentiable."""
        ...


def learn(student: Student, teacher: Scene, device: torch.device | str, streams: Streams) -> None:
    """Make a fresh volume look like another scene: STEPS steps on points, then PICTURES views of 64 x 64.

    Raises RunError if the teacher is empty, InputError if it has neither a surface nor a density.
    """
    mesh, _ = surface_of(teacher, FACES, GRID)
    assert isinstance(teacher, Solid | Volume)
    on, normals, colours = (x.to(device) for x in seen_points(teacher, mesh, NEAR, device, streams))
    near = on + SPREAD * streams.normal("near", (NEAR, 1), like=on) * normals
    points = torch.cat([near, 2 * streams.uniform("far", (FAR, 3), like=on) - 1])
    distance = signed_distance(mesh, points)

    def of_points(own: Streams) -> Tensor:
        pick = (own.uniform("points", (BATCH,)) * len(points)).long().to(on.device)
        error, colour = student.misfit(points[pick], distance[pick])
        known = pick < NEAR
        return error + F.mse_loss(colour[known], colours[pick[known]])

    tensors = [tensor for group in student.parameters() if group["name"] != "background" for tensor in group["params"]]
    descend(tensors, of_points, STEPS, streams.within("points"))
    for look in range(4):  # one look sees a single point of each cell
        student.after_step(0, streams.within(f"look{look}"))

    def of_pictures(own: Streams) -> Tensor:
        cameras = CAMERAS.sample(1, own)
        behind = own.uniform("background", (1, 3)).to(on.device)
        with torch.no_grad():
            want = teacher.render(cameras, shading="albedo", background=behind)
        got = student.render(cameras, own, shading="albedo", background=behind)
        far = want.alpha * got.alpha.detach() * (got.depth - want.depth).square()
        seen = F.mse_loss(got.rgb, want.rgb) + F.mse_loss(got.alpha, want.alpha) + DEPTH * far.mean()
        return seen + HOLD * of_points(own)

    descend(tensors, of_pictures, PICTURES, streams.within("pictures"), student.after_step)


def learn_colours(
    colour: Callable[[Tensor], Tensor],
    tensors: Sequence[Tensor],
    mesh: Mesh,
    teacher: Solid | Volume,
    device: torch.device | str,
    streams: Streams,
) -> None:
    """Fit a field of colours, points [N, 3] -> [N, 3] differentiable in `tensors`, to what is seen of the teacher on a
    mesh."""
    on, _, colours = (x.to(device) for x in seen_points(teacher, mesh, NEAR, device, streams))

    def of_points(own: Streams) -> Tensor:
        pick = (own.uniform("points", (BATCH,)) * NEAR).long().to(on.device)
        return F.mse_loss(colour(on[pick]), colours[pick])

    descend(tensors, of_points, STEPS, streams.within("colours"))


def seen_points(
    scene: Solid | Volume, mesh: Mesh, count: int, device: torch.device | str, streams: Streams
) -> tuple[Tensor, Tensor, Tensor]:
    """`count` uniform points on a scene's surface, the normals there, and the colours seen there, each [count, 3]."""
    vertices, faces = torch.as_tensor(mesh.vertices), torch.as_tensor(mesh.faces)
    points = on_surface(vertices, faces, count, streams)
    normals = face_normals(vertices, faces)[points.face]
    return points.position, normals, seen_colour(scene, points.position, normals, device)


@torch.enable_grad()
def descend(
    tensors: Sequence[Tensor],
    loss: Callable[[Streams], Tensor],
    steps: int,
    streams: Streams,
    after: Callable[[int, Streams], object] = lambda step, own: None,
    rate: float = RATE,
) -> None:
    """Adam on a loss of each step's streams, its rate falling from `rate` to LAST of it.

    `after` is called after each step, with its number and streams; it leaves the tensors the same ones.
    """
    optimiser = torch.optim.Adam(tensors, lr=rate, betas=(0.9, 0.99), eps=1e-15)
    for step in range(steps):
        own = streams.within(str(step))
        optimiser.param_groups[0]["lr"] = rate * LAST ** (step / steps)
        optimiser.zero_grad()
        loss(own).backward()
        optimiser.step()
        after(step, own)
    optimiser.zero_grad()
