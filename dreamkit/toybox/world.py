"""The toybox's world: small coloured things in a fixed pose, the words for them, and their true meshes.

A prompt of this world asks for one thing ("a striped red and blue mug") or for two in a relation ("a yellow duck on top
of a blue table"). What is asked for stands upright with its front to +x and just fits a ball of radius RADIUS. Because
the world is procedural, the true mesh for a prompt is known.
"""

import itertools
import random
import re
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from dreamkit.cameras import Orbit
from dreamkit.errors import InputError, nearest
from dreamkit.kernels.query import surface
from dreamkit.meshes import Mesh, join
from dreamkit.prompts import EIGHT, JOINTS, ViewWords
from dreamkit.toybox.kinds import KINDS, RGB, SUPPORTS, Paint, Trim

RADIUS = 0.8
CAMERAS = Orbit(distance=(2.8, 3.2), fov_degrees=(33.0, 39.0), elevation_degrees=(-15.0, 75.0), size=64)

COLOURS: dict[str, RGB] = {
    "red": (0.85, 0.10, 0.10),
    "orange": (0.95, 0.50, 0.08),
    "yellow": (0.95, 0.85, 0.12),
    "green": (0.15, 0.65, 0.20),
    "cyan": (0.15, 0.80, 0.85),
    "blue": (0.12, 0.28, 0.85),
    "purple": (0.50, 0.18, 0.70),
    "pink": (0.96, 0.52, 0.72),
    "brown": (0.45, 0.27, 0.13),
    "black": (0.08, 0.08, 0.09),
    "gray": (0.50, 0.50, 0.52),
    "white": (0.95, 0.95, 0.95),
}

MATERIALS = ("matte", "shiny", "striped", "checkered")
"""Matte is what has no word. Shiny adds a highlight; stripes and checks alternate the main colour with a pale one."""
STRIPE, CHECK = 0.16, 0.22
"""Height of a stripe and side of a check, world units."""

RELATIONS = tuple(JOINTS)


Arrangement = tuple[str, ...]
"""What stands where, without its colours: ("mug",), or ("mug", "on top of", "table")."""


@dataclass(frozen=True)
class Thing:
    kind: str
    colour: str
    second: str | None = None
    """The colour of its trimmings; without one they keep their own."""
    material: str = "matte"

    @property
    def things(self) -> tuple["Thing", ...]:
        return (self,)

    @property
    def arrangement(self) -> Arrangement:
        return (self.kind,)


@dataclass(frozen=True)
class Pair:
    first: Thing
    relation: str
    second: Thing

    @property
    def things(self) -> tuple[Thing, ...]:
        return (self.first, self.second)

    @property
    def arrangement(self) -> Arrangement:
        return (self.first.kind, self.relation, self.second.kind)


Asked = Thing | Pair


@dataclass(frozen=True)
class Piece:
    """One part of what is asked for, in its place."""

    mesh: Mesh
    paint: Paint
    owner: int
    """0 for the first thing, 1 for the second."""


# --- where everything stands ---


@cache
def alone(kind: str) -> tuple[Piece, ...]:
    """The parts of one thing, scaled about the middle of its box to the ball of RADIUS. Raises InputError."""
    if kind not in KINDS:
        raise InputError(f"the toybox has no {kind!r}. {nearest(kind, KINDS)}")
    return _fitted([Piece(mesh, paint, 0) for mesh, paint in KINDS[kind]()])


@cache
def together(first: str, relation: str, second: str) -> tuple[Piece, ...]:
    """The parts of two things in a relation, scaled to the ball of RADIUS. Raises InputError."""
    one, two = alone(first), alone(second)
    (low_1, high_1), (low_2, _) = _bounds(one), _bounds(two)
    if relation == "next to":
        # Side by side on one ground; the first to the left, which is towards -y.
        aside = (0.0, low_2[1] - high_1[1] - 0.12, low_2[2] - low_1[2])
        return _fitted([*_moved(one, aside, 0), *_moved(two, (0.0, 0.0, 0.0), 1)])
    if relation == "on top of":
        if second not in SUPPORTS:
            raise InputError(f"nothing can stand on a {second} in the toybox. {nearest(second, SUPPORTS)}")
        small = tuple(Piece(Mesh(p.mesh.vertices * 0.7, p.mesh.faces), p.paint, 0) for p in one)
        up = (0.0, 0.0, _height(two) - 0.7 * float(low_1[2]))
        return _fitted([*_moved(small, up, 0), *_moved(two, (0.0, 0.0, 0.0), 1)])
    raise InputError(f"the toybox has no relation {relation!r}. {nearest(relation, RELATIONS)}")


