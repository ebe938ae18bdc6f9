"""What this machine can do at best: its measured rates, and the time below which a workload cannot go."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Work:
    """The least a workload must do, whatever the algorithm: counts, forward and backward together."""

    moved: float = 0.0
    """Bytes read or written once each: inputs, outputs, what the adjoint needs, gradients."""
    gathers: float = 0.0
    """Reads of 8 bytes at addresses without order."""
    exps: float = 0.0

    def __mul__(self, scale: float) -> "Work":
        return Work(self.moved * scale, self.gathers * scale, self.exps * scale)


@dataclass(frozen=True)
class Rates:
    """Per second: bytes copied, 8-byte gathers from tables of 2^15 and of 2^19 entries, exponentials."""

    copy: float
    gather_near: float
    gather_far: float
    exp: float

    def floor(self, work: Work, entries: int = 0) -> float:
        """Milliseconds that the work takes at the least: its dearest part, as if the others overlapped with it."""
        gather = self.gather_near if entries <= 2**15 else self.gather_far
        return 1e3 * max(work.moved / self.copy, work.gathers / gather, work.exps / self.exp)


def measure(where: torch.device) -> Rates:
    """The rates of a device with torch's present number of threads."""
    block = torch.rand(1 << 24, device=where)
    out = torch.empty_like(block)
    count = 1 << 22

    def gather(entries: int) -> float:
        table = torch.rand(entries, device=where, dtype=torch.float64)
        index = torch.randint(entries, (count,), device=where, dtype=torch.int32)
        found = torch.empty(count, device=where, dtype=torch.float64)
        return count / seconds(lambda: torch.index_select(table, 0, index, out=found), where)

    return Rates(
        copy=2 * 4 * len(block) / seconds(lambda: out.copy_(block), where),
        gather_near=gather(2**15),
        gather_far=gather(2**19),
        exp=len(block) / seconds(lambda: torch.exp(block, out=out), where),
    )


def seconds(job: Callable[[], object], where: torch.device, rounds: int = 7) -> float:
    """The fastest of some rounds, after one for warming up. On CUDA a round ends when the device has done its work."""
    best = float("inf")
    for number in range(rounds + 1):
        began = time.perf_counter()
        job()
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        if number:
            best = min(best, time.perf_counter() - began)
    return best
