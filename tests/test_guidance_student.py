"""Rules with a student: what they equal for students that are known, and where a population of them ends."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamkit.diffusion import Level, output_of
from dreamkit.guidance import Rule, gradient
from dreamkit.guidance.estimate import Guided
from dreamkit.guidance.rules import ESD, SDS, VSD
from dreamkit.guidance.student import Student, StudentPart
from dreamkit.guidance.weight import One
from dreamkit.priors import Bell, Condition, Gaussian, Prior, view_conditions
from dreamkit.streams import Streams
from tests.looking import PICTURES, AtK, Given, batch, colours, prior_of, same

CAMERA = torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(3, 12)


def look(
    rule: Rule, x: Tensor, prior: Prior, parts: dict | None = None, camera: Tensor | None = None, step: int = 0
) -> Tensor:
    conditions = view_conditions(prior, "y", ["front"] * len(x))
    if camera is not None:
        conditions["camera"] = Condition({"camera": camera})
    parts = rule.parts(prior, Streams(0, -1)) if parts is None else parts
    return gradient(rule, prior, x, conditions, Streams(0, step), parts=parts).gradient


class Knowing:
    """A student that says what it is told to: of the true noise n at the main level, or of another function."""

    def __init__(self, prior: Prior, noise: Tensor):
        self.prior, self.noise = prior, noise
        self.weights = {"nothing": torch.zeros(1, requires_grad=True)}

    def __call__(self, z: Tensor, level: Level, condition: Condition, camera: Tensor | None) -> Tensor:
        alpha, sigma = level.over(z)
        x0 = (z - sigma * self.noise) / alpha
        return output_of(self.prior.parameterization, x0, self.noise, level) + 0 * self.weights["nothing"]

    def parameters(self) -> dict[str, Tensor]:
        return self.weights


@pytest.mark.parametrize("parameterization", ["eps", "v", "x0", "flow"])
def test_with_a_student_that_knows_the_noise_vsd_is_sds(parameterization):
    prior = colours(parameterization)
    noise = torch.randn(PICTURES.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    vsd, sds = (replace(rule, levels=AtK((("main", 1.0),)), noise=Given(noise)) for rule in (VSD, SDS))
    part = StudentPart(prior, Knowing(prior, noise), 1e-3, 0.1)
    same(look(vsd, PICTURES, prior, {"student": part}), look(replace(sds, trust=Guided(7.5)), PICTURES, prior))


def test_a_fresh_student_is_the_teacher_so_scale_one_gives_nothing():
    # The guided mix at scale 1 is null + (prompt - null): the last bit.
    assert look(replace(VSD, trust=Guided(1.0)), PICTURES, colours()).abs().max() < 1e-14


def test_vsd_is_its_row_of_the_golden_table():
    """A student that is the exact score of N(1.5, 0.4^2), on the table's Gaussian at k = 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    n, w = batch(nodes), torch.as_tensor(weights / np.sqrt(2 * np.pi))
    for scale, want in ((1.0, 0.172992), (7.5, -3.316941)):
        prior = prior_of()
        network = prior.student(None, Streams(0, 0))
        with torch.no_grad():
            network.parameters()["move"].fill_(1.5 - 1.1)
            network.parameters()["widen"].fill_(np.log(0.4 / 0.7))
        part = StudentPart(prior, network, 0.0, 0.1)
        rule = replace(VSD, levels=AtK((("main", 1.0),)), noise=Given(n), trust=Guided(scale), weight=One())
        got = (w * look(rule, torch.full_like(n, 2.0), prior, {"student": part}).flatten()).sum()
        assert float(got) == pytest.approx(want, abs=1e-6)


def test_esd_is_vsd_for_scale_one_and_for_a_student_that_ignores_the_camera():
    esd = replace(ESD, subtract=Student(scale=1.0))
    assert torch.equal(look(esd, PICTURES, colours(), camera=CAMERA), look(VSD, PICTURES, colours(), camera=CAMERA))
    same(look(ESD, PICTURES, colours(), camera=CAMERA), look(VSD, PICTURES, colours(), camera=CAMERA))


