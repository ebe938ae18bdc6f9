"""Compositing in Warp, forward and adjoint, for CPU threads and CUDA: one item per ray. The contract is in the package.

No two rays share a sample, so rays can be cut among threads in any way and every sum has one order.
"""

import functools
from typing import Any, no_type_check

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from dreamkit.kernels.launch import OPTIONS, array, launch, scalar, vectors


def composite(
    density: Tensor, features: Tensor, t: Tensor, length: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[S] ... -> features [R, C], alpha [R], depth [R], weight [S]."""
    inputs = (tensor.contiguous() for tensor in (density, features, t.detach(), length.detach(), offsets))
    features_out, alpha, depth, weight = _Composite.apply(*inputs)
    return features_out, alpha, depth, weight


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, density: Tensor, features: Tensor, t: Tensor, length: Tensor, offsets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rays, width = len(offsets) - 1, features.shape[1]
        seen = density.new_empty(rays, width)
        alpha, depth, behind = density.new_empty(3, rays).unbind()
        weight = torch.empty_like(density)
        real = scalar(density)
        scalars = [array(tensor, real) for tensor in (density, t, length, alpha, depth, behind, weight)]
        launch(
            _kernels(real, width)[0],
            rays,
            [array(offsets, wp.int32), vectors(features, width), vectors(seen, width), *scalars],
            density.device,
        )
        ctx.save_for_backward(features, t, length, offsets, weight, behind)
        ctx.set_materialize_grads(False)
        return seen, alpha, depth, weight

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, to_seen: Tensor | None, to_alpha: Tensor | None, to_depth: Tensor | None, to_weight: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        features, t, length, offsets, weight, behind = ctx.saved_tensors
        rays, width = len(offsets) - 1, features.shape[1]
        none = weight.new_empty(0)  # stands for a gradient that did not come, or is not wanted: an array of no length
        to_density = torch.empty_like(weight)
        to_features = torch.empty_like(features) if ctx.needs_input_grad[1] else none
        arrived = [none if g is None else g.contiguous() for g in (to_seen, to_alpha, to_depth, to_weight)]
        real = scalar(weight)
        scalars = [array(tensor, real) for tensor in (t, length, weight, behind, *arrived[1:], to_density)]
        rows = [vectors(tensor, width) for tensor in (features, arrived[0], to_features)]
        launch(_kernels(real, width)[1], rays, [array(offsets, wp.int32), *rows, *scalars], weight.device)
        return to_density, to_features if ctx.needs_input_grad[1] else None, None, None, None


@functools.cache
@no_type_check  # inside, annotations are values that Warp reads
def _kernels(real: Any, width: int) -> tuple[wp.Kernel, wp.Kernel]:
    """Forward and adjoint, for one scalar type and one number of features."""
    row = wp.types.vector(width, real)
    zero, one = real(0.0), real(1.0)
    thin, terms = real(1.0 / 64.0), 4 if real == wp.float32 else 8  # the next would be beyond the last digit
    dark = real(1.0e-30)

    @wp.func
    def absorbed(depth: real, left: real):
        """1 - exp(-depth), given left = exp(-depth): by its series where the difference would be only rounding."""
        if depth >= thin:
            return one - left
        series = one
        for k in range(terms, 1, -1):
            series = one - depth * series * (one / real(k))
        return depth * series

    @wp.kernel(**OPTIONS)
    def forward(
        start: wp.int32,
        offsets: wp.array(dtype=wp.int32),
        features: wp.array(dtype=row),
        seen: wp.array(dtype=row),
        density: wp.array(dtype=real),
        t: wp.array(dtype=real),
        length: wp.array(dtype=real),
        alpha: wp.array(dtype=real),
        depth: wp.array(dtype=real),
        behind: wp.array(dtype=real),
        weight: wp.array(dtype=real),
    ):
        ray = start + wp.tid()
        through = one  # what is left of the light, T_i
        thickness = zero
        total = row()
        far = zero
        for i in range(offsets[ray], offsets[ray + 1]):
            d = density[i] * length[i]
            thickness += d
            left = wp.exp(-d)
            w = through * absorbed(d, left)
            through *= left
            if through < dark:
                through = zero  # denormal numbers are slow
            weight[i] = w
            total += w * features[i]
            far += w * t[i]
        seen[ray] = total
        alpha[ray] = absorbed(thickness, wp.exp(-thickness))
        depth[ray] = far
        behind[ray] = through

    @wp.kernel(**OPTIONS)
    def adjoint(
        start: wp.int32,
        offsets: wp.array(dtype=wp.int32),
        features: wp.array(dtype=row),
        to_seen: wp.array(dtype=row),
        to_features: wp.array(dtype=row),
        t: wp.array(dtype=real),
        length: wp.array(dtype=real),
        weight: wp.array(dtype=real),
        behind: wp.array(dtype=real),
        to_alpha: wp.array(dtype=real),
        to_depth: wp.array(dtype=real),
        to_weight: wp.array(dtype=real),
        to_density: wp.array(dtype=real),
    ):
        # With G_i the gradient that reaches weight i, and d_i = density_i length_i:
        #     dL/dd_i = G_i T_{i+1} - sum_{j>i} G_j weight_j + dL/dalpha T_end
        # From the far end, T_{i+1} = T_end + sum_{j>i} weight_j: sums of positive terms, and no exp.
        ray = start + wp.tid()
        of_seen = row()
        if to_seen.shape[0] > 0:
            of_seen = to_seen[ray]
        of_depth = zero
        if to_depth.shape[0] > 0:
            of_depth = to_depth[ray]
        through = behind[ray]
        of_alpha = zero
        if to_alpha.shape[0] > 0:
            of_alpha = to_alpha[ray] * through
        later = zero
        begin = offsets[ray]
        end = offsets[ray + 1]
        for n in range(end - begin):
            i = end - 1 - n
            w = weight[i]
            g = wp.dot(of_seen, features[i])
            if to_depth.shape[0] > 0:
                g += of_depth * t[i]
            if to_weight.shape[0] > 0:
                g += to_weight[i]
            to_density[i] = (g * through - later + of_alpha) * length[i]
            if to_features.shape[0] > 0:
                to_features[i] = w * of_seen
            later += g * w
            through += w

    return forward, adjoint