def pieces_of(arrangement: Arrangement) -> tuple[Piece, ...]:
    """The parts of one thing or two, in their places. Raises InputError."""
    return alone(*arrangement) if len(arrangement) == 1 else together(*arrangement)


def _fitted(pieces: list[Piece]) -> tuple[Piece, ...]:
    low, high = _bounds(pieces)
    middle = (low + high) / 2
    scale = RADIUS / max(float(np.linalg.norm(p.mesh.vertices - middle, axis=1).max()) for p in pieces)

    def fit(mesh: Mesh) -> Mesh:
        return Mesh(((mesh.vertices - middle) * scale).astype(np.float32), mesh.faces)

    return tuple(Piece(fit(p.mesh), p.paint, p.owner) for p in pieces)


def _moved(pieces: tuple[Piece, ...], by: tuple[float, float, float], owner: int) -> list[Piece]:
    shift = np.array(by, np.float32)
    return [Piece(Mesh(p.mesh.vertices + shift, p.mesh.faces), p.paint, owner) for p in pieces]


def _bounds(pieces: tuple[Piece, ...] | list[Piece]) -> tuple[np.ndarray, np.ndarray]:
    points = np.concatenate([p.mesh.vertices for p in pieces])
    return points.min(0), points.max(0)


def _height(pieces: tuple[Piece, ...]) -> float:
    """How high a ray that falls down the middle lands."""
    solid = join(*(p.mesh for p in pieces))
    start = torch.tensor([[0.01, 0.01, 2.0]])  # not on an edge
    hit = surface(torch.as_tensor(solid.vertices), torch.as_tensor(solid.faces)).cast(
        start, torch.tensor([[0.0, 0.0, -1.0]])
    )
    return 2.0 - float(hit.distance)


# --- what colour everything has ---


def colour_of(name: str) -> RGB:
    """The colour that a word means. Raises InputError."""
    if name not in COLOURS:
        raise InputError(f"the toybox has no colour {name!r}. {nearest(name, COLOURS)}")
    return COLOURS[name]


def paint_colour(paint: Paint, thing: Thing) -> RGB:
    """The colour of a part of a thing."""
    if isinstance(paint, Trim):
        if thing.second:
            return colour_of(thing.second)
        paint = paint.own
    return paint or colour_of(thing.colour)


def pale(colour: RGB) -> RGB:
    """What stripes and checks alternate a colour with: nearly white, or gray for what is nearly white."""
    if min(colour) > 0.8:
        return COLOURS["gray"]
    r, g, b = (0.25 * c + 0.75 for c in colour)
    return (r, g, b)


def pattern(points: torch.Tensor, material: str) -> torch.Tensor:
    """Whether points [..., 3] lie where a material shows its pale colour, bool [...]."""
    if material == "striped":
        return (points[..., 2] / STRIPE).floor().long() % 2 == 1
    if material == "checkered":
        return (points / CHECK).floor().long().sum(-1) % 2 == 1
    return torch.zeros(points.shape[:-1], dtype=torch.bool, device=points.device)


def mesh_of(asked: Asked) -> Mesh:
    """The world's own mesh of what is asked for, with vertex colours: the ground truth. Raises InputError."""
    return join(*(_painted(piece, asked.things[piece.owner]) for piece in pieces_of(asked.arrangement)))


def _painted(piece: Piece, thing: Thing) -> Mesh:
    """A part in its colours; a pattern is painted on the faces of a mesh made fine enough to hold it."""
    import trimesh

    mesh, colour = piece.mesh, paint_colour(piece.paint, thing)
    if piece.paint is not None or thing.material not in ("striped", "checkered"):
        return Mesh(mesh.vertices, mesh.faces, np.tile(np.array(colour, np.float32), (len(mesh.vertices), 1)))
    vertices, faces = trimesh.remesh.subdivide_to_size(mesh.vertices, mesh.faces, 0.04, max_iter=20)
    corners = np.asarray(vertices)[faces]
    light = pattern(torch.as_tensor(corners.mean(1)), thing.material).numpy()
    shade = np.where(light[:, None], pale(colour), colour).astype(np.float32)
    # Faces share no vertices, so that colours change from one to the next at once.
    apart = np.arange(3 * len(corners), dtype=np.int32).reshape(-1, 3)
    return Mesh(corners.reshape(-1, 3).astype(np.float32), apart, np.repeat(shade, 3, axis=0))


# --- words ---


