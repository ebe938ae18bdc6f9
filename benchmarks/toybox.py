"""What the toybox's prior draws, and what assets it makes: judged, in one table each.

    python -m benchmarks.toybox --samples 240                         samples of the prior, at a few guidance scales
    python -m benchmarks.toybox --samples 240 --prior run/weights     of another one's weights
    python -m benchmarks.toybox --samples 240 --views 4               four views of an object drawn together
    python -m benchmarks.toybox --sides                               does it know a thing's mean picture from each side
    python -m benchmarks.toybox --assets prompts/toybox-48.txt --seeds 0,1 --out outputs/toybox-48 --workers 2

Samples: DDIM from pure noise (`priors.sample`) for random captions with view words, none of whose kind and colour is in
prompts/toybox.txt, which is for tuning. The judge, trained on renders only, says how many show the things asked for
("kind"; "pairs" for captions of two things), and of those that do, how many have the right colours, material and view
(one of eight sides; any from which the thing looks the same is right). A picture that stands near the border of its
side may be told as the next one: "nearly" counts that as right too. The row "true" is the judge's verdict on true
pictures of the same captions, as high as a prior can come. Captions say the view in the prior's own words, with heights
if it knows them; one that tells no left from right cannot be right about sides.

Sides: what the prior makes of noise alone should be the mean picture of what it is asked for. How far that depends on
the side, of how far it should, for each kind: 1 is right, 0 is the same from everywhere.

Assets: `dreamkit generate` for every prompt and seed, each in a process of its own, then `dreamkit eval` of them all. A
run folder that is finished is kept, an interrupted one is resumed. A sheet of all previews is written beside them.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.first_asset import sheet
from dreamkit import device as devices
from dreamkit import evaluate
from dreamkit.cameras import orbit
from dreamkit.diffusion import x0_of
from dreamkit.disk import make_folder, write_whole
from dreamkit.errors import InputError
from dreamkit.images import png
from dreamkit.priors import Diffusers, Prior
from dreamkit.priors.sample import sample
from dreamkit.prompts import EIGHT, ViewWords, read_list, with_view
from dreamkit.recipe import data_folder
from dreamkit.run import Run, slug
from dreamkit.streams import Streams
from dreamkit.toybox import world
from dreamkit.toybox.answers import cast_answers
from dreamkit.toybox.judge import HELD_OUT, Judge, Verdict
from dreamkit.toybox.kinds import KINDS, SUPPORTS
from dreamkit.toybox.pictures import Batch, Pool, cast, cast_pool, shade
from dreamkit.toybox.targets import expected, take_apart
from dreamkit.toybox.world import Asked, Pair, Thing

STEPS, BATCH, ELEVATION = 30, 24, (-10.0, 50.0)
"""Of sampling; and the degrees of elevation that wishes are seen from, none near to "overhead"."""
QUESTIONS = {"colour": "colour", "second": "second", "material": "material", "view": "view", "nearly": "view"}
MARKS = ("kind", "pairs", *QUESTIONS)
SIDED = 2e-3
"""Mean square of what a side adds to a kind's mean picture, in [-1, 1], above which a kind is taken to have sides."""


# --- samples ---


