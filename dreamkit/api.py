"""The verbs: generate, resume, export, render. The command line calls these and nothing else.

result = dreamkit.generate("a red mug")
result.mesh, result.scene, result.run.path
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from dreamkit import device as devices
from dreamkit import loop
from dreamkit.cameras import ring
from dreamkit.disk import plainly, write_whole
from dreamkit.errors import InputError, RunError, nearest
from dreamkit.export import Exported, Picture, export_picture
from dreamkit.export import export as write_files
from dreamkit.guidance import noise, rules
from dreamkit.guidance.estimate import Guided, NoiseFree, PerpNeg
from dreamkit.guidance.rule import Rule
from dreamkit.images import png
from dreamkit.meshes import Mesh
from dreamkit.priors import Diffusers, Prior
from dreamkit.recipe import Guide, Recipe, Stage, load, override
from dreamkit.representations import REPRESENTATIONS
from dreamkit.representations.canvas import Canvas, CanvasScene
from dreamkit.representations.representation import Scene, Volume
from dreamkit.run import Run

Note = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """A finished run: its folder, the scene it optimised, and what was exported."""

    run: Run
    scene: Scene
    exported: Exported | Picture

    @property
    def mesh(self) -> Mesh:
        """The textured mesh, as read back from the file. Raises ValueError for a picture, which has none."""
        if isinstance(self.exported, Picture):
            raise ValueError("a canvas has no mesh: its picture is result.exported.files[0]")
        return self.exported.mesh


def generate(
    prompt: str,
    *,
    system: str | None = None,
    guidance: str | None = None,
    representation: str | None = None,
    prior: str | None = None,
    seed: int = 0,
    steps: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    settings: Mapping[str, str] | None = None,
    watch: loop.Watch | None = None,
    note: Note = lambda text: None,
) -> Result:
    """From a prompt to a textured mesh on disk: one run, from start to finish.

    Args:
        prompt: what to make; the toybox prior knows a small world and says so.
        system: a name that `dreamkit list systems` shows, or the path of a .py file; by default "toybox", or
            "dreamfusion" when another prior is asked for.
        guidance, representation, prior: replace the system's own; a prior is "toybox", a diffusers folder or a hub id.
        steps: total number of steps; the stages keep their shares.
        out: the run folder; by default outputs/<prompt>/<time>-<system>-<seed>.
        device: "auto", "cpu", "cuda", "cuda:1".
        settings: any field of the recipe, by path, as `--set` takes it.
        watch: called after every step; note: told what is being done.

    Raises InputError before anything is spent if something asked for cannot be; RunError if the run fails, and
    KeyboardInterrupt after Ctrl-C: then a checkpoint stands, and `resume` goes on.
    """
    system = system or ("toybox" if prior in (None, "toybox") else "dreamfusion")
    recipe = compose(system, guidance, representation, prior, steps, settings or {})
    chosen = devices.choose(device)
    note("prior")
    Run.check(out, prompt, recipe)  # cheap mistakes first; then what cannot work is said before a folder is made
    priors = loop.load_priors(recipe, prompt, chosen)
    loop.rehearse(recipe, priors, prompt, chosen)
    with Run.create(out, prompt, system, seed, recipe, str(chosen)) as run:
        return _finish(run, priors, chosen, watch, note)


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
    note("prior")
    priors = loop.load_priors(found.recipe, found.prompt, chosen)
    if "prior" in found.facts:
        found.check_prior([prior.identity() for prior in priors.values()])
    with Run.resume(path) as run:
        return _finish(run, priors, chosen, watch, note)


def export(
    path: str | Path, *, settings: Mapping[str, str] | None = None, device: str = "auto", note: Note = lambda text: None
) -> Result:
    """Write the files of a run again from its last checkpoint, with other settings of `Export` if given."""
    chosen = devices.choose(device)
    found = Run.open(path)
    before = {"status": found.status, "error": found.facts.get("error")}
    recipe = override(found.recipe, {f"export.{key}": value for key, value in (settings or {}).items()})
    with Run.resume(path) as run:
        try:
            scene, _ = _scene(run, chosen)
            exported = _write(run, scene, recipe, chosen, note)
            run.update(export=exported.facts())
        finally:
            run.update(**before)
        return Result(run, scene, exported)


def render(path: str | Path, *, views: int = 8, size: int = 256, elevation: float = 15.0, device: str = "auto") -> Path:
    """Pictures of a run's scene from all round, as it is in its last checkpoint; returns their folder."""
    if views < 1 or size < 8:
        raise InputError(f"render takes at least one view of at least 8 pixels; got {views} of {size}")
    run = Run.open(path)
    scene, step = _scene(run, devices.choose(device))
    folder = run.path / "images" / f"render_{step:06d}_{views}x{size}"
    with plainly(folder):
        folder.mkdir(parents=True, exist_ok=True)
    cameras = ring(views, elevation_degrees=elevation, size=size)
    for number in range(views):  # one at a time: the memory of one view serves for any number
        with torch.no_grad():
            picture = scene.render(cameras[number : number + 1]).rgb[0]
        write_whole(folder / f"view_{number:03d}.png", png(picture))
    return folder


