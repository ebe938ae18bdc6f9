"""Prior: a frozen diffusion model as guidance sees it.

A prior speaks noise levels, never a model's timesteps, and always predicts eps: what its network says is converted at
the door, in float32 or better, so no rule ever meets a v or a flow (conventions: `dreamkit.diffusion`).

A specification (`Gaussian`, `Mixture`, `Diffusers`: small frozen dataclasses in a recipe) makes a prior by `load`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from dreamkit.diffusion import Level, NoiseSchedule, Parameterization, over, to_eps
from dreamkit.prompts import ViewWords, with_view
from dreamkit.streams import Streams

CAPABILITIES: dict[str, str] = {
    "joint_views": "priors that see all views of an object at once, such as MVDream",
    "image_prompt": "priors that take a reference picture, such as Zero123 or IP-Adapter",
    "control": "priors with a ControlNet",
    "multimodal": "priors of pictures and their depth together, such as HumanGaussian's",
    "attention_maps": "priors whose network says where it looks for each word, such as Stable Diffusion",
    "student": "priors whose network can be copied and trained, such as Stable Diffusion",
    "video": "video priors",
}
"""Every optional capability, with the kind of prior that has it."""

CAMERA_NUMBERS = 12
"""How many numbers tell a network where the camera stands: camera_to_world, row by row."""


class Condition:
    """What a network is told about each of B samples: named tensors that share a leading batch axis.

    Conditions are stacked and sliced along that axis, so that all branches of a rule make one network call.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = dict(tensors)
        sizes = {name: value.shape[0] for name, value in self.tensors.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"the tensors of a condition share a batch axis; got {sizes}")

    def __len__(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    def __getitem__(self, index: slice | Tensor) -> "Condition":
        return Condition({name: value[index] for name, value in self.tensors.items()})

    @staticmethod
    def cat(conditions: Sequence["Condition"]) -> "Condition":
        """The conditions of several batches, one after the other; all must hold the same names."""
        names = {tuple(sorted(condition.tensors)) for condition in conditions}
        if len(names) != 1:
            raise ValueError(f"conditions of different kinds cannot be stacked: {sorted(names)}")
        return Condition({name: torch.cat([c.tensors[name] for c in conditions]) for name in conditions[0].tensors})

    @staticmethod
    def mix(first: "Condition", second: "Condition", share: Tensor) -> "Condition":
        """Between two conditions of B samples: `share` [B] of the second, the rest of the first, number by number."""

        def between(a: Tensor, b: Tensor) -> Tensor:
            part = over(share, a)
            # What is infinite in both (a weight's logarithm) stays so.
            return torch.where(a == b, a, torch.where(part == 0, a, torch.where(part == 1, b, a + part * (b - a))))

        return Condition({name: between(value, second.tensors[name]) for name, value in first.tensors.items()})


class Prior(ABC):
    """A frozen prior on one device.

    The attributes are set by the subclass:
        name              for messages and the run's record
        space             "pixel" or "latent"
        size              side of the square picture it wants; `encode` resizes to it
        shape             (C, h, w) of one sample x, what the network sees
        parameterization  what the network says; rules never need it
        schedule          its noise levels
        device            where x, conditions and predictions live
        view_words        its words for where a camera stands
        views             how many samples in a row it sees together as views of one object; 1 for most
    and counted are `calls` of the network and `samples` pushed through it.
    """

    name: str
    space: Literal["pixel", "latent"]
    size: int
    shape: tuple[int, int, int]
    parameterization: Parameterization
    schedule: NoiseSchedule
    device: torch.device
    view_words: ViewWords = ViewWords()
    views: int = 1
    capabilities: frozenset[str] = frozenset()
    calls: int = 0
    samples: int = 0

    def __init__(self) -> None:
        self._conditions: dict[str, Condition] = {}

    # What a subclass fills in

    @abstractmethod
    def encode(self, rgb: Tensor, streams: Streams | None = None) -> Tensor:
        """x [B, *shape] for pictures rgb [B, 3, H, W] in [0, 1]. Differentiable in rgb.

        A latent prior with a random encoder draws from the stream "vae"; without streams it takes the mean. A prior
        with the capability "multimodal" takes [B, 6, H, W]: colours, then depth in three equal channels; the first half
        of x is then the colours and the second the depth.
        """

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, size, size] for x [B, *shape], not clamped to [0, 1]. Differentiable in x."""

    @abstractmethod
    def embed(self, prompt: str) -> Condition:
        """The condition, of batch one, that a prompt means to this prior. Raises InputError where it means nothing."""

    @abstractmethod
    def network(self, z: Tensor, level: Level, condition: Condition) -> Tensor:
        """The network's raw output at z [N, *shape], in its own parameterization and in z's dtype."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Which model this is, for the record of a run: name, where it came from, and a hash of its weights."""

    def student(self, rank: int | None, streams: Streams) -> "Student":
        """A trainable student of the network: a low-rank change of it, or a full copy with rank None.

        Only for priors with the capability "student".
        """
        raise NotImplementedError(f"the prior {self.name!r} has no student")

    def control(self, condition: Condition, picture: Tensor) -> Condition:
        """The condition, told also to follow a layout: a picture [B, C, H, W] in [0, 1] of colour and depth.

        Only for priors with the capability "control".
        """
        raise NotImplementedError(f"the prior {self.name!r} takes no layout")

    def attended(self, z: Tensor, level: Level, prompt: Condition, source: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """eps under both conditions, by one network call, and where the network looks for what is only in the prompt.

        The map is [B, 1, h, w] in [0, 1]: ones where the two do not differ in words. No graph. Only for priors with the
        capability "attention_maps".
        """
        raise NotImplementedError(f"the prior {self.name!r} has no attention maps")

    # What every prior can then do

    @property
    def channels(self) -> int:
        return self.shape[0]

    def level(self, u: float | Tensor) -> Level:
        """The levels at fractions u [B] of the native schedule (a float: one sample)."""
        return self.schedule.level(torch.as_tensor(u, dtype=torch.float64).cpu().reshape(-1))

    def level_at(self, index: int | Tensor) -> Level:
        """The levels at integer indices [B] of the native schedule, 0..steps-1."""
        return self.schedule.at(torch.as_tensor(index).cpu().long().reshape(-1))

    def level_of_k(self, k: float | Tensor) -> Level:
        """The levels with noise to signal k [B] > 0."""
        return self.schedule.of_k(torch.as_tensor(k, dtype=torch.float64).cpu().reshape(-1))

    def check_prompt(self, prompt: str) -> None:  # noqa: B027  most priors understand any text
        """Raise InputError if the prompt has words this prior does not know. Most priors take any text."""

    def condition(self, prompts: Sequence[str]) -> Condition:
        """One condition per prompt, stacked. Each prompt is embedded once and remembered. Raises InputError."""
        for prompt in prompts:
            if prompt not in self._conditions:
                self.check_prompt(prompt)
                self._conditions[prompt] = self.embed(prompt)
        return Condition.cat([self._conditions[prompt] for prompt in prompts])

    @torch.no_grad()
    def eps(self, z: Tensor, level: Level, condition: Condition) -> Tensor:
        """The noise predictions [N, *shape] for N samples z, each with its own level and condition, in z's dtype.

        One network call, no graph. Raises ValueError for different counts.
        """
        if not len(z) == len(level) == len(condition):
            raise ValueError(f"eps got {len(z)} samples, {len(level)} levels and {len(condition)} conditions")
        self.calls += 1
        self.samples += len(z)
        return to_eps(self.parameterization, self.network(z, level, condition), z, level)

    def predict(self, z: Tensor, level: Level, conditions: Sequence[Condition]) -> list[Tensor]:
        """eps [B, *shape] under each of the conditions at the same z [B, *shape] and level [B], in z's dtype.

        One network call, no graph. Raises ValueError for different counts.
        """
        count = len(conditions)
        stacked = Condition.cat(conditions)
        return list(self.eps(torch.cat([z] * count), Level.cat([level] * count), stacked).chunk(count))


class Student(Protocol):
    """A prior's network that can be trained: what `Prior.student` makes. Fresh, it says what the prior's says."""

    def __call__(self, z: Tensor, level: Level, condition: Condition, camera: Tensor | None) -> Tensor:
        """The raw output, in the prior's parameterization; camera [N, CAMERA_NUMBERS], where it is told.

        Differentiable in its parameters.
        """
        ...

    def parameters(self) -> dict[str, Tensor]:
        """What is trained, by name, float32 or better."""
        ...


class PriorSpec(Protocol):
    """What a recipe holds: a small frozen dataclass that makes a prior."""

    def load(self, device: torch.device | str) -> Prior:
        """The prior on a device. Raises InputError if there is none to be had."""


def view_conditions(
    prior: Prior,
    prompt: str,
    views: Sequence[str | None],
    negative: str = "",
    source: str = "",
    worded: Mapping[str, str] | None = None,
) -> dict[str, Condition]:
    """The conditions a rule may name, one of each per view: "prompt" (with its view words), "bare" (without), "null",
    "negative" and, where there is one, "source" (with view words).

    A view of None gets the prompt as it is; for the others `worded` may hold another, such as `prompts.debiased` makes.
    The negative prompt never gets view words. The prior remembers embeddings.
    """

    def seen(text: str) -> Condition:
        return prior.condition([with_view(text, view) if view else text for view in views])

    told = [with_view((worded or {}).get(view, prompt), view) if view else prompt for view in views]
    return {
        "prompt": prior.condition(told),
        "bare": prior.condition([prompt] * len(views)),
        "null": prior.condition([""] * len(views)),
        "negative": prior.condition([negative] * len(views)),
    } | ({"source": seen(source)} if source else {})
