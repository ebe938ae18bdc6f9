"""What a 3D representation is, and what all of them share: backgrounds, and light for shaded training views.

A representation is a small frozen specification that a recipe holds, for example `HashGrid(...)`. `build` makes a scene
of it: the tensors that are optimised. Numbers of the specification that are Schedules change while a stage runs; the
methods that need them take `now`, the specification resolved at the present progress (schedule.resolve).
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.images import Images
from dreamkit.meshes import Mesh
from dreamkit.render.volume import Light
from dreamkit.schedule import Number, check_rates, fixed, resolve
from dreamkit.streams import Streams

Colour = tuple[float, float, float]
LightName = Literal["albedo", "textureless", "lambertian"]


class Group(TypedDict):
    """A parameter group, as torch optimisers take it."""

    name: str
    params: list[Tensor]
    lr: float


class Scene(Protocol):
    """One instance of a representation, on a device."""

    def render(
        self,
        cameras: Cameras,
        streams: Streams | None = None,
        *,
        now: Any = None,
        shading: LightName | None = None,
        normals: bool = False,
        background: Tensor | Colour | None = None,
    ) -> Images:
        """Pictures, differentiable in the parameters.

        With `streams` it is a training view: what is not given is drawn from them (sample positions, background,
        light). Without, nothing is random. `normals` asks for Images.normal and for normals inside the volume. `now` is
        the resolved specification, by default that at the end of the stage.
        """
        ...

    def parameters(self, now: Any = None) -> list[Group]:
        """Leaf tensors and their learning rates, always in the same order and, between two calls of after_step,
        the same tensors."""
        ...

    def after_step(self, step: int, streams: Streams, now: Any = None) -> dict[str, Tensor] | None:
        """Upkeep after the optimiser's step number `step`: occupancy, densification. `now` as in `render`.

        Where it replaces leaf tensors it returns, for each of their groups by name, rows [N_new] int64: the old row
        from which each new one takes the optimiser's statistics, or -1 for none.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that is not in the specification. A scene that loads it goes on bit for bit."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a state; leaf tensors may be others afterwards. Raises ValueError if it is not one of this
        specification."""
        ...


@runtime_checkable
class Volume(Scene, Protocol):
    """A scene that has a density and a colour at every point."""

    bounds: tuple[tuple[float, float, float], tuple[float, float, float]]
    """Lowest and highest corner of the box that holds the scene, world units."""

    def density(self, points: Tensor) -> Tensor:
        """[N, 3] world points -> [N] density per world unit, without gradient."""
        ...

    def colour(self, points: Tensor) -> Tensor:
        """[N, 3] world points -> [N, 3] unlit colour in [0, 1], without gradient."""
        ...


@runtime_checkable
class Solid(Scene, Protocol):
    """A scene that is a surface: its triangles are what is exported."""

    def mesh(self) -> Mesh:
        """The surface now, world units; with texture coordinates and maps if it has them. Raises RunError if gone."""
        ...

    def colour(self, points: Tensor) -> Tensor:
        """[N, 3] world points on the surface -> [N, 3] unlit colour in [0, 1], without gradient."""
        ...


class Representation(Protocol):
    """A frozen specification of scenes."""

    def build(self, device: torch.device | str, streams: Streams) -> Scene:
        """A fresh scene; its first values are drawn from `streams`."""
        ...


def at_end(spec: Any, now: Any) -> Any:
    """The resolved specification `now`, or, where there is none, `spec` as it is at the end of its stage."""
    return resolve(spec, 1.0) if now is None else now


@runtime_checkable
class Startable(Protocol):
    """A specification whose scenes can start from a scene of another kind."""

    def from_scene(self, scene: Scene, device: torch.device | str, streams: Streams) -> Scene:
        """A scene that looks like the given one. Raises InputError for a kind it cannot start from."""
        ...


def continued(spec: Representation, scene: Scene, device: torch.device | str, streams: Streams) -> Scene:
    """A scene of `spec` with the contents of another one of its kind: its very numbers, or, where these do not fit
    (another size, a network more), what it looks like. A learned background comes and goes by itself.

    Raises ValueError for contents that do not fit a specification whose scenes can start from none.
    """
    new = spec.build(device, streams)
    mine, state = new.state(), scene.state()
    for name in {name for name in mine.keys() ^ state.keys() if name.rpartition("/")[2] == "background"}:
        state = state | {name: mine[name]} if name in mine else {n: v for n, v in state.items() if n != name}
    try:
        new.load(state)
    except ValueError:
        if not isinstance(spec, Startable):
            raise
        return spec.from_scene(scene, device, streams)
    return new


@dataclass(frozen=True)
class RandomColour:
    """A plain background, another in every view: a grey with probability `grey`, else any colour.

    What is not the object must then really be empty, because no colour of fog suits every background.
    """

    grey: float = 0.5

    def draw(self, count: int, streams: Streams) -> Tensor:
        """[count, 3] from the stream "background"."""
        draw = streams.uniform("background", (count, 4))
        return torch.where(draw[:, 3:] < self.grey, draw[:, :1], draw[:, :3])


@dataclass(frozen=True)
class PlainColour:
    """One background colour for all views."""

    colour: Colour = (1.0, 1.0, 1.0)

    def draw(self, count: int, streams: Streams) -> Tensor:
        """[count, 3]; nothing is drawn."""
        return torch.tensor(self.colour).expand(count, 3)


@dataclass(frozen=True)
class LearnedColour:
    """One background colour that is optimised with the scene, put aside for a random one in some views.

    Without `random` views the object may dissolve into its background (threestudio's `random_aug`).
    """

    start: Colour = (0.5, 0.5, 0.5)
    random: float = 0.5
    rate: Number = 1e-3

    def __post_init__(self) -> None:
        check_rates(self)


Background = RandomColour | PlainColour | LearnedColour


class Backdrop:
    """What stands behind a scene: its specification's background, on a device, with the colour that is learned."""

    def __init__(self, background: Background, preview: Colour, device: torch.device) -> None:
        self.background, self.preview, self.device = background, preview, device
        self.learned: Tensor | None = None
        if isinstance(background, LearnedColour):
            start = torch.logit(torch.tensor(background.start, device=device), eps=1e-3)
            self.learned = start.requires_grad_()

    def behind(self, count: int, streams: Streams | None, given: Tensor | Colour | None) -> Tensor:
        """Colours [count, 3], or pictures [count, 3, H, W] if given as such.

        What is given, else drawn from `streams` ("background", "background/swap"), else the preview's colour.
        """
        if given is None and streams is None:
            given = self.preview
        if given is not None:
            colour = torch.as_tensor(given, dtype=torch.float32, device=self.device)
            return colour.expand(count, 3) if colour.ndim == 1 else colour
        assert streams is not None
        if not isinstance(self.background, LearnedColour):
            return self.background.draw(count, streams).to(self.device)
        assert self.learned is not None
        other = RandomColour().draw(count, streams).to(self.learned)
        swap = streams.uniform("background/swap", (count, 1), like=self.learned) < self.background.random
        return torch.where(swap, other, torch.sigmoid(self.learned))

    def parameters(self, now: Background) -> list[Group]:
        """The group "background" of the learned colour; none without one. `now` is the resolved background."""
        if self.learned is None or not isinstance(now, LearnedColour):
            return []
        return [{"name": "background", "params": [self.learned], "lr": fixed(now.rate)}]

    def tensors(self) -> dict[str, Tensor]:
        """For a scene's state: the learned colour, if there is one."""
        return {} if self.learned is None else {"background": self.learned}


@dataclass(frozen=True)
class Shading:
    """How training views are lit, drawn anew for every step (DreamFusion, arXiv:2209.14988, section 3.1).

    A step shows the unlit colour with probability `albedo`, grey clay with `textureless`, else the lit colour. The
    light stands near the camera: in the direction of the camera's plus a normal perturbation of size `spread`, at
    `distance` times the camera's distance. Unlit steps cost nothing extra; the others need normals.
    """

    albedo: Number = 1.0
    textureless: Number = 0.0
    ambient: Number = 0.1
    diffuse: Number = 0.9
    spread: float = 0.8
    distance: tuple[float, float] = (0.8, 1.5)

    def choose(self, streams: Streams) -> LightName:
        """This step's kind, from the stream "shading"."""
        albedo, textureless = fixed(self.albedo), fixed(self.textureless)
        draw = streams.uniform("shading", (1,)).item()
        if draw < albedo:
            return "albedo"
        return "textureless" if draw < albedo + textureless else "lambertian"

    def light(self, name: LightName, cameras: Cameras, streams: Streams | None) -> Light | None:
        """The light of these views: from the streams "light" and "light/distance", or at the camera without streams."""
        if name == "albedo":
            return None
        position = cameras.positions
        if streams is not None:
            radius = position.norm(dim=-1, keepdim=True)
            moved = position / radius + self.spread * streams.normal("light", (len(cameras), 3), like=position)
            low, high = self.distance
            far = low + (high - low) * streams.uniform("light/distance", (len(cameras), 1), like=position)
            position = torch.nn.functional.normalize(moved, dim=-1) * radius * far
        return Light(position, fixed(self.ambient), fixed(self.diffuse), textureless=name == "textureless")
