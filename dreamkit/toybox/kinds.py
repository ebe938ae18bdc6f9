"""The toybox's things: what each kind is built of.

Every kind is a function that returns its parts: primitives, upright, with the front to +x, in units of its own. The
paint of a part says whose colour it takes: MAIN, the colour that the caption names; a Trim, the second colour if the
caption names one; or a colour of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamkit.meshes import Mesh

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Trim:
    """Takes the caption's second colour; without one, a colour of its own, or the main one."""

    own: RGB | None = None


MAIN = None
"""Stands where a part takes the caption's colour."""
Paint = RGB | Trim | None
Part = tuple[Mesh, Paint]

DARK, STEEL, WOOD = (0.10, 0.10, 0.12), (0.62, 0.64, 0.68), (0.48, 0.30, 0.16)
CREAM, BEAK, GLASS, SUN = (0.93, 0.88, 0.76), (0.95, 0.55, 0.10), (0.62, 0.82, 0.92), (0.98, 0.85, 0.25)
CLAY, TILE, LEAF, SNOW = (0.72, 0.40, 0.25), (0.32, 0.20, 0.18), (0.20, 0.50, 0.18), (0.95, 0.95, 0.95)


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
    return [(turned(cup), MAIN), (ring((0, 0.5, 0.0), 0.24, 0.075, (1, 0, 0)), Trim())]


def chair() -> list[Part]:
    legs = [box((x, y, -0.45), (0.13, 0.13, 0.6)) for x in (-0.28, 0.28) for y in (-0.28, 0.28)]
    return [
        (box((0, 0, -0.1), (0.7, 0.7, 0.12)), MAIN),
        (box((-0.3, 0, 0.35), (0.1, 0.7, 0.85)), MAIN),
        *((leg, Trim(WOOD)) for leg in legs),
    ]


def table() -> list[Part]:
    legs = [box((x, y, -0.2), (0.15, 0.15, 0.65)) for x in (-0.42, 0.42) for y in (-0.42, 0.42)]
    return [(box((0, 0, 0.18), (1.1, 1.1, 0.14)), MAIN), *((leg, Trim(WOOD)) for leg in legs)]


def car() -> list[Part]:
    wheels = [wheel(x, y, -0.22, 0.17, 0.14) for x in (-0.4, 0.42) for y in (-0.3, 0.3)]
    lights = [ball((0.75, y, -0.03), 0.07) for y in (-0.2, 0.2)]
    return [
        (box((0, 0, -0.05), (1.5, 0.62, 0.28)), MAIN),
        (box((-0.12, 0, 0.2), (0.72, 0.54, 0.26)), GLASS),
        (box((-0.12, 0, 0.35), (0.74, 0.56, 0.07)), Trim()),
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
        (turned([(0, 0.6), (0.24, 0.6), (0.24, 0.64), (0.15, 0.64), (0.15, 0.8), (0, 0.8)]), Trim(DARK)),
        *((eye, DARK) for eye in eyes),
        *((button, DARK) for button in buttons),
    ]


def mushroom() -> list[Part]:
    angles = np.linspace(0, np.pi / 2, 12)
    cap = [(0, 0.05), (0.68, 0.05), *((0.68 * np.cos(a), 0.08 + 0.5 * np.sin(a)) for a in angles[:-1]), (0, 0.58)]
    return [
        (turned(cap), MAIN),
        (turned([(0, -0.65), (0.26, -0.65), (0.18, -0.3), (0.2, 0.06), (0, 0.06)]), Trim(CREAM)),
    ]


def tree() -> list[Part]:
    layers = [((0.58, -0.35), 0.15), ((0.46, -0.02), 0.45), ((0.33, 0.28), 0.8)]
    crown = [(turned([(0, z), (r, z), (0, top)]), MAIN) for (r, z), top in layers]
    return [*crown, (turned([(0, -0.75), (0.13, -0.75), (0.13, -0.3), (0, -0.3)]), Trim(WOOD))]


def house() -> list[Part]:
    roof = turned([(0, 0.1), (0.74, 0.1), (0, 0.68)], sections=4)
    windows = [box((0.46, y, 0.0), (0.04, 0.2, 0.2)) for y in (-0.27, 0.27)]
    return [
        (box((0, 0, -0.25), (0.92, 0.92, 0.7)), MAIN),
        (_spun(roof, 45.0), Trim(TILE)),
        (box((0.46, 0, -0.36), (0.04, 0.22, 0.48)), DARK),
        *((window, SUN) for window in windows),
    ]


