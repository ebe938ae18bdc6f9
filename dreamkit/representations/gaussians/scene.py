"""A scene of 3D Gaussians (3DGS, arXiv:2308.04079): the specification, and one instance of it."""

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.disk import expanded
from dreamkit.errors import InputError, RunError
from dreamkit.images import Images
from dreamkit.render.splats import render_splats
from dreamkit.representations.gaussians import field as volume
from dreamkit.representations.gaussians import start as origin
from dreamkit.representations.gaussians.cloud import Cloud, dc_of
from dreamkit.representations.gaussians.control import Densify, Statistics, Strategy, Watch
from dreamkit.representations.gaussians.start import File, Points
from dreamkit.representations.representation import (
    Backdrop,
    Background,
    Colour,
    Group,
    LightName,
    RandomColour,
    at_end,
)
from dreamkit.schedule import Geometric, Number, check_rates, fixed
from dreamkit.streams import Streams

if TYPE_CHECKING:
    from dreamkit.assets.splats import Splats as SplatFile

SLOWING = Geometric(2e-3, 2e-4)
DARKEST = 1 / 512
"""The base colour keeps this far above 0, where a colour's gradient ends."""
RATES = {
    "means": "means_rate",
    "log_scales": "scale_rate",
    "quaternions": "turn_rate",
    "opacity_logits": "opacity_rate",
    "dc": "colour_rate",
    "rest": "rest_rate",
}
"""Which field holds the learning rate of which tensor."""


@dataclass(frozen=True)
class Gaussians:
    """Specification of a scene of 3D Gaussians in the cube [-1, 1]^3. Lengths are in world units.

    Memory of one Gaussian: 16 (11 + 3 (sh_degree + 1)^2) bytes for its numbers, their gradients and Adam's two
    moments (224 without, 944 with spherical harmonics of degree 3), 12 for its statistics; while a step runs, about
    140 more for every view (`splat`).
    """

    count: int = 1000
    """At the start, if it is not that of `start`."""
    ball: float = 0.5
    """Radius of the ball in which they stand at the start."""
    opacity: float = 0.1
    """At the start."""
    start: Points | File | None = None
    """Points or a file to start from; None is the ball."""
    sh_degree: int = 0
    """Highest degree of the spherical harmonics, 0 to 3; with 0 the colour is the same from everywhere."""
    sh_active: Number = 3.0
    """The degree that is shown, rounded down: `Linear(0, 4)` brings in one after another."""
    strategy: Strategy | None = field(default_factory=Densify)
    radius: float = 1.0
    """The means are kept inside this ball, so that nothing grows where not every camera sees it."""
    smallest: float = 0.002
    """Standard deviations are kept at least this large,"""
    largest: float = 0.3
    """at most this large,"""
    anisotropy: float = 10.0
    """and at most this many times the smallest of the same Gaussian."""
    antialiased: bool = False
    """What is smaller than a pixel is fainter, not larger (Mip-Splatting, arXiv:2311.16493)."""
    background: Background = field(default_factory=RandomColour)
    preview: Colour = (1.0, 1.0, 1.0)
    """Background of pictures outside of training."""
    means_rate: Number = SLOWING
    scale_rate: Number = 5e-3
    turn_rate: Number = 5e-3
    opacity_rate: Number = 5e-2
    colour_rate: Number = 5e-3
    rest_rate: Number = 5e-4
    backend: str = "auto"

    def __post_init__(self) -> None:
        for name in ("count", "ball", "radius", "smallest", "largest"):
            if not getattr(self, name) > 0:
                raise InputError(f"Gaussians needs {name} > 0; got {getattr(self, name)}")
        if not 0 < self.opacity < 1:
            raise InputError(f"Gaussians needs opacity between 0 and 1; got {self.opacity}")
        if self.sh_degree not in (0, 1, 2, 3):
            raise InputError(f"Gaussians knows spherical harmonics of degree 0 to 3; got sh_degree={self.sh_degree}")
        if self.smallest > self.largest or not self.anisotropy >= 1:
            raise InputError(
                f"Gaussians needs smallest <= largest and anisotropy >= 1; got smallest={self.smallest}, "
                f"largest={self.largest}, anisotropy={self.anisotropy}"
            )
        check_rates(self)

    def build(self, device: torch.device | str, streams: Streams) -> "GaussiansScene":
        """A fresh scene; streams "ball..." or "surface...". Raises InputError for a file that cannot be used."""
        if isinstance(self.start, Points):
            cloud = origin.points(self.start, self.opacity)
        elif isinstance(self.start, File):
            cloud = origin.file(expanded(self.start.path), self.count, self.opacity, streams)
        else:
            cloud = origin.ball(self.count, self.ball, self.opacity, streams)
        return GaussiansScene(self, cloud, torch.device(device))

    def from_scene(self, scene: Any, device: torch.device | str, streams: Streams) -> "GaussiansScene":
        """A scene that looks like another one: the same Gaussians, or `count` nearly opaque discs on its surface.

        Takes any scene with a `mesh()` or with a density. Raises InputError for others, RunError for an empty one.
        """
        if isinstance(scene, GaussiansScene):
            return GaussiansScene(self, scene.cloud.each(Tensor.detach), torch.device(device))
        return GaussiansScene(self, origin.scene(scene, self.count, device, streams), torch.device(device))