def test_esd_halves_what_the_camera_says():
    prior = colours()
    part = VSD.parts(prior, Streams(0, -1))["student"]
    with torch.no_grad():
        part.network.parameters()["camera"].copy_(torch.linspace(-0.1, 0.2, 36).reshape(12, 3))
    part.train = lambda probe: 0.0  # the same student for all three
    told, half, untold = (
        look(replace(VSD, subtract=Student(scale=scale)), PICTURES, prior, {"student": part}, CAMERA)
        for scale in (1.0, 0.5, 0.0)
    )
    assert (told - untold).abs().max() > 1e-3
    same(half, (told + untold) / 2)


def test_the_3d_step_leaves_the_student_and_the_students_step_leaves_the_teacher_alone():
    prior = colours()
    parts, level = VSD.parts(prior, Streams(0, -1)), prior.level_of_k(torch.ones(3, dtype=torch.float64))
    teacher = prior.predict(PICTURES, level, [prior.condition(["y"] * 3)])[0]
    trained, parts["student"].train = parts["student"].train, lambda probe: 0.0
    look(VSD, PICTURES, prior, parts)
    weights = parts["student"].network.parameters()
    assert all(value.abs().max() == 0 and value.grad is None for value in weights.values())
    parts["student"].train = trained
    x = PICTURES.clone().requires_grad_()
    look(VSD, x, prior, parts)
    assert weights["move"].abs().max() > 0  # trained by one step
    assert x.grad is None
    assert torch.equal(prior.predict(PICTURES, level, [prior.condition(["y"] * 3)])[0], teacher)


def test_a_student_learns_the_cloud_it_is_shown():
    """Pictures of one constant colour: the student's mean comes to it, its width to nothing."""
    prior = Gaussian((Bell("", 0.0, 0.7), Bell("y", 0.2, 0.7)), size=2).load("cpu")
    rule = replace(VSD, subtract=Student(rate=2e-2))
    parts = rule.parts(prior, Streams(0, -1))
    x = torch.full((64, 3, 2, 2), 0.8, dtype=torch.float64)
    for step in range(300):
        look(rule, x, prior, parts, step=step)
    weights = parts["student"].network.parameters()
    # Adam with a rate of 0.02 wanders about the optimum by a few of its steps.
    assert (weights["move"] - 0.6).abs().max() < 0.1
    assert 0.7 * weights["widen"].exp() < 0.2


def test_particles_under_vsd_spread_like_the_prior_and_under_sds_collapse():
    """4,000 particles at k = 1; for VSD the student is the exact score of the cloud's Gaussian, refitted each step.

    The stationary cloud is N(mu, s^2) (ProlificDreamer's theorem 2, here in closed form). Its standard deviation has a
    standard error of s / sqrt(2 * 4000) = 0.008 while it moves freely, but the refitted flow holds it at s.
    """
    prior, s = prior_of(), 0.7
    level = {"levels": AtK((("main", 1.0),)), "weight": One()}

    def settle(rule: Rule, taught: bool) -> tuple[float, float]:
        x = batch(np.random.default_rng(0).normal(2.0, 0.3, 4000))
        for step in range(400):
            parts = {}
            if taught:
                network = prior.student(None, Streams(0, 0))
                with torch.no_grad():
                    network.parameters()["move"].fill_(x.mean() - 1.1)
                    network.parameters()["widen"].fill_((x.std() / s).log())
                parts["student"] = StudentPart(prior, network, 0.0, 0.1)
                parts["student"].train = lambda probe: 0.0
            x = x - 0.1 * look(replace(rule, **level), x, prior, parts, step=step)
        return x.mean().item(), x.std().item()

    mean, deviation = settle(replace(VSD, trust=Guided(1.0)), True)
    assert (mean, deviation) == (pytest.approx(1.1, abs=0.03), pytest.approx(s, abs=0.01))
    mean, deviation = settle(replace(SDS, trust=Guided(1.0)), False)
    a, b = 1 / (s**2 + 1), s**2 / (s**2 + 1)
    floor = (0.1**2 * b**2 / (1 - (1 - 0.1 * a) ** 2)) ** 0.5
    assert mean == pytest.approx(1.1, abs=0.03)
    assert deviation == pytest.approx(floor, rel=0.05)  # four standard errors of 1 / sqrt(2 * 4000)
