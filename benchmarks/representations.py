"""What each representation makes of the same prompts under the same rule, one seed, with the prior that ships.

    python -m benchmarks.representations --workers 2 --sheet representations.png
    python -m benchmarks.representations --representations nerf,dmtet --out outputs/short -- --steps 100

An asset is made as `dreamkit generate --representation NAME --system benchmarks/single_stage.py` makes it, with steps,
cameras and losses that were chosen for the nerf; `mesh` is a sphere whose vertices move. A finished run is kept, an
interrupted one resumed; other arguments want another --out. The table, in Markdown, is that of `dreamkit eval`: how
many assets the judge, trained on renders only, recognises in more than half of the views; the share of all views in
which it does, and sees the colour; F-score to the true mesh and overlap of their silhouettes; seconds of optimising,
on the average and at the most; and how well the written GLB agrees with the scene's own pictures, again on the average
and at the least. The numbers asset by asset are in the eval.json and eval.html of each representation.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.rules import SYSTEM, sheet
from benchmarks.toybox import runs_of
from dreamkit import evaluate
from dreamkit.errors import InputError, nearest
from dreamkit.prompts import read_list
from dreamkit.recipe import data_folder
from dreamkit.run import Run, slug

KINDS = ("nerf", "gaussians", "dmtet", "mesh", "sdf")
COLUMNS = {"recognised": "recognised", "colour": "colour", "F-score": "F-score", "IoU": "silhouettes"}
"""Of the report's means, and what they are called in the table."""


def line(kind: str, report: dict[str, Any], folders: list[Path], wanted: int) -> str:
    """One row of the table."""
    means, runs = report["means"], report["runs"]
    shown = [means.get(name, {}).get("mean") for name in COLUMNS]
    recognisable = sum(run.get("judge", {}).get("recognised", 0) > 0.5 for run in runs)
    seconds = [run["seconds"] for run in runs if run["seconds"] is not None] or [float("nan")]
    agreement = [Run.open(folder).facts["export"]["psnr"] for folder in folders] or [float("nan")]
    cells = [
        f"`{kind}`",
        f"{len(folders)} of {wanted}",
        f"{recognisable}",
        *("-" if value is None else f"{value:.2f}" for value in shown),
        f"{sum(seconds) / len(seconds):.0f} ({max(seconds):.0f})",
        f"{sum(agreement) / len(agreement):.1f} ({min(agreement):.1f})",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--representations", default=",".join(KINDS), help="comma between (default: %(default)s)")
    parser.add_argument("--prompts", type=Path, default=data_folder("prompts") / "toybox.txt", help="a prompt list")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("outputs/representations"), help="where the runs go")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet: a row a prompt, a column a representation")
    parser.add_argument("rest", nargs="*", help="further arguments of `dreamkit generate`, after --")
    given = parser.parse_args()
    kinds = given.representations.split(",")
    try:
        prompts = read_list(given.prompts)
        for kind in kinds:
            if kind not in KINDS:
                raise InputError(f"{kind!r} is not compared here. {nearest(kind, KINDS)}")
        table(given, kinds, prompts)
    except InputError as error:
        parser.error(str(error))


def table(given: argparse.Namespace, kinds: list[str], prompts: list[str]) -> None:
    """Print it, a row after another, and write the sheet."""
    columns = ["representation", "runs", "recognisable", *COLUMNS.values(), "seconds (most)", "GLB, dB (least)"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for kind in kinds:
        root = given.out / kind
        folders = runs_of(
            prompts, [given.seed], root, ["--system", SYSTEM, "--representation", kind, *given.rest], given.workers
        )
        report: dict[str, Any] = {"means": {}, "runs": []}
        if folders:
            report, sights = evaluate.measure(folders)
            evaluate.write(report, sights, root / "eval.json")
        print(line(kind, report, folders, len(prompts)), flush=True)
    if given.sheet:
        rows = {prompt: [given.out / kind / f"{slug(prompt)}-{given.seed}" for kind in kinds] for prompt in prompts}
        sheet(rows, given.sheet, kinds)


if __name__ == "__main__":
    main()