def in_file(path: str | Path) -> Gaussians:
    """The specification of the Gaussians in a file, as they are.

    Raises InputError for a file without any, or whose middles are not in the cube [-1, 1]^3.
    """
    from dreamkit.assets.splats import read_splats

    held = read_splats(expanded(path))
    reach = float(abs(held.means).max())
    if reach > 1:
        raise InputError(
            f"the Gaussians in {path} reach to {reach:.3g}, but scenes lie in the cube [-1, 1]^3: move the object to "
            "the origin and scale it down first, in the program that it came from."
        )
    return replace(FREE, start=File(str(expanded(path).resolve())), sh_degree=held.degree)


def as_they_are(held: "SplatFile", device: torch.device | str, antialiased: bool = False) -> "GaussiansScene":
    """A scene of the Gaussians of a file, which no limit touches."""
    spec = replace(FREE, sh_degree=held.degree, antialiased=antialiased)
    return GaussiansScene(spec, origin.cloud_of(held), torch.device(device))


FREE = Gaussians(strategy=None, radius=3**0.5, smallest=1e-9, largest=1e3, anisotropy=1e12)
"""Without limits inside of the cube."""


class GaussiansScene:
    """One scene of Gaussians. Made by `Gaussians.build`."""

    bounds = ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))

    def __init__(self, spec: Gaussians, cloud: Cloud, device: torch.device) -> None:
        self.spec = spec
        self.device = device
        self.backdrop = Backdrop(spec.background, spec.preview, device)
        self._watch: Watch | None = None
        self._field: tuple[list[tuple[int, int]], volume.Field] | None = None
        self._seen = Statistics.zeros(0, device)
        self._hold(cloud.with_degree(spec.sh_degree))
        self._keep_limits()

    def render(
        self,
        cameras: Cameras,
        streams: Streams | None = None,
        *,
        now: Gaussians | None = None,
        shading: LightName | None = None,
        normals: bool = False,
        background: Tensor | Colour | None = None,
    ) -> Images:
        """Pictures of the scene; see Scene.render. Stream "background".

        Gaussians have no surface to light: they show their own colour, and any `shading` but "albedo" raises
        InputError. In training colours over 1 are not cut off, else they would have no gradient. If a number of the
        scene is not finite, so is every pixel.
        """
        if shading not in (None, "albedo"):
            raise InputError(f"Gaussians cannot be lit: ask for shading='albedo', or none; got {shading!r}")
        now = at_end(self.spec, now)
        cameras = cameras.to(self.device)
        behind = self.backdrop.behind(len(cameras), streams, background)
        if not all(bool(tensor.detach().sum().isfinite()) for tensor in self.cloud.tensors().values()):
            return self._broken(cameras, normals)
        images, seen = render_splats(
            cameras,
            self.cloud.means,
            self.cloud.quaternions,
            self.cloud.scales,
            self.cloud.opacities,
            self._sh(now),
            background=behind,
            normals=normals,
            antialiased=now.antialiased,
            absolute=isinstance(now.strategy, Densify) and now.strategy.absolute,
            backend=now.backend,
        )
        if streams is None:
            return replace(images, rgb=images.rgb.clamp(0, 1))
        if torch.is_grad_enabled():
            self._watch_of(streams, now).add(seen, cameras)
        return images

    def parameters(self, now: Gaussians | None = None) -> list[Group]:
        """A group for each of the cloud's tensors, by its name, and "background" where it is learned."""
        now = at_end(self.spec, now)
        groups: list[Group] = [
            {"name": name, "params": [tensor], "lr": fixed(getattr(now, RATES[name]))}
            for name, tensor in self.cloud.tensors().items()
            if tensor.numel() or name != "rest"
        ]
        return groups + self.backdrop.parameters(now.background)

    @torch.no_grad()
    def after_step(self, step: int, streams: Streams, now: Gaussians | None = None) -> dict[str, Tensor] | None:
        """Keep the limits, and let the strategy do its work; see Scene.after_step.

        Counts what the training renders of this step saw (those with the same streams), once their gradients are
        there. Raises RunError if no Gaussian is left.
        """
        watch, self._watch = self._watch_of(streams, at_end(self.spec, now)), None
        self._seen = watch.counted(self._seen)
        self._keep_limits()
        if watch.strategy is None:
            return None
        cloud = self.cloud.each(Tensor.detach)
        change = watch.strategy(cloud, self._seen, step, watch.rate, streams)
        if change is None:
            return None
        if not len(change.cloud):
            raise RunError(
                f"no Gaussian is left after step {step}: all {len(cloud)} were fainter or larger than "
                f"{type(watch.strategy).__name__} allows (the largest opacity was {float(cloud.opacities.max()):.3g}). "
                "Try a weaker opacity loss, a lower strategy.prune_opacity, or another seed."
            )
        self._hold(change.cloud)
        return change.rows

    def state(self) -> dict[str, Tensor]:
        """Copies of all tensors, by name."""
        return {name: tensor.detach().clone() for name, tensor in self._tensors().items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a state with any number of Gaussians; the leaf tensors are new ones. Raises ValueError for missing
        or unknown names and for other shapes."""
        count = len(state["means"]) if "means" in state else 0
        mine = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}
        wanted = {name: shape if name == "background" else (count, *shape[1:]) for name, shape in mine.items()}
        given = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if wanted != given:
            raise ValueError(f"not a state of these Gaussians: it has {wanted}; given {given}")
        held = {name: tensor.to(self.device, torch.float32).clone() for name, tensor in state.items()}
        self._hold(Cloud(**{name: held[name] for name in RATES}))
        self._seen = Statistics(*(held[f"seen/{field.name}"] for field in fields(Statistics)))
        if self.backdrop.learned is not None:
            self.backdrop.learned.copy_(held["background"])

    @torch.no_grad()
    def density(self, points: Tensor) -> Tensor:
        """[N, 3] world points -> [N] density per world unit, without gradient; see gaussians/field.py."""
        return self._volume().density_at(points.to(self.cloud.means))

    @torch.no_grad()
    def colour(self, points: Tensor) -> Tensor:
        """[N, 3] world points -> [N, 3] the mean base colour of the Gaussians there, or else that of the nearest."""
        return self._volume().colour_at(points.to(self.cloud.means))

    def splats(self) -> "SplatFile":
        """The Gaussians as 3DGS files hold them, for `dreamkit.assets.splats.write_splats`."""
        from dreamkit.assets.splats import Splats

        sh = torch.cat([self.cloud.dc[:, None], self.cloud.rest], 1)
        held = (self.cloud.means, self.cloud.log_scales, self.cloud.quaternions, self.cloud.opacity_logits, sh)
        return Splats(*(tensor.detach().cpu().numpy() for tensor in held))

    def _hold(self, cloud: Cloud) -> None:
        """Make the cloud's tensors the leaves; nothing was seen of it yet."""
        self.cloud = cloud.each(lambda tensor: tensor.detach().to(self.device).clone().requires_grad_())
        self._seen = Statistics.zeros(len(cloud), self.device)

    def _tensors(self) -> dict[str, Tensor]:
        seen = {f"seen/{field.name}": getattr(self._seen, field.name) for field in fields(Statistics)}
        return self.cloud.tensors() | seen | self.backdrop.tensors()

    def _watch_of(self, streams: Streams, now: Gaussians) -> Watch:
        """This step's watch; that of a step that was given up is dropped."""
        if self._watch is None or self._watch.streams != replace(streams, scope=""):
            self._watch = Watch(now.strategy, fixed(now.means_rate), streams)
        return self._watch

    def _sh(self, now: Gaussians) -> Tensor:
        """[N, K, 3] the spherical harmonics that are shown at present."""
        degree = max(0, min(int(fixed(now.sh_active)), now.sh_degree))
        return torch.cat([self.cloud.dc[:, None], self.cloud.rest[:, : (degree + 1) ** 2 - 1]], 1)

    def _broken(self, cameras: Cameras, normals: bool) -> Images:
        """Pictures that say that a number is not finite: the kernel takes only those that are."""
        size = (len(cameras), 3, cameras.height, cameras.width)
        rgb = torch.full(size, math.nan, device=self.device) * self.cloud.means.sum()
        return Images(rgb, rgb[:, :1], rgb[:, :1], rgb if normals else None)

    @torch.no_grad()
    def _keep_limits(self) -> None:
        """Put means, sizes and base colours back to where the specification wants them."""
        spec, cloud = self.spec, self.cloud
        far = cloud.means.norm(dim=1, keepdim=True)
        cloud.means.copy_(torch.where(far > spec.radius, cloud.means * (spec.radius / far), cloud.means))
        cloud.log_scales.clamp_(math.log(spec.smallest), math.log(spec.largest))
        longest = cloud.log_scales.amin(1, keepdim=True) + math.log(spec.anisotropy)
        cloud.log_scales.copy_(torch.minimum(cloud.log_scales, longest))
        if spec.sh_degree == 0:  # what higher degrees add may bring any base colour back into range
            ends = dc_of(torch.tensor([DARKEST, 1.0]))
            cloud.dc.clamp_(float(ends[0]), float(ends[1]))

    def _volume(self) -> volume.Field:
        """The cloud made ready for queries; kept while its tensors are the same."""
        tensors = self.cloud.tensors().values()
        key = [(id(tensor), tensor._version) for tensor in tensors]
        if self._field is None or self._field[0] != key:
            self._field = (key, volume.prepare(self.cloud))
        return self._field[1]


def mean_opacity(images: Images, scene: GaussiansScene) -> Tensor:
    """A loss for `Weighted`: the mean opacity, so that what nothing needs fades (3DGS-MCMC, section 3.3)."""
    return scene.cloud.opacities.mean()


def mean_scale(images: Images, scene: GaussiansScene) -> Tensor:
    """A loss for `Weighted`: the mean standard deviation over Gaussians and axes, world units (3DGS-MCMC, section 3.3).

    In the paper the square roots of the covariance's eigenvalues: these.
    """
    return scene.cloud.scales.mean()
