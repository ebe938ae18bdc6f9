"""Which backend is chosen, and that the adapters of CUDA libraries hand over what those libraries document.

The libraries are not here: modules of the same name stand in for them and do in torch what their documentation says.
Whether the real ones do it is seen only where CUDA is.
"""

import importlib
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from dreamkit.errors import InputError
from dreamkit.kernels import choose
from dreamkit.kernels.composite import composite, distortion
from dreamkit.kernels.hashgrid import HashGridShape, hashgrid
from dreamkit.kernels.march import march

OPERATORS = ["hashgrid", "march", "composite", "query"]
ADAPTERS = [("hashgrid", "tinycudann"), ("march", "nerfacc"), ("composite", "nerfacc")]
absent = pytest.mark.skipif(torch.cuda.is_available(), reason="the libraries may be here")


@pytest.fixture
def stand_in(monkeypatch):
    """Puts a module into the place of a library and lets its adapter work on this device; returns the adapter."""

    def put(operator: str, library: str, **functions: object) -> ModuleType:
        module = ModuleType(library)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, library, module)
        name = f"dreamkit.kernels.{operator}.{library}_adapter"
        monkeypatch.delitem(sys.modules, name, raising=False)
        adapter = importlib.import_module(name)
        monkeypatch.setattr(adapter, "need_cuda_float32", lambda library, *tensors: None)
        loaded = {(f"dreamkit.kernels.{operator}", library): adapter}
        real = choose._load
        monkeypatch.setattr(choose, "_load", lambda *key: loaded.get(key) or real(*key))
        return adapter

    yield put
    for operator, library in ADAPTERS:  # an adapter of a stand-in must not outlive it
        sys.modules.pop(f"dreamkit.kernels.{operator}.{library}_adapter", None)


@pytest.mark.parametrize("operator", OPERATORS)
def test_auto_is_warp_and_every_backend_has_a_state(operator):
    package = f"dreamkit.kernels.{operator}"
    state = choose.available(package)
    assert next(iter(state)) == "warp"
    assert list(state)[-1] == "reference"
    assert state["reference"] == "ok"
    assert choose.backend(package).__name__ == f"{package}.warp_kernel"
    assert choose.backend(package, "reference").__name__ == f"{package}.reference"


@absent
@pytest.mark.parametrize(("operator", "library"), ADAPTERS)
def test_an_absent_library_is_named(operator, library):
    package = f"dreamkit.kernels.{operator}"
    with pytest.raises(
        InputError, match=rf"'{library}' was asked for, but it cannot be imported.*use 'auto' or 'warp'"
    ):
        choose.implementation(package, operator, library)
    assert library in choose.available(package)[library]


def test_an_unknown_backend_is_named_with_those_of_its_operator():
    with pytest.raises(InputError, match=r"'nerfac' is not known\. Did you mean 'nerfacc'"):
        choose.backend("dreamkit.kernels.march", "nerfac")
    with pytest.raises(InputError, match=r"'nerfacc' is not known\. Known: auto, reference, warp"):
        choose.backend("dreamkit.kernels.query", "nerfacc")


def test_a_backend_that_cannot_be_imported_says_why(monkeypatch):
    monkeypatch.setattr(choose, "_load", lambda operator, name: ImportError("No module named 'warp'"))
    with pytest.raises(InputError, match=r"'warp' was asked for, but it cannot be imported.*No module named 'warp'"):
        choose.backend("dreamkit.kernels.hashgrid", "warp")


