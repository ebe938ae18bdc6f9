"""The exact priors against formulas written out here, Bayes, and numbers of the literature's closed forms."""

import math

import pytest
import torch

from dreamkit.diffusion import Level, add_noise
from dreamkit.errors import InputError
from dreamkit.priors import Bell, Gaussian, Mixture, view_conditions
from dreamkit.priors.prior import Condition

GAUSSIAN = (Bell("", 0.3, 0.7), Bell("a mug", 1.1, 0.7), Bell("a car", (0.5, -0.5, 0.0), 0.2))
TWO_MODES = (Bell("plus", 1.0, 0.3), Bell("minus", -1.0, 0.3))


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predict(prior, z: torch.Tensor, level: Level, prompt: str) -> torch.Tensor:
    return prior.predict(z, level, [prior.condition([prompt] * len(z))])[0]


def test_the_gaussian_is_its_formula(device):
    prior = Gaussian(GAUSSIAN, size=4).load(device)
    level = prior.level_of_k(torch.tensor([0.2, 3.0]))
    z = draw(0, 2, 3, 4, 4).to(device)
    zeta, k = z / level.alpha.reshape(2, 1, 1, 1).to(device), level.k.reshape(2, 1, 1, 1).to(device)
    torch.testing.assert_close(predict(prior, z, level, "a mug"), k * (zeta - 1.1) / (0.7**2 + k**2))
    colour = torch.tensor([0.5, -0.5, 0.0], dtype=torch.float64, device=device).reshape(1, 3, 1, 1)
    torch.testing.assert_close(predict(prior, z, level, "a car"), k * (zeta - colour) / (0.2**2 + k**2))


def log_density(z: torch.Tensor, level: Level, bells: tuple[Bell, ...]) -> torch.Tensor:
    """log p(z) of a mixture at a level, bell by bell, per sample."""
    total = sum(bell.weight for bell in bells)
    terms = []
    for bell in bells:
        spread = level.alpha**2 * bell.std**2 + level.sigma**2
        square = ((z - level.alpha.reshape(-1, 1, 1, 1) * bell.mean) ** 2).flatten(1).sum(1)
        size = z[0].numel()
        terms.append(
            math.log(bell.weight / total) - square / (2 * spread) - size / 2 * torch.log(2 * torch.pi * spread)
        )
    return torch.logsumexp(torch.stack(terms), 0)


@pytest.mark.parametrize("prompt", ["", "plus"])
@pytest.mark.parametrize("parameterization", ["eps", "v", "x0", "flow"])
def test_the_mixtures_eps_is_minus_sigma_times_the_score(parameterization, prompt):
    bells = (Bell("plus", 1.0, 0.3, 2.0), Bell("minus", -1.0, 0.3), Bell("plus", 0.4, 0.8))
    prior = Mixture(bells, parameterization, size=2).load("cpu")
    level = prior.level(torch.tensor([0.1, 0.5, 0.9]))
    z = draw(0, 3, 3, 2, 2).requires_grad_()
    chosen = tuple(bell for bell in bells if prompt in ("", bell.prompt))
    score = torch.autograd.grad(log_density(z, level, chosen).sum(), z)[0]
    want = -level.sigma.reshape(-1, 1, 1, 1) * score
    torch.testing.assert_close(predict(prior, z.detach(), level, prompt), want, rtol=1e-10, atol=1e-10)


def test_the_classifier_direction_is_that_of_the_posterior():
    """eps(y) - eps("") = -sigma grad log P(y | z), by Bayes, because the null prior is the exact marginal."""
    prior = Mixture(TWO_MODES, size=1, channels=1).load("cpu")
    level = prior.level_of_k(torch.tensor([0.5, 1.0, 3.0]))
    z = draw(3, 3, 1, 1, 1).requires_grad_()
    posterior = log_density(z, level, TWO_MODES[:1]) + math.log(0.5) - log_density(z, level, TWO_MODES)
    score = torch.autograd.grad(posterior.sum(), z)[0]
    got = predict(prior, z.detach(), level, "plus") - predict(prior, z.detach(), level, "")
    torch.testing.assert_close(got, -level.sigma.reshape(-1, 1, 1, 1) * score, rtol=1e-9, atol=1e-12)


def test_all_four_parameterizations_say_different_things_and_mean_the_same():
    said, meant = [], []
    for parameterization in ("eps", "v", "x0", "flow"):
        prior = Gaussian(GAUSSIAN, parameterization, size=2).load("cpu")
        level = prior.level_of_k(torch.tensor([0.7, 4.0]))
        z = add_noise(draw(0, 2, 3, 2, 2), draw(1, 2, 3, 2, 2), level)
        condition = prior.condition(["a mug", ""])
        said.append(prior.network(z, level, condition))
        meant.append(prior.eps(z, level, condition))
    for a, b in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]:
        assert (said[a] - said[b]).abs().max() > 0.01
        torch.testing.assert_close(meant[a], meant[b], rtol=1e-11, atol=1e-11)


