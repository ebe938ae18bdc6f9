"""Which backend is chosen, and that the adapters of CUDA libraries hand over what those libraries document.

The libraries are not here: modules of the same name stand in for them and do in torch what their documentation says.
Whether the real ones do it is seen only where CUDA is.
"""

import dataclasses
import importlib
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from dreamkit.cameras import Cameras, orbit
from dreamkit.errors import InputError
from dreamkit.kernels import choose
from dreamkit.kernels.composite import composite, distortion
from dreamkit.kernels.hashgrid import HashGridShape, hashgrid
from dreamkit.kernels.march import march
from dreamkit.kernels.splat import splat

OPERATORS = ["hashgrid", "march", "composite", "query", "splat"]
ADAPTERS = [("hashgrid", "tinycudann"), ("march", "nerfacc"), ("composite", "nerfacc"), ("splat", "gsplat")]
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
    adapter = put_nerfacc(stand_in, monkeypatch, "march")
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


def put_nerfacc(stand_in, monkeypatch, operator: str, version: str = "0.5.3", compiled: object = "code") -> ModuleType:
    monkeypatch.setitem(sys.modules, "nerfacc.cuda._backend", SimpleNamespace(_C=compiled))
    functions = [traverse_grids, exclusive_sum, accumulate_along_rays]
    return stand_in(operator, "nerfacc", __version__=version, **{f.__name__: f for f in functions})


def test_nerfacc_composites_as_the_reference(stand_in, monkeypatch):
    put_nerfacc(stand_in, monkeypatch, "composite")
    draw = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, 3, 3, 8, 12]).int()
    density, t, length = (torch.rand(12, generator=draw).double() for _ in range(3))
    t, features = t.cumsum(0) + 1e6, torch.rand(12, 2, generator=draw).double()  # far off: sums of t lose digits
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


def test_nerfacc_without_a_compiler_or_too_old_says_so(stand_in, monkeypatch):
    for operator in ("march", "composite"):
        with pytest.raises(ImportError, match=r"nerfacc is 0\.5\.2; needed is 0\.5\.3 or later"):
            put_nerfacc(stand_in, monkeypatch, operator, version="0.5.2")
        put_nerfacc(stand_in, monkeypatch, operator, compiled=None)
    some, none = torch.rand(3, 3), torch.zeros(4).int()
    with pytest.raises(InputError, match=r"'nerfacc' found no CUDA toolkit"):
        march(some, some, torch.ones(8, 8, 8) > 0, step=0.1, jitter=some[0], backend="nerfacc")
    for run in (lambda *x: composite(x[0], x[0][:, None], *x[1:], backend="nerfacc"), None):
        run = run or (lambda *x: distortion(*x, backend="nerfacc"))
        with pytest.raises(InputError, match=r"'nerfacc' found no CUDA toolkit"):
            run(some[0, :0], some[0, :0], some[0, :0], none)


def test_nerfacc_refuses_steps_that_rounding_would_lose(stand_in, monkeypatch):
    put_nerfacc(stand_in, monkeypatch, "march")
    ahead = torch.tensor([[0.0, 0.0, -1.0]])
    with pytest.raises(InputError, match=r"cannot march in steps of 0\.1 so far from an origin"):
        march(-1e7 * ahead, ahead, torch.ones(8, 8, 8) > 0, step=0.1, jitter=torch.zeros(1), backend="nerfacc")


def test_nerfacc_marches_as_the_reference(stand_in, monkeypatch):
    put_nerfacc(stand_in, monkeypatch, "march")
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


@pytest.mark.parametrize("frozen", [True, False])
def test_tinycudann_gets_what_its_derivatives_need(stand_in, frozen):
    """A table that wants gradients, without which its second ones are 0; and no gradient in another order."""
    seen = []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            seen.append(gradient.is_contiguous())
            return gradient

    class Watched(Encoding):
        def forward(self, x: Tensor) -> Tensor:
            assert self.params.requires_grad
            return Look.apply(super().forward(x))

    stand_in("hashgrid", "tinycudann", Encoding=Watched)
    shape = HashGridShape(levels=1, features=2, log2_entries=7, coarsest=3, finest=3)
    points = torch.rand(16, 3).double().requires_grad_()
    table = torch.rand(shape.total, 2).double().requires_grad_(not frozen)
    out = hashgrid(points, table, shape, backend="tinycudann")
    out.backward(torch.rand(2, 16).double().T)
    assert seen == [True]
    assert points.grad is not None
    assert (table.grad is None) == frozen