def test_auto_takes_an_adapter_only_without_warp_and_for_tensors_that_suit_it(stand_in, monkeypatch):
    adapter = stand_in("march", "nerfacc", traverse_grids=None)
    package = "dreamkit.kernels.march"
    on_cuda = SimpleNamespace(is_cuda=True, dtype=torch.float32)
    assert choose.implementation(package, "march", "auto", on_cuda).__module__ == f"{package}.warp_kernel"
    real = choose._load
    without = {"warp": ImportError("none")}
    monkeypatch.setattr(choose, "_load", lambda operator, name: without.get(name) or real(operator, name))
    assert choose.implementation(package, "march", "auto", on_cuda) is adapter.march
    for unfit in (torch.zeros(1), SimpleNamespace(is_cuda=True, dtype=torch.float64), None):
        assert choose.implementation(package, "march", "auto", unfit).__module__ == f"{package}.reference"
    assert choose.implementation(package, "resample", "auto", on_cuda).__module__ == f"{package}.reference"
    with pytest.raises(InputError, match=r"dreamkit\.kernels\.march lacks what was asked of it\. Use 'auto'"):
        choose.implementation(package, "resample", "nerfacc", on_cuda)


def test_an_adapter_wants_float32_on_cuda():
    with pytest.raises(InputError, match=r"'nerfacc' works on float32 tensors on CUDA; got torch.float64 on cpu"):
        choose.need_cuda_float32("nerfacc", torch.zeros(1, dtype=torch.float64))


def exclusive_sum(inputs: Tensor, packed_info: Tensor) -> Tensor:
    """nerfacc.exclusive_sum: within each [first, number] of packed_info."""
    parts = [inputs[first : first + number] for first, number in packed_info.tolist()]
    return torch.cat([torch.cat([part[:1] * 0, part[:-1].cumsum(0)]) for part in parts])


def accumulate_along_rays(weights: Tensor, values: Tensor | None, ray_indices: Tensor, n_rays: int) -> Tensor:
    """nerfacc.accumulate_along_rays, for packed samples."""
    assert ray_indices.dtype == torch.int64
    source = weights[:, None] if values is None else weights[:, None] * values
    return torch.zeros(n_rays, source.shape[1], dtype=source.dtype).index_add(0, ray_indices, source)


def nerfacc_distortion(weights: Tensor, t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor, n_rays: int) -> Tensor:
    """nerfacc.distortion, as the double sum it stands for."""
    middle, length, same = (t_starts + t_ends) / 2, t_ends - t_starts, ray_indices[:, None] == ray_indices
    pairs = (weights[:, None] * weights * (middle[:, None] - middle).abs() * same).sum(1)
    return accumulate_along_rays(pairs + weights**2 * length / 3, None, ray_indices, n_rays)


def test_nerfacc_composites_as_the_reference(stand_in):
    stand_in(
        "composite",
        "nerfacc",
        exclusive_sum=exclusive_sum,
        accumulate_along_rays=accumulate_along_rays,
        distortion=nerfacc_distortion,
    )
    draw = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, 3, 3, 8, 12]).int()
    density, t, length = (torch.rand(12, generator=draw).double() for _ in range(3))
    t, features = t.cumsum(0), torch.rand(12, 2, generator=draw).double()
    density[4] = 1e-9  # keeps its digits
    results = []
    for backend in ("nerfacc", "reference"):
        d, f = density.clone().requires_grad_(), features.clone().requires_grad_()
        seen = composite(d, f, t, length, offsets, backend=backend)
        loss = distortion(seen.weight, t, length, offsets, backend=backend)
        (sum((x * x).sum() for x in seen) + loss.sum()).backward()
        results.append([*seen, loss, d.grad, f.grad])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14)


def traverse_grids(rays_o, rays_d, binaries, aabbs, near_planes, step_size):
    """nerfacc.traverse_grids for one grid, as its kernel does it: the steps from the near plane whose middles lie in
    an occupied cell of the box, step added to step."""
    assert aabbs.tolist() == [[-1, -1, -1, 1, 1, 1]]
    assert binaries.shape == (1, 8, 8, 8)
    values, rays = [], []
    for ray, (o, d, t) in enumerate(zip(rays_o, rays_d, near_planes.tolist(), strict=True)):
        while t < 10:
            place = o + d * (t + step_size / 2)
            if (place.abs() < 1).all() and binaries[0][tuple(((place + 1) * 4).long())]:
                values.append(t + step_size / 2), rays.append(ray)
            t += step_size
    return None, SimpleNamespace(vals=torch.tensor(values), ray_indices=torch.tensor(rays)), None


