"""The toybox's benchmark: what it asks for, how it counts, and that it does nothing twice."""

import subprocess
from dataclasses import replace

import pytest
import torch

from benchmarks import toybox
from dreamkit.diffusion import Level
from dreamkit.errors import InputError
from dreamkit.guidance.rules import SDS
from dreamkit.priors import Bell, Gaussian
from dreamkit.prompts import read_list
from dreamkit.recipe import Guide, Recipe, Stage, data_folder
from dreamkit.representations import HashGrid
from dreamkit.run import Run
from dreamkit.toybox import pictures, train, world
from dreamkit.toybox.judge import NAMES, WORDS, Judge, Verdict
from dreamkit.toybox.pictures import cast_pool
from dreamkit.toybox.targets import take_apart
from dreamkit.toybox.world import Thing

RECIPE = Recipe((Stage(HashGrid(), (Guide(SDS, Gaussian((Bell("", 0.0, 1.0),))),), steps=10),))


def test_the_lists_are_what_they_say():
    tuning, fixed, pairs = (
        read_list(data_folder("prompts") / f"{n}.txt") for n in ("toybox", "toybox-48", "toybox-pairs")
    )
    assert (len(set(fixed)), len(set(pairs))) == (48, 12)
    asked = [world.named(prompt) for prompt in fixed]
    assert all(isinstance(one, Thing) for one in asked)
    assert all(sum(one.kind == kind for one in asked) == 2 for kind in world.KINDS)
    assert all(sum(one.colour == colour for one in asked) == 4 for colour in world.COLOURS)
    assert (sum(one.second is not None for one in asked), sum(one.material != "matte" for one in asked)) == (8, 10)
    assert all(isinstance(world.named(prompt), world.Pair) for prompt in pairs)
    tuned = {(one.kind, one.colour) for one in map(world.named, tuning)}
    assert not tuned & {(one.kind, one.colour) for one in asked}


def test_wishes_say_what_they_ask_for_and_are_not_for_tuning():
    wanted = toybox.wishes(200, 0)
    tuned = set(read_list(data_folder("prompts") / "toybox.txt"))
    known = set(train.make_tokenizer().get_vocab())
    for wish in wanted:
        words, _, view = wish.said(world.SIDES_AND_HEIGHTS).partition(", ")
        assert world.named(words) == wish.asked
        assert view.endswith("view")
        assert words not in tuned
        assert set(f"{words} {view}".split()) <= known
    assert 15 <= sum(isinstance(wish.asked, world.Pair) for wish in wanted) <= 55  # one in six, three deviations
    assert wanted == toybox.wishes(200, 0)
    assert toybox.Wish(Thing("duck", "red"), 2, 40.0).said(world.SIDES_AND_HEIGHTS) == "a red duck, high left side view"
    assert toybox.Wish(Thing("duck", "red"), 2, 40.0).said(world.SIDES) == "a red duck, left side view"


def test_samples_are_counted_where_they_show_the_thing():
    wanted = [toybox.Wish(Thing("duck", "red"), side, 20.0) for side in (0, 4)]

    def judge(pictures):
        kinds = torch.zeros(2, len(NAMES))
        kinds[0, NAMES.index("duck")] = kinds[1, NAMES.index("mug")] = 1.0
        about = {name: torch.zeros(2, len(NAMES), len(words)) for name, words in WORDS.items()}
        about["colour"][:, :, WORDS["colour"].index("red")] = 1.0
        about["view"][:, :, WORDS["view"].index("back")] = 1.0
        return Verdict(kinds, about)

    found = toybox.judge_samples(torch.zeros(2, 3, 64, 64), wanted, judge)
    assert (found["kind"], found["colour"], found["view"], found["nearly"]) == (0.5, 1.0, 0.0, 0.0)
    for direction, (view, nearly) in {3: (0.0, 1.0), 4: (1.0, 1.0), 5: (0.0, 1.0), 6: (0.0, 0.0)}.items():
        wanted[0] = replace(wanted[0], direction=direction)  # "back" is what the judge says of it
        found = toybox.judge_samples(torch.zeros(2, 3, 64, 64), wanted, judge)
        assert (found["view"], found["nearly"]) == (view, nearly), direction


def test_true_pictures_show_what_was_wished_from_where():
    wanted = [wish for wish in toybox.wishes(60, 2) if isinstance(wish.asked, Thing)][:40]
    found = toybox.judge_samples(toybox.true_pictures(wanted, world.SIDES, 0), wanted, Judge.load())
    # Three deviations below what the judge has on many such pictures: 0.98 of 40; of about 30 that have a side 0.88,
    # as it errs near the borders, and 0.97 with the sides next to them.
    assert found["kind"] > 0.9
    assert found["view"] > 0.7
    assert found["nearly"] > 0.87
    turned = [replace(wish, direction=(wish.direction + 2) % 8) for wish in wanted]
    pictures = toybox.true_pictures(wanted, world.SIDES_AND_HEIGHTS, 0)
    assert toybox.judge_samples(pictures, wanted, Judge.load())["view"] > 0.7
    assert toybox.judge_samples(pictures, turned, Judge.load())["view"] < 0.3


def test_the_sides_next_to_right_ones_are_nearly_right_round_the_circle():
    right = torch.zeros(3, 9, dtype=torch.bool)
    right[0, 0] = right[1, [2, 6]] = right[2, 8] = True
    near = [row.nonzero().flatten().tolist() for row in toybox.with_neighbours(right)]
    assert near == [[0, 1, 7], [1, 2, 3, 5, 6, 7], [8]]


