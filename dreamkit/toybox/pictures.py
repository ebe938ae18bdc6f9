"""Training pictures of the toybox's world, made without end from a pool of rendered views.

Casting rays is the slow part, and it depends only on what stands where and on the camera. So every kind, and every pair
of kinds, is cast once from many random cameras, keeping for every ray the part it hits, the normal there, and where
patterns are pale; colours, materials, light and background are then drawn anew for every picture, which costs little.
"""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.kernels.query import surface
from dreamkit.meshes import join
from dreamkit.streams import Streams
from dreamkit.toybox import world
from dreamkit.toybox.kinds import KINDS, SUPPORTS
from dreamkit.toybox.world import Arrangement, Asked, Pair, Thing

SUPERSAMPLE = 2
AMBIENT = 0.6
GLOSS, SHINE = 24.0, 0.55
"""Exponent and strength of a shiny thing's highlight (Blinn 1977)."""

SHARES = {"pair": 0.45, "second": 0.2, "material": 0.25}
"""How often pictures show two things, a second colour, another material than matte."""

LAMP_SPREAD = 0.25
"""Standard deviation of the lamp's place about the camera's, along each axis, at a distance of one."""
GREY_SHARE = 0.6
"""How often a background is grey."""


@dataclass(frozen=True)
class Pool:
    """N views at SUPERSAMPLE times the picture size.

    part [N, S, S] uint8: 0 is background, p + 1 part p. normal [N, S, S, 3] int8, times 127. pale [N, S, S] uint8:
    bit m is set where material m of world.MATERIALS is pale.
    cameras [N, 12]: camera_to_world of each, row by row.
    views: what is said of each in every way of `world.VIEW_WORDS`: "high left side", "left side" and "side".
    kinds, pairs: which views show what. They come in groups of `together`, evenly round the same thing.
    """

    part: Tensor
    normal: Tensor
    pale: Tensor
    cameras: Tensor
    views: list[tuple[str, ...]]
    kinds: dict[Arrangement, range]
    pairs: dict[Arrangement, range]
    together: int = 1

    @property
    def towards(self) -> Tensor:
        """[N, 3]: unit direction to the camera."""
        return self.cameras.unflatten(1, (3, 4))[:, :, 2]


