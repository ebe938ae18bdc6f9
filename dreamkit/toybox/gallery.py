"""A page of the toybox's world: every kind, second colours, materials and pairs, each with its caption."""

import json
import random
from pathlib import Path

import torch

from dreamkit import pages
from dreamkit.disk import check_folder, expanded, make_folder, write_whole
from dreamkit.errors import InputError
from dreamkit.prompts import JOINTS
from dreamkit.streams import Streams
from dreamkit.toybox import world
from dreamkit.toybox.kinds import KINDS, SUPPORTS
from dreamkit.toybox.pictures import Pool, cast_pool, shade
from dreamkit.toybox.world import COLOURS, MATERIALS, RELATIONS, Asked, Pair, Thing


def words() -> dict[str, str]:
    """The words that prompts of this world are made of, by what they mean."""
    return {
        "things": ", ".join(sorted(KINDS)),
        "colours": f'{", ".join(COLOURS)}; two of them as in "a red and blue mug"',
        "materials": f"{', '.join(MATERIALS[1:])}; {MATERIALS[0]} without a word",
        "next to": f"{', '.join(JOINTS['next to'])}: any two things",
        "on top of": f"{', '.join(JOINTS['on top of'])}: anything on a {', '.join(SUPPORTS[:-1])} or {SUPPORTS[-1]}",
    }


def unknown() -> list[str]:
    """The words for things of this world that the prior which ships does not know: it was trained on a smaller one."""
    tokenizer = json.loads((Path(__file__).parent / "weights" / "tokenizer" / "tokenizer.json").read_text())
    known = {*tokenizer["model"]["vocab"], *world.words_for_views()}
    return [word for word in world.vocabulary() if word not in known]


def write(path: Path, seed: int = 0) -> Path:
    """Write the page: one sample of each kind, colour pair, material and relation. Raises InputError for a name
    that is not .html or cannot be written."""
    path = expanded(path)
    if path.suffix != ".html":
        raise InputError(f"--out {path}: the samples are a page; give a name that ends in .html.")
    check_folder(path.parent)
    pool = cast_pool(6, seed, torch.device("cpu"), note=lambda text: None, pairs=12)
    parts = [pages.paragraph(f"{name}: {text}") for name, text in words().items()]
    for title, asked in _shown(pool, random.Random(seed)).items():
        parts += [pages.heading(title), *_figures(pool, asked, seed)]
    make_folder(path.parent)
    write_whole(path, pages.page("The toybox", parts))
    return path


def _shown(pool: Pool, draw: random.Random) -> dict[str, list[Asked]]:
    """What is shown under each heading."""
    kinds, colours = list(KINDS), list(COLOURS)

    def two() -> list[str]:
        return draw.sample(colours, 2)

    return {
        "Every kind": [Thing(kind, colours[i % len(colours)]) for i, kind in enumerate(kinds)],
        "A second colour": [Thing(kind, *two()) for kind in draw.sample(kinds, 12)],
        **{
            material.capitalize(): [Thing(kind, draw.choice(colours), None, material) for kind in draw.sample(kinds, 8)]
            for material in MATERIALS[1:]
        },
        **{
            f"One thing {relation} another": [
                Pair(Thing(first, one), relation, Thing(second, other))
                for first, found, second in pool.pairs
                if found == relation
                for one, other in [two()]
            ]
            for relation in RELATIONS
        },
    }


def _figures(pool: Pool, asked: list[Asked], seed: int) -> list[str]:
    """Each from a random camera of the pool, as in training, with one of the captions it may have there."""
    draw = random.Random(seed)
    source = pool.kinds | pool.pairs
    views = [draw.choice(source[one.arrangement]) for one in asked]
    pictures = shade(pool, asked, views, Streams(seed, 0))
    captions = [world.caption(a, pool.views[v], draw) for a, v in zip(asked, views, strict=True)]
    return [pages.figure(picture, text, scale=2) for picture, text in zip(pictures, captions, strict=True)]
