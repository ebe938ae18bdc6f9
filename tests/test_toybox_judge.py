"""The judge: what is right to say of a picture, that it learns and resumes exactly, and what it must catch."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.ndimage import gaussian_filter1d

from dreamkit import cli
from dreamkit.cameras import orbit, ring
from dreamkit.errors import InputError
from dreamkit.meshes import Mesh
from dreamkit.render.mesh import render_mesh
from dreamkit.streams import Streams
from dreamkit.toybox import gallery, judge, rough, world
from dreamkit.toybox.answers import NAMES, WORDS, Answers, cast_answers, looks_alike
from dreamkit.toybox.judge import Judge, Network, Settings, Verdict
from dreamkit.toybox.world import Pair, Thing

CPU = torch.device("cpu")
GROUND = (0.66, 0.70, 0.76)


def said(answers: Answers, question: str, kind: str, row: int = 0) -> set[str]:
    right = answers.right[question][row, NAMES.index(kind)].tolist()
    return {word for word, ticked in zip(WORDS[question], right, strict=True) if ticked}


def seen_at(asked, azimuth: float, elevation: float = 15.0) -> Answers:
    return cast_answers(asked, orbit([azimuth], elevation))


# --- what is right to say ---


def test_a_view_is_named_by_where_the_camera_stands_and_near_a_border_by_both():
    assert said(seen_at(Thing("duck", "red"), 0.0), "view", "duck") == {"front"}
    assert said(seen_at(Thing("duck", "red"), 88.0), "view", "duck") == {"left side"}
    assert said(seen_at(Thing("duck", "red"), 20.0), "view", "duck") == {"front", "front left"}
    assert said(seen_at(Thing("duck", "red"), 0.0, 70.0), "view", "duck") == {"overhead"}
    assert said(seen_at(Thing("duck", "red"), 0.0, 58.0), "view", "duck") == {"front", "overhead"}


@pytest.mark.parametrize("kind", ["mushroom", "bottle", "cake", "lamp", "tree"])
def test_what_is_round_has_no_view(kind):
    answers = cast_answers(Thing(kind, "red"), ring(8))
    assert not answers.asks("view", kind).any()
    assert bool(answers.asks("colour", kind).all())


def test_what_has_four_equal_sides_has_two_views():
    assert said(seen_at(Thing("table", "red"), 90.0), "view", "table") == {"front", "left side", "back", "right side"}
    # From behind, a house's windows and door cannot be seen, so back and sides are one; in front they can.
    assert said(seen_at(Thing("house", "red"), 180.0), "view", "house") == {"left side", "back", "right side"}
    assert said(seen_at(Thing("house", "red"), 0.0), "view", "house") == {"front"}


def test_every_other_kind_looks_different_from_all_eight_sides():
    alike = {"mushroom", "bottle", "cake", "lamp", "tree", "table", "house", "castle", "rocket"}
    for kind in set(world.KINDS) - alike:
        same = looks_alike((kind,), torch.arange(8) * 45.0, torch.full((8,), 15.0))
        assert torch.equal(same, torch.eye(8, dtype=torch.bool)[:1].expand(8, -1)), kind


def test_colours_are_asked_where_they_are_seen():
    mug = Thing("mug", "red", "blue")
    assert said(seen_at(mug, 90.0), "second", "mug") == {"blue"}
    assert said(seen_at(mug, 270.0, 0.0), "second", "mug") == set()  # the handle is behind the cup
    assert said(seen_at(mug, 270.0, 0.0), "colour", "mug") == {"red"}
    assert said(seen_at(Thing("cake", "red"), 0.0, 89.0), "colour", "cake") == set()  # under its icing


def test_colours_that_look_the_same_are_both_right():
    assert said(seen_at(Thing("chair", "red"), 0.0), "second", "chair") == {"none", "brown"}  # wooden legs
    assert said(seen_at(Thing("chair", "red", "brown"), 0.0), "second", "chair") == {"none", "brown"}
    assert said(seen_at(Thing("chair", "red", "cyan"), 0.0), "second", "chair") == {"cyan"}
    assert said(seen_at(Thing("mug", "red"), 90.0), "second", "mug") == {"none"}
    striped = Thing("bottle", "white", None, "striped")
    assert said(seen_at(striped, 0.0), "colour", "bottle") == {"white", "gray"}


def test_a_thing_that_hides_is_not_asked_for():
    pair = Pair(Thing("flower", "red"), "next to", Thing("castle", "blue"))
    hidden, open_ = seen_at(pair, 90.0, 0.0), seen_at(pair, 0.0, 0.0)
    # The flower stands to the left of the castle, at smaller y: from the right it is in front, from the left behind.
    assert open_.present[0, NAMES.index("flower")] == 1
    assert open_.present.nansum() == 2
    assert hidden.present[0, NAMES.index("flower")].isnan()
    assert said(hidden, "colour", "castle") == {"blue"}


# --- spoilt pictures ---


def test_lifting_and_laying_are_inverse():
    alpha = torch.zeros(2, 1, 8, 8)
    alpha[:, :, 3:6, 3:6] = torch.rand(2, 1, 3, 3)
    ground = torch.rand(2, 3, 1, 1)
    pictures = ground * (1 - alpha) + 0.3 * alpha
    things = rough.lifted(pictures, alpha)
    torch.testing.assert_close(rough.laid(things, ground), pictures)
    torch.testing.assert_close(things[:, :3], (0.3 * alpha).expand(-1, 3, -1, -1), atol=1e-6, rtol=0)


def test_blur_is_scipys():
    pictures, sigma = torch.rand(3, 3, 16, 16), torch.tensor([0.0, 0.7, 1.6])
    found = rough.blurred(pictures, sigma[:, None, None, None])
    for picture, blurred, s in zip(pictures.double().numpy(), found.numpy(), sigma.tolist(), strict=True):
        wanted = picture
        for axis in (1, 2):
            wanted = gaussian_filter1d(wanted, max(s, 1e-3), axis=axis, mode="nearest", radius=4)
        np.testing.assert_allclose(blurred, wanted, atol=1e-6)


def test_spoiling_is_a_function_of_the_streams_and_stays_in_range():
    things = torch.rand(4, 4, 64, 64)
    first, again, other = (rough.worn(rough.moved(things, Streams(0, step)), Streams(0, step)) for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 <= float(first.min()) < float(first.max()) <= 1


# --- learning ---


def test_a_shape_stands_out_whatever_its_colour():
    """On a background that runs from the left to the right, what is off it is a square, by its distance in RGB."""
    ground = torch.linspace(0.2, 0.8, 64).expand(1, 3, 64, 64)
    pictures = ground.clone()
    pictures[:, 0, 20:30, 20:30] += 0.3
    found = judge.off_ground(pictures)
    assert found.shape == (1, 1, 64, 64)
    # The corners are means over 4 pixels, so the straight line is off by a pixel and a half of 0.6 / 63 at its ends.
    wanted = torch.zeros(1, 1, 64, 64)
    wanted[:, :, 20:30, 20:30] = 0.3
    torch.testing.assert_close(found, wanted, atol=0.03, rtol=0)


def test_the_loss_is_that_of_any_right_answer():
    truth = cast_answers(Thing("table", "red"), orbit([0.0], 15.0))
    kinds = torch.full((1, len(NAMES)), -30.0)
    kinds[0, NAMES.index("table")] = 30.0
    about = {name: torch.zeros(1, len(NAMES), len(words)) for name, words in WORDS.items()}
    # Sure of the kind, and of all else nothing: -log(right / all) for every question that is asked, the view's twice.
    asked = {name: int(right.sum()) for name, right in truth.right.items() if right.any()}
    wanted = sum(-(1 + (name == "view")) * np.log(count / len(WORDS[name])) for name, count in asked.items())
    assert float(judge.loss_of(kinds, about, truth)) == pytest.approx(wanted, abs=1e-5)


def test_training_resumes_bit_for_bit(tmp_path, monkeypatch):
    """Four steps, against two, a stop, and two more."""
    few = judge.examples(12, 1, 3, CPU, lambda text: None)
    monkeypatch.setattr(judge, "examples", lambda *rest: few)
    settings = Settings(steps=4, batch=4)
    whole = judge.train(tmp_path / "whole", settings, CPU)
    saved, real = [], judge.checkpoint.save

    def stop_after_two(file, step, *rest):
        real(file, step, *rest)
        if step == 2 and not saved:
            saved.append(step)
            raise KeyboardInterrupt

    monkeypatch.setattr(judge, "SAVE_EVERY", 1)
    monkeypatch.setattr(judge.checkpoint, "save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        judge.train(tmp_path / "parts", settings, CPU)
    judge.train(tmp_path / "parts", settings, CPU)
    one, two = (load_file(tmp_path / name / "judge.safetensors") for name in ("whole", "parts"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    judge.install(whole, tmp_path / "out" / "network.safetensors")
    stored = load_file(tmp_path / "out" / "network.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}


def test_training_can_start_from_installed_weights(tmp_path, monkeypatch):
    """A step of a tiny rate from trained weights leaves them where they were; from none it is somewhere else."""
    few = judge.examples(12, 1, 3, CPU, lambda text: None)
    monkeypatch.setattr(judge, "examples", lambda *rest: few)
    settings = Settings(steps=1, batch=4, rate=1e-7, start=str(judge.WEIGHTS))
    onward = dict(judge.train(tmp_path / "onward", settings, CPU).named_parameters())
    fresh = dict(judge.train(tmp_path / "fresh", replace(settings, start=""), CPU).named_parameters())
    for name, value in load_file(judge.WEIGHTS).items():
        if name in onward:
            # Adam moves no number by more than its rate.
            assert (onward[name] - value.float()).abs().max() < 1e-6, name
    assert (onward["query"] - fresh["query"]).abs().max() > 0.1
    save_file({"query": onward["query"].detach()}, tmp_path / "other.safetensors")
    for file, says in (("none.safetensors", "there is no such file"), ("other.safetensors", "another architecture")):
        with pytest.raises(InputError, match=says):
            judge.train(tmp_path / "wrong", replace(settings, start=str(tmp_path / file)), CPU)


def test_a_batch_holds_pictures_of_nothing_and_asks_nothing_about_them():
    few = judge.examples(12, 1, 3, CPU, lambda text: None)
    _, truth = judge.batch(few, 256, Streams(0, 0), CPU)
    empty = (truth.present == 0).all(1)
    assert 4 <= int(empty.sum()) <= 32  # one in 16 of 256 is 16, with a standard deviation of 4
    assert not any(right[empty].any() for right in truth.right.values())


# --- the judge that ships ---


@pytest.fixture(scope="module")
def shipped() -> Judge:
    return Judge.load()


def verdict_on(shipped: Judge, mesh: Mesh, cameras) -> Verdict:
    return shipped(render_mesh(mesh, cameras, background=GROUND, lit=True).rgb)


def test_its_weights_are_small():
    assert judge.WEIGHTS.stat().st_size <= 2**20
    assert set(load_file(judge.WEIGHTS)) == {n for n, v in Network().state_dict().items() if v.is_floating_point()}


def test_it_keeps_its_accuracy_on_views_it_has_never_seen(shipped):
    """The report measures 6000 pictures; here 480 of 8 cameras a kind, about 300 of them of single things, so that a
    share of 0.95 has a standard error of 0.013. Pairs are only eight, so theirs says less.

    Bounds three of those or less under what the judge that ships reaches there. What is asked of it, 0.97 of kinds and
    colours and 0.95 of second colours and views, it has on single things, by the report of 6000; on pairs it has not.
    """
    lines = judge.report(shipped, 480, 8, lambda text: None).splitlines()
    found = {line[:10].strip(): (float(line[10:18]), float(line[34:42])) for line in lines[2:8]}
    alone, pairs = ({name: values[i] for name, values in found.items()} for i in (0, 1))
    assert alone["kinds"] > 0.96
    assert alone["colour"] > 0.96
    assert alone["second"] > 0.94
    assert alone["view"] > 0.925
    assert pairs["kinds"] > 0.6
    assert pairs["colour"] > 0.88


def test_marks_are_right_wrong_or_not_asked():
    """Two pictures of a mug and a mushroom; a judge that says mug and red and back of everything."""
    truth = [cast_answers(Thing(kind, "red"), orbit([0.0], 15.0)) for kind in ("mug", "mushroom")]
    both = Answers(
        torch.cat([one.present for one in truth]), {q: torch.cat([one.right[q] for one in truth]) for q in WORDS}
    )
    kinds = torch.zeros(2, len(NAMES))
    kinds[:, NAMES.index("mug")] = 0.9
    about = {name: torch.zeros(2, len(NAMES), len(words)) for name, words in WORDS.items()}
    about["colour"][..., WORDS["colour"].index("red")] = 1.0
    about["view"][..., WORDS["view"].index("back")] = 1.0
    found = judge.marks(Verdict(kinds, about), both)
    mug, mushroom = (0, NAMES.index("mug")), (1, NAMES.index("mushroom"))
    assert found["kinds"].tolist() == [1.0, 0.0]
    assert (float(found["colour"][mug]), float(found["colour"][mushroom])) == (1.0, 1.0)
    assert float(found["view"][mug]) == 0.0
    assert bool(found["view"][mushroom].isnan())
    assert int((~found["colour"].isnan()).sum()) == 2


@pytest.mark.parametrize("kind", world.KINDS)
def test_it_knows_every_kind_from_all_round(shipped, kind):
    asked = Thing(kind, "green")
    verdict = verdict_on(shipped, world.mesh_of(asked), ring(8, size=64))
    assert verdict.shows(asked).sum() >= 7
    assert verdict.said("colour", kind).count("green") >= 7


def test_it_sees_nothing_where_nothing_is(shipped):
    assert shipped(torch.full((1, 3, 64, 64), 0.7)).kinds_seen() == [[]]


def test_pictures_of_other_sizes_are_resized(shipped):
    asked, cameras = Thing("duck", "yellow"), ring(4, size=160)
    assert verdict_on(shipped, world.mesh_of(asked), cameras).shows(asked).all()


def test_a_missing_judge_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(judge, "WEIGHTS", tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="judge's weights are not in this installation"):
        Judge.load.__wrapped__()


# --- words and samples ---


def test_the_words_are_all_there():
    text = " ".join(gallery.words().values())
    assert all(word in text for word in (*world.KINDS, *world.COLOURS, *world.MATERIALS, "beside", "on top of"))


def test_the_page_shows_every_kind_pairs_and_materials(tmp_path):
    page = gallery.write(tmp_path / "box.html").read_text()
    assert page.count("<figure>") >= 24 + 12 + 3 * 8 + 6
    for heading in ("Every kind", "A second colour", "Shiny", "Striped", "Checkered", "next to", "on top of"):
        assert heading in page
    assert "https:" not in page
    with pytest.raises(InputError, match=r"ends in \.html"):
        gallery.write(tmp_path / "box.png")


def test_captions_of_every_kind_are_on_the_page(monkeypatch):
    pool = type("Pool", (), {"pairs": {}})()
    shown = gallery._shown(pool, random.Random(0))
    assert {thing.kind for thing in shown["Every kind"]} == set(world.KINDS)
    assert all(thing.second for thing in shown["A second colour"])


def test_the_command_says_the_words_and_writes_the_page(tmp_path, capsys, monkeypatch):
    assert cli.main(["toybox"]) == 0
    assert "teapot" in capsys.readouterr().out
    monkeypatch.setattr(gallery, "write", lambda path: path)
    assert cli.main(["toybox", "show", "--out", str(tmp_path / "box.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "box.html")


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_drawn(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["toybox", "show", "--out", str(tmp_path / "file" / "box.html")]) == 2
    assert "is a file" in capsys.readouterr().err
