"""Run folders: creation, the record, the log, checkpoints, and what is left after a kill at any moment."""

import errno
import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreamkit import disk
from dreamkit.errors import InputError, RunError
from dreamkit.guidance.rules import SDS
from dreamkit.nest import flatten, unflatten
from dreamkit.priors.analytic import Bell, Gaussian
from dreamkit.recipe import Guide, Recipe, Stage, fingerprint
from dreamkit.representations.hashgrid import HashGrid
from dreamkit.run import FORMAT, Run, slug

RECIPE = Recipe((Stage(HashGrid(), (Guide(SDS, Gaussian((Bell("", 0.0, 1.0),))),), steps=10),))


@pytest.fixture
def run(tmp_path: Path):
    with Run.create(tmp_path / "run", "a red mug", "toybox", 3, RECIPE) as run:
        yield run


def some(step: int) -> dict[str, torch.Tensor]:
    return {"table": torch.full((3, 2), float(step)), "half": torch.tensor(0.1, dtype=torch.bfloat16)}


def full_disk(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def rewrite(run_folder: Path, **facts):
    file = run_folder / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


# ---- Creating and opening


def test_a_run_lies_under_its_prompt_time_system_and_seed(tmp_path: Path):
    runs = [Run.create(None, "A red mug!", "my/own.py", seed, RECIPE, root=tmp_path) for seed in (3, 3, 4)]
    names = [str(run.path.relative_to(tmp_path)) for run in runs]
    assert len(set(names)) == 3  # also two in one second
    assert all(re.fullmatch(r"a-red-mug/\d{8}-\d{6}-own-[34](-2)?", name) for name in names)
    assert sorted(tmp_path.glob("*/*")) == sorted(run.path for run in runs)


def test_the_record_names_the_build_of_torch(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "9.9+cu999")  # a package's version may leave the build out
    facts = Run.create(tmp_path, "a red mug", "toybox", 3, RECIPE).facts
    assert facts["versions"]["torch"] == "9.9+cu999"


def test_run_json_says_what_was_run(run: Run):
    facts = json.loads((run.path / "run.json").read_text())
    assert [facts[key] for key in ("format", "prompt", "system", "seed", "device", "status", "step")] == [
        FORMAT,
        "a red mug",
        "toybox",
        3,
        "cpu",
        "running",
        0,
    ]
    again = Run.open(run.path)
    assert again.recipe == RECIPE
    assert again.fingerprint == run.fingerprint == fingerprint(RECIPE)
    assert (again.prompt, again.seed) == ("a red mug", 3)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red mug, on the moon!", "a-red-mug-on-the-moon"),
        ("../../etc/passwd", "etc-passwd"),
        ("ein grüner Würfel", "ein-grüner-würfel"),
        ("一只红色的杯子", "一只红色的杯子"),
        ("🦊", "untitled"),
        ("x" * 300, "x" * 60),
        ("a/b\\c:d*e\0f\ng", "a-b-c-d-e-f-g"),
    ],
)
def test_any_prompt_makes_a_folder_name(prompt: str, name: str):
    assert slug(prompt) == name


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, run: Run):
    with pytest.raises(InputError, match=r"already holds a run\. Go on with `dreamkit resume .*run`"):
        Run.create(run.path, "a red mug", "toybox", 3, RECIPE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"full is not empty \(it holds thesis.tex\).*--out"):
        Run.create(tmp_path / "full", "a red mug", "toybox", 3, RECIPE)
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("long" * 100)):
        with pytest.raises(InputError, match=r"the output folder .* cannot be written: .* Choose another with --out"):
            Run.create(out, "a red mug", "toybox", 3, RECIPE)


