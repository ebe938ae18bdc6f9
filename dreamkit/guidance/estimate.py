"""What to trust and what to subtract: estimates of the noise."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dreamkit.diffusion import cfg, over, perp_neg
from dreamkit.guidance.rule import Ask, Estimate, Probe
from dreamkit.schedule import Number, fixed


@dataclass(frozen=True)
class Guided(Estimate):
    """The classifier-free mix of two predictions, `diffusion.cfg`: scale 1 is the conditional one."""

    scale: Number
    condition: str = "prompt"
    against: str = "null"
    level: str = "main"
    image: str = "x"

    def asks(self) -> tuple[Ask, ...]:
        return (Ask(self.condition, self.level, self.image), Ask(self.against, self.level, self.image))

    def __call__(self, probe: Probe) -> Tensor:
        cond, uncond = (probe.eps(ask.condition, ask.level, ask.image) for ask in self.asks())
        return cfg(cond, uncond, fixed(self.scale))


@dataclass(frozen=True)
class ViewGuided(Estimate):
    """Classifier-free guidance whose view words ("side view") have a scale of their own.

    eps_null + scale (eps_bare - eps_null) + view_scale (eps_prompt - eps_bare), where bare is the prompt without its
    view words: a conjunction of two conditions (Composable Diffusion, arXiv:2206.01714, eq. 11). With the two scales
    equal it is `Guided`. A larger view_scale says from which side the object is seen louder than what it is, against
    the box-like average of all sides in which a weak prior would rest.
    """

    scale: Number
    view_scale: Number

    def asks(self) -> tuple[Ask, ...]:
        return (Ask("prompt"), Ask("bare"), Ask("null"))

    def __call__(self, probe: Probe) -> Tensor:
        prompt, bare, null = (probe.eps(ask.condition) for ask in self.asks())
        return cfg(bare, null, fixed(self.scale)) + fixed(self.view_scale) * (prompt - bare)


@dataclass(frozen=True)
class PerpNeg(Estimate):
    """Guidance away from a negative prompt where it does not oppose the prompt, `diffusion.perp_neg`; weight <= 0."""

    scale: Number
    weight: Number = -1.0

    def asks(self) -> tuple[Ask, ...]:
        return (Ask("prompt"), Ask("null"), Ask("negative"))

    def __call__(self, probe: Probe) -> Tensor:
        negatives = [(fixed(self.weight), probe.eps("negative"))]
        return perp_neg(probe.eps("prompt"), probe.eps("null"), negatives, fixed(self.scale))


@dataclass(frozen=True)
class Plain(Estimate):
    """One prediction as it is."""

    condition: str
    level: str = "main"
    image: str = "x"

    def asks(self) -> tuple[Ask, ...]:
        return (Ask(self.condition, self.level, self.image),)

    def __call__(self, probe: Probe) -> Tensor:
        return probe.eps(self.condition, self.level, self.image)


@dataclass(frozen=True)
class Combination(Estimate):
    """A sum of predictions and the noise with given coefficients; a coefficient of zero costs no prediction.

    CSD's general form (arXiv:2310.19415): SDS at scale g is (g, 0, 1 - g, -1), CSD at scale g is (g, 0, -g, 0).
    """

    prompt: Number = 0.0
    negative: Number = 0.0
    null: Number = 0.0
    noise: Number = 0.0

    def asks(self) -> tuple[Ask, ...]:
        return tuple(Ask(name) for name in ("prompt", "negative", "null") if getattr(self, name) != 0.0)

    def __call__(self, probe: Probe) -> Tensor:
        total = fixed(self.noise) * probe.noise
        for ask in self.asks():
            total = total + fixed(getattr(self, ask.condition)) * probe.eps(ask.condition)
        return total


@dataclass(frozen=True)
class NoiseFree(Estimate):
    """The domain and the condition parts of a prediction without its noise part (NFSD, arXiv:2310.17590).

    scale (eps_prompt - eps_null) + domain. Below the level k = `threshold`, where the noise part of a prediction is
    small, domain = eps_null; from there on it is eps_null - eps_negative. Known implementations switch at index 200 of
    Stable Diffusion's 1000, where k is 0.5717 (at index 199 it is 0.5690). The switch is per sample.
    """

    scale: Number
    threshold: Number = 0.57

    def asks(self) -> tuple[Ask, ...]:
        return (Ask("prompt"), Ask("null"), Ask("negative"))

    def __call__(self, probe: Probe) -> Tensor:
        prompt, null, negative = (probe.eps(ask.condition) for ask in self.asks())
        high = over((probe.levels["main"].k >= fixed(self.threshold)).double(), null)
        return fixed(self.scale) * (prompt - null) + null - high * negative


@dataclass(frozen=True)
class Drawn(Estimate):
    """The noise that was drawn: what SDS subtracts."""

    def asks(self) -> tuple[Ask, ...]:
        return ()

    def __call__(self, probe: Probe) -> Tensor:
        return probe.noise


@dataclass(frozen=True)
class Nothing(Estimate):
    """Zero."""

    def asks(self) -> tuple[Ask, ...]:
        return ()

    def __call__(self, probe: Probe) -> Tensor:
        return torch.zeros_like(probe.x)
