"""What to trust and what to subtract: estimates of the noise."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dreamkit.diffusion import Level, cfg, ddim, eps_of, over, perp_neg, x0_of
from dreamkit.errors import InputError
from dreamkit.guidance.rule import Ask, Estimate, Probe
from dreamkit.schedule import Number, fixed


@dataclass(frozen=True)
class Guided(Estimate):
    """The classifier-free mix of two predictions, `diffusion.cfg`: scale 1 is the conditional one.

    rescale   how far the mix's clean estimate is brought back to the deviation of the conditional one's, which large
              scales inflate: 0 not at all, 1 fully (arXiv:2305.08891, eq. 15 and 16); per sample, or per object where
              the prior sees several views together
    spread    if not 0, every sample's scale is drawn uniformly from [scale - spread, scale + spread] (SNOOPI,
              arXiv:2412.02687)
    """

    mixes: ClassVar[bool] = True

    scale: Number
    condition: str = "prompt"
    against: str = "null"
    level: str = "main"
    image: str = "x"
    rescale: Number = 0.0
    spread: Number = 0.0

    def asks(self) -> tuple[Ask, ...]:
        return (Ask(self.condition, self.level, self.image), Ask(self.against, self.level, self.image))

    def __call__(self, probe: Probe) -> Tensor:
        cond, uncond = (probe.eps(ask.condition, ask.level, ask.image) for ask in self.asks())
        if fixed(self.spread) != 0:
            draw = 2 * probe.streams.uniform("scale", (len(cond),), like=cond) - 1
            mixed = cfg(cond, uncond, over(fixed(self.scale) + fixed(self.spread) * draw, cond))
        else:
            mixed = cfg(cond, uncond, fixed(self.scale))
        if fixed(self.rescale) == 0:
            return mixed
        level, z = probe.levels[self.level], probe.z(self.level, self.image)
        return rescaled(mixed, cond, z, level, fixed(self.rescale), probe.prior.views)


def rescaled(mixed: Tensor, cond: Tensor, z: Tensor, level: Level, share: float, views: int = 1) -> Tensor:
    """A guided prediction whose clean estimate has (by `share`) the deviation of the conditional one's.

    The deviations are those of every `views` samples in a row together.
    """
    x0 = x0_of(z, mixed, level)
    found, wanted = (one.reshape(-1, views * z[0].numel()).std(1) for one in (x0, x0_of(z, cond, level)))
    factor = share * wanted / found.clamp(min=1e-12) + 1 - share
    return eps_of(z, x0 * over(factor.repeat_interleave(views), x0), level)


@dataclass(frozen=True)
class Denoised(Estimate):
    """The noise between z and the picture that a sampler makes of it: guided DDIM from its level down to none.

        eps = (z - alpha x0) / sigma,    x0 = DDIM(z)

    In one step it is `Guided`, whose x0 is the mean of all pictures that z may come from; each further step makes it
    more of one picture, as a sampler's are. With the drawn noise subtracted and weight k the rule is an L2
    loss to that picture (HiFA, arXiv:2305.18766, and its code; the second stage of DreamGaussian, arXiv:2309.16653).

    stride    length of a step, as a fraction of the schedule: at 0.25, level 0.98 takes four steps, level 0.2 one
    eta       fresh noise of eta times the DDPM deviation after every step but the last
    """

    mixes: ClassVar[bool] = True

    scale: Number
    condition: str = "prompt"
    against: str = "null"
    stride: float = 0.25
    eta: Number = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.stride <= 1:
            raise InputError(f"Denoised.stride is a fraction of the schedule, over 0 and at most 1; got {self.stride}.")

    def asks(self) -> tuple[Ask, ...]:
        return (Ask(self.condition), Ask(self.against))

    def __call__(self, probe: Probe) -> Tensor:
        prior, level = probe.prior, probe.levels["main"]
        conditions = [probe.conditions[ask.condition] for ask in self.asks()]
        said, x = [probe.eps(ask.condition) for ask in self.asks()], probe.z()
        index, stride = prior.schedule.index(level.k), self.stride * prior.schedule.steps
        for number in itertools.count():
            arrived, index = index < 0, index - stride
            lower = prior.level_at(index.round().long().clamp(min=0))
            mixed, eta = cfg(said[0], said[1], fixed(self.scale)), fixed(self.eta)
            fresh = probe.streams.normal(f"denoised/eta{number}", tuple(x.shape), like=x) if eta != 0 else None
            moved = ddim(x, mixed, level, Level.where(index < 0, Level.clean(len(lower)), lower), eta, fresh)
            x = torch.where(over(arrived, x) > 0, x, moved)  # a sample that has arrived waits for the others
            if bool((index < 0).all()):
                break
            level, said = lower, prior.predict(x, lower, conditions)
        return eps_of(probe.z(), x, probe.levels["main"])


@dataclass(frozen=True)
class LaidOut(Guided):
    """`Guided` by a prior that also follows a layout, in both predictions (Urban Architect, arXiv:2404.06780)."""

    needs: ClassVar[frozenset[str]] = frozenset({"control"})

    condition: str = "layout"
    against: str = "layout_null"


@dataclass(frozen=True)
class PerpNeg(Estimate):
    """Guidance away from a negative prompt where it does not oppose the prompt, `diffusion.perp_neg`; weight <= 0."""

    mixes: ClassVar[bool] = True

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
    Stable Diffusion's 1000, where k is 0.5717 (at index 199 it is 0.5693). The switch is per sample.
    """

    mixes: ClassVar[bool] = True

    scale: Number
    threshold: Number = 0.57

    def asks(self) -> tuple[Ask, ...]:
        return (Ask("prompt"), Ask("null"), Ask("negative"))

    def __call__(self, probe: Probe) -> Tensor:
        prompt, null, negative = (probe.eps(ask.condition) for ask in self.asks())
        high = over((probe.levels["main"].k >= fixed(self.threshold)).double(), null)
        return fixed(self.scale) * (prompt - null) + null - high * negative


