"""Every rule that the toybox's prior can serve, at equal prior calls: the same prompts, seeds, representation, cameras.

    python -m benchmarks.rules --workers 2 --sheet docs/rules.png
    python -m benchmarks.rules --rules sds,vsd,ism --prompts prompts/toybox.txt --seeds 0

A rule runs as `dreamkit generate --guidance NAME --system benchmarks/single_stage.py` runs it: with that system's noise
levels and guidance scales, or with its own levels where their order is what it is about. It gets as many steps as the
budget of samples through the prior's network buys, counted on the rule itself (what it trains beside the scene is not
counted, but is in the time). Left out are rules that edit, as they need something to edit, and LEFT_OUT. A finished run
is kept, an interrupted one resumed; the table, in Markdown, is that of `dreamkit eval`: shares of views in which the
judge, trained on renders only, sees the thing and its colour; of views from behind in which it sees a front (Janus);
F-score to the true mesh; saturation of colours over that of the true mesh; how much two seeds differ; seconds of
optimising.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.toybox import runs_of
from dreamkit import evaluate
from dreamkit.compose import compose, rules_by_name
from dreamkit.errors import InputError, nearest
from dreamkit.prompts import read_list
from dreamkit.rehearsal import load_priors
from dreamkit.state import fresh
from dreamkit.step import Task, take_step

SYSTEM = str(Path(__file__).with_name("single_stage.py"))
PROMPTS = ("a red mug", "a blue chair", "a yellow duck")
BUDGET = 1600
"""Samples through the prior's network that every run may spend: 400 steps of two views under plain SDS."""
LEFT_OUT = ("sds_perp_neg", "semantic_sds", "rsd")
"""Rules that are another one's like without what a bare prompt lacks: a negative prompt, regions, several particles."""
COUNTED, FIRST = 8, 16
"""Steps that the cost of a rule is counted on, spread over a run and at its beginning."""


def servable() -> list[str]:
    """The rules that the toybox's prior can serve, and that start from nothing but a prompt."""
    found = []
    for name, rule in rules_by_name().items():
        try:
            load_priors(compose(SYSTEM, name), PROMPTS[0], torch.device("cpu"))
        except InputError:
            continue
        if not rule.edits and name not in LEFT_OUT:
            found.append(name)
    return found


def costs(rule: str) -> tuple[float, float]:
    """Samples through the prior's network: a step's, as a mean over COUNTED of them spread over a run; and what a run
    costs besides at its beginning, such as samples of the prior that a rule collects first."""
    recipe = compose(SYSTEM, rule)
    stage = recipe.stages[0]
    priors = load_priors(recipe, PROMPTS[0], torch.device("cpu"))
    state, spent = fresh(stage, 0, torch.device("cpu"), priors), []
    spread = [round((number + 0.5) * stage.steps / COUNTED) for number in range(COUNTED)]
    for step in (*range(FIRST), *spread):
        before = sum(prior.samples for prior in priors.values())
        state.step = step
        take_step(stage, state, Task(PROMPTS[0], priors))
        spent.append(sum(prior.samples for prior in priors.values()) - before)
    usual = sum(spent[FIRST:]) / COUNTED
    return usual, max(sum(spent[:FIRST]) - FIRST * usual, 0.0)


def line(rule: str, cost: float, steps: int, report: dict[str, Any], runs: int) -> str:
    """One row of the table."""
    means = report["means"]

    def mean(name: str) -> str:
        value = means.get(name, {}).get("mean")
        return "-" if value is None else f"{value:.2f}"

    truth = [run["truth"]["saturation"] for run in report["runs"] if "truth" in run]
    over = means["saturation"]["mean"] / (sum(truth) / len(truth)) if truth and "saturation" in means else float("nan")
    spread = [found["diversity"] for found in report["prompts"].values()]
    diverse = f"{sum(spread) / len(spread):.3f}" if spread else "-"
    seconds = means.get("seconds", {}).get("mean")
    judged = [mean(name) for name in ("recognised", "colour", "janus_views", "F-score")]
    cells = [f"`{rule}`", f"{cost:.1f}", str(steps), f"{len(report['runs'])} of {runs}", *judged]
    return f"| {' | '.join([*cells, f'{over:.2f}', diverse, f'{seconds or 0:.0f}'])} |"


COLUMNS = ["rule", "samples a step", "steps", "runs", "recognised", "colour", "Janus", "F-score", "saturation"]
COLUMNS += ["diversity", "seconds"]
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


MARGIN, WIDTH, HEIGHT = 150, 384, 192
"""Pixels of a sheet: what is left for the names beside its rows, and the size of a preview."""


def sheet(rows: dict[str, list[Path]], path: Path, columns: list[str] | None = None) -> None:
    """One row a name: the previews of these runs side by side, white where there is none; and names above columns."""
    from PIL import Image, ImageDraw

    top = 16 if columns else 0
    size = (MARGIN + WIDTH * max(len(folders) for folders in rows.values()), top + HEIGHT * len(rows))
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for number, name in enumerate(columns or []):
        draw.text((MARGIN + WIDTH * number + 6, 2), name, fill="black")
    for line, (name, folders) in enumerate(rows.items()):
        draw.text((6, top + line * HEIGHT + HEIGHT // 2 - 6), name, fill="black")
        for number, folder in enumerate(folders):
            if (folder / "preview.png").exists():
                picture = Image.open(folder / "preview.png").convert("RGB").resize((WIDTH, HEIGHT))
                page.paste(picture, (MARGIN + WIDTH * number, top + line * HEIGHT))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.quantize(128).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", help="some of them, comma between (default: all that can run)")
    parser.add_argument("--prompts", type=Path, help=f"a prompt list (default: {', '.join(PROMPTS)})")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--budget", type=int, default=BUDGET, help="samples a run (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("outputs/rules"), help="where the runs go")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here, one row a rule")
    parser.add_argument("rest", nargs="*", help="further arguments of `dreamkit generate`, after --")
    try:
        table(parser.parse_args())
    except InputError as error:
        parser.error(str(error))


def table(given: argparse.Namespace) -> None:
    """Print it, a row after another."""
    rules = given.rules.split(",") if given.rules else servable()
    for rule in rules:
        if rule not in rules_by_name():
            raise InputError(f"there is no guidance rule {rule!r}. {nearest(rule, rules_by_name())}")
    prompts = read_list(given.prompts) if given.prompts else list(PROMPTS)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    print(HEAD)
    shown: dict[str, list[Path]] = {}
    for rule in rules:
        cost, once = costs(rule)
        steps = max(round((given.budget - once) / cost), 1)
        rest = ["--system", SYSTEM, "--guidance", rule, "--steps", str(steps), *given.rest]
        folders = runs_of(prompts, seeds, given.out / str(given.budget) / rule, rest, given.workers)
        report, _ = evaluate.measure(folders) if folders else ({"means": {}, "runs": [], "prompts": {}}, [])
        print(line(rule, cost, steps, report, len(prompts) * len(seeds)), flush=True)
        shown[rule] = [folder for folder in folders if folder.name.endswith(f"-{seeds[0]}")]
    if given.sheet and any(shown.values()):
        sheet(shown, given.sheet)


if __name__ == "__main__":
    main()