def compose(
    system: str,
    guidance: str | None,
    representation: str | None,
    prior: str | None,
    steps: int | None,
    settings: Mapping[str, str],
) -> Recipe:
    """The recipe of a system with parts replaced. Raises InputError with the nearest names for an unknown one.

    Another rule keeps the system's range of levels and its guidance scales: these belong to the prior and the length of
    the run, and rules are compared by what else they are.
    """
    recipe = load(system)
    rule = None if guidance is None else rules_by_name().get(guidance.lower())
    if guidance is not None and rule is None:
        raise InputError(f"there is no guidance rule {guidance!r}. {nearest(guidance, rules_by_name())}")
    if representation is not None and representation not in REPRESENTATIONS:
        raise InputError(f"there is no representation {representation!r}. {nearest(representation, REPRESENTATIONS)}")

    if prior and Path(prior).expanduser().is_dir():
        prior = str(Path(prior).expanduser().resolve())  # so that a run can be resumed from anywhere

    def changed_guide(guide: Guide) -> Guide:
        new = _in_system(rule, guide.rule) if rule else guide.rule
        return replace(guide, rule=new, prior=Diffusers(prior) if prior else guide.prior)

    def changed(stage: Stage) -> Stage:
        fresh = REPRESENTATIONS[representation] if representation else stage.representation
        # A system's own settings of the representation that is asked for are better than the general ones.
        kept = stage.representation if type(fresh) is type(stage.representation) else fresh
        changed = replace(stage, representation=kept, guides=tuple(changed_guide(guide) for guide in stage.guides))
        if isinstance(kept, Canvas):  # which has one side, and nothing that the losses could look at
            front = replace(stage.cameras, azimuth_degrees=(0.0, 0.0), elevation_degrees=(15.0, 15.0))
            return replace(changed, cameras=front, losses=(), batch=1)
        return changed

    recipe = replace(recipe, stages=tuple(changed(stage) for stage in recipe.stages))
    if steps is not None:
        recipe = _with_steps(recipe, steps)
    return override(recipe, settings)


def _in_system(rule: Rule, system: Rule) -> Rule:
    """A rule with a system's range of levels, and with its guidance scale wherever it mixes predictions by one."""
    rule = replace(rule, levels=rule.levels.within(system.levels))
    if not isinstance(system.trust, Guided):
        return rule
    scale = system.trust.scale
    mixing = (Guided, PerpNeg, NoiseFree, noise.Stepped, noise.Simulated)
    found = {name: getattr(rule, name) for name in ("trust", "subtract", "noise")}
    scaled: dict[str, Any] = {
        name: replace(piece, scale=scale) for name, piece in found.items() if isinstance(piece, mixing)
    }
    return replace(rule, **scaled)


def rules_by_name() -> dict[str, Rule]:
    """The published rules by the names the command line takes: the constants of guidance/rules.py in lower case."""
    return {name.lower(): value for name, value in vars(rules).items() if isinstance(value, Rule)}


def _with_steps(recipe: Recipe, steps: int) -> Recipe:
    if steps < len(recipe.stages):
        raise InputError(f"--steps {steps}: at least one for each of the {len(recipe.stages)} stages is needed")
    share = [max(1, round(steps * stage.steps / recipe.steps)) for stage in recipe.stages]
    share[share.index(max(share))] += steps - sum(share)
    stages = tuple(replace(stage, steps=n) for stage, n in zip(recipe.stages, share, strict=True))
    return replace(recipe, stages=stages)


def _finish(run: Run, priors: dict[Any, Prior], device: torch.device, watch: loop.Watch | None, note: Note) -> Result:
    """Optimise to the end, export, show; and say in run.json how it went."""
    try:
        note("optimise")
        scene = loop.optimise(run.recipe, run, priors, device, watch)
        exported = _write(run, scene, run.recipe, device, note)
        run.update(status="complete", export=exported.facts())
        return Result(run, scene, exported)
    except KeyboardInterrupt as stop:
        run.update(status="interrupted")
        raise KeyboardInterrupt(
            f"interrupted; what is done is kept. Go on with: dreamkit resume {quote(str(run.path))}"
        ) from stop
    except (RunError, InputError) as error:
        run.update(status="failed", error=str(error))
        raise


def _write(run: Run, scene: Scene, recipe: Recipe, device: torch.device, note: Note) -> Exported | Picture:
    """The asset and the pictures of it."""
    if isinstance(scene, CanvasScene):
        return export_picture(scene, run.path, run.path / "images")
    if not isinstance(scene, Volume):
        raise RunError(f"a {type(scene).__name__} cannot be exported")
    provenance = {key: run.facts[key] for key in ("prompt", "system", "seed", "versions")}
    exported = write_files(scene, recipe.export, run.path, provenance | {"recipe": run.fingerprint}, device, note)
    from dreamkit import preview

    note("preview")
    preview.preview_png(exported.mesh, run.path / "preview.png")
    if recipe.export.turntable_seconds > 0:
        preview.turntable(exported.mesh, run.path / "turntable.mp4", seconds=recipe.export.turntable_seconds)
    facts: dict[str, Any] = {"system": run.facts["system"], "seed": run.seed, "steps": recipe.steps}
    facts |= {"faces": exported.faces, "agreement with the scene": str(exported.agreement)}
    preview.preview_html(exported.mesh, run.path / "preview.html", run.prompt, facts)
    return exported


def _scene(run: Run, device: torch.device) -> tuple[Scene, int]:
    state = loop.restore(run.recipe, run, device)
    if state is None:
        raise InputError(f"{run.path} has no checkpoint yet. Go on with it: dreamkit resume {run.path}")
    return state.scene, state.step