def cast_pool(
    views_per_kind: int,
    seed: int,
    device: torch.device,
    note: Callable[[str], None] = print,
    pairs: int | None = None,
    together: int = 1,
) -> Pool:
    """Cast every kind from `views_per_kind` random cameras, and every pair of kinds from a 32nd of that each.

    `pairs`: so many random pairs only. Cameras come in groups of `together`.
    """
    orbit = replace(world.CAMERAS, group=together)
    draw = random.Random(seed)
    shown: list[tuple[Arrangement, int]] = [((kind,), views_per_kind) for kind in KINDS]
    every = every_pair()
    for pair in every if pairs is None else draw.sample(every, min(pairs, len(every))):
        shown.append((pair, max(views_per_kind // 32, 1)))
    found: dict[Arrangement, range] = {}
    layers, cameras, total = list[tuple[Tensor, ...]](), list[Cameras](), 0
    for number, (arrangement, count) in enumerate(shown):
        count = -(-count // together) * together
        cameras.append(orbit.sample(count, Streams(seed, number), "pool"))
        layers.append(cast(arrangement, cameras[-1], device))
        found[arrangement] = range(total, total + count)
        total += count
        if number < len(KINDS) or number % 50 == 0:
            note(f"cast {count} views of {' '.join(arrangement)}")
    part, normal, pale = (torch.cat(layer) for layer in zip(*layers, strict=True))
    words = list[tuple[str, ...]]()
    for some in cameras:
        words += zip(*(way.of(some) for way in world.VIEW_WORDS), strict=True)
    numbers = torch.cat([some.camera_to_world.flatten(1) for some in cameras]).to(device)
    singles: dict[Arrangement, range] = {a: r for a, r in found.items() if len(a) == 1}
    return Pool(part, normal, pale, numbers, words, singles, {a: r for a, r in found.items() if len(a) == 3}, together)


def every_pair() -> list[Arrangement]:
    """All that can stand next to one another or on top of one another, two different kinds each."""
    seconds = {"next to": list(KINDS), "on top of": SUPPORTS}
    ways = itertools.chain(*(itertools.product(KINDS, [way], seconds[way]) for way in world.RELATIONS))
    return [(first, way, second) for first, way, second in ways if first != second]


def cast(arrangement: Arrangement, cameras: Cameras, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Part, normal and pale bits of every ray, 64 views at a time."""
    pieces = world.pieces_of(arrangement)
    mesh = join(*(piece.mesh for piece in pieces))
    owner = torch.cat([torch.full((len(p.mesh.faces),), i + 1) for i, p in enumerate(pieces)]).to(device)
    normal = torch.as_tensor(mesh.face_normals, device=device)
    ready = surface(torch.as_tensor(mesh.vertices, device=device), torch.as_tensor(mesh.faces, device=device))
    size, layers = cameras.height * SUPERSAMPLE, []
    for start in range(0, len(cameras), 64):
        fine = replace(cameras[start : start + 64].to(device), height=size, width=size)
        origins, directions = (r.reshape(-1, 3).contiguous() for r in fine.rays())
        hits = ready.cast(origins, directions)
        hit, index = hits.face >= 0, hits.face.clamp(min=0)
        towards_camera = torch.where((normal[index] * directions).sum(-1, keepdim=True) > 0, -1.0, 1.0)
        facing = normal[index] * towards_camera * hit[:, None]
        # A little inside, so that a flat face on a border of the pattern does not flicker.
        points = origins + directions * torch.where(hit, hits.distance, 0.0)[:, None] - 1e-3 * facing
        pale = sum(world.pattern(points, m).to(torch.uint8) << bit for bit, m in enumerate(world.MATERIALS))
        part = (owner[index] * hit).to(torch.uint8)
        shape = (-1, size, size)
        flat = (
            part.reshape(shape),
            (facing * 127).to(torch.int8).reshape(*shape, 3),
            torch.as_tensor(pale).reshape(shape),
        )
        layers.append(flat)
    part, facing, pale = (torch.cat(layer) for layer in zip(*layers, strict=True))
    return part, facing, pale


class Batch(NamedTuple):
    """Pictures [N, 3, H, W] in [0, 1], their captions, and what they show: from which views of the pool."""

    pictures: Tensor
    captions: list[str]
    asked: list[Asked]
    views: list[int]


def batch(pool: Pool, count: int, streams: Streams) -> Batch:
    """`count` pictures and their captions, from the streams of one step."""
    draw = random.Random(int(streams.generator("captions").initial_seed()))
    asked, views = draw_asked(pool, count, draw)
    captions = [world.caption(a, pool.views[v], draw) for a, v in zip(asked, views, strict=True)]
    return Batch(shade(pool, asked, views, streams), captions, asked, views)


def draw_asked(
    pool: Pool, count: int, draw: random.Random, shares: Mapping[str, float] = SHARES
) -> tuple[list[Asked], list[int]]:
    """Random things and pairs in random colours and materials, and for each the number of a view of the pool.

    Every relation is as frequent as the others, though of some there are more pairs.

    Of a pool whose views come in groups, `count` is a multiple of their size, and so are the things in a row.
    """
    asked: list[Asked] = []
    views: list[int] = []
    for _ in range(count // pool.together):
        two = bool(pool.pairs) and draw.random() < shares["pair"]
        source = pool.pairs if two else pool.kinds
        arrangement = _any_pair(source, draw) if two else draw.choice(list(source))
        first = draw.choice(source[arrangement][:: pool.together])
        views += range(first, first + pool.together)
        things = [_dressed(kind, draw, shares, plain=two) for kind in arrangement[::2]]
        asked += [Pair(things[0], arrangement[1], things[1]) if two else things[0]] * pool.together
    return asked, views


def _any_pair(pairs: Mapping[Arrangement, range], draw: random.Random) -> Arrangement:
    relation = draw.choice(sorted({way[1] for way in pairs}))
    return draw.choice([way for way in pairs if way[1] == relation])


def _dressed(kind: str, draw: random.Random, shares: Mapping[str, float], plain: bool) -> Thing:
    """A kind in a random colour; unless plain, at times with a second colour or of another material."""
    colours = draw.sample(list(world.COLOURS), 2)
    second = colours[1] if not plain and draw.random() < shares["second"] else None
    other = not plain and draw.random() < shares["material"]
    return Thing(kind, colours[0], second, draw.choice(world.MATERIALS[1:]) if other else "matte")


def palette(asked: Asked) -> Tensor:
    """[P, 8] by part number, row 0 for the background: colour, pale colour, bit of the pattern (0 for none), strength
    of the highlight."""
    rows = [(0.0,) * 8]
    for piece in world.pieces_of(asked.arrangement):
        thing = asked.things[piece.owner]
        colour = world.paint_colour(piece.paint, thing)
        patterned = piece.paint is None and thing.material in ("striped", "checkered")
        bit = 1 << world.MATERIALS.index(thing.material) if patterned else 0
        rows.append((*colour, *world.pale(colour), float(bit), SHINE if thing.material == "shiny" else 0.0))
    return torch.tensor(rows)


def shade(pool: Pool, asked: Sequence[Asked], views: Sequence[int], streams: Streams) -> Tensor:
    """Pictures [N, 3, H, W]: light from near the camera, plus ambient, on backgrounds of random grey or colour."""
    device, count = pool.part.device, len(views)
    where = torch.tensor(views, device=device)
    part, normal, towards = pool.part[where].long(), pool.normal[where].float() / 127, pool.towards[where]
    palettes = torch.nn.utils.rnn.pad_sequence([palette(one) for one in asked], batch_first=True).to(device)
    colour, light, bit, shine = palettes[torch.arange(count, device=device)[:, None, None], part].split(
        (3, 3, 1, 1), -1
    )
    is_pale = (bit.long() & pool.pale[where][..., None].long()) > 0
    albedo = torch.where(is_pale, light, colour)
    jitter = streams.normal("light", (count, 3), towards) * LAMP_SPREAD
    lamp = torch.nn.functional.normalize(towards + jitter, dim=-1)
    half = torch.nn.functional.normalize(towards + lamp, dim=-1)
    diffuse, mirror = ((normal * d[:, None, None, :]).sum(-1, keepdim=True).clamp(min=0) for d in (lamp, half))
    lit = albedo * (AMBIENT + (1 - AMBIENT) * diffuse) + shine * mirror**GLOSS
    rgb = torch.where(part[..., None] > 0, lit.clamp(max=1), _backgrounds(count, towards, streams))
    return torch.nn.functional.avg_pool2d(rgb.permute(0, 3, 1, 2), SUPERSAMPLE)


def _backgrounds(count: int, like: Tensor, streams: Streams) -> Tensor:
    grey = streams.uniform("grey", (count, 1), like).expand(-1, 3)
    tint = streams.uniform("tint", (count, 3), like)
    plain = streams.uniform("plain", (count, 1), like) < GREY_SHARE
    return torch.where(plain, grey, tint)[:, None, None, :]
