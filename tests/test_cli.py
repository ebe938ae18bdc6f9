"""The command line, as a user meets it: the messages of every mistake as text, exit codes, and nothing lost."""

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trimesh

from dreamkit import cli
from dreamkit.assets.files import read_extras
from dreamkit.preview import can_film
from dreamkit.run import Run

TINY = str(Path(__file__).parent / "data" / "tiny_system.py")


def run(capfd, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    try:
        code = cli.main(arguments)
    except SystemExit as stop:  # argparse's own
        code = int(stop.code or 0)
    out, err = capfd.readouterr()
    return code, out, err


def generate(*extra: str, out: Path) -> tuple[str, ...]:
    return ("generate", "a red ball", "--system", TINY, "--out", str(out), *extra)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A complete run."""
    folder = tmp_path_factory.mktemp("runs") / "ball"
    assert cli.main(generate(out=folder)) == 0
    return folder


def test_generate_leaves_an_asset_and_its_pictures(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"mesh.glb", "preview.png", "turntable.mp4", "preview.html", "run.json", "log.jsonl"} <= names
    record = json.loads((finished / "run.json").read_text())
    assert record["status"] == "complete"
    # A ball under a prior that wants red: its file must look like the scene. The rest is the coarse 32^3 grid.
    assert record["export"]["silhouette_iou"] > 0.9
    assert record["export"]["psnr"] > 15


def test_the_glb_opens_in_trimesh_with_a_texture(finished):
    mesh = trimesh.load(finished / "mesh.glb").to_geometry()
    assert len(mesh.faces) > 100
    assert mesh.visual.material.baseColorTexture.size == (64, 64)


def test_the_glb_says_what_it_was_made_of(finished):
    said = read_extras(finished / "mesh.glb")
    assert (said["prompt"], said["seed"]) == ("a red ball", 0)
    assert said["recipe"] == Run.open(finished).fingerprint


def test_export_writes_other_formats(finished, capfd):
    code, out, _ = run(capfd, "export", str(finished), "--formats", "glb,obj,ply", "--set", "face_budget=200")
    assert code == 0
    for name in ("mesh.glb", "mesh.obj", "mesh.mtl", "mesh.png", "mesh.ply"):
        assert (finished / name).exists(), name
    assert "PSNR" in out
    assert len(trimesh.load(finished / "mesh.ply").faces) <= 220  # the budget is met to about a tenth


def test_render_writes_views(finished, capfd):
    code, out, _ = run(capfd, "render", str(finished), "--views", "3", "--size", "32")
    assert code == 0
    assert len(list((finished / "images" / "render_000030_3x32_15").glob("view_*.png"))) == 3
    assert "3 views in" in out


def test_kill_9_and_resume_gives_the_same_bits(finished, tmp_path):
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "dreamkit.cli", *generate(out=folder)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not list(folder.glob("checkpoints/step_*.json")) and time.time() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    there = sorted(file.name for file in folder.glob("checkpoints/step_*.json"))
    assert there, "there is nothing to resume from"
    assert "step_000030.json" not in there, "killed too late to prove anything"
    assert (
        subprocess.run([sys.executable, "-m", "dreamkit.cli", "resume", str(folder)], capture_output=True).returncode
        == 0
    )
    last = Path("checkpoints") / "step_000030.safetensors"
    assert (folder / last).read_bytes() == (finished / last).read_bytes()


def test_ctrl_c_leaves_a_checkpoint_and_the_command_to_go_on(tmp_path):
    folder = tmp_path / "stopped"
    command = [sys.executable, "-m", "dreamkit.cli", *generate("--steps", "5000", out=folder)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    while not list(folder.glob("checkpoints/step_*.json")) and time.time() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert f"Go on with: dreamkit resume {folder}" in err
    assert "Traceback" not in err
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert (folder / "checkpoints" / f"step_{record['step']:06d}.safetensors").exists()


# Bad input: one message, exit code 2, nothing written.

MISTAKES = """
    --guidance sdss                             => there is no guidance rule 'sdss'. Did you mean 'sds'
    --representation nerv                       => there is no representation 'nerv'. Did you mean 'nerf'?
    --representation ''                         => there is no representation ''. Known: dmtet, gaussians, image,
    --system dreamfusionn                       => there is no system 'dreamfusionn'. Did you mean 'dreamfusion'
    --system gone/away.py                       => there is no system file gone/away.py
    --system ''                                 => there is no system ''. Known: dreamfusion,
    --prior /no/such/folder                     => /no/such/folder
    --prior ''                                  => is not a diffusers pipeline folder
    --keep geometry                             => the shape of a HashGrid cannot be locked
    --keep geometry --representation mesh       => there is no shape to keep. Give a mesh, or a run, with --from.
    --from none.glb                             => none.glb
    --from none                                 => none is not a run: there is no such folder.
    --from HERE                                 => neither the folder of a run nor a file that ends in .glb,
    --set guides.0.rule.wieght=1                => Rule has no field 'wieght'. Did you mean 'weight'?
    --set stepz=10                              => neither Recipe nor Stage has a field 'stepz'. Did you mean 'steps'?
    --set steps=many                            => steps=many: a whole number is expected; got 'many'.
    --set steps                                 => --set takes key.path=value; got 'steps'.
    --set batch=0                               => Stage.batch is a whole number of at least 1; got 0.
    --set losses.0.function=total_variation     => stage 0 of this recipe cannot run:
    --set export.grid_resolution=20000          => Export.grid_resolution is a whole number of at least 8 and at most
    --system ~nobody-of-that-name/x.py          => there is no system file
    --prior ~nobody-of-that-name/sd             => ~nobody-of-that-name/sd
    --set guides=()                             => Stage.guides holds no guide
    --set guides.0.rule.levels.low=0.99         => the range of levels is empty
    --set guides.0.rule.levels.low=-1           => a fraction of the schedule, from 0 to 1; got -1
    --set 'adam.betas=(1.5, 0.9)'               => Invalid beta parameter
    --set representation.table_rate=-1.0        => HashGrid.table_rate is a learning rate of at least 0; got -1.0.
    --set 'representation.table_rate=Linear(1.0, -1.0)' => HashGrid.table_rate is a learning rate of at least 0
    --set representation.backend=wrap           => backend 'wrap' is not known. Did you mean 'warp'?
    --set cameras.size=0                        => Orbit.size is the number of pixels along a side, at least 1; got 0.
    --set 'cameras.distance=(3.0, 2.0)'         => Orbit.distance is a range (low, high) within 0.001 to inf; got (3.0,
    --set 'cameras.elevation_degrees=(0.0, 91)' => Orbit.elevation_degrees is a range (low, high) within -90 to 90
    --set export.formats=()                     => Export.formats names no format. Known: glb, obj, ply, stl
    --set export.formats=glb                    => a tuple of items that are each text, such as ('a', 'b') is expected
    --set "export.formats=('glb', 'glb')"       => Export.formats names a format twice: glb, glb.
    --set export.turntable_seconds=-1           => Export.turntable_seconds is a time of 0 to 600 seconds; got -1.
    --set export.unwrap_seconds=1e9             => Export.unwrap_seconds is a time of 0 to 86400 seconds; got 1e+09.
    --set guides.0.weight=NUMBER                => is expected; got '999
    --steps 0                                   => --steps 0: one for every stage of the system is needed, so at least
    --device abacus                             => device 'abacus' is not a device.
    --device meta                               => device 'meta' is not supported
    with a blue hat                             => in quotes: "a red ball with a blue hat"
    --out HERE/run                              => here.txt is a file. Choose another place with --out.
"""


@pytest.mark.parametrize("mistake", MISTAKES.strip().splitlines())
def test_a_mistake_gets_one_message_and_leaves_nothing(mistake, tmp_path, monkeypatch, capfd):
    extra, _, message = mistake.strip().partition("=> ")
    (tmp_path / "here.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    words = [word.replace("HERE", "here.txt").replace("NUMBER", "9" * 400) for word in shlex.split(extra)]
    usual = {"--system": TINY, "--out": "run"}
    rest = [word for pair in usual.items() if pair[0] not in words for word in pair]
    code, _, err = run(capfd, "generate", "a red ball", *words, *rest)
    assert code == 2
    assert message.replace("HERE", "here.txt") in err
    assert "Traceback" not in err
    assert err.count("dreamkit:") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["here.txt"]


def test_an_empty_prompt(tmp_path, capfd):
    code, _, err = run(capfd, "generate", " ", "--system", TINY, "--out", str(tmp_path / "run"))
    assert code == 2
    assert "prompt" in err


def test_a_word_the_toybox_does_not_know(tmp_path, capfd):
    code, _, err = run(capfd, "generate", "a red zeppelin", "--out", str(tmp_path / "run"))
    assert code == 2
    assert "zeppelin" in err
    assert "mushroom" in err  # what it knows
    assert "--prior" in err  # and the way out
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_a_file(tmp_path, capfd):
    (tmp_path / "taken").write_text("mine")
    code, _, err = run(capfd, *generate(out=tmp_path / "taken"))
    assert code == 2
    assert "taken" in err
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_folder_that_holds_something(finished, capfd):
    before = (finished / "run.json").read_bytes()
    code, _, err = run(capfd, *generate(out=finished))
    assert code == 2
    assert str(finished) in err
    assert (finished / "run.json").read_bytes() == before


def test_a_prompt_that_is_no_text(tmp_path, capfd):
    """Bytes that are no UTF-8 reach Python as surrogates, which no file takes."""
    code, _, err = run(capfd, "generate", "a red \udcff ball", "--system", TINY, "--out", str(tmp_path / "run"))
    assert code == 2
    assert "is not text in UTF-8" in err
    assert not list(tmp_path.iterdir())


def test_what_is_asked_of_a_finished_run_in_vain(finished, tmp_path, capfd):
    """Of a run, or of its mesh, each with one message; the run stays as it is."""
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name not in (".lock", "run.json")}
    (tmp_path / "taken").write_text("mine")
    mesh, taken = str(finished / "mesh.glb"), str(tmp_path / "taken")
    for words, message in (
        (("export", str(finished), "--formats", ""), "cannot export to ''"),
        (("export", mesh, "--out", taken), f"nothing can be written into {taken}: {taken} is a file."),
        (("export", mesh, "--out", f"{taken}/deeper"), f"{taken} is a file."),
        (("export", taken, "--out", str(tmp_path / "new")), "neither the folder of a run nor a file that ends in .glb"),
        (("export", str(finished / "run.json")), "neither the folder of a run nor a file that ends in .glb"),
        (("eval", str(finished), "--out", f"{taken}/eval.json"), f"{taken} is a file."),
        (("eval", mesh), "is not a run: it is a file."),
        (("resume", taken), "is not a run: it is a file."),
        (("render", str(finished), "--elevation", "nan"), "from -90 to 90 degrees"),
        (("render", str(finished), "--views", "0"), "got 0 of 256 pixels"),
        (("render", str(finished), "--size", "200000"), "8 to 4096 pixels"),
        (("eval", "~nobody-of-that-name/run"), "is not a run"),
    ):
        code, _, err = run(capfd, *words)
        assert (code, err.count("dreamkit:")) == (2, 1), words
        assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_a_reader_that_has_read_enough_is_no_mistake():
    """As `dreamkit list | head -1`: nothing on standard error."""
    command = [sys.executable, "-m", "dreamkit.cli", "list", "systems"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    child.stdout.close()
    assert child.stderr.read() == ""
    assert child.wait() == 1


def test_a_home_that_cannot_be_written_costs_only_the_kept_kernels(tmp_path):
    """Warp's folder of compiled kernels stands below it: there is a warning, and one that goes with the process."""
    (tmp_path / "file").write_text("mine")
    code = "from dreamkit.kernels import launch; print(launch.wp.config.kernel_cache_dir)"
    places = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "WARP_CACHE_PATH"), str(tmp_path / "file"))
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | places)
    assert child.returncode == 0
    assert "Warp cannot keep compiled kernels" in child.stderr
    assert "warp-" in child.stdout
    assert not Path(child.stdout.strip()).exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8 TiB"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("Failed to allocate 8 bytes on device 'cpu'"),
    ],
)
def test_memory_that_runs_out_is_said_and_the_run_failed(error, tmp_path, capfd, monkeypatch):
    def out_of_it(*arguments: object, **others: object) -> None:
        raise error

    monkeypatch.setattr("dreamkit.loop.optimise", out_of_it)
    code, _, err = run(capfd, *generate(out=tmp_path / "run"))
    assert code == 1
    assert "dreamkit: memory ran out. Try a smaller --set batch" in err
    assert "Traceback" not in err
    assert Run.open(tmp_path / "run").status == "failed"