@dataclass(frozen=True)
class Stable(Estimate):
    """The classifier direction at high noise; at low noise a prediction without the drawn noise in it, as long.

    Above k = `threshold`, eps_prompt - eps_null. Up to there e = eps_prompt - r n with r = <eps_prompt, n> / <n, n>,
    which stands at right angles to n, scaled to the length of the former; all per sample (Stable Score Distillation,
    arXiv:2312.09305; known from others' code: the authors' threshold and scale are not confirmed). The default is
    index 100 of Stable Diffusion's 1000.
    """

    threshold: Number = 0.345

    def asks(self) -> tuple[Ask, ...]:
        return (Ask("prompt"), Ask("null"))

    def __call__(self, probe: Probe) -> Tensor:
        prompt, null = (probe.eps(ask.condition) for ask in self.asks())
        direction, noise = prompt - null, probe.noise
        seeking = prompt - noise * (_dot(prompt, noise) / _dot(noise, noise).clamp(min=1e-12))
        length = _dot(seeking, seeking).sqrt()
        # What is nothing but noise points nowhere, and stays zero.
        scale = torch.where(length > 1e-12, _dot(direction, direction).sqrt() / length.clamp(min=1e-12), 0.0)
        high = over((probe.levels["main"].k > fixed(self.threshold)).double(), null)
        return high * direction + (1 - high) * scale * seeking


@dataclass(frozen=True)
class Balanced(Estimate):
    """The shortest vector between guidance and denoising: the direction that serves both, per sample.

    C = scale (eps_prompt - eps_null), S = eps_null;  a C + (1 - a) S with a = clip(<S - C, S> / |S - C|^2, 0, 1)
    (min-norm of two objectives, arXiv:1810.04650, in PlacidDreamer, arXiv:2407.13976). Where C = S, a = 1/2.
    """

    scale: Number

    def asks(self) -> tuple[Ask, ...]:
        return (Ask("prompt"), Ask("null"))

    def __call__(self, probe: Probe) -> Tensor:
        prompt, null = (probe.eps(ask.condition) for ask in self.asks())
        towards = fixed(self.scale) * (prompt - null)
        apart = null - towards
        squared = _dot(apart, apart)
        share = torch.where(squared > 1e-24, _dot(apart, null) / squared.clamp(min=1e-24), 0.5).clamp(0, 1)
        return share * towards + (1 - share) * null


@dataclass(frozen=True)
class Latent(Estimate):
    """psi x + chi eps: the part of an image's stochastic latent that tells it from another's at the same noise.

    The stochastic latent of the step from "main" to "lower" is (x_lower - c0 x0 - c1 x_main) / s; in the difference of
    two images with shared noise all but psi (x - x') + chi (eps - eps') cancels (Posterior Distillation Sampling,
    arXiv:2311.13831, eq. 12). With the coefficients of a true DDPM step psi is 0, and the rule is DDS times chi; the
    authors' code has psi > 0 because it takes beta from a finer grid than its steps of two indices. Here that pull to
    the source is said outright: `identity` is psi. Their chi, too, is about that of a step of one index.
    """

    mixes: ClassVar[bool] = True

    scale: Number
    condition: str = "prompt"
    image: str = "x"
    identity: Number = 0.0

    def asks(self) -> tuple[Ask, ...]:
        return Guided(self.scale, self.condition, image=self.image).asks()

    def __call__(self, probe: Probe) -> Tensor:
        eps = Guided(self.scale, self.condition, image=self.image)(probe)
        return fixed(self.identity) * probe.images[self.image] + over(posterior_chi(probe), eps) * eps


def posterior_chi(probe: Probe) -> Tensor:
    """chi [B] of `Latent`: c0 sigma / (alpha s) of the DDPM step from "main" to "lower"."""
    k, low = probe.levels["main"].k, probe.levels["lower"].k
    # In k, with alpha^2 = 1 / (1 + k^2): sqrt(1 - alpha^2 / alpha_lower^2) alpha_lower / (alpha sigma_lower).
    return (1 - (1 + low**2) / (1 + k**2)).sqrt() * (1 + k**2).sqrt() / low


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Per-sample inner products, shaped [B, 1, ...]."""
    return (a * b).sum(tuple(range(1, a.ndim)), keepdim=True)


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
