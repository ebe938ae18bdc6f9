"""Training targets with chance taken out of them: what a noisy picture is most likely a picture of.

A denoiser's least-squares answer is E[x | z, caption], and the picture x that z = alpha x + sigma n was made of is one
draw of it: where the noise hides nearly everything, nearly all of a gradient is chance. But this world's pictures can
be listed, so the mean itself can be the target: over views of the pool that the caption may mean, each weighted by how
well it explains z, on every plain background. It is a stable target field (Xu, Tong and Jaakkola, arXiv:2302.00670, eq.
7), whose reference batch is drawn from what has the same caption, and whose background is integrated in closed form.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize, one_hot

from dreamkit.streams import Streams
from dreamkit.toybox import world
from dreamkit.toybox.pictures import (
    AMBIENT,
    GREY_SHARE,
    LAMP_SPREAD,
    SUPERSAMPLE,
    Batch,
    Pool,
    palette,
)
from dreamkit.toybox.world import Arrangement, Asked

HIDING = 0.12
"""Signals alpha below this get such targets. In clearer pictures hardly any view but the true one explains z."""
CANDIDATES = 48
"""Views, or groups of views seen together, that are weighed against each other."""
MEAN, HIDDEN = 5.0, 0.3
"""What a target counts beside that of a clear picture: a mean over so many views that hardly any chance is left in it,
and one hidden picture. A mean over n views has an n-th of the chance, and counts n hidden pictures, at most MEAN.
Without such weights, what the means teach drowns in the chance of the others."""
LAMPS = 6
"""Lamps drawn for a view; the layers show the mean of their light."""


@dataclass(frozen=True)
class Layers:
    """The views of a pool, taken apart into what is linear in the colours.

    planes: for every arrangement uint8 [V, 1 + P, S * S], times 255, of the pool's views of it in their order: how
    much of each pixel is background, and how brightly each of its P paints shows there.
    parts: for every arrangement, a part that has each paint.
    """

    planes: dict[Arrangement, Tensor]
    parts: dict[Arrangement, list[int]]


def take_apart(pool: Pool) -> Layers:
    """The layers of every view of a pool."""
    planes, parts = {}, {}
    for arrangement, views in (pool.kinds | pool.pairs).items():
        paints = [(piece.owner, piece.paint) for piece in world.pieces_of(arrangement)]
        each = list(dict.fromkeys(paints))
        parts[arrangement] = [paints.index(paint) for paint in each]
        plane_of_part = torch.tensor([0, *(each.index(paint) + 1 for paint in paints)], device=pool.part.device)
        blocks = torch.arange(views.start, views.stop).split(32)
        planes[arrangement] = torch.cat([_planes(pool, block, plane_of_part, len(each) + 1) for block in blocks])
    return Layers(planes, parts)


def _planes(pool: Pool, views: Tensor, plane_of_part: Tensor, count: int) -> Tensor:
    part, normal, towards = pool.part[views].long(), pool.normal[views].float() / 127, pool.towards[views]
    jitter = Streams(0, int(views[0])).normal("lamps", (LAMPS, len(views), 3), towards) * LAMP_SPREAD
    lamps = normalize(towards + jitter, dim=-1)
    diffuse = torch.stack([(normal * lamp[:, None, None]).sum(-1).clamp(min=0) for lamp in lamps]).mean(0)
    light = torch.where(part > 0, AMBIENT + (1 - AMBIENT) * diffuse, 1.0)
    shown = one_hot(plane_of_part[part], count) * light[..., None]
    small = avg_pool2d(shown.permute(0, 3, 1, 2), SUPERSAMPLE)
    return (255 * small).round().to(torch.uint8).flatten(2)


class Explained(NamedTuple):
    """How M views explain a noisy picture. evidence [M]: log p(z | view), up to a constant. mean [M, 3, S * S]:
    E[x | z, view]."""

    evidence: Tensor
    mean: Tensor


def explain(planes: Tensor, colours: Tensor, z: Tensor, alpha: float, sigma: float) -> Explained:
    """Integrate the background out: views planes [M, 1 + P, S * S] in [0, 1], paints `colours` [P, 3], z [3, S * S].

    A view shows x = c + a b, a its share of background and b in [-1, 1]^3 one colour. With r = z - alpha c and a normal
    prior of variance 1/3, that of the uniform one, b is normal with precision 3 + alpha^2 sum a^2 / sigma^2 and mean
    (alpha sum a r / sigma^2) / precision. Grey backgrounds are the same in one dimension; both are mixed as they occur.
    """
    a = planes[:, 0]
    c = 2 * torch.einsum("mps,pc->mcs", planes[:, 1:], colours) + a[:, None] - 1
    r = z - alpha * c
    pull = alpha / sigma**2 * (r * a[:, None]).sum(-1)
    certainty = (alpha / sigma) ** 2 * a.square().sum(-1)
    tinted, grey = 3 + certainty, 3 + 3 * certainty
    of_tinted = pull.square().sum(1) / tinted / 2 - 1.5 * (tinted / 3).log() + math.log(1 - GREY_SHARE)
    of_grey = pull.sum(1).square() / grey / 2 - 0.5 * (grey / 3).log() + math.log(GREY_SHARE)
    share = (of_grey - of_tinted).sigmoid()[:, None]
    b = share * (pull.sum(1) / grey)[:, None] + (1 - share) * pull / tinted[:, None]
    evidence = torch.logaddexp(of_tinted, of_grey) - r.square().sum((1, 2)) / (2 * sigma**2)
    return Explained(evidence, c + a[:, None] * b[..., None])


class Target(NamedTuple):
    """x [N, 3, S, S] in [-1, 1], a mean or a picture. weight [N]: what each counts."""

    x: Tensor
    weight: Tensor


def expected(pool: Pool, layers: Layers, seen: Batch, z: Tensor, alpha: Tensor, sigma: Tensor, seed: int) -> Target:
    """E[x | z, caption] of noisy pictures z [N, 3, S, S] = alpha x + sigma n, x in [-1, 1]; alpha and sigma [N].

    Where it is not known it is x itself, whose mean it is: at signals of HIDING and more, for captions that do not
    name all they show, and for what is not matte, as highlights and patterns are not in the layers. Views that are
    seen together (`pool.together`) are weighed together. `seed` draws the candidates; the true views are among them.
    """
    x, draw = 2 * seen.pictures - 1, random.Random(seed)
    weight = torch.where(alpha < HIDING, HIDDEN, 1.0)
    for first in range(0, len(x), pool.together):
        rows = range(first, first + pool.together)
        if alpha[first] < HIDING and all(_is_plain(seen.asked[row], seen.captions[row]) for row in rows):
            found = _weigh(pool, layers, seen, z, rows, float(alpha[first]), float(sigma[first]), draw)
            x[first : first + pool.together] = found.mean.unflatten(-1, x.shape[-2:])
            weight[first : first + pool.together] = min(MEAN, HIDDEN * found.views)
    return Target(x, weight)


def _is_plain(asked: Asked, caption: str) -> bool:
    """Whether a caption names all that there is to see, all of it matte."""
    return all(thing.material == "matte" for thing in asked.things) and world.named(caption) == asked


class Weighed(NamedTuple):
    """mean [R, 3, S * S]. views: over how many, or over how many groups of views."""

    mean: Tensor
    views: int


def _weigh(
    pool: Pool, layers: Layers, seen: Batch, z: Tensor, rows: range, alpha: float, sigma: float, draw: random.Random
) -> Weighed:
    """E[x | z, captions] of the R views of one thing."""
    asked, own = seen.asked[rows[0]], seen.views[rows[0]]
    arrangement = asked.arrangement
    views = (pool.kinds | pool.pairs)[arrangement]
    said = [world.view_said(seen.captions[row]) for row in rows]
    chances = [_chance(pool.views[start : start + pool.together], said) for start in views[:: pool.together]]
    likely = [number for number, chance in enumerate(chances) if chance > 0]
    mine = (own - views.start) // pool.together
    chosen = sorted({mine, *draw.sample(likely, min(len(likely), CANDIDATES))})
    colours = palette(asked)[1:, :3].to(z)[layers.parts[arrangement]]
    planes = layers.planes[arrangement].unflatten(0, (-1, pool.together))[chosen].float() / 255
    each = [explain(planes[:, k], colours, z[row].flatten(1), alpha, sigma) for k, row in enumerate(rows)]
    prior = torch.tensor([chances[number] for number in chosen]).log().to(z)
    weights = (prior + torch.stack([one.evidence for one in each]).sum(0)).softmax(0)
    return Weighed(torch.stack([torch.einsum("m,mcs->cs", weights, one.mean) for one in each]), len(chosen))


def _chance(views: Sequence[tuple[str, ...]], said: Sequence[str]) -> float:
    """How likely these view words are said of these views, each with all that may be said of it."""
    chance = 1.0
    for ways, word in zip(views, said, strict=True):
        if word:
            chance *= sum(share for way, share in zip(ways, world.VIEW_WORDS.values(), strict=True) if way == word)
    return chance
