"""Localized Update Score Distillation (LUSD, arXiv:2503.11054): an edit that stays where the prompts differ.

The direction is the difference between what the target prompt and the source prompt make of the same noised picture.
It is gated (a draw that says next to nothing is drawn again), masked by where the network looks for the words that the
source prompt lacks, and brought to one size.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreamkit.diffusion import Level, add_noise, over
from dreamkit.guidance.levels import Double
from dreamkit.guidance.rule import Ask, Estimate, Noise, Noised, Part, Probe
from dreamkit.priors.prior import Condition, Prior
from dreamkit.schedule import Number, fixed
from dreamkit.streams import Streams


@dataclass(frozen=True)
class Retries(Double):
    """The main level of `base`, and as many further draws of it, "again1", "again2", ..."""

    count: int = 9

    def __call__(self, prior: Prior, batch: int, streams: Streams) -> dict[str, Level]:
        scopes = {"main": streams} | {f"again{i}": streams.within(f"again{i}") for i in range(1, self.count + 1)}
        return {name: self.base(prior, batch, scope)["main"] for name, scope in scopes.items()}


@dataclass(frozen=True)
class Gated(Noise):
    """Fresh noise; drawn again, with the level, where the two prompts hardly differ.

    A draw counts if the deviation of eps_prompt - eps_source over a sample's elements is at least tau; else that sample
    takes the next of `Retries`' levels, and tau shrinks by 1 % until the next step. The last draw counts as it is. The
    known code draws on until one counts; equal prompts would keep it for ever. Costs two samples a draw, one call for
    those drawn.

    least      tau at a step's first draw
    """

    part_name: ClassVar[str] = "local"

    least: float = 0.01

    def __call__(self, probe: Probe) -> Noised:
        part, x = probe.part("local", LocalPart), probe.x
        names = ["main", *(name for name in probe.levels if name.startswith("again"))]
        kept = {name: torch.zeros_like(x) for name in ("noise", "prompt", "source")}
        level, seen, least = probe.levels["main"], torch.ones_like(x[:, :1]), self.least
        todo = torch.arange(len(x))
        for name in names:
            fresh = probe.streams.normal("noise" if name == "main" else f"{name}/noise", tuple(x.shape), like=x)
            level, here = _put(level, todo, probe.levels[name][todo]), todo.to(x.device)
            told, was = (probe.conditions[condition][here] for condition in ("prompt", "source"))
            z = add_noise(x[here], fresh[here], level[todo])
            prompt, source, where = probe.prior.attended(z, level[todo], told, was)
            for key, value in (("noise", fresh[here]), ("prompt", prompt), ("source", source)):
                kept[key][here] = value
            # What is broken must not be remembered; the sample itself is dropped where its gradient is looked at.
            seen[here] = where.to(seen).nan_to_num(1.0, posinf=1.0, neginf=1.0)
            spread = (prompt - source).flatten(1).std(1).cpu()
            todo = todo[spread < least]
            if len(todo) == 0:
                break
            least *= 0.99
        part.look(seen, probe.conditions.get("camera"))
        answers = {Ask(condition): kept[condition] for condition in ("prompt", "source")}
        return Noised(kept["noise"], answers=answers, levels={"main": level})

    def part(self, prior: Prior, streams: Streams) -> "LocalPart":
        return LocalPart(prior)


@dataclass(frozen=True)
class Localized(Estimate):
    """size d / std(d), with d = (1 - identity) m (eps_prompt - eps_source) + identity (x - x_source), per sample.

    m = mask M + 1 - mask, M in [0, 1] being the map of words that only the target prompt has (`Prior.attended`); nine
    tenths of the last step's are in it where that was seen from the same camera, as a canvas always is. Where d is the
    same everywhere the direction is zero.

    size       the deviation of the gradient
    mask       how much of the map is believed
    identity   weight of the pull to the source
    """

    part_name: ClassVar[str] = "local"
    needs: ClassVar[frozenset[str]] = frozenset({"attention_maps"})

    size: Number = 0.15
    mask: Number = 1.0
    identity: float = 0.02

    def asks(self) -> tuple[Ask, ...]:
        return (Ask("prompt"), Ask("source"))

    def __call__(self, probe: Probe) -> Tensor:
        believed = fixed(self.mask)
        mask = believed * probe.part("local", LocalPart).map(probe.x) + 1 - believed
        apart = probe.eps("prompt") - probe.eps("source")
        direction = (1 - self.identity) * mask * apart + self.identity * (probe.x - probe.images["source"])
        spread = direction.flatten(1).std(1)
        scale = torch.where(spread > 1e-12, fixed(self.size) / spread.clamp(min=1e-12), 0.0)
        return over(torch.where(spread.isnan(), spread, scale), direction) * direction

    def part(self, prior: Prior, streams: Streams) -> "LocalPart":
        return LocalPart(prior)


class LocalPart(Part):
    """What the rule remembers: the last masks, and from where they were seen. Nothing is trained."""

    memory = 0.9

    def __init__(self, prior: Prior):
        self.device = prior.device
        self.last: Tensor | None = None
        self.stood: Tensor | None = None
        self._seen: Tensor | None = None
        self._stands: Tensor | None = None

    def look(self, seen: Tensor, camera: Condition | None) -> None:
        """Take this step's maps [B, 1, h, w], and the cameras they were seen from; all from one where none is known."""
        self._seen = seen
        self._stands = seen.new_zeros(len(seen), 1) if camera is None else camera.tensors["camera"]

    def map(self, like: Tensor) -> Tensor:
        """This step's maps, with the memory of the last step's where the camera is the same; ones before anything was
        seen."""
        if self._seen is None or self._stands is None:
            return torch.ones_like(like[:, :1])
        if self.last is None or self.stood is None or self.last.shape != self._seen.shape:
            return self._seen
        same = (self.stood.to(self._stands) == self._stands).all(1)
        kept = self.memory * over(same, self._seen)
        return kept * self.last.to(self._seen) + (1 - kept) * self._seen

    def train(self, probe: Probe) -> float:
        """Remember this step's masks; nothing is trained, so the loss is 0."""
        self.last, self.stood, self._seen = self.map(probe.x), self._stands, None
        return 0.0

    def state(self) -> dict[str, Any]:
        return {"last": self.last, "stood": self.stood}

    def load(self, state: dict[str, Any]) -> None:
        kept = (state["last"], state["stood"])
        self.last, self.stood = (None if tensor is None else tensor.to(self.device) for tensor in kept)


def _put(level: Level, where: Tensor, new: Level) -> Level:
    """The levels with those at the places `where` replaced."""
    pairs = ((level.t, new.t), (level.alpha, new.alpha), (level.sigma, new.sigma))
    return Level(*(old.index_copy(0, where, value) for old, value in pairs))
