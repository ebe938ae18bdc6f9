"""Priors whose score is known exactly: the oracle of the tests, and a toy for a first look at a rule.

    p(x | prompt) = sum_j w_j N(mean_j, std_j^2 I)

so that, with v_j = alpha^2 std_j^2 + sigma^2 and r_j(z) the probability that z came from the j-th bell,

    eps = sum_j r_j sigma (z - alpha mean_j) / v_j
    x0  = sum_j r_j (mean_j + std_j^2 alpha (z - alpha mean_j) / v_j).

They are pixel priors, x = 2 rgb - 1, and answer in any parameterization, so that a rule can be shown not to notice.
"""

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dreamkit.diffusion import FlowSchedule, Level, NoiseSchedule, Parameterization, output_of, scaled_linear
from dreamkit.errors import InputError, nearest
from dreamkit.priors.prior import CAMERA_NUMBERS, Condition, Prior
from dreamkit.streams import Streams


@dataclass(frozen=True)
class Bell:
    """N(mean, std^2 I), what one prompt means. The mean is a number, or a colour of one number per channel in [-1, 1].

    A prompt with more words after a comma, as view words are, means what its longest known beginning means.
    """

    prompt: str
    mean: float | tuple[float, ...]
    std: float
    weight: float = 1.0


@dataclass(frozen=True)
class Gaussian:
    """Each prompt is a Gaussian of its own. The null prompt "" must be among the bells and is whatever is said there.

    So the null prior is in general *not* the mixture of the others: good for closed forms, without meaning for CSD.
    """

    bells: tuple[Bell, ...]
    parameterization: Parameterization = "eps"
    size: int = 8
    channels: int = 3

    def load(self, device: torch.device | str) -> "AnalyticPrior":
        """The prior on a device. Raises InputError if a prompt is there twice, or the null prompt is not."""
        prompts = [bell.prompt for bell in self.bells]
        if len(set(prompts)) != len(prompts) or "" not in prompts:
            raise InputError(f"a Gaussian prior needs one bell a prompt, and one for the null prompt ''; got {prompts}")
        meanings: dict[str, tuple[Bell, ...]] = {bell.prompt: (bell,) for bell in self.bells}
        return AnalyticPrior("gaussian", self, meanings, device)


@dataclass(frozen=True)
class Mixture:
    """One distribution of many bells. A prompt means the bells that bear it; the null prompt "" means all of them.

    So p(x | "") is the exact marginal and eps(prompt) - eps("") = -sigma grad log P(prompt | z), by Bayes.
    """

    bells: tuple[Bell, ...]
    parameterization: Parameterization = "eps"
    size: int = 8
    channels: int = 3

    def load(self, device: torch.device | str) -> "AnalyticPrior":
        """The prior on a device. Raises InputError if there is no bell, or one of the null prompt."""
        prompts = {bell.prompt for bell in self.bells}
        if not prompts or "" in prompts:
            raise InputError("a Mixture prior needs bells, each with a prompt; the null prompt '' is their mixture")
        meanings = {prompt: tuple(bell for bell in self.bells if bell.prompt == prompt) for prompt in prompts}
        return AnalyticPrior("mixture", self, {**meanings, "": self.bells}, device)