def rocket() -> list[Part]:
    fins = [_spun(box((0.3, 0, -0.52), (0.32, 0.06, 0.36)), angle) for angle in (0, 90, 180, 270)]
    body = [(0, -0.6), (0.22, -0.6), (0.28, -0.2), (0.26, 0.2), (0, 0.2)]
    nose = [(0, 0.2), (0.26, 0.2), (0.15, 0.55), (0, 0.78)]
    return [
        (turned(body), MAIN),
        (turned(nose), Trim(STEEL)),
        (ball((0.24, 0, 0.03), (0.08, 0.1, 0.1)), GLASS),
        *((fin, DARK) for fin in fins),
    ]


def lamp() -> list[Part]:
    shade = [(0.46, 0.1), (0.24, 0.65), (0.2, 0.65), (0.42, 0.1), (0.46, 0.1)]
    return [
        (turned(shade), MAIN),
        (turned([(0, 0.5), (0.22, 0.5), (0.22, 0.53), (0, 0.53)]), MAIN),
        (rod((0, 0, -0.65), (0, 0, 0.5), 0.065), Trim(STEEL)),
        (turned([(0, -0.7), (0.34, -0.7), (0.3, -0.6), (0, -0.58)]), Trim(STEEL)),
    ]


def duck() -> list[Part]:
    eyes = [ball((0.5, y, 0.44), 0.05) for y in (-0.14, 0.14)]
    return [
        (ball((-0.08, 0, -0.2), (0.52, 0.36, 0.32)), MAIN),
        (spike((-0.45, 0, -0.12), (-0.75, 0, 0.16), 0.18), MAIN),
        (ball((0.3, 0, 0.34), (0.25, 0.24, 0.25)), Trim()),
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
        *((limb, Trim(STEEL)) for limb in (*limbs, *legs)),
    ]


def boat() -> list[Part]:
    hull = _prism([(-0.75, 0.12), (0.8, 0.12), (0.5, -0.3), (-0.6, -0.3)], 0.5)
    sail = _prism([(-0.06, 0.2), (-0.06, 0.98), (-0.66, 0.2)], 0.06)
    jib = _prism([(0.08, 0.24), (0.6, 0.24), (0.08, 0.86)], 0.06)
    return [
        (hull, MAIN),
        (box((-0.2, 0, 0.14), (0.8, 0.36, 0.06)), WOOD),
        (rod((0, 0, 0), (0, 0, 1.05), 0.045), WOOD),
        (sail, Trim(SNOW)),
        (jib, Trim(SNOW)),
    ]


def plane() -> list[Part]:
    return [
        (ball((0, 0, 0), (0.8, 0.17, 0.17)), MAIN),
        (ball((0.38, 0, 0.12), (0.22, 0.12, 0.12)), GLASS),
        (box((0.1, 0, -0.02), (0.34, 1.5, 0.06)), Trim()),
        (box((-0.66, 0, 0.06), (0.2, 0.56, 0.05)), Trim()),
        (_prism([(-0.78, 0.08), (-0.5, 0.08), (-0.66, 0.42), (-0.8, 0.42)], 0.06), MAIN),
        (rod((0.76, 0, 0), (0.86, 0, 0), 0.06), DARK),
        (box((0.85, 0, 0), (0.03, 0.07, 0.44)), DARK),
    ]


def fish() -> list[Part]:
    eyes = [ball((0.42, y, 0.1), 0.06) for y in (-0.14, 0.14)]
    return [
        (ball((0.1, 0, 0), (0.55, 0.2, 0.36)), MAIN),
        (_prism([(-0.36, 0), (-0.78, 0.36), (-0.66, 0), (-0.78, -0.36)], 0.1), Trim()),
        (_prism([(-0.1, 0.3), (0.3, 0.3), (-0.1, 0.56)], 0.08), Trim()),
        (_prism([(-0.05, -0.3), (0.25, -0.3), (-0.1, -0.5)], 0.08), Trim()),
        *((eye, DARK) for eye in eyes),
    ]