def test_tinycudann_has_no_deterministic_gradients(stand_in):
    stand_in("hashgrid", "tinycudann", Encoding=Encoding)
    shape = HashGridShape(levels=1, features=2, log2_entries=7, coarsest=3, finest=3)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(InputError, match="'tinycudann' has no deterministic gradients"):
            hashgrid(torch.rand(2, 3), torch.rand(shape.total, 2), shape, backend="tinycudann")
    finally:
        torch.use_deterministic_algorithms(False)


def fully_fused_projection(
    means,
    covars,
    quats,
    scales,
    viewmats,
    Ks,
    width,
    height,
    eps2d,
    near_plane,
    far_plane,
    calc_compensations,
    opacities,
):
    """gsplat.fully_fused_projection of pinhole cameras: NaN stands for what it leaves uninitialised."""
    assert covars is None
    assert viewmats[:, 3].tolist() == [[0, 0, 0, 1]] * len(viewmats)
    turn = viewmats[:, None, :3, :3]
    x, y, z = ((turn @ means[:, :, None]).squeeze(-1) + viewmats[:, None, :3, 3]).unbind(-1)
    fx, fy, cx, cy = (Ks[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    w, i, j, k = (quats * quats.square().sum(-1, keepdim=True).rsqrt()).unbind(-1)
    spin = [1 - 2 * (j * j + k * k), 2 * (i * j - w * k), 2 * (i * k + w * j)]
    spin += [2 * (i * j + w * k), 1 - 2 * (i * i + k * k), 2 * (j * k - w * i)]
    spin += [2 * (i * k - w * j), 2 * (j * k + w * i), 1 - 2 * (i * i + j * j)]
    axes = turn @ (torch.stack(spin, -1).reshape(-1, 3, 3) * scales[:, None])
    u = (x / z).clamp(-(cx / fx + 0.15 * width / fx), (width - cx) / fx + 0.15 * width / fx)
    v = (y / z).clamp(-(cy / fy + 0.15 * height / fy), (height - cy) / fy + 0.15 * height / fy)
    rows = [fx / z, 0 * z, -fx * u / z, 0 * z, fy / z, -fy * v / z]
    root = torch.stack(rows, -1).reshape(*z.shape, 2, 3) @ axes
    before = root @ root.mT
    covariance = before + eps2d * torch.eye(2).to(before)
    compensations = (before.det() / covariance.det()).clamp(min=0).sqrt()
    conics = covariance.inverse()[..., [0, 0, 1], [0, 1, 1]]
    centre = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
    with torch.no_grad():
        strength = opacities * (compensations if calc_compensations else 1)
        reach = (2 * (strength * 255).clamp(min=1).log()).sqrt().clamp(max=3.33)
        radii = (reach[..., None] * covariance.diagonal(dim1=-2, dim2=-1).sqrt()).ceil().nan_to_num(0)
        size = torch.tensor([width, height])
        seen = ((centre + radii > 0) & (centre - radii < size)).all(-1) & (strength >= 1 / 255)
        seen &= (z >= near_plane) & (z <= far_plane)
    masked = [torch.where(seen.reshape(seen.shape + (1,) * (t.ndim - 2)), t, math.nan) for t in (centre, z, conics)]
    factor = torch.where(seen, compensations, math.nan) if calc_compensations else None
    return (radii * seen[..., None]).int(), *masked, factor


def isect_tiles(means2d, radii, depths, tile_size, tile_width, tile_height):
    """gsplat.isect_tiles: image, tile and the bits of the depth in one key, sorted; and the Gaussian of each."""
    assert radii.dtype == torch.int32
    bits, found = (tile_width * tile_height).bit_length(), []
    keys = depths.detach().float().view(torch.int32).long()
    for image, n in (radii > 0).all(-1).nonzero().tolist():
        low = ((means2d[image, n] - radii[image, n]) / tile_size).floor().long().clamp(min=0).tolist()
        high = ((means2d[image, n] + radii[image, n]) / tile_size).ceil().long().tolist()
        for row in range(low[1], min(high[1], tile_height)):
            for column in range(low[0], min(high[0], tile_width)):
                tile = (image << bits) + row * tile_width + column
                found.append(((tile << 32) + int(keys[image, n]), image * radii.shape[1] + n))
    ids, order = torch.tensor(sorted(found, key=lambda pair: pair[0]), dtype=torch.int64).reshape(-1, 2).unbind(1)
    return None, ids, order.int()


def isect_offset_encode(isect_ids, n_images, tile_width, tile_height):
    """gsplat.isect_offset_encode: the first of each tile."""
    tiles = tile_width * tile_height
    first = [(image << tiles.bit_length()) + tile for image in range(n_images) for tile in range(tiles)]
    found = torch.searchsorted(isect_ids >> 32, torch.tensor(first))
    return found.int().reshape(n_images, tile_height, tile_width)


class PerPixel(torch.autograd.Function):
    """The centres once for each pixel; the backward pass leaves the sum of absolute gradients in their `absgrad`."""

    @staticmethod
    def forward(ctx, means2d, pixels):
        ctx.save_for_backward(means2d)
        return means2d.expand(pixels, *means2d.shape).clone()

    @staticmethod
    def backward(ctx, gradient):
        (means2d,) = ctx.saved_tensors
        means2d.absgrad = gradient.abs().sum(0)
        return gradient.sum(0), None


def rasterize_to_pixels(
    means2d, conics, colors, opacities, image_width, image_height, tile_size, isect_offsets, flatten_ids, absgrad
):
    """gsplat.rasterize_to_pixels, pixel by pixel."""
    assert colors.shape[-1] <= 33
    count, across = means2d.shape[1], isect_offsets.shape[2]
    ends = [*isect_offsets.flatten().tolist(), len(flatten_ids)]
    places = PerPixel.apply(means2d, image_height * image_width) if absgrad else None
    pictures, alphas = [], []
    for image in range(len(means2d)):
        for pixel in range(image_height * image_width):
            row, column = divmod(pixel, image_width)
            tile = (image * isect_offsets.shape[1] + row // tile_size) * across + column // tile_size
            light, total = torch.ones(()).to(conics), torch.zeros(colors.shape[-1]).to(conics)
            for flat in flatten_ids[ends[tile] : ends[tile + 1]].tolist():
                n = flat - image * count
                x, y = (places[pixel] if absgrad else means2d)[image, n] - torch.tensor([column + 0.5, row + 0.5])
                a, b, c = conics[image, n]
                alpha = (opacities[image, n] * torch.exp(-(a * x * x + c * y * y) / 2 - b * x * y)).clamp(max=0.999)
                if alpha < 1 / 255:
                    continue
                if light * (1 - alpha) <= 1e-4:
                    break
                total, light = total + light * alpha * colors[image, n], light * (1 - alpha)
            pictures.append(total), alphas.append(1 - light)
    shape = (len(means2d), image_height, image_width, -1)
    return torch.stack(pictures).reshape(shape), torch.stack(alphas).reshape(shape)


def spherical_harmonics(degrees_to_use, dirs, coeffs, masks):
    """gsplat.spherical_harmonics up to degree 1: NaN stands for what it leaves uninitialised."""
    assert degrees_to_use == 1
    x, y, z = torch.nn.functional.normalize(dirs, dim=-1).unbind(-1)
    bases = torch.stack([torch.full_like(x, 0.28209479177387814), *(0.4886025119029199 * t for t in (-y, z, -x))], -1)
    return torch.where(masks[..., None], (bases[..., None] * coeffs).sum(-2), math.nan)


def put_gsplat(stand_in, monkeypatch, version: str = "1.5.3", compiled: object = "code") -> ModuleType:
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", SimpleNamespace(_C=compiled))
    functions = [fully_fused_projection, isect_tiles, isect_offset_encode, rasterize_to_pixels, spherical_harmonics]
    return stand_in("splat", "gsplat", __version__=version, **{f.__name__: f for f in functions})


def views(size: tuple[int, int]) -> Cameras:
    cameras = orbit([10.0, 130.0], [20.0, -35.0], fov_degrees=50.0, size=size)
    changed = {name: getattr(cameras, name).double() for name in ("camera_to_world", "fov_degrees")}
    return dataclasses.replace(cameras, **changed)


def gaussians(features: tuple[int, ...]) -> list[Tensor]:
    """Nine: some behind others, the last three behind a camera, outside, and too faint."""
    draw = torch.Generator().manual_seed(0)
    means, quaternions, scales, values = (
        torch.randn(9, *s, generator=draw).double() for s in ((3,), (4,), (3,), features)
    )
    means, opacities = means * 0.4, torch.rand(9, generator=draw).double() * 0.7 + 0.3
    means[6], means[7], opacities[8], quaternions[2] = torch.tensor([5.0, 1.0, 2.0]), 1.6, 0.003, 0
    opacities[3], means[4, 2] = 1, means[4, 2] + 0.9  # denser than the limit of alpha; at the border
    return [means, quaternions, torch.exp(scales * 0.5 - 1.8), opacities, values * 0.4]


@pytest.mark.parametrize(
    ("features", "settings"),
    [
        ((3,), {"absolute": True}),
        ((2,), {"antialiased": True, "near": 2.9}),
        ((4, 3), {"sh_degree": 1, "absolute": True}),
        ((40,), {}),
    ],
)
def test_gsplat_draws_as_the_reference(stand_in, monkeypatch, features, settings):
    put_gsplat(stand_in, monkeypatch)
    cameras, weigh = views((18, 21)), torch.Generator().manual_seed(1)
    background = torch.rand(2, features[-1], generator=weigh).double()
    weights = torch.randn(2, features[-1] + 2, 18, 21, generator=weigh).double()
    results = []
    for backend in ("gsplat", "reference"):
        leaves = [x.clone().requires_grad_() for x in [*gaussians(features), cameras.camera_to_world, background]]
        moved = dataclasses.replace(cameras, camera_to_world=leaves[5])
        seen = splat(*leaves[:5], moved, background=leaves[6], backend=backend, **settings)
        seen.screen.retain_grad()
        pictures = torch.cat([seen.features, seen.alpha[:, None], seen.depth[:, None]], 1)
        (pictures * weights).sum().backward()
        spread = [seen.spread.grad] if settings.get("absolute") else []
        results.append([pictures, seen.radii, seen.screen, seen.screen.grad, *spread, *(x.grad for x in leaves)])
    radii = results[1][1]
    assert (radii > 0).sum() > 8
    assert (radii == 0).sum() > 2
    for got, want in zip(*results, strict=True):  # 1e-9: float64, some sums and determinants in another order
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9 * float(want.detach().abs().max()))


def test_gsplat_draws_nothing_of_nothing(stand_in, monkeypatch):
    put_gsplat(stand_in, monkeypatch)
    some = gaussians((3,))
    none = splat(*(x[:0] for x in some), views((4, 5)), backend="gsplat")  # gsplat would divide by their number
    assert none.features.shape == (2, 3, 4, 5)
    some[0][:] = torch.tensor([0.0, 0.0, -50.0])  # below what one camera sees, and behind the other
    unseen = splat(*some, views((4, 5)), backend="gsplat")
    assert not unseen.alpha.any()
    assert not unseen.screen.any()


def test_gsplat_refuses_what_it_cannot_do(stand_in, monkeypatch):
    adapter = put_gsplat(stand_in, monkeypatch)
    given = [*gaussians((33,)), views((4, 5))]
    with pytest.raises(InputError, match="absolute gradients of at most 32 channels; got 33"):
        splat(*given, absolute=True, backend="gsplat")
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(InputError, match="no deterministic gradients"):
            splat(*given, backend="gsplat")
        with torch.no_grad():
            splat(*given, backend="gsplat")
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(adapter, "need_cuda_float32", choose.need_cuda_float32)
    with pytest.raises(InputError, match=r"'gsplat' works on float32 tensors on CUDA; got torch\.float64 on cpu"):
        splat(*given, backend="gsplat")


def test_gsplat_without_a_compiler_or_too_old_says_so(stand_in, monkeypatch):
    put_gsplat(stand_in, monkeypatch, compiled=None)
    with pytest.raises(InputError, match="no CUDA toolkit"):
        splat(*gaussians((3,)), views((4, 5)), backend="gsplat")
    for version in ("1.4.0", "1.6.0"):
        with pytest.raises(ImportError, match=rf"gsplat is {version}; needed is 1\.5 or later, before 1\.6"):
            put_gsplat(stand_in, monkeypatch, version=version)
    monkeypatch.setitem(sys.modules, "gsplat.cuda._constants", ModuleType("gsplat.cuda._constants"))
    with pytest.raises(ImportError, match=r"gsplat says it is 1\.5\.3, but its source is of 1\.6"):
        put_gsplat(stand_in, monkeypatch)
