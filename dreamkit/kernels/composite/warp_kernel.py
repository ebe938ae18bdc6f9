"""Compositing in Warp, forward and adjoint, for CPU threads and CUDA: one item per ray. The contract is in the package.

No two rays share a sample, so rays can be cut among threads in any way and every sum has one order, on CUDA too.

What is far from cheap on a CPU is avoided: the library's exp (a polynomial instead); reading or writing rows of
features from the far end of a ray to the near one (no cache foresees that: the adjoint goes forward over them, and
backward only over what it left in the cache); and Warp's test for a negative index (`& INDEX` says there is none).
"""

import functools
import math
from typing import Any, no_type_check

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from dreamkit.kernels.launch import FUSED, array, large_pages, launch, scalar, vectors

INDEX = 0x7FFFFFFF


def composite(
    density: Tensor, features: Tensor, t: Tensor, length: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[S] ... -> features [R, C], alpha [R], depth [R], weight [S]."""
    inputs = (tensor.contiguous() for tensor in (density, features, t.detach(), length.detach(), offsets))
    features_out, alpha, depth, weight = _Composite.apply(*inputs)
    return features_out, alpha, depth, weight


def distortion(weight: Tensor, t: Tensor, length: Tensor, offsets: Tensor) -> Tensor:
    """[S] ... -> [R]."""
    inputs = (tensor.contiguous() for tensor in (weight, t.detach(), length.detach(), offsets))
    loss: Tensor = _Distortion.apply(*inputs)
    return loss


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, density: Tensor, features: Tensor, t: Tensor, length: Tensor, offsets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rays, width = len(offsets) - 1, features.shape[1]
        seen = density.new_empty(rays, width)
        alpha, depth, behind = density.new_empty(3, rays).unbind()
        weight = large_pages(torch.empty_like(density))
        real = scalar(density)
        scalars = [array(tensor, real) for tensor in (density, t, length, alpha, depth, behind, weight)]
        rows = [vectors(features, width), vectors(seen, width)]
        launch(_kernels(real, width)[0], rays, [array(offsets, wp.int32), *rows, *scalars], density.device)
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
        to_density = large_pages(torch.empty_like(weight))
        to_features = large_pages(torch.empty_like(features)) if ctx.needs_input_grad[1] else none
        arrived = [none if g is None else g.contiguous() for g in (to_seen, to_alpha, to_depth, to_weight)]
        real = scalar(weight)
        scalars = [array(tensor, real) for tensor in (t, length, weight, behind, *arrived[1:], to_density)]
        rows = [vectors(tensor, width) for tensor in (features, arrived[0], to_features)]
        launch(_kernels(real, width)[1], rays, [array(offsets, wp.int32), *rows, *scalars], weight.device)
        return to_density, to_features if ctx.needs_input_grad[1] else None, None, None, None


class _Distortion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, t: Tensor, length: Tensor, offsets: Tensor) -> Tensor:
        loss = weight.new_empty(len(offsets) - 1)
        _spread(False, weight, t, length, offsets, loss, weight[:0])
        ctx.save_for_backward(weight, t, length, offsets)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_loss: Tensor) -> tuple[Tensor, None, None, None]:
        weight, t, length, offsets = ctx.saved_tensors
        to_weight = large_pages(torch.empty_like(weight))
        _spread(True, weight, t, length, offsets, to_loss.contiguous(), to_weight)
        return to_weight, None, None, None


def _spread(backward: bool, *tensors: Tensor) -> None:
    """Launch the kernel of the distortion loss on weight, t, length, offsets, loss or its gradient, to_weight."""
    offsets, real = tensors[3], scalar(tensors[0])
    values = [array(tensor, real) for tensor in (*tensors[:3], *tensors[4:])]
    launch(_distortion_kernel(real, backward), len(offsets) - 1, [array(offsets, wp.int32), *values], offsets.device)


@functools.cache
@no_type_check  # inside, annotations are values that Warp reads
def _decay(real: Any) -> wp.Function:
    """The function depth -> (exp(-depth), 1 - exp(-depth)), for depth >= 0, or NaN.

    exp(-depth) = 2^n 2^f with n whole and |f| <= 1/2, and 2^f - 1 = f q(f), q its Taylor polynomial up to the last
    digit. Both results come from 2^f - 1, so a thin sample keeps its digits without a case of its own. Relative
    errors: 3e-7 of the second result; 6e-8 (5 + 2 depth) of the first, which from depth 87 on stays 1e-38. In
    float64: 6e-16, 1.2e-16 (5 + 2 depth), and 1e-308 from 708 on.
    """
    single = real == wp.float32
    whole, mantissa, bias = (wp.int32, 23, 127) if single else (wp.int64, 52, 1023)
    pairs = 4 if single else 7  # of terms
    q = wp.types.vector(2 * pairs, real)(*(math.log(2) ** k / math.factorial(k) for k in range(2 * pairs, 0, -1)))
    one, per_octave, least = real(1.0), real(-1.0 / math.log(2)), real(1.0 - bias)
    rounder = real(1.5 * 2.0**mantissa)  # adding it leaves a whole number in the last bits
    shift, exponent = whole(mantissa), whole(bias << mantissa)

    @wp.func
    def decay(depth: real):
        octaves = depth * per_octave
        if octaves < least:  # not wp.max: this keeps a NaN
            octaves = least
        rounded = octaves + rounder
        f = octaves - (rounded - rounder)
        power = wp.cast((wp.cast(rounded, whole) << shift) + exponent, real)  # 2^n, by its bits
        square = f * f
        value = q[0] * f + q[1]
        for k in range(1, pairs):  # two terms at a time: half as long to wait for as one by one
            value = value * square + (q[2 * k] * f + q[2 * k + 1])
        change = power * (f * value)
        return power + change, (one - power) - change

    return decay


@functools.cache
@no_type_check
def _kernels(real: Any, width: int) -> tuple[wp.Kernel, wp.Kernel]:
    """Forward and adjoint of compositing, for one scalar type and one number of features."""
    row = wp.types.vector(width, real)
    zero, one = real(0.0), real(1.0)
    opaque = real(69.0)  # the light that is left, 1e-30, is taken for none: denormal numbers are slow
    decay = _decay(real)

    @wp.func
    def given(gradient: wp.array(dtype=real), i: wp.int32):
        """The i-th element, or 0 where the array is empty."""
        value = zero
        if gradient.shape[0] > 0:
            value = gradient[i]
        return value

    @wp.kernel(**FUSED)
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
        ray = (start + wp.tid()) & INDEX
        through = one  # what is left of the light, T_i
        thickness = zero
        total = row()
        far = zero
        i = offsets[ray] & INDEX
        end = offsets[ray + 1]
        while i < end:
            d = density[i] * length[i]
            left, gone = decay(d)
            thickness += d
            if thickness > opaque:
                left = zero
            w = through * gone
            through *= left
            weight[i] = w
            total += w * features[i]
            far += w * t[i]
            i = (i + 1) & INDEX
        left, gone = decay(thickness)
        seen[ray] = total
        alpha[ray] = gone
        depth[ray] = far
        behind[ray] = through

    @wp.kernel(**FUSED)
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
        ray = (start + wp.tid()) & INDEX
        begin = offsets[ray] & INDEX
        end = offsets[ray + 1] & INDEX
        of_seen = row()
        if to_seen.shape[0] > 0:
            of_seen = to_seen[ray]
        of_depth = given(to_depth, ray)
        i = begin
        while i < end:  # G_i, kept for a moment in the place of the result
            g = wp.dot(of_seen, features[i]) + given(to_weight, i)
            if to_depth.shape[0] > 0:
                g += of_depth * t[i]
            if to_features.shape[0] > 0:
                to_features[i] = weight[i] * of_seen
            to_density[i] = g
            i = (i + 1) & INDEX
        through = behind[ray]
        of_alpha = given(to_alpha, ray) * through
        later = zero
        while i > begin:
            i = (i - 1) & INDEX
            w = weight[i]
            g = to_density[i]
            to_density[i] = (g * through - later + of_alpha) * length[i]
            later += g * w
            through += w

    return forward, adjoint


@functools.cache
@no_type_check
def _distortion_kernel(real: Any, backward: bool) -> wp.Kernel:
    """The loss of each ray; or, backward, its gradient times what `loss` then holds.

    Sums of positive terms only, no differences of large sums. With W the weight in front of sample i, the moment
    B_i = sum_{j<i} w_j (t_i - t_j) grows by W (t_i - t_{i-1}) from sample to sample; and so does
    A_i = sum_{j>i} w_j (t_j - t_i), from the far end. The loss is sum_i w_i (2 B_i + w_i length_i / 3), its gradient
    2 (A_i + B_i + w_i length_i / 3).
    """
    zero, two, third = real(0.0), real(2.0), real(1.0 / 3.0)
    whole, reals = wp.array(dtype=wp.int32), wp.array(dtype=real)

    @wp.kernel(**FUSED)
    def spread(start: wp.int32, offsets: whole, weight: reals, t: reals, length: reals, loss: reals, to_weight: reals):
        ray = (start + wp.tid()) & INDEX
        begin = offsets[ray] & INDEX
        end = offsets[ray + 1] & INDEX
        passed = zero
        moment = zero
        last = zero
        total = zero
        i = begin
        while i < end:
            moment += passed * (t[i] - last)
            last = t[i]
            passed += weight[i]
            itself = third * weight[i] * length[i]
            total += weight[i] * (two * moment + itself)
            if wp.static(backward):
                to_weight[i] = moment + itself
            i = (i + 1) & INDEX
        if wp.static(not backward):
            loss[ray] = total
        else:
            scale = two * loss[ray]
            passed = zero
            moment = zero
            while i > begin:
                i = (i - 1) & INDEX
                moment += passed * (last - t[i])
                last = t[i]
                passed += weight[i]
                to_weight[i] = scale * (to_weight[i] + moment)

    return spread
