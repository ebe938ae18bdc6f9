"""How good finished runs are: numbers, as JSON, as a table and as a page.

What is measured is the exported mesh as it was written, in its own pose and scale, from the twelve cameras of
`surface.check_cameras`: eight at 15 degrees of elevation, four at 50; on BACKGROUND, lit from the camera. The JSON:

    protocol        how it was measured: views, elevations, size, background, judge (a hash of its weights), and with a
                    CLIP model its folder, picture size, background and the number of prompts it chose from
    runs            one object a run; of a run of particles one a particle:
      path, prompt, system, seed, seconds (optimising, the whole run), status
      particle      its number, of a run of particles
      health        counts of `metrics.health`: faces, components, open edges, ...
      saturation    of `metrics.pictures`
      judge         only for prompts of the toybox's world, and so are truth and on_truth
        recognised  share of the views in which the judge sees what was asked for (`Verdict.shows`)
        colour, second, material, view
                    share of the recognised views in which the judge's answer about a thing is a right one; null where
                    nothing was asked that can be seen
        back_views  how many recognised views stand behind the thing (azimuth within 90 degrees of the back), where it
                    looks different from how it looks from in front
        faces_behind  in how many of those the judge says front, front left or front right
        two_faced   the Janus failure: a face in at least two of them (one alone may be the judge's slip); null where
                    there are fewer than two
        said        for each view: azimuth, elevation, the kinds the judge sees, colour and view of what was asked
      truth         against the world's own mesh of the prompt, in the world's pose, nothing aligned: f_score (at 5 %
                    of the diagonal), chamfer (world units), silhouette_iou, colour_error (RMS, RGB), saturation (of the
                    true mesh)
      on_truth      recognised, colour and faces_behind of the true mesh: what the judge makes of a perfect asset
      clip          score (`metrics.clip.clip_score`), r_precision (among the prompts of all runs; null for only one)
    means           by column: mean, and the number of runs it is over. Also janus_assets, the share of two-faced runs
                    among those that have a back, and janus_views, faces_behind over back_views, both summed
    prompts         for each prompt of several such objects: how many runs, diversity (`metrics.pictures.diversity` of
                    their views)
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamkit import pages
from dreamkit.assets.files import READ, read
from dreamkit.cameras import Cameras
from dreamkit.disk import expanded, make_folder, write_whole
from dreamkit.errors import InputError
from dreamkit.export import check_cameras
from dreamkit.images import Images
from dreamkit.meshes import Mesh
from dreamkit.metrics.clip import Clip, clip_score, r_precision
from dreamkit.metrics.compare import silhouette_iou
from dreamkit.metrics.health import health
from dreamkit.metrics.pictures import colour_error, diversity, saturation
from dreamkit.metrics.shape import likeness
from dreamkit.render.mesh import render_mesh
from dreamkit.run import Run
from dreamkit.toybox import judge as toybox_judge
from dreamkit.toybox import world
from dreamkit.toybox.answers import Answers, cast_answers
from dreamkit.toybox.judge import Judge, Verdict
from dreamkit.toybox.world import Asked

BACKGROUND = (0.66, 0.70, 0.76)
"""Not a colour of the world's, so that white, gray and black things all stand out."""
CLIP_BACKGROUND = (1.0, 1.0, 1.0)
FRONTS = ("front", "front left", "front right")

COLUMNS: dict[str, str] = {
    "recognised": "judge.recognised",
    "colour": "judge.colour",
    "view": "judge.view",
    "faces behind": "judge.faces_behind",
    "of": "judge.back_views",
    "F-score": "truth.f_score",
    "Chamfer": "truth.chamfer",
    "IoU": "truth.silhouette_iou",
    "colour error": "truth.colour_error",
    "saturation": "saturation",
    "faces": "health.faces",
    "components": "health.components",
    "CLIP": "clip.score",
    "R-precision": "clip.r_precision",
    "seconds": "seconds",
}
"""The columns of the table, and where in a run's object each stands."""


@dataclass(frozen=True)
class Sight:
    """A run's mesh, or that of one of its particles, and its pictures."""

    run: Run
    mesh: Mesh
    images: Images
    clip: Tensor | None
    """Unit vectors [B, D] of its pictures."""
    particle: int | None = None
    """Which one of the run's, if it has several."""

    @property
    def asked(self) -> Asked | None:
        return world.named(self.run.prompt)


