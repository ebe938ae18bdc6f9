"""Density control: where Gaussians come, and where they go.

A strategy is called after every step with the cloud and what was seen of it, and says what becomes of it: a `Change`,
or None. Its numbers that are Schedules are those of the present progress.

- `Densify` is that of 3DGS (arXiv:2308.04079, section 5.2): clone and split where the picture pulls at a Gaussian,
  remove what is faint or too large.
- `Relocate` is that of 3DGS-MCMC (arXiv:2404.09591): what is faint is put where something opaque is, without changing
  the picture, and all move a little at random.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.errors import InputError
from dreamkit.kernels.splat import Splats
from dreamkit.render.splats import rotations
from dreamkit.representations.gaussians.cloud import Cloud
from dreamkit.schedule import Number, Switch, fixed
from dreamkit.streams import Streams

GROWING = Switch(0.2, 0.0, 0.5)
"""In the second half Gaussians only go: what is new needs time to be of use."""
CHILDREN = 2
"""Of a Gaussian that is split; each is 0.8 * CHILDREN times smaller (3DGS)."""
STEEPNESS = 100.0
"""How suddenly noise ends where opacity begins (3DGS-MCMC, k in section 3.2)."""
MOST_OPAQUE = 1 - 1e-6
"""Keeps logits finite in float32."""


@dataclass(frozen=True)
class Statistics:
    """What was seen of each Gaussian since the last change, [N] each.

    gradient: sum over the views that saw it of |dL/d(screen)|, L being the loss of that view and the screen 2 wide and
              2 high, as in 3DGS; or of its homodirectional sum (`Densify.absolute`)
    views:    how many saw it
    reach:    the largest radius (3 standard deviations) it had, as a share of the picture's longer side
    """

    gradient: Tensor
    views: Tensor
    reach: Tensor

    @staticmethod
    def zeros(count: int, device: torch.device) -> "Statistics":
        return Statistics(*torch.zeros(3, count, device=device).unbind())

    def take(self, rows: Tensor) -> "Statistics":
        """Those of these row numbers."""
        return Statistics(self.gradient[rows], self.views[rows], self.reach[rows])


@dataclass(frozen=True)
class Change:
    """A changed cloud. rows [N_new] by the tensors' names: for each new row the old one whose moments in the optimiser
    it keeps; -1 for none."""

    cloud: Cloud
    rows: dict[str, Tensor]


@dataclass(frozen=True)
class Densify:
    """Prune, clone and split, every `every` steps from step `begin` on (3DGS, arXiv:2308.04079, section 5.2).

    First what is too faint, too large in the world or too large on the screen is removed. Of the others whose mean
    screen gradient is over `gradient`, those with the largest are doubled: at most the share `growth` of all, and never
    more than `max_count` in the end. A small one (its longest axis at most `clone_below`) is copied, and both get the
    opacity 1 - sqrt(1 - o), so that together they show what one did (arXiv:2404.06109; 3DGS leaves o). A larger one is
    replaced by two drawn from it, 1.6 times smaller.

    A gradient of 0 needs no knowledge of the loss's scale: the share decides. A `growth` of 0 only prunes.
    """

    begin: int = 50
    every: int = 50
    gradient: Number = 0.0
    growth: Number = GROWING
    clone_below: float = 0.05
    """World units."""
    prune_opacity: Number = 0.02
    prune_scale: Number = math.inf
    """World units, of the longest axis."""
    prune_reach: Number = math.inf
    """Radius as a share of the picture's longer side."""
    reset_every: int = 0
    """Steps after which no opacity is more than `reset_opacity`; 0 is never."""
    reset_opacity: float = 0.04
    absolute: bool = False
    """Sum |gradients| of pixels, which do not cancel in large Gaussians (AbsGS, arXiv:2404.10484)."""
    max_count: int = 10_000

    def __post_init__(self) -> None:
        _check_counts(self, {"every": 1, "begin": 0, "reset_every": 0, "max_count": 1})
        _check_numbers(self, ("gradient", "growth", "clone_below", "prune_opacity", "prune_scale", "prune_reach"))
        if not 0 < self.reset_opacity < 1:
            raise InputError(f"Densify.reset_opacity is an opacity between 0 and 1; got {self.reset_opacity}.")

    def __call__(self, cloud: Cloud, seen: Statistics, step: int, rate: float, streams: Streams) -> Change | None:
        """What becomes of the cloud after `step`; `rate` is not used. Stream "split"."""
        due, reset = _due(self, step), self.reset_every > 0 and (step + 1) % self.reset_every == 0
        if not due and not reset:
            return None
        grown, rows = cloud, torch.arange(len(cloud), device=cloud.means.device)
        if due:
            kept = (~self._unwanted(cloud, seen)).nonzero().squeeze(1)
            grown, rows = self._grow(cloud.take(kept), seen.take(kept), streams)
            rows = torch.where(rows < 0, -1, kept[rows]) if len(kept) else kept
        if reset:
            highest = math.log(self.reset_opacity / (1 - self.reset_opacity))
            grown = replace(grown, opacity_logits=grown.opacity_logits.clamp(max=highest))
        forgets = torch.full_like(rows, -1) if reset else rows
        return Change(grown, dict.fromkeys(cloud.tensors(), rows) | {"opacity_logits": forgets})

    def _unwanted(self, cloud: Cloud, seen: Statistics) -> Tensor:
        faint = cloud.opacities < fixed(self.prune_opacity)
        large = cloud.scales.amax(1) > fixed(self.prune_scale)
        return faint | large | (seen.reach > fixed(self.prune_reach))

    def _grow(self, cloud: Cloud, seen: Statistics, streams: Streams) -> tuple[Cloud, Tensor]:
        """The cloud with new Gaussians, and each one's old row or -1."""
        chosen = self._chosen(seen)
        large = cloud.log_scales[chosen].amax(1) > math.log(self.clone_below)
        copied, cut = chosen[~large], chosen[large]
        stays = torch.ones(len(cloud), dtype=torch.bool, device=chosen.device)
        stays[cut] = False
        shared = shared_opacity(cloud.opacities[copied], torch.full_like(copied, 2))
        cloud = replace(cloud, opacity_logits=cloud.opacity_logits.index_copy(0, copied, shared.to(cloud.means)))
        old = stays.nonzero().squeeze(1)
        rows = torch.cat([old, old.new_full((len(copied) + CHILDREN * len(cut),), -1)])
        return _join([cloud.take(old), cloud.take(copied), split(cloud.take(cut), streams)]), rows

    def _chosen(self, seen: Statistics) -> Tensor:
        """Rows of the Gaussians to double, those with the largest gradients first."""
        mean = seen.gradient / seen.views.clamp(min=1)
        count = len(mean)
        most = min(int(fixed(self.growth) * count), self.max_count - count)
        order = torch.argsort(mean, descending=True, stable=True)[: max(most, 0)]
        return order[mean[order] > fixed(self.gradient)]


