"""Adversarial distillation: many objects of one prompt from one generator (CAD, arXiv:2312.06663).

The other rules ask the prior about every render. Here the prior is asked once, for a bank of pictures from known sides;
then a generator of scenes and a discriminator of pictures play against each other:

    generator       mean softplus(-D(x, c)),   x what the prior's encoder makes of a render of theta(code) from camera c
    discriminator   mean softplus(D(x, c)) + softplus(-D(bank, c)) + r1 / 2 |grad D(bank, c)|^2

and the gradient passes through D, the encoder and the renderer. theta(code) is a hash grid whose network's hidden units
are each scaled by 1 + (A code), so that codes near one another make objects near one another.

No code of the authors is public, and the losses, the networks and their rates are not confirmed: these are StyleGAN2's
losses (arXiv:1912.04958) with R1 (arXiv:1801.04406) on small networks. The authors condition on a picture as well,
generate tri-planes, and refine and filter their bank; that is left out. It is a small trainer to study, not a command
for assets:

    python -m dreamkit.adversarial "a red mug" --steps 500 --out mugs
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from dreamkit import device as devices
from dreamkit.cameras import Cameras, Orbit, ring
from dreamkit.disk import check_folder, make_folder, write_whole
from dreamkit.errors import InputError
from dreamkit.guidance.networks import ConvNet, Trained
from dreamkit.guidance.rule import Probe
from dreamkit.images import png
from dreamkit.nest import flatten
from dreamkit.priors import Diffusers, Prior
from dreamkit.priors.prior import CAMERA_NUMBERS, view_conditions
from dreamkit.priors.sample import sample
from dreamkit.representations.hashgrid import HashGrid
from dreamkit.streams import Streams


@dataclass(frozen=True)
class Adversarial:
    """Settings of the trainer. Pictures: `batch` a step, of one code; the bank holds `bank`, drawn by DDIM."""

    representation: HashGrid = field(default_factory=lambda: HashGrid(radius=0.85))
    cameras: Orbit = field(default_factory=lambda: Orbit(elevation_degrees=(-10.0, 60.0)))
    code: int = 8
    batch: int = 4
    rate: float = 2e-3
    r1: float = 10.0
    width: int = 32
    bank: int = 64
    draw_steps: int = 25
    scale: float = 7.5
    average: float = 0.99
    """Of the generator's weights over the steps: what is shown is their running mean."""


class Generator(Protocol):
    """What makes pictures of a code."""

    weights: dict[str, Tensor]

    def __call__(self, code: Tensor, cameras: Cameras, streams: Streams | None) -> Tensor:
        """x [B, ...] as the prior sees pictures from B cameras; differentiable in the weights."""
        ...


class CodedScenes:
    """Hash-grid scenes by code: one scene, whose hidden units a code scales."""

    def __init__(self, spec: Adversarial, prior: Prior, streams: Streams):
        self.prior, self.scene = prior, spec.representation.build(prior.device, streams)
        hidden = self.scene.network.hidden
        mixing = 0.3 * streams.normal("code", (len(hidden), spec.code), like=hidden) / spec.code**0.5
        self.weights = self.scene.network.tensors() | {"code": mixing.requires_grad_()}

    def render(self, code: Tensor, cameras: Cameras, streams: Streams | None) -> Tensor:
        """Pictures [B, 3, H, W] of theta(code); of the plain preview without streams."""
        with self._coded(code):
            return self.scene.render(cameras, streams).rgb

    @contextmanager
    def _coded(self, code: Tensor) -> Iterator[None]:
        """While inside, the scene is theta(code)."""
        self.scene.network.hidden = (
            self.weights["hidden"] * (1 + linear(code.to(self.weights["code"]), self.weights["code"]))[:, None]
        )
        try:
            yield
        finally:
            self.scene.network.hidden = self.weights["hidden"]

    def __call__(self, code: Tensor, cameras: Cameras, streams: Streams | None) -> Tensor:
        return self.prior.encode(self.render(code, cameras, streams), streams)

    def after_step(self, step: int, streams: Streams) -> None:
        """Upkeep of the grid's memory of where something is, for any code: that of the present step's is added, and
        nothing counts as certainly hidden, because another code may leave it empty."""
        with self._coded(streams.normal("code", (self.weights["code"].shape[1],))):
            self.scene.after_step(step, streams)
        self.scene.thinnest.zero_()


@dataclass(frozen=True)
class Bank:
    """Pictures x [N, ...] that count as real, and where they were seen from."""

    pictures: Tensor
    cameras: Cameras


def fill(spec: Adversarial, prior: Prior, prompt: str, streams: Streams) -> Bank:
    """A bank drawn from the prior, each picture under the view words of a camera of its own."""
    pictures, cameras = [], spec.cameras.sample(spec.bank, streams, "bank")
    for first in range(0, spec.bank, spec.batch):
        some = cameras[first : first + spec.batch]
        asked = view_conditions(prior, prompt, prior.view_words.of(some))
        own = streams.within(f"bank{first}")
        drawn = sample(prior, asked["prompt"], asked["null"], own, steps=spec.draw_steps, scale=spec.scale)
        pictures.append(drawn)
    return Bank(torch.cat(pictures), cameras)