def test_memory_that_runs_out_in_the_rehearsal_is_no_fault_of_the_recipe(tmp_path, capfd, monkeypatch):
    def out_of_it(*arguments: object, **others: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 8 TiB.")

    monkeypatch.setattr("dreamkit.rehearsal.take_step", out_of_it)
    code, _, err = run(capfd, *generate(out=tmp_path / "run"))
    assert code == 1
    assert "dreamkit: memory ran out. Try a smaller --set batch" in err
    assert not (tmp_path / "run").exists()


def test_without_ffmpeg_there_is_all_but_the_film(tmp_path, capfd, monkeypatch):
    import imageio_ffmpeg

    def none() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", none)
    with pytest.warns(UserWarning, match=r"no turntable\.mp4: there is no ffmpeg here that knows libx264"):
        code, _, _ = run(capfd, *generate("--set", "export.turntable_seconds=1", out=tmp_path / "run"))
    assert code == 0
    assert (tmp_path / "run" / "preview.html").exists()
    assert not (tmp_path / "run" / "turntable.mp4").exists()


def test_an_ffmpeg_without_h264_makes_no_film(tmp_path, monkeypatch):
    import imageio_ffmpeg

    other = tmp_path / "ffmpeg"
    other.write_text("#!/bin/sh\necho \"Codec 'libx264' is not recognized by FFmpeg.\"\n")
    other.chmod(0o755)
    assert can_film()
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(other))
    assert not can_film()


