"""How long a 64 x 64 training view takes, forward and backward: `python -m benchmarks.render`.

The default HashGrid on the Warp kernels and on the plain references, in turns in one process, the best of all rounds.
The ratio holds on a busy machine, and so does the processor time (of all threads); the milliseconds on the wall need
a quiet one.
"""

import argparse
import time
from dataclasses import dataclass, replace

import torch

from dreamkit import device
from dreamkit.cameras import Orbit
from dreamkit.errors import InputError
from dreamkit.representations.hashgrid import HashGrid, HashGridScene
from dreamkit.representations.representation import LightName
from dreamkit.streams import Streams


@dataclass(frozen=True)
class Case:
    name: str
    blob_strength: float
    shading: LightName


CASES = (
    Case("first fog", HashGrid().blob_strength, "albedo"),
    Case("solid ball", 60.0, "albedo"),  # opaque after two samples, as an object is in the later half of a run
    Case("solid ball, lit", 60.0, "lambertian"),
)


@dataclass(frozen=True)
class Seconds:
    forward: float
    backward: float
    processor: float
    samples: int

    @property
    def total(self) -> float:
        return self.forward + self.backward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        where = device.choose(arguments.device)
    except InputError as error:
        parser.error(str(error))
    print(f"one 64 x 64 view, {where}, {arguments.threads} threads; ms, best of {arguments.rounds}")
    print(f"{'':17}{'kernels':>10}{'samples':>9}{'forward':>9}{'backward':>9}{'both':>7}{'processor':>10}")
    for case in CASES:
        best = _best(case, where, arguments.rounds)
        for name, seconds in best.items():
            numbers = (seconds.forward, seconds.backward, seconds.total, seconds.processor)
            forward, backward, both, processor = (f"{1e3 * n:.1f}" for n in numbers)
            row = f"{case.name:17}{name:>10}{seconds.samples:9}{forward:>9}{backward:>9}{both:>7}{processor:>10}"
            print(row)
        print(f"{case.name:17}reference / warp = {best['reference'].total / best['warp'].total:.1f}")


def _best(case: Case, where: torch.device, rounds: int) -> dict[str, Seconds]:
    """By backend the fastest of some rounds, each part by itself, after one round for warming up."""
    scenes = {backend: _scene(case, backend, where) for backend in ("warp", "reference")}
    views = [{name: _view(built, case.shading) for name, built in scenes.items()} for _ in range(rounds + 1)]
    return {name: _fastest([view[name] for view in views[1:]]) for name in scenes}


def _fastest(views: list[Seconds]) -> Seconds:
    return Seconds(
        min(v.forward for v in views),
        min(v.backward for v in views),
        min(v.processor for v in views),
        views[0].samples,
    )


def _scene(case: Case, backend: str, where: torch.device) -> HashGridScene:
    """The scene after its first look at what is empty."""
    built = replace(HashGrid(), blob_strength=case.blob_strength, backend=backend).build(where, Streams(0, 0))
    built.after_step(0, Streams(0, 0))
    return built


def _view(built: HashGridScene, shading: LightName) -> Seconds:
    cameras = Orbit().sample(1, Streams(0, 1))
    for group in built.parameters():
        for parameter in group["params"]:
            parameter.grad = None
    processor, start = time.process_time(), _clock(built)
    images = built.render(cameras, Streams(0, 1), shading=shading)
    middle = _clock(built)
    images.rgb.square().sum().backward()
    end = _clock(built)
    samples = 0 if images.samples is None else len(images.samples.weight)
    return Seconds(middle - start, end - middle, time.process_time() - processor, samples)


def _clock(built: HashGridScene) -> float:
    if built.network.table.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