def measure(
    paths: Sequence[str | Path],
    clip: str | Path | None = None,
    device: torch.device | str = "cpu",
    note: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, Any], list[Sight]]:
    """The measurements of runs, as the head of this file says, and what they were made of.

    Args:
        paths: run folders with an exported mesh.
        clip: the folder of a CLIP model, for its score and R-precision.

    Raises InputError for a folder that is no run or has no mesh, or a damaged one, and for a CLIP folder that cannot be
    read; all before anything is measured.
    """
    runs = [(run, mesh_files(run)) for run in (Run.open(path) for path in _distinct(paths))]
    meshes = {file: read(file) for _, files in runs for file in files}
    model = None if clip is None else Clip(clip, device)
    sights, found = list[Sight](), []
    prompts = list(dict.fromkeys(run.prompt for run, _ in runs))
    texts = None if model is None else model.texts(prompts)
    for run, number, file in ((run, number, file) for run, files in runs for number, file in enumerate(files)):
        note(f"measure {file.parent}")
        mesh, particle = meshes[file], None if file.parent == run.path else number
        images = render_mesh(mesh, check_cameras(), background=BACKGROUND, lit=True, device=device)
        sights.append(Sight(run, mesh, images, None if model is None else _seen_by(model, mesh, device), particle))
        found.append(_measured(sights[-1], prompts, texts, device))
    report = {"protocol": _protocol(model, prompts), "runs": found, "means": means(found)}
    return report | {"prompts": _by_prompt(sights)}, sights


def mesh_files(run: Run) -> list[Path]:
    """The first mesh that a run exported, or that it exported of each particle. Raises InputError if there is none."""
    names = (run.facts.get("export") or {}).get("files", [])
    meshes = [name for name in names if Path(name).suffix in READ and Path(name).stem == "mesh"]  # points are splats
    there = [run.path / name for name in meshes if (run.path / name).is_file()]
    if not there and "picture.png" in names:
        raise InputError(f"{run.path} made a picture, not a mesh: there is nothing that eval measures of one.")
    if not there:
        finish = "" if run.status == "complete" else f"Finish it with `dreamkit resume {run.path}`, or write "
        raise InputError(
            f"{run.path} has no exported mesh to measure (status: {run.status}). {finish or 'Write '}one with "
            f"`dreamkit export {run.path} --formats glb`."
        )
    return list({file.parent: file for file in reversed(there)}.values())[::-1]


def _distinct(paths: Sequence[str | Path]) -> list[Path]:
    if not paths:
        raise InputError("eval needs at least one run folder, such as outputs/a-red-mug/<time>-toybox-0.")
    return list({expanded(path).resolve(): expanded(path) for path in paths}.values())


def _seen_by(model: Clip, mesh: Mesh, device: torch.device | str) -> Tensor:
    cameras = replace(check_cameras(), height=model.size, width=model.size)
    rgb = render_mesh(mesh, cameras, background=CLIP_BACKGROUND, lit=True, device=device).rgb
    return model.pictures(rgb)


# --- one run ---


def _measured(sight: Sight, prompts: list[str], texts: Tensor | None, device: torch.device | str) -> dict[str, Any]:
    run, images = sight.run, sight.images
    facts: dict[str, Any] = {name: run.facts[name] for name in ("prompt", "system", "seed")}
    facts |= {"path": str(run.path), "status": run.status, "seconds": _seconds(run)}
    facts |= {} if sight.particle is None else {"particle": sight.particle}
    facts["health"] = health(sight.mesh).facts()
    facts["saturation"] = _rounded(_saturation(images))
    if sight.asked is not None:
        facts |= _against_world(sight, sight.asked, device)
    if sight.clip is not None and texts is not None:
        own = prompts.index(run.prompt)
        chosen = r_precision(sight.clip, texts, own) if len(prompts) > 1 else None
        facts["clip"] = {"score": _rounded(clip_score(sight.clip, texts[own])), "r_precision": _rounded(chosen)}
    return facts


def _against_world(sight: Sight, asked: Asked, device: torch.device | str) -> dict[str, Any]:
    """The judge's part and the truth's."""
    cameras, truth = check_cameras(), world.mesh_of(asked)
    right, judge = cast_answers(asked, cameras), Judge.load(str(device))
    true = render_mesh(truth, cameras, background=BACKGROUND, lit=True, device=device)
    found, images = likeness(sight.mesh, truth), sight.images
    ideal = judged(judge(true.rgb), asked, right, cameras)
    return {
        "judge": judged(judge(images.rgb), asked, right, cameras),
        "truth": {
            "f_score": _rounded(found.f_score),
            "chamfer": _rounded(found.chamfer),
            "silhouette_iou": _rounded(silhouette_iou(images.alpha, true.alpha)),
            "colour_error": _rounded(colour_error(images.rgb, true.rgb, images.alpha, true.alpha)),
            "saturation": _rounded(_saturation(true)),
        },
        "on_truth": {name: ideal[name] for name in ("recognised", "colour", "faces_behind")},
    }