def test_nerfacc_marches_as_the_reference(stand_in):
    stand_in("march", "nerfacc", traverse_grids=traverse_grids)
    draw = torch.Generator().manual_seed(0)
    origins = torch.randn(30, 3, generator=draw) * 1.5
    directions = torch.nn.functional.normalize(torch.randn(30, 3, generator=draw) - origins, dim=1)
    origins[3], directions[4] = math.nan, 0
    jitter = torch.rand(30, generator=draw)
    occupancy = torch.rand(8, 8, 8, generator=draw) < 0.4
    for near in (0.0, 0.7):
        got, want = (
            march(origins, directions, occupancy, step=0.11, jitter=jitter, near=near, backend=backend)
            for backend in ("nerfacc", "reference")
        )
        assert len(want.t) > 50
        for name in ("ray", "t", "length", "offsets"):  # the same bits: t is computed anew from its number
            assert torch.equal(getattr(got, name), getattr(want, name)), name
    none = march(origins[3:5], directions[3:5], occupancy, step=0.11, jitter=jitter[:2], backend="nerfacc")
    assert none.offsets.tolist() == [0, 0, 0]


class Encoding(torch.nn.Module):
    """tinycudann.Encoding of a grid with one level, as its documentation and encodings/grid.h describe it."""

    def __init__(self, n_input_dims: int, encoding_config: dict[str, object], dtype: torch.dtype) -> None:
        super().__init__()
        assert (n_input_dims, dtype) == (3, torch.float32)
        wanted = {"otype": "Grid", "type": "Hash", "n_levels": 1, "interpolation": "Linear"}
        assert wanted.items() <= encoding_config.items()
        self.scale = encoding_config["base_resolution"] - 1
        self.side = math.ceil(self.scale) + 1
        self.rows = min(-(-(self.side**3) // 8) * 8, 2 ** encoding_config["log2_hashmap_size"])
        self.width = encoding_config["n_features_per_level"]
        self.params = torch.nn.Parameter(torch.zeros(self.rows * self.width))

    def forward(self, x: Tensor) -> Tensor:
        table, place = self.params.reshape(self.rows, self.width), x * self.scale + 0.5
        cell = place.floor()
        fraction, total = place - cell, 0
        for corner in torch.cartesian_prod(*[torch.arange(2)] * 3):
            i, j, k = (cell.long() + corner).unbind(1)
            index = i + j * self.side + k * self.side**2
            if self.side**3 > self.rows:
                index = i ^ (j * 2654435761) ^ (k * 805459861)
            weight = torch.where(corner.bool(), fraction, 1 - fraction).prod(1)
            total = total + weight[:, None] * table[index % self.rows]
        return total


def test_tinycudann_encodes_as_the_reference(stand_in):
    stand_in("hashgrid", "tinycudann", Encoding=Encoding)
    shape = HashGridShape(levels=4, features=2, log2_entries=7, coarsest=3, finest=12)  # 4^3 vertices fit, 6^3 do not
    draw = torch.Generator().manual_seed(0)
    points, table = torch.rand(50, 3, generator=draw).double(), torch.rand(shape.total, 2, generator=draw).double()
    points[0], points[1] = torch.tensor([-0.5, 0.2, 1.7]), 1.0
    results = []
    for backend in ("tinycudann", "reference"):
        p, t = points.clone().requires_grad_(), table.clone().requires_grad_()
        out = hashgrid(p, t, shape, backend=backend)
        out.square().sum().backward()
        results.append([out.detach(), t.grad, p.grad[2:]])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert hashgrid(points[:0], table, shape, backend="tinycudann").shape == (0, 8)
    odd = HashGridShape(levels=1, features=3, log2_entries=7, coarsest=3, finest=3)
    with pytest.raises(InputError, match="1, 2, 4 or 8 features; got 3"):
        hashgrid(points, torch.zeros(odd.total, 3).double(), odd, backend="tinycudann")