FORMS = ("a {colour} {kind}", "{colour} {kind}", "the {colour} {kind}", "one {colour} {kind}", "a {kind} in {colour}")
PARTIAL = ("a {kind}", "{kind}", "something {colour}")
SIDES = ViewWords(EIGHT)
SIDES_AND_HEIGHTS = ViewWords(EIGHT, (("low", -15.0), ("raised", 10.0), ("high", 35.0)))
VIEW_WORDS = {SIDES_AND_HEIGHTS: 0.75, SIDES: 0.15, ViewWords(): 0.1}
"""How captions say from where a thing is seen, and how often so."""


def named(prompt: str) -> Asked | None:
    """What a prompt asks for, if it says so in this world's words, with a colour for each kind; else None, also for two
    things of one kind, and for things on what nothing can stand on."""
    words = without_view(prompt.lower()).replace(",", " ").split()
    text = " ".join(word for word in words if word not in ("a", "an", "the", "one"))
    for relation, ways in JOINTS.items():
        for found in (found for way in ways for found in re.finditer(f" {way} ", text)):  # "red and blue" is no pair
            one, two = _thing(text[: found.start()]), _thing(text[found.end() :])
            stands = relation != "on top of" or (two is not None and two.kind in SUPPORTS)
            if one and two and one.kind != two.kind and stands:
                return Pair(one, relation, two)
    return _thing(text)


def _thing(text: str) -> Thing | None:
    words = text.split()
    kinds, colours, materials = ([w for w in words if w in known] for known in (KINDS, COLOURS, MATERIALS))
    if any(w not in ("in", "and") for w in words if w not in (*kinds, *colours, *materials)):
        return None
    if len(kinds) != 1 or len(colours) not in (1, 2) or len(materials) > 1:
        return None
    return Thing(kinds[0], colours[0], colours[1] if len(colours) == 2 else None, *materials)


def caption(asked: Asked, views: tuple[str, ...], draw: random.Random) -> str:
    """A caption for a picture of what is asked for: mostly "a red mug, high left side view", at times worded otherwise
    or left open.

    views: what is said of its view in each way of VIEW_WORDS.
    """
    if isinstance(asked, Pair):
        joint = draw.choices(JOINTS[asked.relation], weights=(8, 1, 1)[: len(JOINTS[asked.relation])])[0]
        words = f"{_noun(asked.first, draw, whole=True)} {joint} {_noun(asked.second, draw, whole=True)}"
    else:
        words = _noun(asked, draw)
    ending = draw.choices(["{w}, {v} view", "{v} view of {w}", "{w}"], weights=[0.8, 0.1, 0.1])[0]
    text = ending.format(w=words, v=draw.choices(views, weights=[*VIEW_WORDS.values()])[0])
    # "an orange mug"
    return text.replace("a orange", "an orange")


def view_said(text: str) -> str:
    """The view words of a caption; "" if it has none."""
    before, found, _ = text.partition(" view of ")
    return before if found else text.removesuffix(" view").rpartition(", ")[2] if text.endswith(" view") else ""


def without_view(text: str) -> str:
    """A caption without what it says of the view, if that is one of VIEW_WORDS."""
    said = view_said(text)
    if not any(said in way.every for way in VIEW_WORDS):
        return text
    return text.removeprefix(f"{said} view of ").removesuffix(f", {said} view")


def _noun(thing: Thing, draw: random.Random, whole: bool = False) -> str:
    """ "a striped red and blue mug": `whole` leaves nothing out, and is short."""
    simple = thing.second is None and thing.material == "matte" and not whole
    other = draw.choice(FORMS if simple else FORMS[:4])
    form = draw.choices([FORMS[0], other, draw.choice(PARTIAL)], weights=[0.6, 0.3, 0.0 if whole else 0.1])[0]
    colour = thing.colour if thing.second is None else f"{thing.colour} and {thing.second}"
    if thing.material != "matte":
        colour = f"{thing.material} {colour}"
    return form.format(kind=thing.kind, colour=colour)


def vocabulary() -> list[str]:
    """Every word a caption can hold, sorted."""
    every = itertools.product(FORMS + PARTIAL, COLOURS, KINDS)
    text = " ".join(form.format(colour=colour, kind=kind) for form, colour, kind in every)
    joints = " ".join(itertools.chain(*JOINTS.values()))
    return sorted({*text.split(), *joints.split(), *words_for_views(), *MATERIALS[1:], "an", ",", "view", "of"})


def words_for_views() -> set[str]:
    """Every word for where a thing is seen from."""
    return {word for way in VIEW_WORDS for view in way.every for word in view.split()}