@dataclass(frozen=True)
class Wish:
    """What a sample is asked to show, and from where: a number of EIGHT, and degrees."""

    asked: Asked
    direction: int
    elevation: float

    def said(self, words: ViewWords) -> str:
        """The caption, with a prior's words for where it is seen from."""
        things = [_noun(thing) for thing in self.asked.things]
        joint = f" {self.asked.relation} " if isinstance(self.asked, Pair) else ""
        return with_view(joint.join(things), words.at(45.0 * self.direction, self.elevation))

    def round(self, views: int) -> list["Wish"]:
        """The same thing from so many sides, evenly round it; as many as divide eight."""
        return [replace(self, direction=(self.direction + 8 * number // views) % 8) for number in range(views)]


def _noun(thing: Thing) -> str:
    """ "a striped red and blue mug" """
    material = "" if thing.material == "matte" else f"{thing.material} "
    words = f"{material}{thing.colour}{f' and {thing.second}' if thing.second else ''} {thing.kind}"
    return f"an {words}" if words.startswith("o") else f"a {words}"


def wishes(count: int, seed: int) -> list[Wish]:
    """Random things and, one in six, pairs; nothing of the tuning list."""
    draw, heights = random.Random(seed), random.Random(f"{seed} heights")
    tuned = {world.named(prompt) for prompt in read_list(data_folder("prompts") / "toybox.txt")}

    def thing(kind: str, plain: bool) -> Thing:
        one, two = draw.sample(list(world.COLOURS), 2)
        second = two if not plain and draw.random() < 0.2 else None
        material = draw.choice(world.MATERIALS[1:]) if not plain and draw.random() < 0.2 else "matte"
        return Thing(kind, one, second, material)

    found: list[Wish] = []
    while len(found) < count:
        relation = draw.choice(world.RELATIONS) if draw.random() < 1 / 6 else ""
        second = draw.choice(SUPPORTS if relation == "on top of" else list(KINDS))
        first = draw.choice([kind for kind in KINDS if kind != second])
        pair = Pair(thing(first, True), relation, thing(second, True))
        asked: Asked = pair if relation else thing(second, False)
        if asked not in tuned:
            found.append(Wish(asked, draw.randrange(8), heights.uniform(*ELEVATION)))
    return found


def draw_samples(prior: Prior, wanted: list[Wish], scale: float, seed: int) -> torch.Tensor:
    """A picture [N, 3, H, W] in [0, 1] of each wish."""
    pictures = []
    for start in range(0, len(wanted), BATCH):
        prompts = [wish.said(prior.view_words) for wish in wanted[start : start + BATCH]]
        told, null = (prior.condition(texts) for texts in (prompts, [""] * len(prompts)))
        x = sample(prior, told, null, Streams(seed, start), steps=STEPS, scale=scale)
        pictures.append(prior.decode(x))
    return torch.cat(pictures).clamp(0, 1)


def true_pictures(wanted: list[Wish], words: ViewWords, seed: int) -> torch.Tensor:
    """The world's own picture [N, 3, H, W] of each wish, from one of training's cameras that stands where it says in
    these words.

    What the judge makes of these is what it would make of a perfect prior: a side's border is as near as it may be.
    """
    layers, poses, draw = [], [], random.Random(seed)
    for number, wish in enumerate(wanted):
        cameras = world.CAMERAS.sample(1024, Streams(seed, number), "true")  # a 29th of them say any one view
        view = words.at(45.0 * wish.direction, wish.elevation)
        at = draw.choice([i for i, said in enumerate(words.of(cameras)) if said == view])
        layers.append(cast(wish.asked.arrangement, cameras[at : at + 1], torch.device("cpu")))
        poses.append(cameras.camera_to_world[at].flatten())
    part, normal, pale = (torch.cat(layer) for layer in zip(*layers, strict=True))
    pool = Pool(part, normal, pale, torch.stack(poses), [], {}, {})
    return shade(pool, [wish.asked for wish in wanted], range(len(wanted)), Streams(seed, 0))


def judge_samples(pictures: torch.Tensor, wanted: list[Wish], judge: Judge) -> dict[str, float]:
    """The shares of right ones, as the head of this file says."""
    marks: dict[str, list[bool]] = {name: [] for name in MARKS}
    verdict = judge(pictures)
    for number, wish in enumerate(wanted):
        one = Verdict(verdict.kinds[number : number + 1], {q: t[number : number + 1] for q, t in verdict.about.items()})
        shown = bool(one.shows(wish.asked))
        marks["kind" if isinstance(wish.asked, Thing) else "pairs"].append(shown)
        if not shown:
            continue
        right = cast_answers(wish.asked, orbit([45.0 * wish.direction], wish.elevation))
        near = replace(right, right=right.right | {"view": with_neighbours(right.right["view"])})
        for name, question in QUESTIONS.items():
            for thing in wish.asked.things:
                if bool(right.asks(question, thing.kind)):
                    truth = near if name == "nearly" else right
                    marks[name].append(bool(one.right(question, thing.kind, truth)))
    return {name: round(sum(values) / len(values), 3) for name, values in marks.items() if values}


def with_neighbours(right: torch.Tensor) -> torch.Tensor:
    """Right views, bool [..., 9] in the order of WORDS["view"], and of the eight sides those next to them."""
    sides = right[..., :8]
    return torch.cat([sides | sides.roll(1, -1) | sides.roll(-1, -1), right[..., 8:]], -1)


def samples(given: argparse.Namespace) -> None:
    prior, judge = Diffusers(given.prior, views=given.views).load(given.device), Judge.load()
    wanted = [each for wish in wishes(given.samples // prior.views, given.seed) for each in wish.round(prior.views)]
    first = wanted[0].said(prior.view_words)
    print(f"{len(wanted)} captions, such as {first!r}; {STEPS} DDIM steps; prior {prior.identity()['weights']}")
    print("scale  " + "".join(f"{name:>10}" for name in MARKS))
    print(
        f"{'true':<7}{_row(judge_samples(true_pictures(wanted, prior.view_words, given.seed), wanted, judge))}",
        flush=True,
    )
    scales = [float(value) for value in given.scales.split(",")]
    for scale in scales:
        pictures = draw_samples(prior, wanted, scale, given.seed).cpu()
        print(f"{scale:<7g}{_row(judge_samples(pictures, wanted, judge))}", flush=True)
        if given.out:
            given.out.mkdir(parents=True, exist_ok=True)
            (given.out / f"samples-{scale:g}.png").write_bytes(png(grid(pictures[:96])))


def _row(found: dict[str, float]) -> str:
    return "".join(f"{found.get(name, float('nan')):>10.3f}" for name in MARKS)


def grid(pictures: torch.Tensor, columns: int = 12) -> torch.Tensor:
    """Pictures [N, 3, H, W] in rows; what does not fill a row is left out, unless it is the only one."""
    columns = min(columns, len(pictures))
    rows = len(pictures) // columns
    count, (channels, height, width) = rows * columns, pictures.shape[1:]
    ordered = pictures[:count].reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return ordered.reshape(channels, rows * height, columns * width)


# --- sides ---


def sides(given: argparse.Namespace) -> None:
    prior = Diffusers(given.prior).load(given.device)
    pool = cast_pool(128, HELD_OUT, torch.device("cpu"), note=lambda line: None, pairs=0)
    print(f"prior {prior.identity()['weights']}")
    found = side_gains(prior, pool)
    print("".join(f"{kind:10}{gain:.2f}\n" for kind, gain in sorted(found.items(), key=lambda item: item[1])), end="")
    print(f"{'mean':10}{sum(found.values()) / len(found):.2f}", flush=True)


@torch.no_grad()
def side_gains(prior: Prior, pool: Pool, draws: int = 4) -> dict[str, float]:
    """<answer, truth> / <truth, truth> for each kind of a pool, of eight sides' deviations from their mean.

    Truth is E[x | caption] (`targets.expected`) of captions that say the side, any side as likely, and no height; the
    answer the prior's x0 at its noisiest level, a mean of `draws`. Kinds that look much the same from all sides are
    left out.
    """
    way = [*world.VIEW_WORDS].index(world.SIDES)
    pool = replace(pool, views=[(said[way],) * len(said) for said in pool.views])
    layers, found = take_apart(pool), {}
    for (kind,), views in pool.kinds.items():
        things: list[Asked] = [Thing(kind, "red")] * 8
        texts = [with_view(f"a red {kind}", side) for side in EIGHT]
        blank, none = torch.full((8, 3, 64, 64), 0.5), torch.zeros(8)
        seen = Batch(blank, texts, things, [views.start] * 8)
        truth = expected(pool, layers, seen, 0 * blank, none, none + 1, seed=0).x
        level, told, answer = prior.level(torch.ones(8)), prior.condition(texts), 0 * blank
        for draw in range(draws):
            noise = Streams(HELD_OUT, draw).normal("sides", (8, *prior.shape), torch.zeros(1, device=prior.device))
            (eps,) = prior.predict(noise, level, [told])
            answer += (2 * prior.decode(x0_of(noise, eps, level)) - 1).cpu() / draws
        truth, answer = truth - truth.mean(0), answer - answer.mean(0)
        if truth.square().mean() > SIDED:
            found[kind] = float((truth * answer).sum() / truth.square().sum())
    return found


# --- assets ---


def make(prompt: str, seed: int, folder: Path, threads: int, rest: list[str]) -> Path | None:
    """The folder of a finished run of this prompt and seed, made, resumed, or found; None if it failed."""
    command = ["generate", prompt, "--seed", str(seed), "--out", str(folder), *rest]
    if (folder / "run.json").exists():
        try:
            found = Run.open(folder)
        except InputError as error:
            print(f"{prompt}, seed {seed}: failed: {error}", flush=True)
            return None
        if (found.prompt, found.seed) != (prompt, seed):
            print(f"{prompt}, seed {seed}: failed: {folder} is of {found.prompt!r}, seed {found.seed}", flush=True)
            return None
        if found.status == "complete":
            return folder
        command = ["resume", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", "dreamkit.cli", *command], env=environment, capture_output=True, text=True
    )
    last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
    print(f"{prompt}, seed {seed}: {'done' if done.returncode == 0 else f'failed: {last}'}", flush=True)
    return folder if done.returncode == 0 else None


def runs_of(prompts: list[str], seeds: list[int], root: Path, rest: list[str], workers: int) -> list[Path]:
    """The finished runs of all prompts and seeds with these arguments, made where they are not there yet."""
    if workers < 1:
        raise InputError(f"--workers {workers}: at least one run at a time is made.")
    _same_arguments(root, rest)
    threads = max(cores() // workers, 1)
    jobs = [(prompt, seed, root / f"{slug(prompt)}-{seed}") for prompt in prompts for seed in seeds]
    with ThreadPoolExecutor(workers) as pool:
        made = list(pool.map(lambda job: make(job[0], job[1], job[2], threads, rest), jobs))
    return [folder for folder in made if folder is not None]


def _same_arguments(root: Path, rest: list[str]) -> None:
    """Raise InputError if the runs that may be found in a folder were made with other arguments."""
    file = root / "arguments.json"
    if file.is_file() and (before := json.loads(file.read_text())) != rest:
        raise InputError(
            f"the runs in {root} were made with the arguments {before}, and now they are {rest}: give another --out."
        )
    make_folder(root)
    write_whole(file, json.dumps(rest).encode())


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def assets(given: argparse.Namespace) -> None:
    prompts, seeds = read_list(given.assets), [int(seed) for seed in given.seeds.split(",")]
    root = given.out or Path("outputs") / f"{given.assets.stem}-assets"
    folders = runs_of(prompts, seeds, root, given.rest, given.workers)
    report, sights = evaluate.measure(folders, device=given.device)
    evaluate.write(report, sights, root / "eval.json")
    print("\n".join(evaluate.lines(report)))
    print(json.dumps(promised(report) | {"failed": len(prompts) * len(seeds) - len(folders)}, indent=1))
    shown = [folder for folder in folders if (folder / "preview.png").exists()]
    if shown:
        sheet(shown, root / "sheet.png")
    print(root / "sheet.png", root / "eval.html")


def promised(report: dict[str, Any]) -> dict[str, Any]:
    """The numbers that the project promises of its assets."""
    runs, rates = report["runs"], report["means"]
    seen = [run["judge"]["recognised"] for run in runs if "judge" in run]

    def mean(name: str) -> Any:
        return rates.get(name, {}).get("mean")

    return {
        "assets": len(runs),
        "recognised from most views": round(sum(share > 0.5 for share in seen) / max(len(seen), 1), 3),
        "views recognised": mean("recognised"),
        "colour right": mean("colour"),
        "Janus, assets": mean("janus_assets"),
        "Janus, views": mean("janus_views"),
        "F-score": mean("F-score"),
        "silhouette IoU": mean("IoU"),
        "seconds": mean("seconds"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, help="judge samples for so many captions")
    parser.add_argument("--prior", default="toybox", help="for samples and sides: toybox, or a folder of weights")
    parser.add_argument("--views", type=int, help="for samples: views of an object drawn together, such as 4")
    parser.add_argument("--sides", action="store_true", help="what it makes of noise alone, by kind")
    parser.add_argument("--scales", default="1,2,3,5,7.5", help="for samples: guidance scales (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="for samples")
    parser.add_argument("--assets", type=Path, help="make and judge assets for this prompt list")
    parser.add_argument("--seeds", default="0", help="for assets, such as 0,1")
    parser.add_argument("--workers", type=int, default=1, help="for assets: how many at a time")
    parser.add_argument("--out", type=Path, help="where the runs, or the pictures of the samples, go")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("rest", nargs="*", help="for assets: further arguments of `dreamkit generate`, after --")
    given = parser.parse_args()
    if not (given.samples or given.sides or given.assets):
        parser.error("give --samples N, --sides or --assets LIST")
    try:
        given.device = devices.choose(given.device)
        if given.samples:
            samples(given)
        if given.sides:
            sides(given)
        if given.assets:
            assets(given)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
