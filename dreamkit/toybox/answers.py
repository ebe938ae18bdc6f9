"""What may rightly be said of a picture of the toybox's world: the truth that the judge is trained and measured by.

A question is asked only where the picture can answer it, and every answer that the picture cannot tell from the true
one is as right:

- a thing of a pair that hides behind the other is not asked for;
- a colour is asked where its parts cover at least VISIBLE of the thing. A second colour that is nearly the trimmings'
  own (brown legs, wooden legs) may be called either. What is striped or checkered in white and gray may be called
  either;
- a pattern is asked where both its shades are seen, a highlight where some of the surface would show one;
- a view may have any of the words that hold within BORDER degrees of the camera, and of those from which the thing
  looks the same: a mushroom has no view at all, a table has two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamkit.cameras import Cameras, orbit
from dreamkit.kernels.query import surface
from dreamkit.meshes import join
from dreamkit.prompts import EIGHT
from dreamkit.toybox import world
from dreamkit.toybox.kinds import KINDS, RGB, Trim
from dreamkit.toybox.pictures import Pool, cast
from dreamkit.toybox.world import COLOURS, MATERIALS, Arrangement, Asked, Thing

NAMES = tuple(KINDS)
WORDS: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "second": ("none", *COLOURS),
    "material": MATERIALS,
    "view": (*EIGHT, "overhead"),
}
"""What can be answered to each question about a thing."""

VISIBLE = 0.04
"""Share of a thing's pixels that its part must have to be asked about."""
HIDDEN = 0.01
"""A thing with a smaller share of the picture is not asked for."""
NEAR = 0.26
"""Colours closer than this (Euclidean, RGB) may be taken for each other."""
BORDER = 5.0
"""Degrees to the border between two views within which either word is right."""
PARTS = 63
"""As many parts as two things can have."""
ALIKE = 36
"""Rays along each side of the pictures by which two views are found to look the same."""
GLOSSY = 0.93
"""Cosine between normal and the direction to the camera above which a shiny thing shows its highlight."""


@dataclass(frozen=True)
class Seen:
    """How much of everything V views show, in rays of the S x S cast for each.

    parts [V, P]: rays that hit each part. pale [V, M, P]: those of them where material m is pale. glossy [V, P]: those
    that face the camera. rays: S squared.
    """

    parts: Tensor
    pale: Tensor
    glossy: Tensor
    rays: int


def seen(part: Tensor, normal: Tensor, pale: Tensor, towards: Tensor) -> Seen:
    """Count what a cast shows; the arguments are those of `pictures.Pool`. 256 views at a time."""
    blocks = zip(*(layer.split(256) for layer in (part, normal, pale, towards)), strict=True)
    parts, light, glossy = (torch.cat(each) for each in zip(*(_counted(*b) for b in blocks), strict=True))
    return Seen(parts, light, glossy, part[0].numel())