@dataclass(frozen=True)
class Relocate:
    """Move what is faint to where something is, and all a little at random (3DGS-MCMC, arXiv:2404.09591).

    Every `every` steps from `begin` on, each Gaussian of opacity at most `dead` is put on another, drawn in proportion
    to opacity, and then the share `growth` of all is added in the same way, up to `max_count`. The N that now stand in
    one place share its opacity and size such that the picture stays the same (eq. 9, `shared_opacity` and
    `shared_scale`). After every step the means move by

        noise * rate * sigmoid(100 (dead - o)) * Sigma * N(0, I)                                     (section 3.2)

    with the means' learning rate: only what is faint explores. There is no other way for a Gaussian to go than to grow
    faint, so add losses that make those fade that nothing needs (`mean_opacity`, `mean_scale`; the paper gives both the
    weight 0.01). The paper's `noise`, 5e5, belongs to its scenes and rates: the step in standard deviations is noise *
    rate * the deviation itself.
    """

    begin: int = 50
    every: int = 50
    growth: Number = 0.05
    dead: float = 0.005
    noise: Number = 5e3
    max_count: int = 10_000

    def __post_init__(self) -> None:
        _check_counts(self, {"every": 1, "begin": 0, "max_count": 1})
        _check_numbers(self, ("growth", "noise"))
        if not 0 <= self.dead < 1:
            raise InputError(f"Relocate.dead is an opacity in [0, 1); got {self.dead}.")

    def __call__(self, cloud: Cloud, seen: Statistics, step: int, rate: float, streams: Streams) -> Change | None:
        """What becomes of the cloud after `step`; `seen` is not used. Streams "relocate", "add" and "explore".

        The noise is added in place.
        """
        change = None
        if _due(self, step):
            change = self._moved(cloud, streams)
            cloud = change.cloud
        self._explore(cloud, rate * fixed(self.noise), streams)
        return change

    def _moved(self, cloud: Cloud, streams: Streams) -> Change:
        count = len(cloud)
        rows = torch.arange(count, device=cloud.means.device)
        dead = (cloud.opacities <= self.dead).nonzero().squeeze(1)
        alive = (cloud.opacities > self.dead).nonzero().squeeze(1)
        if len(alive) and len(dead):
            sources = alive[_draw(cloud.opacities[alive], streams.uniform("relocate", (len(dead),)))]
            cloud = _gathered(cloud, sources, dead)
            rows[sources] = rows[dead] = -1
        extra = max(min(int(fixed(self.growth) * count), self.max_count - count), 0)
        if len(alive) and extra:
            sources = _draw(cloud.opacities, streams.uniform("add", (extra,)))
            added = torch.arange(count, count + extra, device=rows.device)
            cloud = _gathered(_join([cloud, cloud.take(sources)]), sources, added)
            rows[sources] = -1
            rows = torch.cat([rows, rows.new_full((extra,), -1)])
        return Change(cloud, dict.fromkeys(cloud.tensors(), rows))

    def _explore(self, cloud: Cloud, strength: float, streams: Streams) -> None:
        if strength == 0:
            return
        draw = streams.normal("explore", (len(cloud), 3), like=cloud.means)
        root = rotations(cloud.quaternions) * cloud.scales[:, None]
        freedom = torch.sigmoid(STEEPNESS * (self.dead - cloud.opacities))
        cloud.means.add_(strength * freedom[:, None] * (root @ (root.mT @ draw[..., None])).squeeze(-1))