def cat() -> list[Part]:
    legs = [rod((x, y, -0.1), (x, y, -0.55), 0.085) for x in (-0.32, 0.28) for y in (-0.14, 0.14)]
    ears = [spike((0.42, y, 0.5), (0.42, y * 1.3, 0.8), 0.11) for y in (-0.15, 0.15)]
    eyes = [ball((0.66, y, 0.42), 0.045) for y in (-0.1, 0.1)]
    return [
        (ball((-0.02, 0, -0.02), (0.5, 0.24, 0.25)), MAIN),
        (ball((0.44, 0, 0.36), (0.25, 0.26, 0.24)), MAIN),
        *((leg, MAIN) for leg in legs),
        (rod((-0.45, 0, 0.05), (-0.72, 0, 0.5), 0.06), Trim()),
        (ball((-0.72, 0, 0.5), 0.065), Trim()),
        *((ear, Trim()) for ear in ears),
        (ball((0.68, 0, 0.32), (0.05, 0.06, 0.04)), (0.95, 0.6, 0.6)),
        *((eye, DARK) for eye in eyes),
    ]


def cactus() -> list[Part]:
    pot = [(0, -0.75), (0.26, -0.75), (0.36, -0.35), (0.3, -0.35), (0.28, -0.42), (0, -0.42)]
    return [
        (rod((0, 0, -0.42), (0, 0, 0.55), 0.19), MAIN),
        (ball((0, 0, 0.55), 0.19), MAIN),
        (rod((0, 0, -0.02), (0, 0.42, -0.02), 0.1), MAIN),
        (rod((0, 0.42, -0.02), (0, 0.42, 0.36), 0.1), MAIN),
        (ball((0, 0.42, 0.36), 0.1), MAIN),
        (ball((0, 0.42, -0.02), 0.1), MAIN),
        (rod((0, 0, 0.2), (0, -0.38, 0.2), 0.09), MAIN),
        (rod((0, -0.38, 0.2), (0, -0.38, 0.5), 0.09), MAIN),
        (ball((0, -0.38, 0.5), 0.09), MAIN),
        (ball((0, -0.38, 0.2), 0.09), MAIN),
        (turned(pot), Trim(CLAY)),
    ]


def teapot() -> list[Part]:
    lid = [(0, 0.28), (0.24, 0.28), (0.16, 0.38), (0, 0.4)]
    return [
        (ball((0, 0, 0), (0.44, 0.44, 0.36)), MAIN),
        (turned([(0, -0.42), (0.26, -0.42), (0.3, -0.28), (0, -0.28)]), MAIN),
        (rod((0, -0.36, -0.08), (0, -0.76, 0.26), 0.085), MAIN),
        (ring((0, 0.48, 0.02), 0.22, 0.055, (1, 0, 0)), Trim()),
        (turned(lid), Trim()),
        (ball((0, 0, 0.44), 0.07), Trim()),
    ]


def bottle() -> list[Part]:
    glass = [(0, -0.75), (0.3, -0.75), (0.3, 0.1), (0.24, 0.26), (0.11, 0.42), (0.11, 0.62), (0, 0.62)]
    return [
        (turned(glass), MAIN),
        (turned([(0, 0.6), (0.14, 0.6), (0.14, 0.78), (0, 0.78)]), Trim(DARK)),
        (turned([(0, -0.45), (0.31, -0.45), (0.31, -0.1), (0, -0.1)]), CREAM),
    ]


def cake() -> list[Part]:
    drops = [ball((0.5 * np.cos(a), 0.5 * np.sin(a), 0.2), 0.09) for a in np.arange(8) * np.pi / 4]
    return [
        (turned([(0, -0.35), (0.62, -0.35), (0.62, 0.12), (0, 0.12)]), MAIN),
        (turned([(0, 0.12), (0.64, 0.12), (0.64, 0.2), (0, 0.2)]), Trim(CREAM)),
        (turned([(0, -0.42), (0.78, -0.42), (0.78, -0.35), (0, -0.35)]), STEEL),
        *((drop, Trim(CREAM)) for drop in drops),
    ]


def castle() -> list[Part]:
    corners = [(x, y) for x in (-0.46, 0.46) for y in (-0.46, 0.46)]
    return [
        (box((0, 0, -0.3), (0.92, 0.92, 0.5)), MAIN),
        (box((0, 0, 0.05), (0.44, 0.44, 0.4)), MAIN),
        (box((0.47, 0, -0.38), (0.04, 0.26, 0.34)), DARK),
        *((rod((x, y, -0.55), (x, y, 0.12), 0.17), MAIN) for x, y in corners),
        *((spike((x, y, 0.12), (x, y, 0.52), 0.22), Trim(TILE)) for x, y in corners),
        (spike((0, 0, 0.25), (0, 0, 0.72), 0.3), Trim(TILE)),
    ]


