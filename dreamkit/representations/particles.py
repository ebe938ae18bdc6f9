"""Particles: several scenes of one specification in one run, which share whatever the rules train.

Variational Score Distillation (ProlificDreamer, arXiv:2305.16213) is made for a cloud of scenes that together show what
the prior has in mind, and repulsion needs company. At every step some of them are rendered and changed.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.images import Images, RaySamples
from dreamkit.representations.representation import Colour, Group, Representation, Scene, continued
from dreamkit.streams import Streams


@dataclass(frozen=True)
class Particles:
    """`count` scenes of the specification `base`. A stage makes one of its own accord where it has many particles.

    `together` pictures in a row of a batch show one particle: as many as the prior sees together.
    """

    base: Representation
    count: int
    together: int = 1

    def build(self, device: torch.device | str, streams: Streams) -> "ParticlesScene":
        """Fresh scenes, each from streams of its own."""
        scenes = [self.base.build(device, streams.within(f"particle{i}")) for i in range(self.count)]
        return ParticlesScene(scenes, self.together)

    def from_scene(self, scene: Scene, device: torch.device | str, streams: Streams) -> "ParticlesScene":
        """Every particle starts as the given scene, or as its own one of as many. Raises InputError, ValueError."""
        given = scene.scenes if isinstance(scene, ParticlesScene) else [scene] * self.count
        if len(given) != self.count:
            raise ValueError(f"{self.count} particles cannot start from {len(given)}")
        own = [streams.within(f"particle{i}") for i in range(self.count)]
        scenes = [continued(self.base, other, device, s) for other, s in zip(given, own, strict=True)]
        return ParticlesScene(scenes, self.together)


def alike(one: Representation, other: Representation) -> bool:
    """Whether scenes of the two specifications are of one kind, so that one may take over the other's state."""
    if isinstance(one, Particles) and isinstance(other, Particles):
        return one.count == other.count and alike(one.base, other.base)
    return type(one) is type(other)


class ParticlesScene:
    """Several scenes as one. Made by `Particles.build`."""

    def __init__(self, scenes: list[Scene], together: int = 1):
        self.scenes, self.together = scenes, together

    def render(
        self,
        cameras: Cameras,
        streams: Streams | None = None,
        *,
        background: Tensor | Colour | None = None,
        **rest: Any,
    ) -> Images:
        """One picture for each camera, each of one particle; outside of training all of the first; see Scene.render.

        In training the particles come in a random order, another at every step (stream "particle"), and over again,
        each for `together` pictures in a row.
        """
        order = [0] if streams is None else self.order(len(cameras), streams)
        rows: list[list[int]] = [[] for _ in self.scenes]
        for i in range(len(cameras)):
            rows[order[i // self.together % len(order)]].append(i)
        found = []
        for i, (scene, mine) in enumerate(zip(self.scenes, rows, strict=True)):
            if mine:
                behind = background[mine] if isinstance(background, Tensor) and background.ndim == 4 else background
                own = None if streams is None else streams.within(f"particle{i}")
                found.append(scene.render(cameras[torch.tensor(mine)], own, background=behind, **rest))
        return _merged(found, torch.tensor([i for mine in rows for i in mine]))

    def order(self, batch: int, streams: Streams) -> list[int]:
        """The particles of this step, in the order in which the pictures of a batch show them."""
        return streams.uniform("particle", (len(self.scenes),)).argsort()[: batch // self.together].tolist()

    def parameters(self, now: Any = None) -> list[Group]:
        """The groups of every particle, their names with its number before them."""
        groups: list[Group] = []
        for i, scene in enumerate(self.scenes):
            for group in scene.parameters(now):
                groups.append({"name": f"{i}/{group['name']}", "params": group["params"], "lr": group["lr"]})
        return groups

    def after_step(self, step: int, streams: Streams, now: Any = None) -> dict[str, Tensor] | None:
        """Upkeep of every particle."""
        found: dict[str, Tensor] = {}
        for i, scene in enumerate(self.scenes):
            rows = scene.after_step(step, streams.within(f"particle{i}"), now)
            found |= {f"{i}/{name}": value for name, value in (rows or {}).items()}
        return found or None

    def state(self) -> dict[str, Tensor]:
        """The states of all, names with the particle's number before them."""
        return {f"{i}/{name}": value for i, scene in enumerate(self.scenes) for name, value in scene.state().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a state. Raises ValueError if it is not one of as many scenes of this kind."""
        count = len({name.partition("/")[0] for name in state})
        if count != len(self.scenes):
            raise ValueError(f"{len(self.scenes)} particles cannot take over the state of {count}")
        for i, scene in enumerate(self.scenes):
            scene.load({name.partition("/")[2]: value for name, value in state.items() if name.startswith(f"{i}/")})


def members(scene: Scene) -> list[Scene]:
    """The particles of a scene; of any other one, itself."""
    return list(scene.scenes) if isinstance(scene, ParticlesScene) else [scene]


def _merged(images: list[Images], rows: Tensor) -> Images:
    """The pictures of several scenes as one batch, picture i of the sequence at place rows[i]."""
    back = rows.argsort()

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts)[back.to(parts[0].device)]

    rgb, alpha, depth = (joined([getattr(image, name) for image in images]) for name in ("rgb", "alpha", "depth"))
    normals = [image.normal for image in images if image.normal is not None]
    latents = [image.latent for image in images if image.latent is not None]
    found = Images(rgb, alpha, depth, joined(normals) if normals else None, _samples(images))
    return replace(found, latent=joined(latents) if latents else None)


def _samples(images: list[Images]) -> RaySamples | None:
    """What is inside all the volumes, one after another."""
    inside = [image.samples for image in images if image.samples is not None]
    if len(inside) < len(images):
        return None
    normals = [samples.normal for samples in inside if samples.normal is not None]
    return RaySamples(
        torch.cat([samples.weight for samples in inside]),
        torch.cat(normals) if len(normals) == len(inside) else None,
        torch.cat([samples.direction for samples in inside]),
        torch.cat([samples.opacity for samples in inside]),
        torch.cat([samples.position for samples in inside]),
    )
