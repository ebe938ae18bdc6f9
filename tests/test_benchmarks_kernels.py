"""The benchmark of the kernels: who is timed, and that a row of its table is whole whoever refuses.

The libraries of the adapters are not needed: modules of the same name stand in for the adapters.
"""

import dataclasses
import re
import time
from types import ModuleType

import pytest
import torch

from benchmarks.kernels import __main__ as table
from benchmarks.kernels import floor
from benchmarks.kernels.floor import Rates, seconds
from benchmarks.kernels.workloads import WORKLOADS, Workload
from dreamkit.errors import InputError
from dreamkit.kernels import choose

RATES = Rates(1e10, 1e9, 1e9, 1e9)
COLUMNS = 8
NAP = 0.02  # seconds: many times what the kernels take for a hundredth of a workload


def small(name: str) -> Workload:
    """A hundredth of the workload whose name begins so."""
    (whole,) = [workload for workload in WORKLOADS if workload.name.startswith(name)]
    return dataclasses.replace(whole, make=lambda where, scale: whole.make(where, 0.01))


@pytest.fixture(autouse=True)
def no_peers(monkeypatch):
    """Dr.Jit, where it is installed, runs whole workloads."""
    monkeypatch.setattr(table, "PEERS", {})


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.fixture
def stand_in(monkeypatch):
    """Puts an adapter into the tables of an operator, as if its library and CUDA were here; returns a list that grows
    with every call it gets."""

    def put(operator: str, name: str, function: str | None, refuses: bool = False) -> list[str]:
        calls = []

        def napping(*arguments: object) -> object:
            calls.append(function)
            if refuses:
                raise InputError("not this one")
            time.sleep(NAP)
            return getattr(reference, function)(*arguments)

        package = f"dreamkit.kernels.{operator}"
        reference, adapter = choose.backend(package, "reference"), ModuleType(name)
        if function:
            setattr(adapter, function, napping)
        real, known = choose._load, choose.backends(package)
        monkeypatch.setattr(choose, "_load", lambda *asked: adapter if asked == (package, name) else real(*asked))
        assert known[name] == f"{name}_adapter"
        real_state = choose.available
        monkeypatch.setattr(choose, "available", lambda asked: real_state(asked) | {name: "ok"})
        return calls

    return put


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_a_workload_names_the_operator_that_it_runs(workload, monkeypatch):
    asked = set()
    real = choose._load
    monkeypatch.setattr(choose, "_load", lambda operator, name: asked.add(operator) or real(operator, name))
    workload.make(torch.device("cpu"), 0.001)("warp")
    assert asked == {f"dreamkit.kernels.{workload.operator}"}


@pytest.mark.parametrize(
    ("name", "library", "function"),
    [
        ("hash grid, 2^16", "tinycudann", "hashgrid"),
        ("composite", "nerfacc", "composite"),
        ("distortion", "nerfacc", "distortion"),
        ("march,", "nerfacc", "march"),
    ],
)
def test_an_adapter_that_is_there_is_timed_beside_ours(stand_in, device, name, library, function):
    workload, rounds = small(name), 2
    calls = stand_in(workload.operator, library, function)
    found = cells(table.row(workload, torch.device(device), RATES, rounds))
    assert len(found) == COLUMNS
    assert len(calls) == 2 * (1 + rounds)  # two turns, each of a round to warm up and those that count
    ours, (taken, ratio) = float(found[1]), re.search(rf"{library} ([\d.]+) \(([\d.]+)x\)", found[4]).groups()
    assert float(taken) >= 1e3 * NAP
    # What is printed is rounded to 0.05: the ratio lies between those of the numbers that round so.
    assert float(taken) / (ours + 0.06) - 0.06 <= float(ratio) <= float(taken) / max(ours - 0.06, 1e-9) + 0.06


@pytest.mark.parametrize(("function", "refuses"), [(None, False), ("visible", True)], ids=["lacks it", "refuses it"])
def test_an_adapter_that_cannot_leaves_the_row_whole(stand_in, device, function, refuses):
    workload = small("visible")
    calls = stand_in(workload.operator, "nerfacc", function, refuses)
    found = cells(table.row(workload, torch.device(device), RATES, 1))
    assert len(found) == COLUMNS
    assert found[4] == "nerfacc -"
    assert float(found[1]) > 0
    assert float(found[2]) > 0
    assert len(calls) == (2 if refuses else 0)  # once a turn


def test_an_adapter_that_fails_is_not_hidden():
    def job(backend: str) -> None:
        raise RuntimeError("illegal memory access")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        table.timed(job, "nerfacc", torch.device("cpu"), 1)


def test_no_row_names_what_is_not_here(device, monkeypatch):
    workload = small("march,")
    monkeypatch.setattr(choose, "available", lambda operator: {"warp": "ok", "nerfacc": "not here", "reference": "ok"})
    assert cells(table.row(workload, torch.device(device), RATES, 1))[4] == "-"


def test_what_determinism_costs_is_timed_with_it_on_and_it_is_off_again():
    seen = []

    def job(backend: str) -> None:
        seen.append((backend, torch.are_deterministic_algorithms_enabled()))
        time.sleep(NAP if seen[-1][1] else NAP / 4)

    workload = Workload("a nap", "march", lambda where, scale: job)
    found = cells(table.row(workload, torch.device("cpu"), RATES, 1, deterministic=True))
    cost = re.fullmatch(r"deterministic ([\d.]+) \(([\d.]+)x\)", found[4])
    assert float(cost[1]) >= 1e3 * NAP
    assert float(cost[2]) > 2  # it is 4, and sleeping may take longer than asked
    assert ("auto", True) in seen
    assert ("reference", True) not in seen
    assert not torch.are_deterministic_algorithms_enabled()


def test_where_torch_refuses_determinism_the_row_says_so():
    def job(backend: str) -> None:
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation")

    workload = Workload("nothing", "march", lambda where, scale: job)
    assert cells(table.row(workload, torch.device("cpu"), RATES, 1, deterministic=True))[4] == "deterministic -"
    assert not torch.are_deterministic_algorithms_enabled()


def test_on_cuda_a_round_ends_with_the_devices_work(monkeypatch):
    now, device, happened = iter(range(100)), torch.device("cuda:1"), []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda where: happened.append(where))
    monkeypatch.setattr(floor.time, "perf_counter", lambda: happened.append("clock") or next(now))
    assert seconds(lambda: happened.append("job"), device, 2) == 1
    rounds = "".join("s" if what == device else what[0] for what in happened)
    assert re.fullmatch(r"cjs(cjsc){2}", rounds)


def test_the_table_has_a_header_and_says_what_was_asked(monkeypatch, capsys):
    monkeypatch.setattr(table, "WORKLOADS", (small("march,"), small("visible")))
    monkeypatch.setattr(table, "measure", lambda where: RATES)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    arguments = ["kernels", "--device", "cpu", "--rounds", "1", "--only", "march"]
    monkeypatch.setattr("sys.argv", arguments)
    table.main()
    assert "deterministic" not in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*arguments, "--deterministic"])
    table.main()
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith("|")]
    assert [len(cells(line)) for line in rows] == [COLUMNS] * 3
    assert "deterministic: ours with torch.use_deterministic_algorithms(True)" in said
    assert cells(rows[2])[4].startswith("deterministic ")