def test_samples_of_an_exact_prior_are_drawn_in_batches(monkeypatch):
    monkeypatch.setattr(toybox, "BATCH", 2)
    monkeypatch.setattr(toybox, "STEPS", 2)
    wanted = toybox.wishes(3, 1)
    bells = [
        Bell(text, 0.5, 0.0) for text in dict.fromkeys(wish.said(world.SIDES).partition(",")[0] for wish in wanted)
    ]
    prior = Gaussian((Bell("", 0.5, 0.0), *bells), size=8).load("cpu")
    pictures = toybox.draw_samples(prior, wanted, 2.0, 0)
    torch.testing.assert_close(pictures, torch.full((3, 3, 8, 8), 0.75), atol=1e-4, rtol=0)
    assert toybox.grid(pictures).shape == (3, 8, 24)


class KnowsSides:
    """A prior that draws the pool's picture of the side it is asked for, `gain` of the way from the mean of all."""

    shape, device = (3, 64, 64), torch.device("cpu")

    def __init__(self, pool, gain):
        self.pool, self.layers, self.gain = pool, take_apart(pool), gain

    def level(self, u):
        return Level(u, torch.full_like(u, 0.6), torch.full_like(u, 0.8))

    def condition(self, texts):
        return texts

    def predict(self, z, level, conditions):
        x = torch.stack([self.picture(*text.removesuffix(" view").split(", ")) for text in conditions[0]])
        x = x.mean(0) + self.gain * (x - x.mean(0))
        return [(z - 0.6 * x) / 0.8]

    def picture(self, noun, side):
        kind = (noun.split()[-1],)
        planes, parts = self.layers.planes[kind].float() / 255, self.layers.parts[kind]
        views = [side for _, side, _ in self.pool.views[self.pool.kinds[kind].start :]]
        background, *shares = planes[views.index(side)]
        colours = pictures.palette(Thing(*kind, "red"))[1:, :3][parts]
        return (2 * torch.einsum("ps,pc->cs", torch.stack(shares), colours) + background - 1).reshape(self.shape)

    def decode(self, x):
        return (x + 1) / 2


@pytest.mark.parametrize("gain", [0.0, 0.5, 1.0])
def test_a_prior_that_knows_the_sides_by_halves_has_a_gain_of_a_half(gain):
    """One view from each of eight sides, which is then that side's mean; a bottle has no sides."""
    pool = cast_pool(8, 0, torch.device("cpu"), lambda text: None, pairs=0, together=8)
    pool = replace(pool, together=1, kinds={kind: pool.kinds[kind] for kind in (("duck",), ("bottle",))})
    found = toybox.side_gains(KnowsSides(pool, gain), pool)
    assert found.keys() == {"duck"}
    assert found["duck"] == pytest.approx(gain, abs=1e-4)  # float32


@pytest.mark.parametrize(("status", "command"), [("complete", None), ("interrupted", "resume"), (None, "generate")])
def test_a_finished_run_is_kept_and_an_interrupted_one_resumed(status, command, tmp_path, monkeypatch):
    if status:
        with Run.create(tmp_path / "run", "a red mug", "toybox", 0, RECIPE) as run:
            run.update(status=status)
    called = []

    def started(words, **rest):
        called.append(words[3])
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(toybox.subprocess, "run", started)
    assert toybox.make("a red mug", 0, tmp_path / "run", 1, []) == tmp_path / "run"
    assert called == ([command] if command else [])


def test_a_folder_of_another_prompt_or_a_damaged_one_is_a_failure_of_one(tmp_path, capsys):
    with Run.create(tmp_path / "run", "a red mug", "toybox", 0, RECIPE) as run:
        run.update(status="complete")
    assert toybox.make("a red car", 0, tmp_path / "run", 1, []) is None
    assert "is of 'a red mug', seed 0" in capsys.readouterr().out
    (tmp_path / "run" / "run.json").write_text("{")
    assert toybox.make("a red mug", 0, tmp_path / "run", 1, []) is None
    assert "cannot be read" in capsys.readouterr().out


def test_runs_of_other_arguments_are_not_taken_for_these(tmp_path, monkeypatch):
    monkeypatch.setattr(toybox, "make", lambda prompt, seed, folder, threads, rest: folder)
    first = toybox.runs_of(["a red mug"], [0, 1], tmp_path / "runs", ["--steps", "3"], 1)
    assert first == [tmp_path / "runs" / f"a-red-mug-{seed}" for seed in (0, 1)]
    assert toybox.runs_of(["a red mug"], [0, 1], tmp_path / "runs", ["--steps", "3"], 2) == first
    with pytest.raises(InputError, match="give another --out"):
        toybox.runs_of(["a red mug"], [0], tmp_path / "runs", ["--steps", "4"], 1)


def test_promised_numbers_come_from_the_report():
    runs = [{"judge": {"recognised": 1.0}}, {"judge": {"recognised": 0.5}}]
    found = toybox.promised({"runs": runs, "means": {"F-score": {"mean": 0.8, "runs": 2}}})
    assert (found["assets"], found["recognised from most views"], found["F-score"]) == (2, 0.5, 0.8)
    assert found["Janus, assets"] is None
