"""The toybox's world: small coloured things in a fixed pose, the words for them, and pictures of them.

Every kind is built from primitives, stands upright with its front to +x, and fits a ball of radius RADIUS. One part
takes the colour that the caption names; the others keep colours of their own. Because the world is procedural, the
true mesh for a caption is known.
"""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from dreamkit.cameras import Orbit
from dreamkit.errors import InputError, nearest
from dreamkit.meshes import Mesh, coloured, join
from dreamkit.prompts import EIGHT, FOUR

RADIUS = 0.8
CAMERAS = Orbit(distance=(2.8, 3.2), fov_degrees=(33.0, 39.0), elevation_degrees=(-15.0, 75.0), size=64)

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.10),
    "orange": (0.95, 0.50, 0.08),
    "yellow": (0.95, 0.85, 0.12),
    "green": (0.15, 0.65, 0.20),
    "blue": (0.12, 0.28, 0.85),
    "purple": (0.50, 0.18, 0.70),
    "pink": (0.96, 0.52, 0.72),
    "brown": (0.45, 0.27, 0.13),
    "gray": (0.50, 0.50, 0.52),
    "white": (0.95, 0.95, 0.95),
}
MAIN = None
"""Stands where a part takes the caption's colour."""
DARK, STEEL, WOOD = (0.10, 0.10, 0.12), (0.62, 0.64, 0.68), (0.48, 0.30, 0.16)
CREAM, BEAK, GLASS, SUN = (0.93, 0.88, 0.76), (0.95, 0.55, 0.10), (0.62, 0.82, 0.92), (0.98, 0.85, 0.25)

Part = tuple[Mesh, tuple[float, float, float] | None]


# --- primitives; all take centres and sizes in world units ---


def box(centre: tuple[float, float, float], size: tuple[float, float, float]) -> Mesh:
    import trimesh

    return _placed(trimesh.creation.box(size), centre)


def ball(centre: tuple[float, float, float], radii: float | tuple[float, float, float]) -> Mesh:
    import trimesh

    sphere = trimesh.creation.icosphere(subdivisions=3)
    sphere.vertices *= np.broadcast_to(radii, 3)
    return _placed(sphere, centre)


def turned(profile: list[tuple[float, float]], centre: tuple[float, float] = (0.0, 0.0), sections: int = 48) -> Mesh:
    """A solid of revolution round a vertical axis at `centre`; profile of (radius, z), counter-clockwise (going up)."""
    import trimesh

    solid = trimesh.creation.revolve(np.array(profile, dtype=float), sections=sections)
    return _placed(solid, (*centre, 0.0))


def rod(start: tuple[float, float, float], end: tuple[float, float, float], radius: float) -> Mesh:
    import trimesh

    return _placed(trimesh.creation.cylinder(radius, segment=np.array([start, end]), sections=32), (0, 0, 0))


def spike(base: tuple[float, float, float], tip: tuple[float, float, float], radius: float) -> Mesh:
    """A cone from the disc round `base` to the point `tip`."""
    import trimesh

    axis = np.subtract(tip, base)
    cone = trimesh.creation.cone(radius, float(np.linalg.norm(axis)), sections=32)
    cone.apply_transform(trimesh.geometry.align_vectors([0, 0, 1], axis / np.linalg.norm(axis)))
    return _placed(cone, base)


def ring(centre: tuple[float, float, float], major: float, minor: float, axis: tuple[float, float, float]) -> Mesh:
    import trimesh

    torus = trimesh.creation.torus(major, minor, major_sections=48, minor_sections=16)
    torus.apply_transform(trimesh.geometry.align_vectors([0, 0, 1], np.array(axis, dtype=float)))
    return _placed(torus, centre)


def wheel(x: float, y: float, z: float, radius: float, width: float) -> Mesh:
    return rod((x, y - width / 2, z), (x, y + width / 2, z), radius)


# --- the kinds ---


def mug() -> list[Part]:
    cup = [(0, -0.5), (0.42, -0.5), (0.46, 0.5), (0.38, 0.5), (0.34, -0.4), (0, -0.4)]
    return [(turned(cup), MAIN), (ring((0, 0.5, 0.0), 0.24, 0.075, (1, 0, 0)), MAIN)]


def chair() -> list[Part]:
    legs = [box((x, y, -0.45), (0.13, 0.13, 0.6)) for x in (-0.28, 0.28) for y in (-0.28, 0.28)]
    return [
        (box((0, 0, -0.1), (0.7, 0.7, 0.12)), MAIN),
        (box((-0.3, 0, 0.35), (0.1, 0.7, 0.85)), MAIN),
        *((leg, WOOD) for leg in legs),
    ]


def table() -> list[Part]:
    legs = [box((x, y, -0.2), (0.15, 0.15, 0.65)) for x in (-0.42, 0.42) for y in (-0.42, 0.42)]
    return [(box((0, 0, 0.18), (1.1, 1.1, 0.14)), MAIN), *((leg, WOOD) for leg in legs)]


