"""The verbs: generate, resume, export, convert, render, evaluate. The command line calls these for them.

import dreamkit

result = dreamkit.generate("a red mug")
result.mesh, result.scene, result.run.path
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from dreamkit import device as devices
from dreamkit import frozen, loop
from dreamkit.assets.files import READ
from dreamkit.cameras import ring
from dreamkit.compose import apart, compose, editing, keeping, sketched, wants_sketch
from dreamkit.disk import check_folder, expanded, make_folder, write_whole
from dreamkit.errors import InputError, RunError
from dreamkit.export import Exported, Picture, Several, export_picture, export_scene, file_names, write_film
from dreamkit.images import png
from dreamkit.meshes import Mesh
from dreamkit.priors import Prior
from dreamkit.propeller import propelled
from dreamkit.recipe import Export as ExportSettings
from dreamkit.recipe import Recipe, Stage, load, override
from dreamkit.rehearsal import load_priors, rehearse
from dreamkit.representations.canvas import CanvasScene
from dreamkit.representations.gaussians import holds_splats, in_file
from dreamkit.representations.mesh import MeshSurface, from_file
from dreamkit.representations.paint import Texture
from dreamkit.representations.particles import ParticlesScene, members
from dreamkit.representations.representation import Representation, Scene, Solid, Volume
from dreamkit.run import Run, file_digests
from dreamkit.settings import applied
from dreamkit.state import Start, restore, stage_of, whole
from dreamkit.streams import Streams

Note = Callable[[str], None]
LARGEST = 4096
"""Pixels along each side of a picture that `render` makes."""


@dataclass(frozen=True)
class Result:
    """A finished run: its folder, the scene it optimised, and what was exported."""

    run: Run
    scene: Scene
    exported: Exported | Picture | Several

    @property
    def mesh(self) -> Mesh:
        """The textured mesh, as read back from the file; of particles the first one's. Raises ValueError for a picture,
        which has none."""
        first = self.exported.each[0] if isinstance(self.exported, Several) else self.exported
        if isinstance(first, Picture):
            raise ValueError("a canvas has no mesh: its picture is result.exported.files[0]")
        return first.mesh


def generate(
    prompt: str,
    *,
    system: str | None = None,
    guidance: str | None = None,
    representation: str | None = None,
    prior: str | None = None,
    start: str | Path | None = None,
    keep: str | None = None,
    source_prompt: str | None = None,
    seed: int = 0,
    steps: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    watch: loop.Watch | None = None,
    note: Note = lambda text: None,
) -> Result:
    """From a prompt to a textured mesh on disk: one run, from start to finish.

    Args:
        prompt: what to make; the toybox prior knows a small world and says so. Of two things ("a red mug on top of a
            white table") the default system makes each by itself, where nothing is there to start from
            (`compose.apart`).
        system: a name that `dreamkit list systems` shows, or the path of a .py file; by default "toybox", or
            "dreamfusion" when another prior is asked for.
        guidance, representation, prior: replace the system's own; a prior is "toybox", a diffusers folder or a hub id.
        start: a run folder whose scene this run begins with, or a file of a mesh or of Gaussian splats. A run's
            representation stays unless another one or a system is asked for; a file's is "mesh" or "gaussians" unless
            another one is. A system that wants a sketch takes a mesh file for that, and begins with its own scene.
        keep: "geometry" changes the colours of a mesh only, and leaves its shape as it is, to the bit.
        source_prompt: for rules that edit, what that scene is; by default the prompt it was made for.
        steps: total number of steps; the stages keep their shares.
        out: the run folder; by default outputs/<prompt>/<time>-<system>-<seed>.
        device: "auto", "cpu", "cuda", "cuda:1".
        settings: any field of the recipe by its path, as the text that `--set` takes or as the value itself.
        watch: called after every step; note: told what is being done.

    Raises InputError before anything is spent if something asked for cannot be; RunError if the run fails, and
    KeyboardInterrupt after Ctrl-C: then a checkpoint stands, and `resume` goes on.
    """
    asked = system
    if system is None:
        system = "toybox" if prior in (None, "toybox") else "dreamfusion"
    sketch = start if start is not None and wants_sketch(load(system)) else None
    start = start if sketch is None else None
    chosen = devices.choose(device)
    begun = None if start is None else _started(start, chosen, note)
    own = _kept(begun, asked) if representation is None else representation
    recipe = sketched(compose(system, guidance, own, prior, steps, settings or {}), sketch)
    if begun is None and sketch is None:
        recipe = apart(recipe, prompt)
    recipe = editing(keeping(recipe, keep, begun is not None), source_prompt, begun.prompt if begun else None)
    recipe = frozen.with_files(recipe, lambda name: str(expanded(name).resolve()))  # to be resumed from anywhere
    Run.check(out, prompt, recipe)  # cheap mistakes first; then what cannot work is said before a folder is made
    note("prior")
    priors = load_priors(recipe, prompt, chosen)
    if begun:
        note("start")
        begun = _handed(begun, recipe.stages[0], seed, chosen)
    rehearse(recipe, priors, prompt, chosen, begun)
    origin: dict[str, Any] = {} if start is None else {"start": str(expanded(start).resolve())}
    origin |= {"files": file_digests(recipe)}
    with Run.create(out, prompt, system, seed, recipe, str(chosen), facts=origin) as run:
        return _finish(run, priors, chosen, watch, note, begun)


def resume(
    path: str | Path, *, device: str | None = None, watch: loop.Watch | None = None, note: Note = lambda text: None
) -> Result:
    """Go on with a run that was interrupted, on the device it was begun on unless another is named.

    On a CPU the result has the bits of an uninterrupted run. Raises InputError for a run that is complete.
    """
    found = Run.open(path)
    if found.status == "complete":
        raise InputError(
            f"{path} is complete ({found.recipe.steps} steps). To write its files again: dreamkit export {path}"
        )
    chosen = devices.choose(device or found.facts["device"])
    found.check_files()
    note("prior")
    priors = load_priors(found.recipe, found.prompt, chosen)
    if "prior" in found.facts:
        found.check_prior([prior.identity() for prior in priors.values()])
    with Run.resume(path) as run:
        run.update(status="running", error=None)
        return _finish(run, priors, chosen, watch, note)


def export(
    path: str | Path, *, settings: Mapping[str, Any] | None = None, device: str = "auto", note: Note = lambda text: None
) -> Result:
    """Write the files of a run again from its last checkpoint, with other settings of `Export` if given."""
    chosen = devices.choose(device)
    found = Run.open(path)
    recipe = override(found.recipe, {f"export.{key}": value for key, value in (settings or {}).items()})
    with Run.resume(path) as run:
        scene, _ = _asset(run, chosen)
        if settings and isinstance(members(scene)[0], CanvasScene):
            raise InputError(f"{path} made a picture: it is written as picture.png, and there is nothing to set.")
        exported = _write(run, scene, recipe, chosen, note)
        run.update(export=exported.facts())
        return Result(run, scene, exported)


def convert(
    path: str | Path,
    out: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    note: Note = lambda text: None,
) -> Exported:
    """A file of a mesh or of Gaussian splats, written as files of other kinds into the folder `out`.

    Args:
        settings: fields of `Export`, as `export` takes them: formats, splats, and for a mesh without a texture the
            texture_size that its colours are laid on.

    Raises InputError for a file that is neither, that is damaged or empty, or that would be written over; RunError for
    splats without a surface. Then nothing is written.
    """
    path, out = expanded(path), expanded(out)
    spec = applied(ExportSettings(), [(key.split("."), value) for key, value in (settings or {}).items()])
    check_folder(out)
    chosen = devices.choose(device)
    begun = _started(path, chosen, note)
    if is_file(path) and isinstance(begun.representation, MeshSurface):
        begun = _of_file(replace(begun.representation, paint=Texture(spec.texture_size)), chosen)
    if not isinstance(begun.scene, Solid | Volume):
        raise InputError(f"{path} holds nothing that can be written as {', '.join(spec.formats)}")
    written = {out.resolve() / name for name in file_names(spec)}
    beside = "obj" in spec.formats and out.resolve() == path.resolve().parent  # brings pictures, as `path` may have
    if path.resolve() in written or (beside and path.suffix.lower() in (".obj", ".gltf", ".ply")):
        raise InputError(f"{path} or its pictures would be written over: choose another folder with --out.")
    if (out / "run.json").exists():
        raise InputError(f"{out} is the folder of a run, whose files would be written over: choose another with --out.")
    return export_scene(begun.scene, spec, out, {"source": path.name}, chosen, note)


def render(path: str | Path, *, views: int = 8, size: int = 256, elevation: float = 15.0, device: str = "auto") -> Path:
    """Pictures of a run's scene from all round, as it is in its last checkpoint; returns their folder.

    Of particles each has a folder in it, particle_0, particle_1, ...
    """
    if views < 1 or not 8 <= size <= LARGEST or not -90 <= elevation <= 90:
        raise InputError(
            f"render takes at least one view of 8 to {LARGEST} pixels, from -90 to 90 degrees of elevation; "
            f"got {views} of {size} pixels, from {elevation:g} degrees."
        )
    run = Run.open(path)
    scene, step, _ = _scene(run, devices.choose(device))
    folder = run.path / "images" / f"render_{step:06d}_{views}x{size}_{elevation:g}"
    cameras = ring(views, elevation_degrees=elevation, size=size)
    for one, own in _each(scene, folder):
        for number in range(views):  # one at a time: the memory of one view serves for any number
            with torch.no_grad():
                picture = one.render(cameras[number : number + 1]).rgb[0]
            write_whole(own / f"view_{number:03d}.png", png(picture))
    return folder


def evaluate(
    paths: Sequence[str | Path],
    *,
    clip: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    note: Note = lambda text: None,
) -> tuple[dict[str, Any], Path]:
    """Measure finished runs; returns the measurements, as `dreamkit.evaluate` describes them, and the file they are in.

    Args:
        paths: run folders.
        clip: the folder of a CLIP model, for its score and R-precision.
        out: the JSON file; the page goes beside it. By default eval.json in the run's folder, for several runs
            outputs/eval.json.

    Raises InputError for folders without a mesh, a CLIP folder that cannot be read, and an `out` that is no .json or
    cannot be written.
    """
    from dreamkit import evaluate as evaluation

    file = expanded(out or ("outputs" if len(paths) > 1 else paths[0] if paths else "."))
    file = file if out else file / "eval.json"
    evaluation.check_name(file)
    if out or len(paths) != 1 or os.path.isdir(file.parent):  # else it is no run, which `measure` says better
        check_folder(file.parent)
    report, sights = evaluation.measure(paths, clip, devices.choose(device), note)
    evaluation.write(report, sights, file)
    return report, file


def _started(path: str | Path, device: torch.device, note: Note) -> Start:
    """The scene of a run or of a file, to start from."""
    if is_file(path):
        full = expanded(path)
        spec = in_file(full) if holds_splats(full) else from_file(full, lambda text: note(f"{path}: {text}"))
        return _of_file(spec, device)
    run = Run.open(path)
    scene, stage = _asset(run, device)
    return Start(members(scene)[0], stage.representation, run.prompt)


def _of_file(spec: Representation, device: torch.device) -> Start:
    return Start(spec.build(device, Streams(0, -1)), spec)


def _kept(begun: Start | None, system: str | None) -> str | Representation | None:
    """The representation that a start brings along: a run's, unless a system was asked for, and a file's."""
    if begun is None or (begun.prompt and system):
        return None
    if begun.prompt:
        return begun.representation
    # by its name, so that a system's own settings of a mesh hold for a mesh's file
    return "mesh" if isinstance(begun.representation, MeshSurface) else "gaussians"


def _handed(begun: Start, stage: Stage, seed: int, device: torch.device) -> Start:
    """The start as a scene of a stage's own: converted once, for the rehearsal and the run.

    A mesh's file is read in the size, and with as many texels for colours, as the stage's own mesh has.
    """
    spec, own = begun.representation, stage.representation
    if not begun.prompt and isinstance(spec, MeshSurface) and isinstance(own, MeshSurface):
        paint = own.paint if isinstance(own.paint, Texture) else Texture(own.texture_size)
        begun = _of_file(replace(spec, radius=own.radius, paint=paint), device)
    return Start(begun.handed(stage, seed, device), stage.scenes, begun.prompt)


def is_file(path: str | Path) -> bool:
    """Whether this is the name of a file of a mesh or of Gaussians, not of a run's folder.

    Raises InputError for a file that is there and of another kind.
    """
    full = expanded(path)
    if full.suffix.lower() in READ:
        return not os.path.isdir(full)
    if os.path.isfile(full):
        raise InputError(f"{path} is neither the folder of a run nor a file that ends in {', '.join(READ)}.")
    return False


def _finish(
    run: Run,
    priors: dict[Any, Prior],
    device: torch.device,
    watch: loop.Watch | None,
    note: Note,
    start: Start | None = None,
) -> Result:
    """Optimise to the end, export, show; and say in run.json how it went."""
    try:
        note("optimise")
        spec = run.recipe.propeller
        take = propelled(spec, device, devices.others(device)) if spec else None
        scene = loop.optimise(run.recipe, run, priors, device, watch, start, take)
        exported = _write(run, scene, run.recipe, device, note)
        run.update(status="complete", export=exported.facts())
        return Result(run, scene, exported)
    except KeyboardInterrupt as stop:
        run.update(status="interrupted")
        raise KeyboardInterrupt(
            f"interrupted; what is done is kept. Go on with: dreamkit resume {quote(str(run.path))}"
        ) from stop
    except Exception as error:
        with suppress(RunError):  # a disk that is full has no room for this either; what it said first is the news
            run.update(status="failed", error=str(error))
        raise


def _write(run: Run, scene: Scene, recipe: Recipe, device: torch.device, note: Note) -> Exported | Picture | Several:
    """The asset and the pictures of it; of particles each in a folder of its own, and one picture of all."""
    written = [_write_one(run, one, recipe, device, note, own) for one, own in _each(scene, run.path)]
    if not isinstance(scene, ParticlesScene):
        return written[0]
    from dreamkit import preview

    names = ["picture.png" if isinstance(one, Picture) else "preview.png" for one in written]
    shown = [one.files[0].with_name(name) for one, name in zip(written, names, strict=True)]
    preview.stacked(shown, run.path / "preview.png")
    history = run.path / "images"
    if isinstance(scene.scenes[0], CanvasScene) and any(history.glob("step_*.png")):
        write_film(history, run.path / "history.gif")
    return Several(tuple(written))


def _each(scene: Scene, folder: Path) -> list[tuple[Scene, Path]]:
    """Pairs of a scene and the folder for what is made of it, one for each particle. Makes the folders."""
    found = [(scene, folder)]
    if isinstance(scene, ParticlesScene):
        found = [(one, folder / f"particle_{number}") for number, one in enumerate(scene.scenes)]
    for _, own in found:
        make_folder(own)
    return found


def _write_one(
    run: Run, scene: Scene, recipe: Recipe, device: torch.device, note: Note, folder: Path
) -> Exported | Picture:
    """One asset and the pictures of it."""
    if isinstance(scene, CanvasScene):
        return export_picture(scene, folder, folder / "images")
    if not isinstance(scene, Volume | Solid):
        raise RunError(f"a {type(scene).__name__} cannot be exported")
    provenance = {key: run.facts[key] for key in ("prompt", "system", "seed", "versions")}
    exported = export_scene(scene, recipe.export, folder, provenance | {"recipe": run.fingerprint}, device, note)
    from dreamkit import preview

    note("preview")
    preview.preview_png(exported.mesh, folder / "preview.png")
    if recipe.export.turntable_seconds > 0 and not preview.can_film():
        warnings.warn("no turntable.mp4: there is no ffmpeg here that knows libx264. Install one.", stacklevel=2)
    elif recipe.export.turntable_seconds > 0:
        preview.turntable(exported.mesh, folder / "turntable.mp4", seconds=recipe.export.turntable_seconds)
    facts: dict[str, Any] = {"system": run.facts["system"], "seed": run.seed, "steps": recipe.steps}
    facts |= {"faces": exported.faces, "agreement with the scene": str(exported.agreement)}
    preview.preview_html(exported.mesh, folder / "preview.html", run.prompt, facts)
    return exported


def _scene(run: Run, device: torch.device) -> tuple[Scene, int, Stage]:
    """The scene of a run's last checkpoint, the step it is of and the stage that made it."""
    state = restore(run.recipe, run, device)
    if state is None:
        raise InputError(f"{run.path} has no checkpoint yet. Go on with it: dreamkit resume {run.path}")
    stage, _ = stage_of(run.recipe, max(state.step - 1, 0))
    return whole(state.scene, stage, device), state.step, stage


def _asset(run: Run, device: torch.device) -> tuple[Scene, Stage]:
    """The scene of a run's last checkpoint, and the stage that made it. Raises InputError if it is of two things that
    cannot be put together yet."""
    scene, step, stage = _scene(run, device)
    if stage.things and isinstance(scene, ParticlesScene):
        raise InputError(
            f"{run.path} makes {stage.things.first!r} and {stage.things.second!r} apart, and at step {step} they are "
            f"not meshes yet, which could be put together. Go on with it: dreamkit resume {run.path}"
        )
    return scene, stage
