"""The operators, forward and backward, beside the torch reference and everything else that is installed.

    python -m benchmarks.kernels                      the table
    python -m benchmarks.kernels --deterministic      the same, and what determinism costs
    python -m benchmarks.kernels --plot scaling.png   time against size, from a hundredth to the whole

One process, one after the other, the best of some rounds, so that ratios hold where times do not. "peers" are the
adapters of the operator that can be used here (nerfacc, tinycudann, gsplat; "-" where one refuses the workload, or has
no such function) and libraries that need a program of their own. "floor" is the least time that the bytes, gathers and
exponentials of the workload take at the rates of this machine, measured first.
"""

import argparse
import functools
import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.kernels.floor import Rates, measure, seconds
from benchmarks.kernels.peers import PEERS
from benchmarks.kernels.workloads import WORKLOADS, Job, Workload
from dreamkit import device
from dreamkit.errors import InputError
from dreamkit.kernels import choose

SCALES = (0.01, 0.03, 0.1, 0.3, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="workloads whose name holds this")
    parser.add_argument(
        "--deterministic", action="store_true", help="time ours with torch.use_deterministic_algorithms too"
    )
    parser.add_argument("--plot", type=Path, help="write a plot of time against size instead of the table")
    arguments = parser.parse_args()
    try:
        where = device.choose(arguments.device)
    except InputError as error:
        parser.error(str(error))
    chosen = [w for w in WORKLOADS if arguments.only in w.name]
    if arguments.plot:
        plot(chosen, where, arguments.rounds, arguments.plot)
        return
    if arguments.deterministic:  # read when CUDA starts; without it torch refuses matrix products
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    rates = measure(where)
    hardware = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.processor() or "CPU"
    print(
        f"{hardware}, {torch.get_num_threads()} threads, torch {torch.__version__}; best of {arguments.rounds} rounds"
    )
    print(
        f"measured: copy {rates.copy / 1e9:.0f} GB/s, gathers {rates.gather_near / 1e9:.2f} (2^15 entries) and "
        f"{rates.gather_far / 1e9:.2f} (2^19) G/s, exp {rates.exp / 1e9:.1f} G/s"
    )
    if arguments.deterministic:
        print(
            "deterministic: ours with torch.use_deterministic_algorithms(True), among the peers; its ratio is its cost"
        )
    print()
    print("| workload | ms | reference | ratio | peers | floor | over floor | 1 thread |")
    print("|---|---|---|---|---|---|---|---|")
    for workload in chosen:
        print(row(workload, where, rates, arguments.rounds, arguments.deterministic), flush=True)


def row(workload: Workload, where: torch.device, rates: Rates, rounds: int, deterministic: bool = False) -> str:
    """One line of the table; times in milliseconds, ratios to ours in the same run."""
    job = workload.make(where, 1.0)
    others = beside(workload, job, where, rounds, deterministic)
    ours, times = float("inf"), dict.fromkeys(others, float("inf"))
    for _ in range(2):  # in turn, and twice: a slow moment of the machine does not hit one of them only
        ours = min(ours, 1e3 * seconds(lambda: job("auto"), where, rounds))
        for name, run in others.items():
            times[name] = min(times[name], 1e3 * (run() or float("inf")))
    reference = 1e3 * seconds(lambda: job("reference"), where, max(rounds // 4, 1))
    peers = [
        f"{name} {time:.1f} ({time / ours:.1f}x)" if time < float("inf") else f"{name} -"
        for name, time in times.items()
    ]
    single = ""
    if where.type == "cpu":
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        alone = 1e3 * seconds(lambda: job("auto"), where, rounds)
        torch.set_num_threads(threads)
        single = f"{alone:.1f} ({alone / ours:.2f}x)"
    floor = rates.floor(workload.work, workload.entries)
    over = f"{floor:.1f} | {ours / floor:.1f}x" if floor else "- | -"
    return (
        f"| {workload.name} | {ours:.1f} | {reference:.1f} | {reference / ours:.1f}x | {', '.join(peers) or '-'} "
        f"| {over} | {single} |"
    )


def beside(
    workload: Workload, job: Job, where: torch.device, rounds: int, deterministic: bool
) -> dict[str, Callable[[], float | None]]:
    """What is timed beside ours and the reference: its name, and what gives its seconds, None where it has none."""
    state = choose.available(f"dreamkit.kernels.{workload.operator}")
    adapters = [name for name, how in state.items() if how == "ok" and name not in ("warp", "reference")]
    found: dict[str, Callable[[], float | None]]
    found = {name: functools.partial(timed, job, name, where, rounds) for name in adapters}
    if deterministic:
        found["deterministic"] = functools.partial(timed, job, "auto", where, rounds, deterministic=True)
    peers = {name: peer(workload, where) for name, peer in PEERS.items()}
    return found | {name: functools.partial(seconds, run, where, rounds) for name, run in peers.items() if run}


def timed(job: Job, backend: str, where: torch.device, rounds: int, deterministic: bool = False) -> float | None:
    """Seconds of one backend; None where it refuses the workload, or torch its determinism."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        return seconds(lambda: job(backend), where, rounds)
    except InputError:
        return None
    except RuntimeError as error:
        if not deterministic or "deterministic" not in str(error):
            raise
        return None
    finally:
        torch.use_deterministic_algorithms(before)


def plot(chosen: list[Workload], where: torch.device, rounds: int, file: Path) -> None:
    """Time against size, both logarithmic, with a line of slope one through the largest: nothing may grow faster."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 5), layout="constrained")
    axes.set_prop_cycle(color=[pyplot.get_cmap("tab20")(i) for i in range(20)])
    print("milliseconds at " + ", ".join(f"{scale:g}" for scale in SCALES) + " of the size; growth over the last step")
    for workload in chosen:
        times = []
        for scale in SCALES:
            job = workload.make(where, scale)
            times.append(1e3 * seconds(lambda job=job: job("auto"), where, rounds))  # type: ignore[misc]
        growth = (times[-1] / times[-2]) / (SCALES[-1] / SCALES[-2])
        print(f"{workload.name:60} {'  '.join(f'{t:8.2f}' for t in times)}   {growth:.2f} of linear", flush=True)
        axes.loglog(SCALES, times, marker="o", label=workload.name)
    axes.loglog(SCALES, [100 * s for s in SCALES], color="grey", linestyle=":", label="linear")
    axes.set(xlabel="share of the workload's size", ylabel="ms, forward and backward")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(file, dpi=120)
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