Strategy = Densify | Relocate


class Watch:
    """What the training renders of one step showed, kept until their gradients are there."""

    def __init__(self, strategy: Strategy | None, rate: float, streams: Streams) -> None:
        self.strategy, self.rate, self.streams = strategy, rate, replace(streams, scope="")
        self.renders: list[tuple[Splats, Cameras]] = []

    def add(self, seen: Splats, cameras: Cameras) -> None:
        """Keep what `render_splats` returned for these cameras."""
        if isinstance(self.strategy, Densify) and seen.screen.requires_grad:
            seen.screen.retain_grad()
            self.renders.append((seen, cameras))

    def counted(self, known: Statistics) -> Statistics:
        """The statistics with these renders added; those without a gradient do not count."""
        gradient, views, reach = known.gradient, known.views, known.reach
        for seen, cameras in self.renders:
            source = seen.screen if seen.spread is None else seen.spread
            if source.grad is None:
                continue
            # A loss is a mean over the views; the screen is 2 wide and 2 high.
            half = source.new_tensor([cameras.width / 2, cameras.height / 2])
            here = seen.radii > 0
            pull = (source.grad * half * len(cameras)).norm(dim=-1).nan_to_num(0.0, posinf=0.0)
            gradient = gradient + torch.where(here, pull, 0.0).sum(0)
            views = views + here.sum(0)
            reach = torch.maximum(reach, seen.radii.amax(0) / max(cameras.width, cameras.height))
        return Statistics(gradient, views, reach)