class AnalyticPrior(Prior):
    """The exact prior of a `Gaussian` or a `Mixture`. Made by their `load`."""

    space: Literal["pixel", "latent"] = "pixel"
    capabilities: frozenset[str] = frozenset({"student", "attention_maps"})

    def __init__(
        self,
        name: str,
        spec: Gaussian | Mixture,
        meanings: dict[str, tuple[Bell, ...]],
        device: torch.device | str,
    ):
        super().__init__()
        self.name, self.parameterization, self.size = name, spec.parameterization, spec.size
        self.shape = (spec.channels, spec.size, spec.size)
        self.schedule = FlowSchedule() if spec.parameterization == "flow" else NoiseSchedule(scaled_linear())
        self.device = torch.device(device)
        self._spec, self._meanings = spec, meanings

    def encode(self, rgb: Tensor, streams: Streams | None = None) -> Tensor:
        """x = 2 rgb - 1, resized to the prior's size."""
        return 2 * resized(rgb, self.size) - 1

    def decode(self, x: Tensor) -> Tensor:
        """rgb = (x + 1) / 2."""
        return (x + 1) / 2

    def check_prompt(self, prompt: str) -> None:
        """Raise InputError for a prompt without a bell."""
        self._bells(prompt)

    def embed(self, prompt: str) -> Condition:
        """The bells of the prompt: mean [1, J, C], std [1, J], log weight [1, J], float64."""
        bells = self._bells(prompt)
        total = sum(bell.weight for bell in bells)
        rows: dict[str, list[Any]] = {
            "mean": [self._colour(bell) for bell in bells],
            "std": [bell.std for bell in bells],
            "log_weight": [math.log(bell.weight / total) for bell in bells],
        }
        most = max(len(bells) for bells in self._meanings.values())
        return Condition({name: self._row(row, most, name) for name, row in rows.items()})

    def network(self, z: Tensor, level: Level, condition: Condition) -> Tensor:
        """The exact eps and x0, said in the prior's parameterization."""
        mean, std, log_weight = (condition.tensors[name].to(z.dtype) for name in ("mean", "std", "log_weight"))
        alpha, sigma = (values[..., None] for values in level.over(z))  # [N, 1, 1, 1, 1] for z [N, 1, C, h, w]
        centre, std = mean[..., None, None], std[..., None, None, None]
        off = z[:, None] - alpha * centre
        spread = alpha**2 * std**2 + sigma**2
        score = -(off**2 / (2 * spread) + spread.log() / 2).flatten(2).sum(2)  # the density of z under bell j, log
        share = torch.softmax(log_weight + score, 1)[..., None, None, None]
        eps = (share * sigma * off / spread).sum(1)
        x0 = (share * (centre + std**2 * alpha * off / spread)).sum(1)
        return output_of(self.parameterization, x0, eps, level)

    def attended(self, z: Tensor, level: Level, prompt: Condition, source: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """eps under both conditions, and a map of ones: an exact prior looks everywhere alike."""
        told, was = self.predict(z, level, [prompt, source])
        return told, was, torch.ones_like(z[:, :1])

    def student(self, rank: int | None, streams: Streams) -> "AnalyticStudent":
        """Bells that can move and widen; `rank` does not matter to them."""
        return AnalyticStudent(self)

    def identity(self) -> dict[str, Any]:
        """The bells themselves, and their hash."""
        fields = dataclasses.asdict(self._spec)
        return {
            "name": self.name,
            "spec": fields,
            "weights": hashlib.blake2b(repr(fields).encode(), digest_size=16).hexdigest(),
        }

    def _bells(self, prompt: str) -> tuple[Bell, ...]:
        for known in sorted(self._meanings, key=len, reverse=True):
            if prompt == known or (known and prompt.startswith(f"{known},")):
                return self._meanings[known]
        names = [known for known in self._meanings if known]
        raise InputError(f"the {self.name} prior does not know the prompt {prompt!r}. {nearest(prompt, names)}")

    def _colour(self, bell: Bell) -> list[float]:
        mean = bell.mean if isinstance(bell.mean, tuple) else (bell.mean,) * self.channels
        if len(mean) != self.channels:
            raise InputError(f"{bell} has a mean of {len(mean)} numbers, but the prior has {self.channels} channels")
        return list(mean)

    def _row(self, values: list[Any], most: int, name: str) -> Tensor:
        """[1, most, ...]: every prompt gets as many bells, so that conditions stack; those filled up weigh nothing."""
        empty = -math.inf if name == "log_weight" else values[0]
        padded = values + [empty] * (most - len(values))
        return torch.tensor([padded], dtype=torch.float64, device=self.device)


class AnalyticStudent:
    """The prior's bells, all moved by one colour and widened by one factor, both trained; for one bell a Gaussian.

    The camera may move them too, linearly. All changes start at none.
    """

    def __init__(self, prior: AnalyticPrior):
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=prior.device, requires_grad=True)

        self.prior = prior
        self._weights = {
            "move": zeros(prior.channels),
            "widen": zeros(),
            "camera": zeros(CAMERA_NUMBERS, prior.channels),
        }

    def __call__(self, z: Tensor, level: Level, condition: Condition, camera: Tensor | None) -> Tensor:
        move = self._weights["move"]
        if camera is not None:
            move = move + camera.to(move) @ self._weights["camera"]
        mean = condition.tensors["mean"] + move.reshape(-1, 1, self.prior.channels)
        changed = condition.tensors | {"mean": mean, "std": condition.tensors["std"] * self._weights["widen"].exp()}
        return self.prior.network(z, level, Condition(changed))

    def parameters(self) -> dict[str, Tensor]:
        return self._weights


def resized(rgb: Tensor, size: int) -> Tensor:
    """Pictures [B, 3, H, W] at size x size, smoothed where they shrink; the same tensor if they fit. Differentiable."""
    if rgb.shape[-2:] == (size, size):
        return rgb
    return interpolate(rgb, (size, size), mode="bilinear", align_corners=False, antialias=True)