def _saturation(images: Images) -> float:
    """Of the thing alone: the background that shines through its edges is taken away."""
    ground = torch.tensor(BACKGROUND, device=images.rgb.device)[:, None, None]
    return saturation(images.rgb - ground * (1 - images.alpha), images.alpha)


def judged(verdict: Verdict, asked: Asked, right: Answers, cameras: Cameras) -> dict[str, Any]:
    """What the judge said about pictures from these cameras, against what is right: "judge" of the JSON."""
    shown = verdict.shows(asked).cpu()
    facts: dict[str, Any] = {"recognised": _rounded(float(shown.double().mean()))}
    for question in toybox_judge.WORDS:
        facts[question] = _rounded(_share_right(verdict, question, asked, right, shown))
    said = verdict.view(asked)
    azimuths, elevations = (getattr(cameras, f"{name}_degrees").tolist() for name in ("azimuth", "elevation"))
    kind = asked.things[0].kind
    views = [set[str]().union(*row) for row in zip(*(right.views_of(t.kind) for t in asked.things), strict=True)]
    behind = [bool(s) and is_behind(a, v) for s, a, v in zip(shown, azimuths, views, strict=True)]
    faces = sum(word in FRONTS for word, back in zip(said, behind, strict=True) if back)
    facts |= {"back_views": sum(behind), "faces_behind": faces}
    facts["two_faced"] = faces >= 2 if sum(behind) >= 2 else None
    rows = zip(azimuths, elevations, verdict.kinds_seen(), verdict.said("colour", kind), said, strict=True)
    facts["said"] = [
        {"azimuth": a, "elevation": e, "kinds": kinds, "colour": colour, "view": view}
        for a, e, kinds, colour, view in rows
    ]
    return facts


def is_behind(azimuth: float, views: set[str]) -> bool:
    """Whether a camera stands behind a thing, where none of the views that are right is one of FRONTS."""
    return abs((azimuth % 360) - 180) < 89.9 and not views & set(FRONTS)


def _share_right(verdict: Verdict, question: str, asked: Asked, right: Answers, shown: Tensor) -> float | None:
    marks = []
    for thing in asked.things:
        asks = right.asks(question, thing.kind) & shown
        marks.append(verdict.right(question, thing.kind, right)[asks])
    every = torch.cat(marks)
    return float(every.double().mean()) if len(every) else None


def _seconds(run: Run) -> float | None:
    """Time spent in steps: each line of the log holds the mean over the steps since the line before."""
    total, before = 0.0, 0
    for entry in run.history():
        seconds = entry.get("seconds")
        mean = seconds.get("step") if isinstance(seconds, dict) else None
        total += (entry["step"] - before) * (mean if isinstance(mean, int | float) else 0.0)
        before = entry["step"]
    return round(total, 1) if total else None


def _rounded(value: float | None) -> float | None:
    """Four digits; JSON has no nan and no inf."""
    return None if value is None or not torch.isfinite(torch.tensor(value)) else round(value, 4)


# --- all runs ---


