"""The judge: a small image classifier of the toybox's world, trained on its renders and on nothing else.

    python -m dreamkit.toybox.judge --folder judge-run --steps 12000       train (resumable); leaves the weights there
    python -m dreamkit.toybox.judge --report                               how well it does on views it has never seen

It says which kinds of things a picture shows, and of each kind: its main colour, its second colour (or none), its
material, and from where it is seen. It never sees a sample or an optimised scene, so that it can measure them. What may
rightly be said of a picture is defined in `answers.py`; how pictures are spoilt for training in `rough.py`.
"""

import argparse
import itertools
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, interpolate, pad

from dreamkit import device as devices
from dreamkit.disk import write_whole
from dreamkit.errors import InputError
from dreamkit.streams import Streams
from dreamkit.toybox import checkpoint, rough
from dreamkit.toybox.answers import NAMES, WORDS, Answers, pool_answers
from dreamkit.toybox.pictures import SUPERSAMPLE, cast_pool, draw_asked, shade
from dreamkit.toybox.world import Asked

SIZE, WIDTH, PLACES, WHOLE = 64, 128, 8 * 8, 176
"""Picture size, channels and places of the map, and numbers that stand for the whole picture."""
LOOKS = ("colour", "second", "material", "view")
"""What is asked of the place where a thing is; its view is asked of the whole too."""
SHIFTS = (-2, 0, 2)
"""Pixels by which a picture is moved, down and to the right, for every look at it."""
WEIGHTS = Path(__file__).parent / "judge" / "network.safetensors"
SAVE_EVERY = 200
SHARES = {"pair": 0.4, "second": 0.4, "material": 0.4}
"""More of what is hard than the prior is trained on."""
HELD_OUT = 1000
"""Seed of the views and pictures that the report is made of; training takes others."""


class Network(nn.Module):
    """Convolutions to an 8 x 8 map. Which kinds are there is asked of the whole map and of each of its places, and
    from where each is seen of the whole; besides, each kind looks at two places of the map, by queries of its own, and
    is asked what it saw. So two things beside each other are seen as one by itself is."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_convolution(4, 24, 5, 2),
            *_convolution(24, 48, 3, 2),
            *_convolution(48, 64, 3, 1),
            *_convolution(64, 96, 3, 2),
            *_convolution(96, WIDTH, 3, 1),
        )
        self.layout = nn.Sequential(*_convolution(WIDTH, 48, 3, 2), nn.Flatten())
        self.whole = nn.Linear(48 * (SIZE // 16) ** 2, WHOLE)
        self.kinds = nn.Linear(WHOLE, len(NAMES))
        nn.init.constant_(self.kinds.bias, -3.0)  # one in two dozen is there
        self.here = nn.Conv2d(WIDTH, len(NAMES), 1)
        self.view = nn.Linear(WHOLE, len(NAMES) * len(WORDS["view"]))
        self.key = nn.Conv2d(WIDTH, WIDTH, 1)
        self.query = nn.Parameter(torch.randn(2, len(NAMES), WIDTH))
        self.mix = nn.Linear(2 * WIDTH, WIDTH)
        self.kind = nn.Parameter(0.1 * torch.randn(len(NAMES), WIDTH))
        self.looks = nn.Linear(WIDTH, sum(len(WORDS[name]) for name in LOOKS))

    def forward(self, pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits for pictures [N, 3, 64, 64]: of each kind being there [N, K], of each answer about it [N, K, A]."""
        seen = self.trunk(torch.cat([2 * pictures - 1, 2 * off_ground(pictures) - 0.5], 1))
        whole = torch.relu(self.whole(self.layout(seen)))
        kinds = self.kinds(whole) + torch.logsumexp(self.here(seen).flatten(2), -1) - math.log(PLACES)
        key = self.key(seen).flatten(2) / WIDTH**0.5
        look = torch.softmax(torch.einsum("qkc,ncp->nkqp", self.query, key), -1)
        found = torch.einsum("nkqp,ncp->nkqc", look, seen.flatten(2)).flatten(2)
        looks = self.looks(torch.relu(self.mix(found) + self.kind)).split([len(WORDS[name]) for name in LOOKS], -1)
        about = dict(zip(LOOKS, looks, strict=True))
        about["view"] = about["view"] + self.view(whole).unflatten(1, (len(NAMES), -1))
        return kinds, about


