"""Training pictures of the toybox's world, made without end from a pool of rendered views.

Casting rays is the slow part, and it depends only on kind and camera. So each kind is cast once from many random
cameras, keeping for every ray the part it hits and the normal there; colour, light and background are then drawn anew
for every picture, which costs almost nothing.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dreamkit.kernels.query import surface
from dreamkit.meshes import join
from dreamkit.prompts import EIGHT, FOUR, view_of
from dreamkit.streams import Streams
from dreamkit.toybox import world

SUPERSAMPLE = 2
AMBIENT = 0.6


@dataclass(frozen=True)
class Pool:
    """V views of every kind at SUPERSAMPLE times the picture size.

    part [K, V, S, S] uint8: 0 is background, p + 1 the kind's part p. normal [K, V, S, S, 3] int8, times 127.
    towards [K, V, 3]: unit direction from the object to the camera.
    views: the view words of each, exact and rough, such as "left side" and "side".
    """

    part: Tensor
    normal: Tensor
    towards: Tensor
    views: list[list[tuple[str, str]]]


def cast_pool(views_per_kind: int, seed: int, device: torch.device, note: Callable[[str], None] = print) -> Pool:
    """Cast every kind from `views_per_kind` random cameras of the world."""
    parts, normals, towards, words = [], [], [], []
    for number, kind in enumerate(world.KINDS):
        cameras = world.CAMERAS.sample(views_per_kind, Streams(seed, number), "pool")
        built = world.parts(kind)
        mesh = join(*(m for m, _ in built))
        owner = torch.cat([torch.full((len(m.faces),), i + 1) for i, (m, _) in enumerate(built)]).to(device)
        normal = torch.as_tensor(mesh.face_normals, device=device)
        ready = surface(torch.as_tensor(mesh.vertices, device=device), torch.as_tensor(mesh.faces, device=device))
        size = cameras.height * SUPERSAMPLE
        kind_parts, kind_normals = [], []
        for start in range(0, views_per_kind, 64):
            some = cameras[start : start + 64].to(device)
            fine = replace(some, height=size, width=size)
            origins, directions = (r.reshape(-1, 3).contiguous() for r in fine.rays())
            face = ready.cast(origins, directions).face
            hit, index = face >= 0, face.clamp(min=0)
            towards_camera = torch.where((normal[index] * directions).sum(-1, keepdim=True) > 0, -1.0, 1.0)
            kind_parts.append((owner[index] * hit).to(torch.uint8).reshape(-1, size, size))
            facing = normal[index] * towards_camera * hit[:, None]
            kind_normals.append((facing * 127).to(torch.int8).reshape(-1, size, size, 3))
        parts.append(torch.cat(kind_parts))
        normals.append(torch.cat(kind_normals))
        towards.append(cameras.camera_to_world[:, :, 2].to(device))
        pairs = zip(cameras.azimuth_degrees.tolist(), cameras.elevation_degrees.tolist(), strict=True)
        words.append([(view_of(a, e, EIGHT), view_of(a, e, FOUR)) for a, e in pairs])
        note(f"cast {views_per_kind} views of {kind}")
    return Pool(torch.stack(parts), torch.stack(normals), torch.stack(towards), words)


def batch(pool: Pool, count: int, streams: Streams) -> tuple[Tensor, list[str]]:
    """`count` pictures [N, 3, H, W] in [0, 1] and their captions, from the streams of one step."""
    device = pool.part.device
    draw = random.Random(int(streams.generator("captions").initial_seed()))
    kinds, colours = list(world.KINDS), list(world.COLOURS)
    kind = [draw.randrange(len(kinds)) for _ in range(count)]
    view = [draw.randrange(pool.part.shape[1]) for _ in range(count)]
    colour = [draw.choice(colours) for _ in range(count)]
    captions = [
        world.caption(world.Thing(kinds[k], c), pool.views[k][v], draw)
        for k, v, c in zip(kind, view, colour, strict=True)
    ]
    palettes = torch.stack([_palette(kinds[k], c) for k, c in zip(kind, colour, strict=True)])
    where = (torch.tensor(kind, device=device), torch.tensor(view, device=device))
    pictures = _shade(pool, where, palettes.to(device), streams)
    return pictures, captions


def _palette(kind: str, colour: str) -> Tensor:
    """[P, 3] colours by part number; row 0 is left for the background."""
    own = [c or world.COLOURS[colour] for _, c in world.parts(kind)]
    longest = max(len(world.parts(k)) for k in world.KINDS)
    return torch.tensor([(0.0, 0.0, 0.0), *own, *[(0.0, 0.0, 0.0)] * (longest - len(own))])


def _shade(pool: Pool, where: tuple[Tensor, Tensor], palettes: Tensor, streams: Streams) -> Tensor:
    """Light from near the camera, plus ambient, on backgrounds of random grey or colour."""
    part, normal = pool.part[where], pool.normal[where].float() / 127
    count, size = part.shape[0], part.shape[1]
    jitter = streams.normal("light", (count, 3), palettes) * 0.25
    light = torch.nn.functional.normalize(pool.towards[where].to(palettes) + jitter, dim=-1)
    diffuse = (normal * light[:, None, None, :]).sum(-1).clamp(min=0)
    bright = (AMBIENT + (1 - AMBIENT) * diffuse)[..., None]
    grey = streams.uniform("grey", (count, 1), palettes).expand(-1, 3)
    tint = streams.uniform("tint", (count, 3), palettes)
    background = torch.where(streams.uniform("plain", (count, 1), palettes) < 0.6, grey, tint)
    albedo = palettes.gather(1, part.reshape(count, -1, 1).long().expand(-1, -1, 3)).reshape(count, size, size, 3)
    rgb = torch.where(part[..., None] > 0, albedo * bright, background[:, None, None, :])
    return torch.nn.functional.avg_pool2d(rgb.permute(0, 3, 1, 2), SUPERSAMPLE)
