"""Adversarial distillation: what its gradient is, where a simple generator ends, what is in the bank."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dreamkit.adversarial import Adversarial, Bank, CodedScenes, Trainer, fill
from dreamkit.cameras import Cameras, Orbit, orbit
from dreamkit.nest import flatten, unflatten
from dreamkit.priors import Bell, Gaussian
from dreamkit.streams import Streams
from tests.test_loop import TINY, load

PRIOR = Gaussian((Bell("", 0.0, 0.3), Bell("a red ball", (0.8, -0.8, -0.8), 0.3)), size=8)
SMALL = Adversarial(
    load(TINY).stages[0].representation,
    Orbit(azimuth_degrees=(-30.0, 30.0), elevation_degrees=(10.0, 20.0), size=16),
    code=3,
    batch=4,
    width=8,
    bank=8,
    draw_steps=3,
)


class Shift:
    """Pictures of one number each: noise of deviation 0.5 round a mean, which is all that is trained."""

    def __init__(self):
        self.weights = {"mean": torch.zeros((), requires_grad=True)}

    def __call__(self, code: Tensor, cameras: Cameras, streams: Streams | None) -> Tensor:
        return self.weights["mean"] + 0.5 * streams.normal("shift", (len(cameras), 1, 1, 1))


def still(count: int) -> Cameras:
    return orbit([0.0] * count, 0.0, size=8)


def test_a_discriminator_that_says_one_thing_gives_no_gradient():
    trainer = Trainer(SMALL, generator := CodedScenes(SMALL, PRIOR.load("cpu"), Streams(0, -1)), bank(), Streams(0, -1))
    with torch.no_grad():
        for value in trainer.net.weights.values():
            value.zero_()
    x = generator(torch.ones(3), still(2), Streams(0, 0))
    trainer.logits(x, still(2)).sum().backward()
    assert all(value.grad is None or value.grad.abs().max() == 0 for value in generator.weights.values())


def bank() -> Bank:
    return fill(SMALL, PRIOR.load("cpu"), "a red ball", Streams(0, -1))


def test_a_shift_ends_at_the_mean_of_the_bank():
    """Both are N(., 0.5^2), seen from the same sides; the running mean is asked, to a fifth of a deviation."""
    spec = replace(SMALL, batch=32, rate=1e-2, r1=1.0, average=0.98)
    real = 1.5 + 0.5 * Streams(0, 0).normal("real", (256, 1, 1, 1))
    trainer = Trainer(spec, Shift(), Bank(real, spec.cameras.sample(256, Streams(1, 0))), Streams(0, -1))
    for number in range(400):
        trainer.step(number, 0)
    assert trainer.mean["mean"].item() == pytest.approx(real.mean().item(), abs=0.1)


def test_the_bank_is_seen_from_where_it_was_asked_and_is_what_the_prior_draws():
    found = bank()
    assert found.pictures.shape == (8, 3, 8, 8)
    azimuth = (found.cameras.azimuth_degrees + 180) % 360 - 180
    assert azimuth.abs().max() <= 30
    assert found.cameras.elevation_degrees.min() >= 10
    assert found.cameras.elevation_degrees.max() <= 20
    assert found.pictures[:, 0].mean() > 0.5 > -0.5 > found.pictures[:, 1].mean()


def test_codes_make_different_scenes_and_a_resumed_trainer_goes_on_bit_for_bit():
    def fresh() -> Trainer:
        return Trainer(SMALL, CodedScenes(SMALL, PRIOR.load("cpu"), Streams(0, -1)), bank(), Streams(0, -1))

    whole, parts, again = fresh(), fresh(), fresh()
    for number in range(4):
        whole.step(number, 0)
    for number in range(2):
        parts.step(number, 0)
    again.load(unflatten(*flatten(parts.state())))
    for number in range(2, 4):
        again.step(number, 0)
    assert all(torch.equal(again.mean[name], whole.mean[name]) for name in whole.mean)
    assert (whole.generator.weights["code"] != fresh().generator.weights["code"]).any()
    with torch.no_grad():
        one, other = (whole.generator.render(torch.full((3,), value), still(1), None) for value in (-2.0, 2.0))
    assert (one - other).abs().max() > 1e-4


def test_what_is_empty_is_asked_of_the_code_that_is_shown(monkeypatch):
    """A scene that is solid on the left for code 0 and on the right for every other: the right counts as occupied, and
    nothing as hidden behind what the next code may leave empty."""
    generator = CodedScenes(SMALL, PRIOR.load("cpu"), Streams(0, -1))
    scene = generator.scene

    def density(points: Tensor) -> Tensor:
        plain = torch.equal(scene.network.hidden, generator.weights["hidden"])
        return 100.0 * ((points[:, 1] < 0) if plain else (points[:, 1] > 0)).float()

    monkeypatch.setattr(scene, "density", density)
    generator.after_step(0, Streams(0, 0))
    middle = scene.spec.cells // 2
    assert scene.occupied[:, middle + 1 :].all()
    assert not scene.occupied[:, : middle - 2].any()
    assert scene.thinnest.abs().max() == 0
    assert scene.network.hidden is generator.weights["hidden"]