def off_ground(pictures: Tensor) -> Tensor:
    """How far each pixel is from the background, [N, 1, H, W]: the Euclidean distance in RGB to what the four corners,
    4 pixels each way, run from and to. So that a shape is seen whatever its colour."""
    step = pictures.shape[-1] // 4 - 1
    corners = avg_pool2d(pictures, 4)[:, :, ::step, ::step]
    ground = interpolate(corners, pictures.shape[-2:], mode="bilinear", align_corners=True)
    return (pictures - ground).norm(dim=1, keepdim=True)


def _convolution(inside: int, outside: int, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(outside), nn.ReLU()


@dataclass(frozen=True)
class Verdict:
    """What the judge says of N pictures: probabilities. kinds [N, K]; about[question] [N, K, A], of WORDS[question]."""

    kinds: Tensor
    about: dict[str, Tensor]

    def shows(self, asked: Asked) -> Tensor:
        """Whether each picture shows what is asked for, bool [N]: the kinds asked for are the likeliest, and each is
        more likely there than not."""
        wanted = {NAMES.index(thing.kind) for thing in asked.things}
        likeliest = self.kinds.topk(len(wanted), 1).indices
        found = torch.stack([(likeliest == kind).any(1) & (self.kinds[:, kind] > 0.5) for kind in wanted])
        return found.all(0)

    def kinds_seen(self) -> list[list[str]]:
        """The kinds that are more likely there than not, for each picture."""
        return [[name for name, p in zip(NAMES, row, strict=True) if p > 0.5] for row in self.kinds.tolist()]

    def said(self, question: str, kind: str) -> list[str]:
        """The likeliest answer about a kind, for each picture."""
        return [WORDS[question][i] for i in self.about[question][:, NAMES.index(kind)].argmax(-1).tolist()]

    def right(self, question: str, kind: str, truth: Answers) -> Tensor:
        """Whether that answer is right, bool [N]."""
        k = NAMES.index(kind)
        said = self.about[question][:, k].argmax(-1, keepdim=True)
        return truth.right[question][:, k].gather(1, said.cpu())[:, 0]

    def view(self, asked: Asked) -> list[str]:
        """The likeliest view of each picture; of a pair, by what is said about both."""
        views = torch.stack([self.about["view"][:, NAMES.index(thing.kind)] for thing in asked.things])
        return [WORDS["view"][i] for i in views.log().sum(0).argmax(-1).tolist()]


class Judge:
    """A trained network."""

    def __init__(self, network: Network) -> None:
        self.network = network.eval()

    @staticmethod
    @cache
    def load(device: str = "cpu") -> "Judge":
        """The judge that ships. Raises InputError if its weights are not there."""
        if not WEIGHTS.is_file():
            raise InputError(f"the judge's weights are not in this installation: there is no {WEIGHTS}.")
        return Judge(read(WEIGHTS).to(device))

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Verdict:
        """The verdict on pictures [N, 3, H, W] in [0, 1], resized to 64 x 64 if they are of another size.

        The mean of nine looks, at the picture moved by `SHIFTS`: whether a look sees a small part hangs on where it
        falls between the places of the map.
        """
        small = pictures.to(next(self.network.parameters()))
        if small.shape[-2:] != (SIZE, SIZE):
            small = interpolate(small, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
        wide, edge = pad(small, (max(SHIFTS),) * 4, mode="replicate"), max(SHIFTS)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # the same verdict on every device
            looks = [
                self.network(wide[..., edge + down : edge + down + SIZE, edge + right : edge + right + SIZE])
                for down, right in itertools.product(SHIFTS, SHIFTS)
            ]
        kinds = torch.stack([kinds.sigmoid() for kinds, _ in looks]).mean(0)
        about = {name: torch.stack([found[name].softmax(-1) for _, found in looks]).mean(0) for name in LOOKS}
        return Verdict(kinds, about)


# --- pictures and their answers ---


@dataclass(frozen=True)
class Examples:
    """N lifted things [N, 4, H, W] uint8, times 255, and what is right to say of them."""

    things: Tensor
    answers: Answers
    asked: list[Asked]

    def __len__(self) -> int:
        return len(self.things)


def examples(count: int, views: int, seed: int, device: torch.device, note: Callable[[str], None]) -> Examples:
    """`count` pictures from a pool of `views` cameras a kind, and of as many pairs, a 32nd of that each."""
    pool = cast_pool(views, seed, device, note, pairs=views)
    draw, parts = random.Random(seed), []
    asked, rows = draw_asked(pool, count, draw, SHARES)
    for start in range(0, count, 256):
        these = slice(start, start + 256)
        pictures = shade(pool, asked[these], rows[these], Streams(seed, start))
        alpha = (pool.part[rows[these]] > 0)[:, None].float()
        lifted = rough.lifted(pictures, avg_pool2d(alpha, SUPERSAMPLE))
        parts.append((255 * lifted).round().clamp(0, 255).to(torch.uint8).cpu())
    truth = pool_answers(pool, asked, rows)
    note(f"made {count} pictures")
    return Examples(torch.cat(parts), truth, asked)


# --- training ---


@dataclass(frozen=True)
class Settings:
    steps: int = 12_000
    batch: int = 96
    rate: float = 2.5e-3
    pictures: int = 80_000
    views: int = 768
    seed: int = 1
    start: str = ""
    """File of installed weights to begin from."""


def train(folder: Path, settings: Settings, device: torch.device) -> Network:
    """Train until `settings.steps`, from the newest checkpoint in `folder` if there is one.

    Raises InputError if there are no weights to start from, or none that fit.
    """
    torch.manual_seed(settings.seed)
    begun = read(Path(settings.start)) if settings.start else Network()
    network = begun.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.rate, weight_decay=0.02)
    file, trained = folder / "judge.safetensors", {"network": network}
    done = checkpoint.load(file, trained, optimiser)
    if done == settings.steps:
        return network
    data = examples(settings.pictures, settings.views, settings.seed, device, print)
    for step in range(done, settings.steps):
        began = time.monotonic()
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * min((step + 1) / 100, 1 - step / settings.steps)
        pictures, truth = batch(data, settings.batch, Streams(settings.seed, step), device)
        with torch.autocast(device.type, torch.bfloat16):
            kinds, about = network(pictures.contiguous(memory_format=torch.channels_last))
        loss = loss_of(kinds.float(), {name: logits.float() for name, logits in about.items()}, truth)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == settings.steps:
            checkpoint.save(file, step + 1, trained, optimiser)
        if step % 25 == 0:
            speed = settings.batch / (time.monotonic() - began)
            print(f"step {step}/{settings.steps}  loss {loss.item():.4f}  {speed:.0f} pictures/s", flush=True)
    return network


def batch(data: Examples, count: int, streams: Streams, device: torch.device) -> tuple[Tensor, Answers]:
    """Pictures of one step, all moved, every other one worn, and their answers. One in 16 shows nothing, or a cloud."""
    rows = (streams.uniform("rows", (count,)) * len(data)).long()
    things = data.things[rows].to(device).float() / 255
    nothing = streams.uniform("nothing", (count,)) < 1 / 16
    things[nothing.to(device)] = cloud(things[nothing.to(device)])
    truth = data.answers
    present = truth.present[rows] * ~nothing[:, None]
    right = {name: table[rows] & ~nothing[:, None, None] for name, table in truth.right.items()}
    answers = Answers(present.to(device), {name: table.to(device) for name, table in right.items()})
    things = rough.moved(things, streams)
    pictures = rough.laid(things, rough.plain(count, streams, things))
    pictures[::2] = rough.worn(things[::2], streams)
    return pictures, answers


def cloud(things: Tensor) -> Tensor:
    """Things so blurred that they are no thing any more; every other one is gone altogether."""
    coarse = interpolate(avg_pool2d(things, 16), things.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
    coarse[::2] = 0
    return coarse


def loss_of(kinds: Tensor, about: dict[str, Tensor], truth: Answers) -> Tensor:
    """Cross entropies, summed: of every kind's presence where it is asked, and for each question

    -log of the sum of the right answers' probabilities, averaged over the kinds that are asked about;
    twice that for the view, which is the hardest to learn."""
    known = ~truth.present.isnan()
    loss = binary_cross_entropy_with_logits(kinds[known], truth.present[known]) * kinds.shape[1]
    for name, right in truth.right.items():
        asked = right.any(-1)
        said = torch.where(right[asked], about[name][asked].log_softmax(-1), -torch.inf).logsumexp(-1)
        loss = loss - (2 if name == "view" else 1) * said.sum() / asked.sum().clamp(min=1)
    return loss


def install(network: Network, file: Path = WEIGHTS) -> None:
    """Write the weights in half precision."""
    from safetensors.torch import save

    state = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, save({name: value.detach().cpu().half().contiguous() for name, value in state.items()}))


def read(file: Path) -> Network:
    """A network with installed weights. Raises InputError if there are none, or they do not fit."""
    from safetensors.torch import load_file

    if not file.is_file():
        raise InputError(f"there are no weights of a judge in {file}: there is no such file.")
    network = Network()
    counts = {name: value for name, value in network.state_dict().items() if not value.is_floating_point()}
    checkpoint.fill(network, counts | {name: value.float() for name, value in load_file(file).items()}, file)
    return network


# --- the report ---


def report(judge: Judge, count: int = 6000, views: int = 96, note: Callable[[str], None] = print) -> str:
    """How often the judge is right about pictures from cameras and seeds that it was not trained on, as a table.

    Pictures of one thing, as they are ("clean", on plain backgrounds of any colour) and spoilt as in training
    ("rough"); and clean ones of two things ("pairs"). "kinds": the kinds more likely there than not are exactly those
    that are seen. Each question: over the kinds it is asked about, the likeliest answer is a right one (`answers.py`
    says what is asked and right); "one view": of the views, those with one right word only. Then the same by kind, on
    clean pictures of one thing.
    """
    data = examples(count, views, HELD_OUT, torch.device("cpu"), note)
    two = (data.answers.present != 0).sum(1) > 1
    clean, spoilt = (marks(verdict_on(judge, data, look), data.answers) for look in ("clean", "rough"))
    lines = [f"{count} held-out pictures, {views} cameras a kind, {int(two.sum())} of pairs"]
    lines.append(f"{'':10}{'clean':>8}{'rough':>8}{'asked':>8}{'pairs':>8}{'asked':>8}")
    for name, right in clean.items():
        one, both = _number(right[~two]), _number(right[two])
        row = (_share(right[~two]), _share(spoilt[name][~two]), one, _share(right[two]), both)
        lines.append(f"{name:10}" + "".join(f"{value:>8}" for value in row))
    lines.append(f"{'':10}" + "".join(f"{name:>10}" for name in clean))
    for number, kind in enumerate(NAMES):
        here = (data.answers.present[:, number] == 1) & ~two
        each = [right[here, number] if right.ndim == 2 else right[here] for right in clean.values()]
        lines.append(f"{kind:10}" + "".join(f"{_share(one):>10}" for one in each))
    return "\n".join(lines)


def _share(marked: Tensor) -> str:
    return f"{float(marked.nanmean()):.3f}"


def _number(marked: Tensor) -> int:
    return int((~marked.isnan()).sum())


def verdict_on(judge: Judge, data: Examples, look: str) -> Verdict:
    """The judge on held-out pictures, "clean" on plain backgrounds or "rough"."""
    verdicts = []
    for start in range(0, len(data), 128):
        things = data.things[start : start + 128].float() / 255
        streams = Streams(HELD_OUT, start)
        plain = rough.laid(things, rough.plain(len(things), streams, things))
        verdicts.append(judge(plain if look == "clean" else rough.worn(rough.moved(things, streams), streams)))
    about = {name: torch.cat([v.about[name] for v in verdicts]) for name in WORDS}
    return Verdict(torch.cat([v.kinds for v in verdicts]), about)


def marks(verdict: Verdict, truth: Answers) -> dict[str, Tensor]:
    """1 for right, 0 for wrong, nan for not asked: the kinds of each picture [N], and every answer about a kind [N, K].

    The questions are those of WORDS, and "one view".
    """
    hidden = truth.present.isnan()
    found = {"kinds": (((verdict.kinds > 0.5) == (truth.present > 0.5)) | hidden).all(1).float()}
    for name, right in truth.right.items():
        said = verdict.about[name].argmax(-1, keepdim=True)
        found[name] = right.gather(-1, said)[..., 0].float().masked_fill(~truth.asks(name), torch.nan)
    several = truth.right["view"].sum(-1) != 1
    return found | {"one view": found["view"].masked_fill(several, torch.nan)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="train, with checkpoints here; the weights are left here too")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--rate", type=float, default=Settings.rate)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--start", default=Settings.start, help="weights of a judge to begin from")
    parser.add_argument(
        "--report", action="store_true", help="the judge that ships, or the folder's, on held-out pictures"
    )
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    try:
        file = given.folder / WEIGHTS.name if given.folder else WEIGHTS
        if given.folder:
            settings = Settings(steps=given.steps, rate=given.rate, seed=given.seed, start=given.start)
            install(train(given.folder, settings, devices.choose(given.device)), file)
        if given.report:
            print(report(Judge(read(file))))
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