def test_bad_input_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(InputError, match="the prompt is empty"):
        Run.create(tmp_path / "run", " ", "toybox", 3, RECIPE)
    with pytest.raises(InputError, match="MiB are free"):
        Run.create(tmp_path / "run", "a red mug", "toybox", 3, RECIPE, space=2**70)
    with pytest.raises(InputError, match=r"recipe\.description is a object"):
        Run.create(tmp_path / "run", "a red mug", "toybox", 3, replace(RECIPE, description=object()))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_at_the_start_is_bad_input(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(disk.os, "fsync", full_disk)
    with pytest.raises(InputError, match=r"the disk is full.*--out"):
        Run.create(tmp_path / "run", "a red mug", "toybox", 3, RECIPE)
    monkeypatch.undo()
    Run.create(tmp_path / "run", "a red mug", "toybox", 3, RECIPE).close()  # nothing is in the way afterwards


def test_what_is_not_a_run_is_said(tmp_path: Path, run: Run):
    with pytest.raises(InputError, match="nowhere is not a run: there is no such folder"):
        Run.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="there is no such folder"):
        Run.open("x" * 5000)
    with pytest.raises(InputError, match=r"is not a run: it holds no run\.json"):
        Run.open(tmp_path)
    for text in ('{"format": 1,', "[]", "{}", "null", "\xff", "[" * 100_000):
        (run.path / "run.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=r"run\.json (cannot be read|is not the record)"):
            Run.open(run.path)


@pytest.mark.parametrize(("name", "value"), [("seed", "0"), ("prompt", 5), ("export", ["x"]), ("files", [])])
def test_a_record_of_another_type_is_said(run: Run, name: str, value: object):
    rewrite(run.path, **{name: value})
    with pytest.raises(InputError, match=rf"run\.json is damaged: {name} cannot be"):
        Run.open(run.path)


def test_a_run_of_a_newer_dreamkit_is_refused_by_its_format(run: Run):
    rewrite(run.path, format=FORMAT + 1, versions={"dreamkit": "9.0"})
    with pytest.raises(InputError, match=rf"has format {FORMAT + 1}, written by dreamkit 9.0.*Upgrade"):
        Run.open(run.path)


def test_a_recipe_that_no_longer_reads_is_said(run: Run):
    rewrite(run.path, recipe={"type": "os.system"})
    with pytest.raises(InputError, match=r"the recipe in .*run\.json cannot be read: recipe: 'os.system' is refused"):
        Run.open(run.path)


# ---- The record


def test_only_one_process_writes(run: Run):
    with pytest.raises(InputError, match=f"is being written by process {os.getpid()}"):
        Run.resume(run.path)
    reader = Run.open(run.path)
    assert reader.status == "running"
    for write in (reader.rewind, reader.log, lambda step: reader.save_checkpoint(step, {}, {})):
        with pytest.raises(ValueError, match="open for reading only"):
            write(1)
    run.close()
    with Run.resume(run.path) as again:
        assert again.facts["prompt"] == "a red mug"


def test_a_run_that_was_killed_shows_as_interrupted(run: Run):
    run.close()  # the lock goes, as it does with a killed process; run.json still says running
    assert json.loads((run.path / "run.json").read_text())["status"] == "running"
    assert Run.open(run.path).status == "interrupted"


def test_resuming_sweeps_what_a_killed_writer_left(run: Run):
    run.save_checkpoint(2, some(2), {})
    left = run.path / "checkpoints" / ".step_000004.safetensors.7.tmp"
    left.write_bytes(b"half")
    run.close()
    with Run.resume(run.path) as again:
        assert not left.exists()
        assert again.latest_checkpoint()[0] == 2


def test_the_status_is_one_of_four(run: Run):
    run.update(status="failed", error="step 3: loss not finite")
    run.close()
    assert Run.open(run.path).status == "failed"
    with Run.resume(run.path) as again:
        assert again.status == "failed"  # until whoever goes on with it says otherwise
        with pytest.raises(ValueError, match="Did you mean 'complete'"):
            again.update(status="completed")


def test_a_run_goes_on_only_with_the_prior_it_began_with(run: Run):
    run.check_prior([{"name": "toybox", "hash": "abc"}])
    run.close()
    with Run.resume(run.path) as again:
        again.check_prior([{"name": "toybox", "hash": "abc"}])
        with pytest.raises(InputError, match=r"begun with the prior .*abc.* now it is .*abd"):
            again.check_prior([{"name": "toybox", "hash": "abd"}])


# ---- The log


def test_the_log_keeps_every_figure(run: Run):
    run.log(1, loss=torch.tensor(0.1, dtype=torch.float64), norms=torch.ones(2), bad=math.nan, far=-math.inf)
    run.log(2, losses={"opacity": 0.1, "guide0": math.inf}, skipped=[], view="front", none=None)
    first, second = run.history()
    assert math.isnan(first.pop("bad"))
    assert first == {"step": 1, "loss": 0.1, "norms": [1.0, 1.0], "far": -math.inf}
    assert second == {
        "step": 2,
        "losses": {"opacity": 0.1, "guide0": math.inf},
        "skipped": [],
        "view": "front",
        "none": None,
    }
    for line in (run.path / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # strict JSON: any other program can read it
    with pytest.raises(ValueError, match="a figure is a number"):
        run.log(3, what=object())


def test_a_line_is_in_the_file_as_soon_as_it_is_logged(run: Run):
    run.log(1, loss=0.5)
    assert (run.path / "log.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'


def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path: Path):
    def work(run: Run, first: int, last: int) -> None:
        for step in range(first + 1, last + 1):
            run.log(step, loss=1 / step)
            if step % 4 == 0:
                run.save_checkpoint(step, some(step), {})

    with Run.create(tmp_path / "whole", "a red mug", "toybox", 3, RECIPE) as whole:
        work(whole, 0, 10)
    with Run.create(tmp_path / "cut", "a red mug", "toybox", 3, RECIPE) as cut:
        work(cut, 0, 7)
    with (cut.path / "log.jsonl").open("ab") as torn:
        torn.write(b'{"step": 8, "lo')
    with Run.resume(cut.path) as cut:
        assert [entry["step"] for entry in cut.history()] == [1, 2, 3, 4, 5, 6, 7]
        found = cut.latest_checkpoint()
        assert found is not None
        cut.rewind(found[0])
        work(cut, found[0], 10)
    assert (cut.path / "log.jsonl").read_bytes() == (whole.path / "log.jsonl").read_bytes()
    assert Run.open(cut.path).facts["step"] == 8


def test_a_torn_line_is_no_step_even_if_it_reads_as_one(run: Run):
    run.log(1)
    with (run.path / "log.jsonl").open("ab") as torn:
        torn.write(b'{"step": 2}')  # the rest of the figures may be missing just as well
    assert run.history() == [{"step": 1}]
    run.rewind(5)
    run.log(2, loss=1.0)
    assert run.history() == [{"step": 1}, {"step": 2, "loss": 1.0}]


def test_rewinding_to_the_beginning_leaves_nothing(run: Run):
    run.rewind(0)  # before there is any log
    run.log(1)
    run.save_checkpoint(1, some(1), {})
    run.rewind(0)
    assert run.history() == []
    assert run.latest_checkpoint() is None


# ---- Checkpoints


def test_a_checkpoint_comes_back_to_the_bit(run: Run):
    table = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    tensors = {
        "turned": table.T,  # not contiguous
        "part": table[1:3],
        "same": table[1:3],  # shares memory
        "spread": torch.ones(1).expand(4),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "half": torch.tensor([0.1], dtype=torch.bfloat16),
        "odd": torch.tensor([math.nan, -0.0, math.inf]),
        "flags": torch.tensor([True, False]),
        "graph": torch.ones(2, requires_grad=True),
    }
    run.save_checkpoint(400, tensors, {"attempt": 1, "rate": 0.1})
    assert sorted(file.name for file in (run.path / "checkpoints").iterdir()) == [
        "step_000400.json",
        "step_000400.safetensors",
    ]
    found = Run.open(run.path).latest_checkpoint()
    assert found is not None
    step, again, facts = found
    assert (step, facts) == (400, {"attempt": 1, "rate": 0.1})
    assert again.keys() == tensors.keys()
    for name, value in tensors.items():
        assert again[name].dtype == value.dtype
        assert again[name].shape == value.shape
        whole = value.detach().contiguous()
        assert (
            again[name].numpy(force=True).tobytes() == whole.numpy(force=True).tobytes()
            if (value.dtype != torch.bfloat16)
            else again[name].equal(whole)
        )


def test_the_last_two_checkpoints_are_kept(run: Run):
    for step in (200, 400, 600, 1_000_000):
        run.save_checkpoint(step, some(step), {})
    assert sorted(file.name for file in (run.path / "checkpoints").iterdir()) == [
        "step_000600.json",
        "step_000600.safetensors",
        "step_1000000.json",
        "step_1000000.safetensors",
    ]
    assert run.latest_checkpoint()[0] == 1_000_000
    assert json.loads((run.path / "run.json").read_text())["step"] == 1_000_000


def test_there_may_be_no_checkpoint_yet(run: Run):
    assert run.latest_checkpoint() is None


def damage_bit(stem: Path):
    file = stem.with_suffix(".safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def damage_length(stem: Path):
    file = stem.with_suffix(".safetensors")
    file.write_bytes(file.read_bytes()[:-1])


def damage_absence(stem: Path):
    stem.with_suffix(".safetensors").unlink()


def damage_json(stem: Path):
    file = stem.with_suffix(".json")
    file.write_bytes(file.read_bytes()[:-5])


def damage_list(stem: Path):
    stem.with_suffix(".json").write_text("[]")


def damage_facts(stem: Path):
    file = stem.with_suffix(".json")
    file.write_text(file.read_text().replace('"attempt": 4', '"attempt": 5'))


def damage_swap(stem: Path):
    """The tensors of the checkpoint before, as after a kill between the two renames of a rewritten checkpoint."""
    shutil.copy(stem.with_name("step_000002.safetensors"), stem.with_suffix(".safetensors"))


@pytest.mark.parametrize(
    "damage",
    [damage_bit, damage_length, damage_absence, damage_json, damage_list, damage_facts, damage_swap],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(run: Run, damage):
    for step in (2, 4):
        run.save_checkpoint(step, some(step), {"attempt": step})
    damage(run.path / "checkpoints" / "step_000004")
    with pytest.warns(UserWarning, match="step_000004 is passed over"):
        found = run.latest_checkpoint()
    assert found is not None
    assert (found[0], found[2]) == (2, {"attempt": 2})
    assert found[1]["table"].equal(some(2)["table"])


def test_tensors_without_their_json_are_no_checkpoint(run: Run):
    for step in (2, 4):
        run.save_checkpoint(step, some(step), {})
    (run.path / "checkpoints" / "step_000004.json").unlink()  # killed between the two renames
    assert run.latest_checkpoint()[0] == 2


def test_a_checkpoint_of_another_recipe_is_refused(run: Run, tmp_path: Path):
    with Run.create(tmp_path / "other", "a red mug", "toybox", 3, replace(RECIPE, description="other")) as other:
        other.save_checkpoint(2, some(2), {})
    shutil.copytree(other.path / "checkpoints", run.path / "checkpoints")
    with pytest.raises(InputError, match=r"step_000002 belongs to another recipe .* than .*run\.json"):
        run.latest_checkpoint()


@pytest.mark.parametrize("good_calls", [0, 2])  # fail at the tensors; at the json (a file and its folder come before)
def test_a_full_disk_leaves_the_last_checkpoint_and_no_litter(run: Run, monkeypatch, good_calls: int):
    run.save_checkpoint(2, some(2), {})
    real, calls = os.fsync, []

    def fsync(handle: int) -> None:
        calls.append(handle)
        full_disk() if len(calls) > good_calls else real(handle)

    monkeypatch.setattr(disk.os, "fsync", fsync)
    with pytest.raises(RunError, match=r"the disk is full: .*step_000004\.(safetensors|json) could not be written"):
        run.save_checkpoint(4, some(4), {})
    monkeypatch.undo()
    assert not list(run.path.rglob("*.tmp"))
    assert run.latest_checkpoint()[0] == 2
    run.save_checkpoint(4, some(4), {})  # and when there is room again, it goes on
    assert run.latest_checkpoint()[0] == 4


def test_a_full_disk_is_told_of_the_log_too(run: Run):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (run.path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"the disk is full: .*log\.jsonl"):
        run.log(1, loss=0.5)
    run.close()


# ---- Nested state


def test_a_nest_comes_back_with_its_types():
    state = {
        0: {"a": torch.ones(2), "b": (1, 2.5, None)},
        "0": {"a": torch.zeros(2)},
        "list": [(), [], {}, True, "text", math.inf, {"dict": {"tensor": "tensor"}}],
        "a/b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
    }
    tensors, rest = flatten(state)
    assert len(tensors) == 4
    again = unflatten(tensors, json.loads(json.dumps(rest, allow_nan=False)))
    assert again[0]["a"].equal(torch.ones(2))
    assert again["0"]["a"].equal(torch.zeros(2))
    assert again["a/b"].equal(torch.ones(1))
    assert again["a"]["b"].equal(torch.zeros(1))
    assert again[0]["b"] == (1, 2.5, None)
    assert again["list"] == state["list"]
    assert flatten(torch.ones(1))[1] == {"tensor": ""}


def test_what_a_checkpoint_cannot_hold_is_named():
    with pytest.raises(ValueError, match="a/0 is a object"):
        flatten({"a": [object()]})


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_an_optimiser_that_was_saved_goes_on_to_the_bit(run: Run, kind):
    """The independent truth is the same run without a break."""

    def fresh() -> tuple[list[torch.Tensor], torch.optim.Optimizer]:
        weights = [torch.linspace(-1, 1, 7).requires_grad_(), torch.tensor([[2.0, -3.0]]).requires_grad_()]
        options = {"momentum": 0.9} if kind is torch.optim.SGD else {"betas": (0.9, 0.99), "eps": 1e-15}
        groups = [{"params": [weights[0]], "lr": 0.1, "name": "table"}, {"params": [weights[1]], "lr": 0.01}]
        return weights, kind(groups, lr=0.1, **options)

    def step(weights: list[torch.Tensor], optimiser: torch.optim.Optimizer, number: int) -> None:
        optimiser.zero_grad()
        loss = sum((w.sin() * (number + 1)).pow(2).sum() for w in weights)
        loss.backward()
        optimiser.step()

    whole, optimiser = fresh()
    for number in range(6):
        step(whole, optimiser, number)

    cut, optimiser = fresh()
    for number in range(3):
        step(cut, optimiser, number)
    tensors, rest = flatten({"weights": cut, "optimiser": optimiser.state_dict()})
    run.save_checkpoint(3, tensors, {"rest": rest})
    found = run.latest_checkpoint()
    assert found is not None
    saved = unflatten(found[1], found[2]["rest"])
    cut, optimiser = fresh()
    optimiser.load_state_dict(saved["optimiser"])
    for weight, value in zip(cut, saved["weights"], strict=True):
        weight.data.copy_(value)
    for number in range(3, 6):
        step(cut, optimiser, number)
    assert all(a.equal(b) for a, b in zip(whole, cut, strict=True))


def test_a_start_that_was_cut_leaves_a_folder_that_can_be_started_in(tmp_path: Path):
    """A process killed inside its very first write leaves a temporary file and no run.json."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".run.json.4711.tmp").write_bytes(b"{")
    Run.check(folder, "a red mug", RECIPE)
    with Run.create(folder, "a red mug", "toybox", 0, RECIPE, facts={"start": "/a/mug.glb"}) as run:
        assert run.facts["start"] == "/a/mug.glb"
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "run.json"]


def test_a_revision_may_change_where_the_weights_do_not(run: Run):
    run.check_prior([{"name": "a/b", "revision": "1", "weights": "abc"}])
    run.check_prior([{"name": "a/b", "revision": "2", "weights": "abc"}])


def test_the_record_is_json_for_everyone(run: Run):
    before = (run.path / "run.json").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        run.update(psnr=math.inf)
    assert (run.path / "run.json").read_bytes() == before