def split(cloud: Cloud, streams: Streams) -> Cloud:
    """CHILDREN Gaussians in the place of each: means drawn from it (stream "split"), 1.6 times smaller, else alike."""
    children = cloud.each(lambda tensor: tensor.repeat(CHILDREN, *[1] * (tensor.ndim - 1)))
    draw = streams.normal("split", (len(children), 3), like=cloud.means)
    moved = (rotations(children.quaternions) @ (children.scales * draw)[..., None]).squeeze(-1)
    smaller = children.log_scales - math.log(0.8 * CHILDREN)
    return replace(children, means=children.means + moved, log_scales=smaller)


def shared_opacity(opacity: Tensor, copies: Tensor) -> Tensor:
    """The logit of the opacity that each of `copies` [N] Gaussians in one place needs to show `opacity` [N] together:

    o_new = 1 - (1 - o)^(1 / copies)        (3DGS-MCMC, arXiv:2404.09591, eq. 9)
    """
    opacity = opacity.double().clamp(max=MOST_OPAQUE)
    new = -torch.expm1(torch.log1p(-opacity) / copies)
    return torch.logit(new, eps=1e-9).float()


def shared_scale(opacity: Tensor, copies: Tensor) -> Tensor:
    """By what [N] the standard deviations are multiplied along with `shared_opacity` (eq. 9, the rest):

        o / sum_{i=1}^{copies} sum_{k=0}^{i-1} C(i-1, k) (-1)^k o_new^(k+1) / sqrt(k+1)

    so that the integral over any line of what the copies show, 1 - (1 - o_new g)^copies, is that of o g. Summed over i
    first: sum_i C(i-1, k) = C(copies, k+1).
    """
    opacity = opacity.double().clamp(max=MOST_OPAQUE)
    new = -torch.expm1(torch.log1p(-opacity) / copies)
    term = copies * new  # C(copies, k+1) (-1)^k o_new^(k+1) for k = 0
    total = term.clone()
    for k in range(1, int(copies.max()) if len(copies) else 0):
        term = -term * new * (copies - k) / (k + 1)
        total += term / math.sqrt(k + 1)
    return torch.where(copies > 1, opacity / total, 1.0).float()


def _gathered(cloud: Cloud, sources: Tensor, guests: Tensor) -> Cloud:
    """The cloud with each of the rows `guests` put on the row in `sources`, all in one place sharing it."""
    copies = 1 + torch.bincount(sources, minlength=len(cloud))
    opacity = cloud.opacities
    logits = torch.where(copies > 1, shared_opacity(opacity, copies).to(opacity), cloud.opacity_logits)
    smaller = shared_scale(opacity, copies).log().to(opacity)
    shared = replace(cloud, opacity_logits=logits, log_scales=cloud.log_scales + smaller[:, None])
    return shared.each(lambda tensor: tensor.index_copy(0, guests, tensor[sources]))


def _draw(weight: Tensor, draw: Tensor) -> Tensor:
    """Row numbers in proportion to `weight` [N], one for each uniform number in `draw`."""
    total = weight.double().cpu().cumsum(0)  # on a CPU its order is always the same
    found = torch.searchsorted(total, draw.double().cpu() * total[-1], right=True)
    return found.clamp(max=len(weight) - 1).to(weight.device)


def _join(clouds: list[Cloud]) -> Cloud:
    names = clouds[0].tensors()
    return Cloud(**{name: torch.cat([cloud.tensors()[name] for cloud in clouds]) for name in names})


def _due(strategy: Strategy, step: int) -> bool:
    return (step + 1) % strategy.every == 0 and step + 1 >= strategy.begin


def _check_counts(strategy: object, least: dict[str, int]) -> None:
    for name, low in least.items():
        value = getattr(strategy, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise InputError(f"{type(strategy).__name__}.{name} is a whole number of at least {low}; got {value!r}.")


def _check_numbers(strategy: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(strategy, name)
        if isinstance(value, int | float) and not value >= 0:
            raise InputError(f"{type(strategy).__name__}.{name} is at least 0; got {value}.")