def test_float32_in_means_float32_out_close_to_float64():
    prior = Gaussian(GAUSSIAN, size=2).load("cpu")
    level = prior.level(torch.tensor([0.02, 0.98]))
    z = draw(0, 2, 3, 2, 2)
    got = predict(prior, z.float(), level, "a mug")
    assert got.dtype == torch.float32
    torch.testing.assert_close(
        got.double(), predict(prior, z, level, "a mug"), rtol=1e-5, atol=1e-5
    )  # float32 rounding


def test_pictures_are_resized_and_come_back_with_gradient(device):
    prior = Gaussian(GAUSSIAN, size=8).load(device)
    rgb = torch.rand(2, 3, 16, 16, device=device).requires_grad_()
    x = prior.encode(rgb)
    assert x.shape == (2, *prior.shape)
    prior.decode(x).sum().backward()
    assert float(rgb.grad.abs().min()) > 0
    same = torch.rand(1, 3, 8, 8, device=device)
    torch.testing.assert_close(prior.decode(prior.encode(same)), same)


def test_many_conditions_are_one_call_and_every_sample_counts():
    prior = Gaussian(GAUSSIAN, size=2).load("cpu")
    z, level = draw(0, 4, 3, 2, 2), prior.level(torch.full((4,), 0.5))
    conditions = view_conditions(prior, "a mug", ["front", "side", "back", "overhead"])
    both = prior.predict(z, level, [conditions["prompt"], conditions["null"]])
    assert (prior.calls, prior.samples) == (1, 8)
    torch.testing.assert_close(both[0], predict(prior, z, level, "a mug"))
    torch.testing.assert_close(both[1], predict(prior, z, level, ""))


def test_predictions_carry_no_graph():
    prior = Gaussian(GAUSSIAN, size=2).load("cpu")
    z = draw(0, 1, 3, 2, 2).requires_grad_()
    assert not predict(prior, z, prior.level(0.5), "a mug").requires_grad


def test_view_words_mean_the_prompt_unless_the_view_has_a_bell_of_its_own():
    bells = (*GAUSSIAN, Bell("a mug, back view", -0.9, 0.1))
    prior = Gaussian(bells, size=2).load("cpu")
    means = view_conditions(prior, "a mug", ["front", "back"])["prompt"].tensors["mean"]
    assert means[:, 0, 0].tolist() == [1.1, -0.9]


def test_a_view_of_none_is_the_prompt_as_it_is(monkeypatch):
    prior, asked = Gaussian(GAUSSIAN, size=2).load("cpu"), []
    monkeypatch.setattr(prior, "condition", asked.append)
    view_conditions(prior, "a mug", [None, "back"], negative="a car")
    assert asked == [["a mug", "a mug, back view"], ["a mug", "a mug"], ["", ""], ["a car", "a car"]]


def test_an_unknown_prompt_is_an_error_with_the_nearest_known_one():
    prior = Gaussian(GAUSSIAN).load("cpu")
    with pytest.raises(InputError, match=r"'a mugg'.*Did you mean 'a mug'"):
        prior.condition(["a mugg"])
    with pytest.raises(InputError, match="a muggle"):
        prior.condition(["a muggle"])  # a longer word is not the prompt with view words


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (Gaussian((Bell("a", 0.0, 1.0),)), "one for the null prompt"),
        (Gaussian((Bell("", 0.0, 1.0), Bell("", 1.0, 1.0))), "one bell a prompt"),
        (Mixture(()), "needs bells"),
        (Mixture((Bell("", 0.0, 1.0),)), "each with a prompt"),
    ],
)
def test_a_specification_that_means_nothing_is_refused(spec, said):
    with pytest.raises(InputError, match=said):
        spec.load("cpu")


def test_a_colour_of_the_wrong_length_is_refused():
    prior = Gaussian((Bell("", (0.0, 1.0), 1.0),)).load("cpu")
    with pytest.raises(InputError, match="2 numbers, but the prior has 3 channels"):
        prior.condition([""])


def test_identity_changes_with_the_bells_and_only_then():
    ids = [Gaussian((Bell("", mean, 1.0),)).load("cpu").identity()["weights"] for mean in (0.0, 0.0, 0.5)]
    assert ids[0] == ids[1] != ids[2]


# Conditions


def test_conditions_stack_and_slice_along_the_batch():
    a, b = Condition({"tokens": draw(0, 2, 3)}), Condition({"tokens": draw(1, 1, 3)})
    both = Condition.cat([a, b])
    assert len(both) == 3
    assert torch.equal(both[2:].tensors["tokens"], b.tensors["tokens"])
    assert torch.equal(both[torch.tensor([1, 0])].tensors["tokens"], a.tensors["tokens"].flip(0))


def test_conditions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="share a batch axis"):
        Condition({"tokens": draw(0, 2, 3), "mask": draw(0, 3)})
    with pytest.raises(ValueError, match="different kinds"):
        Condition.cat([Condition({"tokens": draw(0, 2)}), Condition({"camera": draw(0, 2)})])
    prior = Gaussian(GAUSSIAN, size=2).load("cpu")
    with pytest.raises(ValueError, match="2 samples, 1 levels and 2 conditions"):
        prior.eps(draw(0, 2, 3, 2, 2), prior.level(0.5), prior.condition(["", ""]))