def test_what_is_no_mistake_of_a_user_keeps_its_traceback(finished, monkeypatch):
    def bug(*arguments: object, **others: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("dreamkit.api.render", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["render", str(finished)])


def test_export_leaves_the_status_as_it_was(finished, tmp_path, capfd):
    shutil.copytree(finished, tmp_path / "run")
    with Run.resume(tmp_path / "run") as again:
        again.update(status="failed", error="the disk is full")
    assert run(capfd, "export", str(tmp_path / "run"), "--set", "face_budget=100")[0] == 0
    facts = Run.open(tmp_path / "run").facts
    assert (facts["status"], facts["error"]) == ("failed", "the disk is full")


def test_a_file_that_cannot_be_read_is_named(finished, capfd, monkeypatch):
    def denied(*arguments: object, **others: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "mesh.glb")

    monkeypatch.setattr("dreamkit.api.render", denied)
    code, _, err = run(capfd, "render", str(finished))
    assert (code, err) == (1, "dreamkit: mesh.glb: Permission denied\n")


def test_resume_of_a_finished_run(finished, capfd):
    code, _, err = run(capfd, "resume", str(finished))
    assert code == 2
    assert "is complete (30 steps)" in err
    assert f"dreamkit export {finished}" in err


@pytest.mark.parametrize("verb", ["resume", "export", "render"])
def test_a_folder_that_is_no_run(verb, tmp_path, capfd):
    code, _, err = run(capfd, verb, str(tmp_path))
    assert code == 2
    assert "is not a run: it holds no run.json" in err


def on_a_disk(is_full, folder: Path, capfd, monkeypatch) -> tuple[int, str, str]:
    """A run in `folder`, on a disk that takes no file whose name `is_full` says yes to."""
    real = os.replace

    def replace(source: object, target: object) -> None:
        if is_full(str(target)):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        return run(capfd, *generate(out=folder))


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(finished, tmp_path, capfd, monkeypatch):
    """The third checkpoint does not fit. There is one message; with space again the run ends as it would have."""
    folder, written = tmp_path / "full", []

    def is_full(name: str) -> bool:
        written.append(name)
        return sum(name.endswith(".safetensors") for name in written) == 3

    code, _, err = on_a_disk(is_full, folder, capfd, monkeypatch)
    assert code == 1
    assert "the disk is full" in err
    assert sorted(path.name for path in (folder / "checkpoints").glob("*.safetensors")) == [
        "step_000005.safetensors",
        "step_000010.safetensors",
    ]
    assert run(capfd, "resume", str(folder))[0] == 0
    last = Path("checkpoints") / "step_000030.safetensors"
    assert (folder / last).read_bytes() == (finished / last).read_bytes()


def test_a_disk_that_stays_full_says_what_did_not_fit_first(tmp_path, capfd, monkeypatch):
    """Not even run.json can say that the run failed; what is reported is the checkpoint."""
    folder, refused = tmp_path / "full", []

    def is_full(name: str) -> bool:
        if refused or name.endswith(".safetensors"):
            refused.append(name)
        return bool(refused)

    code, _, err = on_a_disk(is_full, folder, capfd, monkeypatch)
    assert code == 1
    assert "step_000005.safetensors could not be written" in err
    assert len(refused) == 2
    assert Run.open(folder).status == "interrupted"


def test_a_disk_that_is_full_when_the_mesh_is_written(tmp_path, capfd, monkeypatch):
    """Optimising is not lost: the message says so, and resume makes the mesh."""
    folder = tmp_path / "full"
    code, _, err = on_a_disk(lambda name: name.endswith("mesh.glb"), folder, capfd, monkeypatch)
    assert code == 1
    assert "the disk is full" in err
    assert not [path for path in folder.iterdir() if "mesh" in path.name]  # nothing half-written either
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    assert run(capfd, "resume", str(folder))[0] == 0
    assert (folder / "mesh.glb").exists()


def test_a_broken_checkpoint_is_named(finished, tmp_path, capfd):
    folder = tmp_path / "broken"
    shutil.copytree(finished, folder)
    for file in folder.glob("checkpoints/*.safetensors"):
        file.write_bytes(b"not tensors")
    with pytest.warns(UserWarning, match="passed over"):
        code, _, err = run(capfd, "render", str(folder))
    assert code == 2
    assert "no checkpoint in" in err
    assert "is whole" in err


def test_a_checkpoint_of_another_recipe_is_refused(finished, tmp_path, capfd):
    folder = tmp_path / "foreign"
    shutil.copytree(finished, folder)
    record = json.loads((folder / "run.json").read_text())
    record["recipe"]["stages"][0]["batch"] = 3
    (folder / "run.json").write_text(json.dumps(record))
    code, _, err = run(capfd, "render", str(folder))
    assert code == 2
    assert "belongs to another recipe" in err


def test_doctor_and_list_say_what_there_is(capfd):
    code, out, _ = run(capfd, "doctor")
    assert code == 0
    line = next(line for line in out.splitlines() if "kernel hashgrid" in line)
    assert line.split("kernel hashgrid")[1].split()[0].rstrip(";") in ("warp", "reference")
    assert "tinycudann: cannot be imported" in line or "tinycudann" not in line
    code, out, _ = run(capfd, "list")
    assert code == 0
    for name in ("toybox", "dreamfusion", "sds", "nfsd", "nerf"):
        assert f"  {name} " in out, name


def test_help_names_every_command(capfd):
    code, out, _ = run(capfd, "--help")
    assert code == 0
    for name in ("generate", "resume", "export", "render", "doctor", "list"):
        assert name in out


def test_list_guidance_says_what_every_rule_takes(capfd):
    _, found, _ = run(capfd, "list", "guidance")
    assert "sds              Score Distillation" in found
    for line, cost in (
        ("sds ", "[2 samples in 1 call; scale 101]"),
        ("vsd ", "trains student; the prior needs student"),
    ):
        (entry,) = (text for text in found.splitlines() if text.startswith(f"  {line}"))
        assert cost in entry