def train() -> list[Part]:
    wheels = [wheel(x, y, -0.38, 0.16, 0.08) for x in (-0.5, -0.1, 0.3) for y in (-0.27, 0.27)]
    return [
        (rod((-0.2, 0, 0.0), (0.62, 0, 0.0), 0.27), MAIN),
        (box((-0.5, 0, 0.12), (0.5, 0.6, 0.72)), Trim()),
        (box((-0.5, 0, 0.5), (0.62, 0.7, 0.07)), DARK),
        (box((-0.5, 0, 0.2), (0.26, 0.63, 0.24)), GLASS),
        (box((-0.05, 0, -0.28), (1.36, 0.44, 0.14)), DARK),
        (turned([(0, 0.2), (0.09, 0.2), (0.14, 0.58), (0, 0.58)], (0.42, 0)), DARK),
        (ball((0.63, 0, 0.0), (0.06, 0.1, 0.1)), SUN),
        (_prism([(0.6, -0.2), (0.6, -0.45), (0.85, -0.45)], 0.44), STEEL),
        *((w, DARK) for w in wheels),
    ]


def sofa() -> list[Part]:
    feet = [box((x, y, -0.44), (0.1, 0.1, 0.12)) for x in (-0.28, 0.28) for y in (-0.6, 0.6)]
    return [
        (box((0, 0, -0.24), (0.72, 1.4, 0.28)), MAIN),
        (box((-0.3, 0, 0.16), (0.16, 1.4, 0.6)), MAIN),
        *((box((0.02, y, 0.0), (0.76, 0.2, 0.46)), MAIN) for y in (-0.66, 0.66)),
        *((box((0.06, y, -0.06), (0.6, 0.56, 0.14)), Trim()) for y in (-0.28, 0.28)),
        *((foot, WOOD) for foot in feet),
    ]


def flower() -> list[Part]:
    around = np.arange(6) * np.pi / 3
    petals = [ball((0.09, 0.3 * np.cos(a), 0.4 + 0.3 * np.sin(a)), (0.06, 0.2, 0.2)) for a in around]
    leaves = [ball((0, y, -0.4), (0.05, 0.22, 0.1)) for y in (-0.22, 0.22)]
    return [
        *((petal, MAIN) for petal in petals),
        (ball((0.12, 0, 0.4), (0.1, 0.18, 0.18)), Trim(SUN)),
        (rod((0, 0, -0.75), (0, 0, 0.4), 0.05), LEAF),
        *((leaf, LEAF) for leaf in leaves),
    ]


KINDS: dict[str, Callable[[], list[Part]]] = {
    f.__name__: f
    for f in (
        *(mug, chair, table, car, snowman, mushroom, tree, house, rocket, lamp, duck, robot),
        *(boat, plane, fish, cat, cactus, teapot, bottle, cake, castle, train, sofa, flower),
    )
}

SUPPORTS = ("table", "chair", "sofa", "cake", "car")
"""The kinds that other things can stand on."""


def _placed(solid: Any, centre: tuple[float, float, float]) -> Mesh:
    return Mesh(np.asarray(solid.vertices + np.asarray(centre), np.float32), np.asarray(solid.faces, np.int32))


def _spun(mesh: Mesh, degrees: float) -> Mesh:
    """The mesh turned about the vertical axis."""
    a = np.deg2rad(degrees)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    return Mesh((mesh.vertices @ turn.T).astype(np.float32), mesh.faces)


def _prism(outline: list[tuple[float, float]], width: float) -> Mesh:
    """An outline in the plane of x and z, counter-clockwise or not, drawn out over `width` along y about 0."""
    import trimesh

    flat = np.array(outline, dtype=float)
    a, b = flat, np.roll(flat, -1, axis=0)
    if (a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1]).sum() < 0:
        flat = flat[::-1]
    count, middle = len(flat), flat.mean(0)
    rings = [np.insert(np.vstack([flat, middle]), 1, y, axis=1) for y in (-width / 2, width / 2)]
    here, there = np.arange(count), (np.arange(count) + 1) % count
    far = count + 1  # the second ring's numbers
    faces = np.concatenate(
        [
            np.stack([np.full(count, count), here, there], 1),
            np.stack([np.full(count, far + count), far + there, far + here], 1),
            np.stack([here, far + here, there], 1),
            np.stack([there, far + here, far + there], 1),
        ]
    )
    solid = trimesh.Trimesh(np.concatenate(rings), faces, process=False)
    if solid.volume < 0:
        solid.invert()
    return _placed(solid, (0, 0, 0))