def car() -> list[Part]:
    wheels = [wheel(x, y, -0.22, 0.17, 0.14) for x in (-0.4, 0.42) for y in (-0.3, 0.3)]
    lights = [ball((0.75, y, -0.03), 0.07) for y in (-0.2, 0.2)]
    return [
        (box((0, 0, -0.05), (1.5, 0.62, 0.28)), MAIN),
        (box((-0.12, 0, 0.2), (0.72, 0.54, 0.26)), GLASS),
        (box((-0.12, 0, 0.35), (0.74, 0.56, 0.07)), MAIN),
        *((w, DARK) for w in wheels),
        *((light, SUN) for light in lights),
    ]


def snowman() -> list[Part]:
    eyes = [ball((0.19, y, 0.5), 0.045) for y in (-0.09, 0.09)]
    buttons = [ball((x, 0, z), 0.04) for x, z in ((0.3, 0.12), (0.31, -0.02))]
    return [
        (ball((0, 0, -0.42), 0.38), MAIN),
        (ball((0, 0, 0.05), 0.29), MAIN),
        (ball((0, 0, 0.45), 0.22), MAIN),
        (spike((0.18, 0, 0.43), (0.46, 0, 0.41), 0.06), BEAK),
        (turned([(0, 0.6), (0.24, 0.6), (0.24, 0.64), (0.15, 0.64), (0.15, 0.8), (0, 0.8)]), DARK),
        *((eye, DARK) for eye in eyes),
        *((button, DARK) for button in buttons),
    ]


def mushroom() -> list[Part]:
    angles = np.linspace(0, np.pi / 2, 12)
    cap = [(0, 0.05), (0.68, 0.05), *((0.68 * np.cos(a), 0.08 + 0.5 * np.sin(a)) for a in angles[:-1]), (0, 0.58)]
    return [
        (turned(cap), MAIN),
        (turned([(0, -0.65), (0.26, -0.65), (0.18, -0.3), (0.2, 0.06), (0, 0.06)]), CREAM),
    ]


def tree() -> list[Part]:
    layers = [((0.58, -0.35), 0.15), ((0.46, -0.02), 0.45), ((0.33, 0.28), 0.8)]
    crown = [(turned([(0, z), (r, z), (0, top)]), MAIN) for (r, z), top in layers]
    return [*crown, (turned([(0, -0.75), (0.13, -0.75), (0.13, -0.3), (0, -0.3)]), WOOD)]


def house() -> list[Part]:
    roof = turned([(0, 0.1), (0.74, 0.1), (0, 0.68)], sections=4)
    windows = [box((0.46, y, 0.0), (0.04, 0.2, 0.2)) for y in (-0.27, 0.27)]
    return [
        (box((0, 0, -0.25), (0.92, 0.92, 0.7)), MAIN),
        (_spun(roof, 45.0), (0.32, 0.20, 0.18)),
        (box((0.46, 0, -0.36), (0.04, 0.22, 0.48)), DARK),
        *((window, SUN) for window in windows),
    ]


def rocket() -> list[Part]:
    fins = [_spun(box((0.3, 0, -0.52), (0.32, 0.06, 0.36)), angle) for angle in (0, 90, 180, 270)]
    body = [(0, -0.6), (0.22, -0.6), (0.28, -0.2), (0.26, 0.2), (0, 0.2)]
    nose = [(0, 0.2), (0.26, 0.2), (0.15, 0.55), (0, 0.78)]
    return [
        (turned(body), MAIN),
        (turned(nose), STEEL),
        (ball((0.24, 0, 0.03), (0.08, 0.1, 0.1)), GLASS),
        *((fin, DARK) for fin in fins),
    ]


def lamp() -> list[Part]:
    shade = [(0.46, 0.1), (0.24, 0.65), (0.2, 0.65), (0.42, 0.1), (0.46, 0.1)]
    return [
        (turned(shade), MAIN),
        (turned([(0, 0.5), (0.22, 0.5), (0.22, 0.53), (0, 0.53)]), MAIN),
        (rod((0, 0, -0.65), (0, 0, 0.5), 0.065), STEEL),
        (turned([(0, -0.7), (0.34, -0.7), (0.3, -0.6), (0, -0.58)]), STEEL),
    ]


def duck() -> list[Part]:
    eyes = [ball((0.5, y, 0.44), 0.05) for y in (-0.14, 0.14)]
    return [
        (ball((-0.08, 0, -0.2), (0.52, 0.36, 0.32)), MAIN),
        (spike((-0.45, 0, -0.12), (-0.75, 0, 0.16), 0.18), MAIN),
        (ball((0.3, 0, 0.34), (0.25, 0.24, 0.25)), MAIN),
        (rod((0.22, 0, -0.1), (0.3, 0, 0.3), 0.15), MAIN),
        (ball((0.57, 0, 0.29), (0.17, 0.13, 0.06)), BEAK),
        *((eye, DARK) for eye in eyes),
    ]