class _Weights(Trained):
    """Weights with an optimiser, that nothing but `learn` trains: StyleGAN2's, an Adam without momentum or decay."""

    def __init__(self, weights: dict[str, Tensor], rate: float):
        super().__init__(weights, rate)
        self.optimiser = torch.optim.AdamW(weights.values(), lr=rate, betas=(0.0, 0.99), weight_decay=0.0)

    def train(self, probe: Probe) -> float:
        raise ValueError("an adversary is trained by its trainer")


class Trainer:
    """Generator and discriminator, their optimisers, the running mean, and the bank. A step is a function of the state,
    its number and the seed."""

    def __init__(self, spec: Adversarial, generator: Generator, bank: Bank, streams: Streams):
        self.spec, self.generator, self.bank = spec, generator, bank
        channels, device = bank.pictures.shape[1], bank.pictures.device
        shape = (channels, spec.width, spec.width, 1)
        self.net = ConvNet(shape, (1, 2, 2), CAMERA_NUMBERS, 1.0, streams.within("discriminator"), device)
        self.judge = _Weights(self.net.weights, spec.rate)
        self.maker = _Weights(generator.weights, spec.rate)
        self.mean = {name: value.detach().clone() for name, value in generator.weights.items()}

    def logits(self, x: Tensor, cameras: Cameras) -> Tensor:
        """D(x, c) [B]."""
        return self.net(x, cameras.camera_to_world.flatten(1).to(x)).flatten(1).mean(1)

    def step(self, number: int, seed: int) -> dict[str, float]:
        """One step of the generator and one of the discriminator; returns both losses."""
        spec, streams = self.spec, Streams(seed, number)
        code = streams.normal("code", (spec.code,))
        cameras = spec.cameras.sample(spec.batch, streams)
        fake = self.generator(code, cameras, streams)
        made = self.maker.learn(softplus(-self.logits(fake, cameras)).mean())
        pick = (streams.uniform("pick", (spec.batch,)) * len(self.bank.pictures)).long()
        real = self.bank.pictures[pick.to(self.bank.pictures.device)].clone().requires_grad_()
        seen = self.logits(real, self.bank.cameras[pick])
        (slope,) = torch.autograd.grad(seen.sum(), real, create_graph=True)
        loss = (softplus(self.logits(fake.detach(), cameras)) + softplus(-seen)).mean()
        judged = self.judge.learn(loss + spec.r1 / 2 * slope.square().flatten(1).sum(1).mean())
        with torch.no_grad():
            for name, value in self.generator.weights.items():
                self.mean[name].lerp_(value, 1 - spec.average)
        return {"generator": made, "discriminator": judged}

    def state(self) -> dict[str, Any]:
        """Both networks, their optimisers and the mean, for `load`; the bank is `fill`'s, from the seed."""
        return {"judge": self.judge.state(), "maker": self.maker.state(), "mean": self.mean}

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a state, to go on bit for bit, but that `CodedScenes` looks anew where it is empty. Raises
        ValueError or KeyError if it is not one of these."""
        self.judge.load(state["judge"])
        self.maker.load(state["maker"])
        for name, value in self.mean.items():
            value.copy_(state["mean"][name])


def train(
    spec: Adversarial,
    prior: Prior,
    prompt: str,
    steps: int,
    seed: int = 0,
    watch: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> tuple[Trainer, CodedScenes]:
    """A bank, a generator and its training; returns the trainer, and the generator with the running mean's weights."""
    start = Streams(seed, -1)
    generator = CodedScenes(spec, prior, start)
    trainer = Trainer(spec, generator, fill(spec, prior, prompt, start), start)
    for number in range(steps):
        losses = trainer.step(number, seed)
        generator.after_step(number, Streams(seed, number))
        watch(number + 1, losses)
    with torch.no_grad():
        for name, value in generator.weights.items():
            value.copy_(trainer.mean[name])
    return trainer, generator


def main() -> None:
    """Train, and write weights.safetensors and codes.png: four codes from four sides each."""
    from safetensors.torch import save

    parser = argparse.ArgumentParser(prog="python -m dreamkit.adversarial", description="Many objects of one prompt.")
    parser.add_argument("prompt")
    parser.add_argument("--prior", default="toybox")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("outputs/adversarial"), help="(default: %(default)s)")
    given = parser.parse_args()
    spec = Adversarial()
    try:
        prior = Diffusers(given.prior).load(devices.choose(given.device))
        prior.check_prompt(given.prompt)
        check_folder(given.out)
    except InputError as error:
        parser.error(str(error))
    make_folder(given.out)

    def watch(step: int, losses: dict[str, float]) -> None:
        if step % 50 == 0 or step == given.steps:
            print(f"step {step}/{given.steps}  " + "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))

    trainer, generator = train(spec, prior, given.prompt, given.steps, given.seed, watch)
    codes = Streams(given.seed, -1).normal("shown", (4, spec.code))
    with torch.no_grad():
        rows = [torch.cat(list(generator.render(code, ring(4, size=96), None)), -1) for code in codes]
    write_whole(given.out / "codes.png", png(torch.cat(rows, -2)))
    tensors, _ = flatten(trainer.state())
    write_whole(given.out / "weights.safetensors", save({name: value.cpu() for name, value in tensors.items()}))
    print(f"{given.out / 'codes.png'}")


if __name__ == "__main__":
    main()