def _counted(part: Tensor, normal: Tensor, pale: Tensor, towards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    def rays(weight: Tensor) -> Tensor:
        empty = torch.zeros(len(part), PARTS + 1, device=part.device)
        return empty.scatter_add_(1, part.flatten(1).long(), weight.flatten(1).float())[:, 1:].cpu()

    facing = (normal.float() * (towards[:, None, None, :] / 127)).sum(-1) > GLOSSY
    light = torch.stack([rays(pale >> bit & 1) for bit in range(len(MATERIALS))], 1)
    return rays(torch.ones_like(part)), light, rays(facing)


def looks_alike(arrangement: Arrangement, azimuth: Tensor, elevation: Tensor, share: float = 0.02) -> Tensor:
    """Whether what stands there looks the same when the camera goes round by 45, 90, ... degrees, bool [N, 8].

    Azimuth and elevation [N] in degrees. Column j belongs to a turn by 45 j degrees. The same means: of the rays of a
    small picture that hit anything in either, all but `share` hit one paint at one slant, to within 30 degrees.
    Trimmings without a colour of their own count as the main part.
    """
    turned = (azimuth[:, None] + 45.0 * torch.arange(8)).reshape(-1)
    paint, slant = _paints(arrangement, orbit(turned, elevation.repeat_interleave(8), size=ALIKE))
    paint, slant = paint.reshape(len(azimuth), 8, -1), slant.reshape(len(azimuth), 8, -1, 3)
    first = paint[:, :1]
    either = ((first > 0) | (paint > 0)).sum(-1)
    bent = (slant[:, :1] * slant).sum(-1) < 0.87
    return ((first != paint) | (bent & (paint > 0))).sum(-1) <= share * either


def _paints(arrangement: Arrangement, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """For every ray, a number for the paint it hits (0 for none) and the unit normal there, seen from the camera."""
    pieces = world.pieces_of(arrangement)
    looks = [(p.owner, p.paint.own if isinstance(p.paint, Trim) else p.paint) for p in pieces]
    paints = list(dict.fromkeys(looks))
    mesh = join(*(piece.mesh for piece in pieces))
    sizes = torch.tensor([len(piece.mesh.faces) for piece in pieces])
    of_face = torch.tensor([paints.index(look) + 1 for look in looks]).repeat_interleave(sizes)
    ready = surface(torch.as_tensor(mesh.vertices), torch.as_tensor(mesh.faces))
    face = ready.cast(*(ray.reshape(-1, 3).contiguous() for ray in cameras.rays())).face.reshape(len(cameras), -1)
    at = face.clamp(min=0)
    normal = torch.einsum("bpj,bji->bpi", torch.as_tensor(mesh.face_normals)[at], cameras.camera_to_world[:, :, :3])
    return torch.where(face >= 0, of_face[at], 0), normal


def right_views(azimuth: Tensor, elevation: Tensor, alike: Tensor) -> Tensor:
    """The words that are right for each camera, bool [N, 9], in the order of WORDS["view"]."""
    words = WORDS["view"]
    right = torch.zeros(len(azimuth), len(words), dtype=torch.bool)
    for row, (a, e, same) in enumerate(zip(azimuth.tolist(), elevation.tolist(), alike.tolist(), strict=True)):
        near = {world.SIDES.at(a + x, e + y) for x in (-BORDER, 0, BORDER) for y in (-BORDER, 0, BORDER)}
        for word in near:
            here = words.index(word)
            if word == "overhead":
                right[row, here] = True
            else:
                right[row, [(here + turn) % 8 for turn in range(8) if same[turn]]] = True
    return right


@dataclass(frozen=True)
class Answers:
    """What is right for N pictures.

    present [N, K]: 1 where a kind is seen, 0 where it is not there, nan where it is there and hidden.
    right: for each question of WORDS, bool [N, K, A]: the right answers about each kind; none where it is not asked.
    """

    present: Tensor
    right: dict[str, Tensor]

    def asks(self, question: str, kind: str | None = None) -> Tensor:
        """Whether a question is asked, about every kind [N, K] or one [N]: not a view where all are right."""
        right = self.right[question] if kind is None else self.right[question][:, NAMES.index(kind)]
        return right.any(-1) & ~right[..., :8].all(-1)

    def views_of(self, kind: str) -> list[set[str]]:
        """The right views of a kind in each picture."""
        rows = self.right["view"][:, NAMES.index(kind)].tolist()
        return [{word for word, ticked in zip(WORDS["view"], row, strict=True) if ticked} for row in rows]


def answers(asked: Sequence[Asked], views: Tensor, rows: Sequence[int], shown: Seen) -> Answers:
    """The right answers about pictures of what was asked, each seen as row `rows[i]` of `shown` and `views` says.

    views: bool [V, 9], from `right_views`.
    """
    count = len(asked)
    right = {name: torch.zeros(count, len(NAMES), len(words), dtype=torch.bool) for name, words in WORDS.items()}
    present = torch.zeros(count, len(NAMES))
    for number, (one, row) in enumerate(zip(asked, rows, strict=True)):
        pieces = world.pieces_of(one.arrangement)
        for owner, thing in enumerate(one.things):
            kind = NAMES.index(thing.kind)
            mine = [i for i, piece in enumerate(pieces) if piece.owner == owner]
            samples = shown.parts[row, mine]
            if samples.sum() < HIDDEN * shown.rays:
                present[number, kind] = torch.nan
                continue
            present[number, kind] = 1.0
            paints = [pieces[i].paint for i in mine]
            main = torch.tensor([paint is None for paint in paints])
            trim = torch.tensor([isinstance(paint, Trim) for paint in paints])
            share = samples / samples.sum()
            if share[main].sum() >= VISIBLE:
                _tick(right["colour"][number, kind], WORDS["colour"], _main_colours(thing))
            if share[trim].sum() >= VISIBLE:
                owns = {paint.own for paint in paints if isinstance(paint, Trim)}
                _tick(right["second"][number, kind], WORDS["second"], _second_colours(thing, owns))
            light = shown.pale[row, MATERIALS.index(thing.material), mine][main].sum() / samples.sum()
            glossy = shown.glossy[row, mine].sum() / samples.sum()
            if _tells(thing, float(light), float(share[main].sum() - light), float(glossy)):
                right["material"][number, kind, MATERIALS.index(thing.material)] = True
            right["view"][number, kind] = views[row]
    return Answers(present, right)


def _tick(row: Tensor, words: tuple[str, ...], said: set[str]) -> None:
    row[[words.index(word) for word in said]] = True


def _main_colours(thing: Thing) -> set[str]:
    both = {"white", "gray"}
    return both if thing.colour in both and thing.material in ("striped", "checkered") else {thing.colour}


def _second_colours(thing: Thing, owns: set[RGB | None]) -> set[str]:
    """What may be said of trimmings: their word, what is near it, and none where they look as they would without."""
    looks = {world.colour_of(thing.second)} if thing.second else {own or world.colour_of(thing.colour) for own in owns}
    plain = {own or world.colour_of(thing.colour) for own in owns}
    said = {thing.second or "none"}
    if any(_near(a, b) for a in looks for b in plain):
        said.add("none")
    if thing.second is None:
        said |= {name for name, value in COLOURS.items() if any(own and _near(own, value) for own in owns)}
    return said


def _near(a: RGB, b: RGB) -> bool:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) < NEAR**2


def _tells(thing: Thing, light: float, dark: float, glossy: float) -> bool:
    """Whether the picture tells the material: both shades of a pattern, or where a highlight would be."""
    if thing.material in ("striped", "checkered"):
        return min(light, dark) >= VISIBLE
    return glossy >= 0.02 and min(world.colour_of(thing.colour)) < 0.8


def pool_answers(pool: Pool, asked: Sequence[Asked], rows: Sequence[int]) -> Answers:
    """The right answers about pictures shaded from a pool, asked[i] in its view rows[i]."""
    x, y, z = pool.towards.cpu().unbind(-1)
    azimuth, elevation = torch.rad2deg(torch.atan2(y, x)), torch.rad2deg(torch.asin(z))
    alike = torch.zeros(len(pool.part), 8, dtype=torch.bool)
    for arrangement, at in (pool.kinds | pool.pairs).items():
        some = slice(at.start, at.stop)
        alike[some] = looks_alike(arrangement, azimuth[some], elevation[some])
    shown = seen(pool.part, pool.normal, pool.pale, pool.towards)
    return answers(asked, right_views(azimuth, elevation, alike), rows, shown)


def cast_answers(asked: Asked, cameras: Cameras) -> Answers:
    """The right answers about pictures of what was asked, from these cameras."""
    arrangement = asked.arrangement
    still = cameras.to("cpu")
    shown = seen(*cast(arrangement, still, torch.device("cpu")), still.camera_to_world[:, :, 2])
    alike = looks_alike(arrangement, still.azimuth_degrees, still.elevation_degrees)
    views = right_views(still.azimuth_degrees, still.elevation_degrees, alike)
    return answers([asked] * len(still), views, range(len(still)), shown)