def robot() -> list[Part]:
    eyes = [ball((0.24, y, 0.5), 0.065) for y in (-0.11, 0.11)]
    limbs = [box((0, y, -0.02), (0.16, 0.14, 0.5)) for y in (-0.42, 0.42)]
    legs = [box((0.02, y, -0.57), (0.24, 0.18, 0.36)) for y in (-0.17, 0.17)]
    return [
        (box((0, 0, 0.0), (0.42, 0.66, 0.56)), MAIN),
        (box((0, 0, 0.48), (0.42, 0.46, 0.34)), MAIN),
        (box((0.2, 0, 0.05), (0.06, 0.34, 0.22)), DARK),
        (rod((0, 0, 0.6), (0, 0, 0.76), 0.03), STEEL),
        (ball((0, 0, 0.76), 0.06), SUN),
        *((eye, SUN) for eye in eyes),
        *((limb, STEEL) for limb in (*limbs, *legs)),
    ]


KINDS: dict[str, Callable[[], list[Part]]] = {
    f.__name__: f for f in (mug, chair, table, car, snowman, mushroom, tree, house, rocket, lamp, duck, robot)
}


@cache
def parts(kind: str) -> tuple[Part, ...]:
    """The parts of a kind, scaled about the origin so that all fit the ball of RADIUS. Raises InputError."""
    if kind not in KINDS:
        raise InputError(f"the toybox has no {kind!r}. {nearest(kind, KINDS)}")
    built = KINDS[kind]()
    points = np.concatenate([mesh.vertices for mesh, _ in built])
    middle = (points.min(0) + points.max(0)) / 2
    scale = RADIUS / np.linalg.norm(points - middle, axis=1).max()
    return tuple((Mesh(((m.vertices - middle) * scale).astype(np.float32), m.faces), colour) for m, colour in built)


def true_mesh(kind: str, colour: str) -> Mesh:
    """The world's own mesh of `kind` in `colour`, with vertex colours: the ground truth. Raises InputError."""
    if colour not in COLOURS:
        raise InputError(f"the toybox has no colour {colour!r}. {nearest(colour, COLOURS)}")
    return join(*(coloured(mesh, own or COLOURS[colour]) for mesh, own in parts(kind)))


# --- captions ---


@dataclass(frozen=True)
class Thing:
    kind: str
    colour: str


def named(prompt: str) -> Thing | None:
    """The thing that a prompt names, if it names one kind and one colour of this world and no other."""
    words = prompt.lower().replace(",", " ").split()
    kinds, colours = ([word for word in words if word in known] for known in (KINDS, COLOURS))
    return Thing(kinds[0], colours[0]) if len(kinds) == len(colours) == 1 else None


FORMS = ("a {colour} {kind}", "{colour} {kind}", "the {colour} {kind}", "one {colour} {kind}", "a {kind} in {colour}")
PARTIAL = ("a {kind}", "{kind}", "something {colour}")


def caption(thing: Thing, views: tuple[str, str], draw: random.Random) -> str:
    """A caption for a picture of `thing`: mostly "a red mug, left side view", at times worded otherwise or left open.

    views: its view words, exact and rough; the exact ones are used mostly.
    """
    form = draw.choices([FORMS[0], draw.choice(FORMS), draw.choice(PARTIAL)], weights=[0.6, 0.3, 0.1])[0]
    words = form.format(kind=thing.kind, colour=thing.colour)
    ending = draw.choices(["{w}, {v} view", "{v} view of {w}", "{w}"], weights=[0.8, 0.1, 0.1])[0]
    text = ending.format(w=words, v=draw.choices(views, weights=[0.85, 0.15])[0])
    # "an orange mug"
    return text.replace("a orange", "an orange")


def vocabulary() -> list[str]:
    """Every word a caption can hold, sorted."""
    every = itertools.product(FORMS + PARTIAL, COLOURS, KINDS)
    text = " ".join(form.format(colour=colour, kind=kind) for form, colour, kind in every)
    return sorted({*text.split(), *" ".join(EIGHT + FOUR).split(), "overhead", "an", ",", "view", "of"})


def _placed(solid: Any, centre: tuple[float, float, float]) -> Mesh:
    return Mesh(np.asarray(solid.vertices + np.asarray(centre), np.float32), np.asarray(solid.faces, np.int32))


def _spun(mesh: Mesh, degrees: float) -> Mesh:
    """The mesh turned about the vertical axis."""
    a = np.deg2rad(degrees)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    return Mesh((mesh.vertices @ turn.T).astype(np.float32), mesh.faces)
