"""Diffusion algebra: noise levels, what a network's output means, guidance, and the DDIM step.

Conventions, said once for the whole code base:

    z = alpha x + sigma n,   n ~ N(0, I)        a clean tensor x seen at a noise level
    k = sigma / alpha                           noise to signal (the sigma of EDM, arXiv:2206.00364); grows with t
    x0 = (z - sigma eps) / alpha                the one-step estimate of x from a prediction eps of n

`alpha` and `sigma` need not satisfy alpha^2 + sigma^2 = 1. A network's output p is one of

    "eps"   p = eps
    "v"     p = alpha eps - sigma x0            (Salimans and Ho, arXiv:2202.00512)
    "x0"    p = x0
    "flow"  p = eps - x0, on the path alpha = 1 - t, sigma = t      (rectified flow, arXiv:2209.03003)

Classifier-free guidance counts as diffusers does: scale 1 is the conditional prediction, 0 the unconditional one.
Nothing here knows a network, a prompt or a rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Parameterization = Literal["eps", "v", "x0", "flow"]
PARAMETERIZATIONS: tuple[Parameterization, ...] = get_args(Parameterization)


@dataclass(frozen=True)
class Level:
    """A noise level for each of B samples. All tensors [B], float64, on the CPU.

    t is the prior's own name for the level (an index, possibly fractional, or a time), alpha and sigma the factors.
    Levels stay on the CPU: they are few numbers, and logging them then never waits for a GPU.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    @property
    def k(self) -> Tensor:
        """Noise to signal, sigma / alpha; infinite where alpha is 0."""
        return self.sigma / self.alpha

    def over(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma shaped [B, 1, ...] to multiply x [B, ...], in its dtype and on its device."""
        return over(self.alpha, x), over(self.sigma, x)

    def __len__(self) -> int:
        return self.t.shape[0]

    def __getitem__(self, index: slice | Tensor) -> "Level":
        return Level(self.t[index], self.alpha[index], self.sigma[index])

    @staticmethod
    def cat(levels: Sequence["Level"]) -> "Level":
        """The levels of several batches, one after the other."""
        return Level(*(torch.cat([getattr(level, name) for level in levels]) for name in ("t", "alpha", "sigma")))

    @staticmethod
    def clean(count: int) -> "Level":
        """No noise, `count` times."""
        none = torch.zeros(count, dtype=torch.float64)
        return Level(none, none + 1, none)

    @staticmethod
    def where(mask: Tensor, first: "Level", second: "Level") -> "Level":
        """Sample by sample, the first level where the mask [B] holds, else the second."""
        return Level(*(torch.where(mask, getattr(first, n), getattr(second, n)) for n in ("t", "alpha", "sigma")))


def over(values: Tensor, x: Tensor) -> Tensor:
    """values [B] shaped [B, 1, ...] to multiply x [B, ...], in its dtype and on its device."""
    # Levels live on the CPU: a blocking copy would wait for all that the GPU still has to do.
    moved = values.to(dtype=x.dtype, device=x.device, non_blocking=x.is_cuda)
    return moved.reshape(-1, *[1] * (x.ndim - 1))


# Schedules of noise ---------------------------------------------------------------------------------------------------


def scaled_linear(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """alpha^2 [steps] of Stable Diffusion: beta is the square of a straight line from sqrt(start) to sqrt(end)."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


class NoiseSchedule:
    """The levels of a variance-preserving schedule with T indices: index <-> level <-> k.

    Where a level lies on the schedule is said by the fraction u = index / T, so that a rule's bounds mean the same
    whatever T is.
    """

    def __init__(self, alpha_squared: Tensor):
        """alpha_squared: decreasing, in [0, 1). A last one of 0 (zero terminal SNR) is left out: rules and the sampler
        think in eps, which says nothing of x there. The one before it is noise all but alone."""
        alpha_squared = alpha_squared.double().cpu()
        if alpha_squared.ndim == 1 and bool(alpha_squared[-1] == 0):
            alpha_squared = alpha_squared[:-1]
        if alpha_squared.ndim != 1 or bool((alpha_squared.diff() >= 0).any()):
            raise ValueError("a noise schedule is a decreasing row of alpha^2")
        self.steps = len(alpha_squared)
        self.alpha = alpha_squared.sqrt()
        self.sigma = (1 - alpha_squared).sqrt()

    def at(self, index: Tensor) -> Level:
        """The levels at integer indices [B] in 0..T-1."""
        return Level(index.double(), self.alpha[index], self.sigma[index])

    def level(self, u: Tensor) -> Level:
        """The levels at fractions u [B] of the schedule: the nearest index, held inside 0..T-1."""
        return self.at((u.double() * self.steps).round().long().clamp(0, self.steps - 1))

    def of_k(self, k: Tensor) -> Level:
        """The levels whose noise to signal is exactly k [B] > 0.

        t is the fractional index between the two nearest ones, interpolated in the angle atan(k), which is finite for
        any k; beyond either end of the schedule t is that end, while alpha and sigma stay exact.
        """
        angle = torch.atan(k.double())
        return Level(self.index(k), angle.cos(), angle.sin())

    def index(self, k: Tensor) -> Tensor:
        """The index, possibly fractional, whose noise to signal is k [B]; the nearest end beyond the schedule."""
        angle, angles = torch.atan(k.double()), torch.atan2(self.sigma, self.alpha)
        right = torch.searchsorted(angles, angle).clamp(1, self.steps - 1)
        return right - 1 + ((angle - angles[right - 1]) / (angles[right] - angles[right - 1])).clamp(0, 1)


class FlowSchedule(NoiseSchedule):
    """Rectified flow, alpha = 1 - t and sigma = t, climbed by the indices of a variance-preserving schedule.

    An index means the k it means on `like`, so that bounds and gaps between levels compare across priors: Stable
    Diffusion's 20..980 is t in [0.121, 0.929].
    """

    def __init__(self, like: Tensor | None = None):
        super().__init__(scaled_linear() if like is None else like)

    def at(self, index: Tensor) -> Level:
        """The levels at integer indices [B]: t = k / (1 + k) = sigma / (alpha + sigma)."""
        alpha, sigma = self.alpha[index], self.sigma[index]
        return _flow(sigma / (alpha + sigma))

    def of_k(self, k: Tensor) -> Level:
        """The levels at t = k / (1 + k), k [B]."""
        return _flow(k.double() / (1 + k.double()))


def _flow(t: Tensor) -> Level:
    return Level(t, 1 - t, t)


# Conversions ----------------------------------------------------------------------------------------------------------


def add_noise(x: Tensor, noise: Tensor, level: Level) -> Tensor:
    """z = alpha x + sigma noise; x and noise [B, ...]."""
    alpha, sigma = level.over(x)
    return alpha * x + sigma * noise


def preserved(z: Tensor, level: Level) -> Tensor:
    """A noised sample as a variance-preserving path has it, z / sqrt(alpha^2 + sigma^2): it follows from z / alpha and
    k alone, whatever the path."""
    return z / over((level.alpha**2 + level.sigma**2).sqrt(), z)


def eps_of(z: Tensor, x0: Tensor, level: Level) -> Tensor:
    """The noise between a sample z [B, ...] and its clean estimate x0: (z - alpha x0) / sigma."""
    alpha, sigma = level.over(z)
    return (z - alpha * x0) / sigma


def to_eps(parameterization: Parameterization, output: Tensor, z: Tensor, level: Level) -> Tensor:
    """The noise prediction eps that a network's output means at z [B, ...]."""
    alpha, sigma = level.over(z)
    if parameterization == "eps":
        return output
    if parameterization == "v":
        return (sigma * z + alpha * output) / (alpha**2 + sigma**2)
    if parameterization == "x0":
        return eps_of(z, output, level)
    if parameterization == "flow":
        return z + alpha * output
    raise _unknown(parameterization)


def to_x0(parameterization: Parameterization, output: Tensor, z: Tensor, level: Level) -> Tensor:
    """The clean estimate x0 that a network's output means at z [B, ...]; finite at alpha = 0 but for "eps"."""
    alpha, sigma = level.over(z)
    if parameterization == "eps":
        return (z - sigma * output) / alpha
    if parameterization == "v":
        return (alpha * z - sigma * output) / (alpha**2 + sigma**2)
    if parameterization == "x0":
        return output
    if parameterization == "flow":
        return z - sigma * output
    raise _unknown(parameterization)


def output_of(parameterization: Parameterization, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """What a network of this kind says when it means x0 and eps: the way back, and a trainer's target."""
    if parameterization == "eps":
        return eps
    if parameterization == "v":
        alpha, sigma = level.over(eps)
        return alpha * eps - sigma * x0
    if parameterization == "x0":
        return x0
    if parameterization == "flow":
        return eps - x0
    raise _unknown(parameterization)


def x0_of(z: Tensor, eps: Tensor, level: Level) -> Tensor:
    """The clean estimate x0 = (z - sigma eps) / alpha; needs alpha > 0."""
    return to_x0("eps", eps, z, level)


def _unknown(parameterization: str) -> ValueError:
    return ValueError(f"parameterization {parameterization!r} is not one of {', '.join(PARAMETERIZATIONS)}")


# Guidance -------------------------------------------------------------------------------------------------------------


def cfg(cond: Tensor, uncond: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance, uncond + scale (cond - uncond): scale 1 is the conditional one (arXiv:2207.12598).

    An affine mix whose weights sum to one, so it commutes with every conversion above: mixing v's and converting is
    converting and mixing.
    """
    return uncond + scale * (cond - uncond)


def perp_neg(cond: Tensor, uncond: Tensor, negatives: Sequence[tuple[float | Tensor, Tensor]], scale: float) -> Tensor:
    """Guidance away from other prompts, but never against the prompt itself (Perp-Neg, arXiv:2304.04968).

    uncond + scale (e + sum_i w_i e_i^perp), with e = cond - uncond, e_i = negative_i - uncond and e_i^perp the part of
    e_i at right angles to e, sample by sample. Pairs in `negatives` are (w_i <= 0, a number or shaped to multiply it,
    prediction). With none it is `cfg`.
    """
    direction = cond - uncond
    total = direction
    for weight, negative in negatives:
        total = total + weight * _perpendicular(negative - uncond, direction)
    return uncond + scale * total


def _perpendicular(vector: Tensor, to: Tensor) -> Tensor:
    """The part of `vector` at right angles to `to`, per sample; `vector` itself where `to` is (nearly) zero."""
    axes = tuple(range(1, to.ndim))
    along = (vector * to).sum(axes, keepdim=True) / (to * to).sum(axes, keepdim=True).clamp(min=1e-6)
    return vector - along * to


# The sampler ----------------------------------------------------------------------------------------------------------


def ddim(z: Tensor, eps: Tensor, level: Level, to: Level, eta: float = 0.0, noise: Tensor | None = None) -> Tensor:
    """One DDIM step of z [B, ...] between any two levels, down or up (up is inversion) (arXiv:2010.02502, eq. 12).

    z' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s noise,  s = eta `ddpm_deviation`.
    With eta = 0 this is one Euler step of d(z / alpha) / dk = eps. eta > 0 needs `noise` and a step down.
    """
    alpha_to, sigma_to = to.over(z)
    x0 = x0_of(z, eps, level)
    if eta == 0.0:
        return alpha_to * x0 + sigma_to * eps
    if noise is None:
        raise ValueError("a DDIM step with eta > 0 adds noise: give it")
    spread = eta * over(ddpm_deviation(level.k, to.k, to), z)
    return alpha_to * x0 + (sigma_to**2 - spread**2).clamp(min=0).sqrt() * eps + spread * noise


def ddpm_deviation(high: Tensor, low: Tensor, to: Level) -> Tensor:
    """How much noise [B] a DDPM step between two k [B] adds to z at the level `to`, which is one of the two.

    Where alpha^2 + sigma^2 = 1 its square is (sigma_low^2 / sigma_high^2)(1 - alpha_high^2 / alpha_low^2) (Ho et al.,
    arXiv:2006.11239, eq. 7); any other path is a multiple of that one.
    """
    share = (low / high) ** 2 * (1 + high**2) / (1 + low**2) * (1 - (1 + low**2) / (1 + high**2))
    return (share.clamp(min=0) * (1 + to.k**2)).sqrt() * to.alpha