def means(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of every column, and over how many runs; and the two Janus rates."""
    found: dict[str, Any] = {}
    for column, place in COLUMNS.items():
        values = [value for run in runs if (value := at(run, place)) is not None]
        if values:
            found[column] = {"mean": _rounded(sum(values) / len(values)), "runs": len(values)}
    faced = [value for run in runs if (value := at(run, "judge.two_faced")) is not None]
    if faced:
        found["janus_assets"] = {"mean": _rounded(sum(faced) / len(faced)), "runs": len(faced)}
        behind = sum(run["judge"]["back_views"] for run in runs if "judge" in run)
        faces = sum(run["judge"]["faces_behind"] for run in runs if "judge" in run)
        found["janus_views"] = {"mean": _rounded(faces / behind), "views": behind}
    return found


def at(run: dict[str, Any], place: str) -> Any:
    """The value at a dotted place of a run's object; None if there is none."""
    value: Any = run
    for name in place.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _by_prompt(sights: list[Sight]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for prompt in dict.fromkeys(sight.run.prompt for sight in sights):
        same = [sight.images.rgb.cpu() for sight in sights if sight.run.prompt == prompt]
        if len(same) > 1:
            found[prompt] = {"runs": len(same), "diversity": _rounded(diversity(torch.stack(same)))}
    return found


def _protocol(model: Clip | None, prompts: list[str]) -> dict[str, Any]:
    cameras = check_cameras()
    facts: dict[str, Any] = {
        "views": len(cameras),
        "azimuths": cameras.azimuth_degrees.tolist(),
        "elevations": cameras.elevation_degrees.tolist(),
        "size": cameras.height,
        "background": list(BACKGROUND),
        "lit": True,
    }
    if toybox_judge.WEIGHTS.is_file():
        facts["judge"] = hashlib.blake2b(toybox_judge.WEIGHTS.read_bytes(), digest_size=8).hexdigest()
    if model is not None:
        clip = {"model": str(model.folder), "size": model.size, "background": list(CLIP_BACKGROUND)}
        facts["clip"] = clip | {"views": len(cameras), "prompts": len(prompts)}
    return facts


# --- what is shown of it ---


def table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the table: a run each, and for several their means. Columns without a value are left
    out."""
    columns = [name for name, place in COLUMNS.items() if any(at(run, place) is not None for run in report["runs"])]
    rows = [
        [run["prompt"], _which(run), *(_cell(at(run, COLUMNS[name])) for name in columns)] for run in report["runs"]
    ]
    if len(rows) > 1:
        shown = (report["means"][name]["mean"] for name in columns)
        rows.append([f"mean of {len(rows)}", "", *(_cell(value) for value in shown)])
    return ["prompt", "seed", *columns], rows


def _which(run: dict[str, Any]) -> str:
    """Which run of its prompt: the seed, and the particle if there are several."""
    return f"{run['seed']} ({run['particle']})" if "particle" in run else str(run["seed"])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 100 else f"{value:.0f}"


def remarks(report: dict[str, Any]) -> list[str]:
    """What the table does not hold, a line each: the Janus rates, and the diversity of each prompt's runs."""
    rates, lines = report["means"], []
    if "janus_assets" in rates:
        assets, views = rates["janus_assets"], rates["janus_views"]
        lines.append(
            f"Janus: {assets['mean']:.1%} of {assets['runs']} assets are two-faced; "
            f"a face in {views['mean']:.1%} of {views['views']} views from behind"
        )
    for prompt, facts in report["prompts"].items():
        lines.append(f"{prompt}: diversity {facts['diversity']} over {facts['runs']} runs")
    return lines


def lines(report: dict[str, Any]) -> list[str]:
    """The table and the remarks as lines of text."""
    head, rows = table(report)
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    first, *rest = widths

    def line(row: list[str]) -> str:
        return "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], rest, strict=True))])

    return [*map(line, [head, *rows]), *remarks(report)]


def page(report: dict[str, Any], sights: Sequence[Sight]) -> bytes:
    """A page with the protocol, the table, and every run's views."""
    parts = [pages.table(*table(report)), *(pages.paragraph(line) for line in remarks(report))]
    for facts, sight in zip(report["runs"], sights, strict=True):
        parts.append(pages.heading(f"{facts['prompt']}, seed {_which(facts)}"))
        said = (facts.get("judge") or {}).get("said") or [None] * len(sight.images)
        for picture, word in zip(sight.images.rgb, said, strict=True):
            text = "" if word is None else f"{', '.join(word['kinds']) or 'nothing'}; {word['colour']}; {word['view']}"
            parts.append(pages.figure(picture, text))
    parts += [pages.heading("How it was measured"), pages.paragraph(json.dumps(report["protocol"]))]
    return pages.page("Evaluation", parts)


def write(report: dict[str, Any], sights: Sequence[Sight], out: Path) -> tuple[Path, Path]:
    """Write the JSON to `out` and the page beside it, under the same name with .html."""
    check_name(out)
    make_folder(out.parent)
    shown = out.with_suffix(".html")
    write_whole(out, (json.dumps(report, indent=1) + "\n").encode())
    write_whole(shown, page(report, sights))
    return out, shown


def check_name(out: Path) -> None:
    """Raise InputError unless the measurements can have this name."""
    if out.suffix != ".json":
        raise InputError(f"--out {out}: the measurements are JSON; give a name that ends in .json.")
