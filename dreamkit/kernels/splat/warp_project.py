"""The kernels of the projection and of the spherical harmonics; `warp_kernel.py` launches them."""

import functools
from typing import Any, no_type_check

import warp as wp

from dreamkit.kernels.launch import OPTIONS
from dreamkit.kernels.splat import BLUR, LEAST_ALPHA, MARGIN, SH0, SH1, SH2, SH3


@functools.cache
@no_type_check  # inside, annotations are values that Warp reads
def project_kernels(real: Any, antialiased: bool) -> tuple[wp.Kernel, wp.Kernel]:
    """Forward and adjoint of the projection."""
    vec2, vec3, vec4 = (wp.types.vector(n, real) for n in (2, 3, 4))
    mat33 = wp.types.matrix((3, 3), real)
    reals, reals2, reals3, reals4 = (wp.array(dtype=of) for of in (real, vec2, vec3, vec4))
    zero, half, one, two, three = (real(x) for x in (0.0, 0.5, 1.0, 2.0, 3.0))
    blur, margin, least, tiny = real(BLUR), real(MARGIN), real(LEAST_ALPHA), real(1e-12)

    @wp.func
    def rotation(q: vec4):
        w = q[0]
        x = q[1]
        y = q[2]
        z = q[3]
        return mat33(
            one - two * (y * y + z * z),
            two * (x * y - w * z),
            two * (x * z + w * y),
            two * (x * y + w * z),
            one - two * (x * x + z * z),
            two * (y * z - w * x),
            two * (x * z - w * y),
            two * (y * z + w * x),
            one - two * (x * x + y * y),
        )

    @wp.func
    def to_rotation(q: vec4, g: mat33):
        """The gradient of a unit quaternion, given that of its rotation."""
        w = q[0]
        x = q[1]
        y = q[2]
        z = q[3]
        return two * vec4(
            x * (g[2, 1] - g[1, 2]) + y * (g[0, 2] - g[2, 0]) + z * (g[1, 0] - g[0, 1]),
            y * (g[0, 1] + g[1, 0]) + z * (g[0, 2] + g[2, 0]) + w * (g[2, 1] - g[1, 2]) - two * x * (g[1, 1] + g[2, 2]),
            x * (g[0, 1] + g[1, 0]) + z * (g[1, 2] + g[2, 1]) + w * (g[0, 2] - g[2, 0]) - two * y * (g[0, 0] + g[2, 2]),
            x * (g[0, 2] + g[2, 0]) + y * (g[1, 2] + g[2, 1]) + w * (g[1, 0] - g[0, 1]) - two * z * (g[0, 0] + g[1, 1]),
        )

    @wp.func
    def scaled(quaternion: vec4, scale: vec3):
        """R S, and R, and the quaternion's unit and length."""
        length = wp.max(wp.length(quaternion), tiny)
        unit = quaternion * (one / length)
        r = rotation(unit)
        m = mat33(
            r[0, 0] * scale[0],
            r[0, 1] * scale[1],
            r[0, 2] * scale[2],
            r[1, 0] * scale[0],
            r[1, 1] * scale[1],
            r[1, 2] * scale[2],
            r[2, 0] * scale[0],
            r[2, 1] * scale[1],
            r[2, 2] * scale[2],
        )
        return m, r, unit, length

    @wp.func
    def root(m: mat33, right: vec3, below: vec3, ahead: vec3, k: real, x: real, y: real):
        """The rows m0, m1 of J W R S, whose products are the covariance on the screen, and its determinants."""
        v2 = ahead * m
        m0 = k * (right * m - x * v2)
        m1 = k * (below * m - y * v2)
        area = wp.cross(m0, m1)
        inner = wp.dot(area, area)  # |m0|^2 |m1|^2 - (m0 . m1)^2 without the cancellation
        det = inner + blur * (wp.dot(m0, m0) + wp.dot(m1, m1)) + blur * blur
        return m0, m1, v2, area, inner, det

    @wp.kernel(**OPTIONS)
    def forward(
        start: wp.int32, views: wp.int32, count: wp.int32, height: real, width: real, near: real,
        means: reals3, quaternions: reals4, scales: reals3, opacities: reals, frames: reals3, focal: reals,
        screen: reals2, conics: reals3, extent: reals2, opacity: reals, depth: reals, radii: reals,
    ):  # fmt: skip
        n = start + wp.tid()
        m, _r, _unit, _length = scaled(quaternions[n], scales[n])
        for b in range(views):
            i = b * count + n
            screen[i] = vec2()
            conics[i] = vec3()
            extent[i] = vec2()
            opacity[i] = zero
            depth[i] = zero
            radii[i] = zero
            d = means[n] - frames[b * 4 + 3]
            z = wp.dot(frames[b * 4 + 2], d)
            if z > near:
                f = focal[b]
                x = wp.dot(frames[b * 4], d) / z
                y = wp.dot(frames[b * 4 + 1], d) / z
                far_x = margin * half * width / f
                far_y = margin * half * height / f
                m0, m1, _v2, _area, inner, det = root(
                    m,
                    frames[b * 4],
                    frames[b * 4 + 1],
                    frames[b * 4 + 2],
                    f / z,
                    wp.clamp(x, -far_x, far_x),
                    wp.clamp(y, -far_y, far_y),
                )
                a = wp.dot(m0, m0) + blur
                c = wp.dot(m1, m1) + blur
                cross = wp.dot(m0, m1)
                o = opacities[n]
                if wp.static(antialiased):
                    o = o * wp.sqrt(inner / det)
                if o >= least and wp.isfinite(det):
                    centre = vec2(f * x + half * width, f * y + half * height)
                    reach = wp.sqrt(two * wp.log(o / least))
                    box = vec2(reach * wp.sqrt(a), reach * wp.sqrt(c))
                    low = centre - box - vec2(half)
                    high = centre + box - vec2(half)
                    if wp.max(wp.ceil(low[0]), zero) <= wp.min(wp.floor(high[0]), width - one) and wp.max(
                        wp.ceil(low[1]), zero
                    ) <= wp.min(wp.floor(high[1]), height - one):
                        screen[i] = centre
                        conics[i] = vec3(c, -cross, a) * (one / det)
                        extent[i] = box
                        opacity[i] = o
                        depth[i] = z
                        longer = half * (a + c) + wp.sqrt(half * half * (a - c) * (a - c) + cross * cross)
                        radii[i] = three * wp.sqrt(longer)

    @wp.kernel(**OPTIONS)
    def adjoint(
        start: wp.int32, views: wp.int32, count: wp.int32, height: real, width: real, near: real,
        means: reals3, quaternions: reals4, scales: reals3, opacities: reals, frames: reals3, focal: reals,
        radii: reals, to_screen: reals2, to_conics: reals3, to_opacity: reals, to_depth: reals, to_means: reals3,
        to_quaternions: reals4, to_scales: reals3, to_opacities: reals, block: wp.int32, blocks: wp.int32,
        to_frames: reals3,
    ):  # fmt: skip
        item = start + wp.tid()
        if to_frames.shape[0] > 0:
            for b in range(views):
                for j in range(4):
                    to_frames[(b * blocks + item) * 4 + j] = vec3()
        for n in range(item * block, wp.min(item * block + block, count)):
            m, r, unit, length = scaled(quaternions[n], scales[n])
            of_m = mat33()
            of_mean = vec3()
            of_opacity = zero
            for b in range(views):
                i = b * count + n
                if radii[i] > zero:
                    d = means[n] - frames[b * 4 + 3]
                    right = frames[b * 4]
                    below = frames[b * 4 + 1]
                    ahead = frames[b * 4 + 2]
                    z = wp.dot(ahead, d)
                    x = wp.dot(right, d) / z
                    y = wp.dot(below, d) / z
                    f = focal[b]
                    far_x = margin * half * width / f
                    far_y = margin * half * height / f
                    cx = wp.clamp(x, -far_x, far_x)
                    cy = wp.clamp(y, -far_y, far_y)
                    k = f / z
                    m0, m1, v2, area, inner, det = root(m, right, below, ahead, k, cx, cy)

                    # The conic K is the inverse of the covariance: d(cov) = -K dK K.
                    g = to_conics[i]
                    over = one / det
                    ka = (wp.dot(m1, m1) + blur) * over
                    kb = -wp.dot(m0, m1) * over
                    kc = (wp.dot(m0, m0) + blur) * over
                    ga = -(ka * ka * g[0] + ka * kb * g[1] + kb * kb * g[2])
                    gb = -(two * ka * kb * g[0] + (kb * kb + ka * kc) * g[1] + two * kb * kc * g[2])
                    gc = -(kb * kb * g[0] + kb * kc * g[1] + kc * kc * g[2])
                    g0 = two * ga * m0 + gb * m1
                    g1 = gb * m0 + two * gc * m1
                    factor = one
                    if wp.static(antialiased):
                        # factor = |area| / sqrt(det), and det = |area|^2 + blur (|m0|^2 + |m1|^2) + blur^2.
                        factor = wp.sqrt(inner * over)
                        of_factor = to_opacity[i] * opacities[n]
                        if inner > zero:
                            normal = area * (of_factor * wp.sqrt(over) * (one - factor * factor) / wp.sqrt(inner))
                            g0 += wp.cross(m1, normal) - of_factor * factor * over * blur * m0
                            g1 += wp.cross(normal, m0) - of_factor * factor * over * blur * m1
                    of_opacity += to_opacity[i] * factor

                    of_v2 = -k * (cx * g0 + cy * g1)
                    of_m += k * (wp.outer(right, g0) + wp.outer(below, g1)) + wp.outer(ahead, of_v2)
                    of_x = f * to_screen[i][0]
                    of_y = f * to_screen[i][1]
                    if wp.abs(x) <= far_x:
                        of_x -= k * wp.dot(v2, g0)
                    if wp.abs(y) <= far_y:
                        of_y -= k * wp.dot(v2, g1)
                    of_right = of_x / z
                    of_below = of_y / z
                    of_ahead = to_depth[i] - (wp.dot(m0, g0) + wp.dot(m1, g1) + of_x * x + of_y * y) / z
                    of_d = of_right * right + of_below * below + of_ahead * ahead
                    of_mean += of_d
                    if to_frames.shape[0] > 0:
                        j = (b * blocks + item) * 4
                        to_frames[j] = to_frames[j] + of_right * d + k * (m * g0)
                        to_frames[j + 1] = to_frames[j + 1] + of_below * d + k * (m * g1)
                        to_frames[j + 2] = to_frames[j + 2] + of_ahead * d + m * of_v2
                        to_frames[j + 3] = to_frames[j + 3] - of_d
            to_means[n] = of_mean
            to_opacities[n] = of_opacity
            s = scales[n]
            to_scales[n] = vec3(
                r[0, 0] * of_m[0, 0] + r[1, 0] * of_m[1, 0] + r[2, 0] * of_m[2, 0],
                r[0, 1] * of_m[0, 1] + r[1, 1] * of_m[1, 1] + r[2, 1] * of_m[2, 1],
                r[0, 2] * of_m[0, 2] + r[1, 2] * of_m[1, 2] + r[2, 2] * of_m[2, 2],
            )
            of_unit = to_rotation(unit, of_m * mat33(s[0], zero, zero, zero, s[1], zero, zero, zero, s[2]))
            to_quaternions[n] = (of_unit - wp.dot(of_unit, unit) * unit) * (one / length)

    return forward, adjoint


@functools.cache
@no_type_check  # inside, annotations are values that Warp reads
def colour_kernels(real: Any, degree: int) -> tuple[wp.Kernel, wp.Kernel]:
    """Forward and adjoint of the spherical harmonics of one degree."""
    vec3, vec16 = wp.types.vector(3, real), wp.types.vector(16, real)
    reals, reals3 = wp.array(dtype=real), wp.array(dtype=vec3)
    terms = (degree + 1) ** 2
    zero, half, one, two, three, four = (real(x) for x in (0.0, 0.5, 1.0, 2.0, 3.0, 4.0))
    c0, c1 = real(SH0), real(SH1)
    m, n, o = (real(x) for x in SH2)
    p, q, r, s, t = (real(x) for x in SH3)
    six, eight = real(6.0), real(8.0)

    @wp.func
    def squares(d: vec3):
        return d[0] * d[0], d[1] * d[1], d[2] * d[2]

    @wp.func
    def basis(d: vec3):
        """All up to degree 3; the compiler drops what is not used."""
        x = d[0]
        y = d[1]
        z = d[2]
        xx, yy, zz = squares(d)
        return vec16(
            c0,
            -c1 * y,
            c1 * z,
            -c1 * x,
            m * x * y,
            -m * y * z,
            n * (two * zz - xx - yy),
            -m * x * z,
            o * (xx - yy),
            -p * y * (three * xx - yy),
            q * x * y * z,
            -r * y * (four * zz - xx - yy),
            s * z * (two * zz - three * xx - three * yy),
            -r * x * (four * zz - xx - yy),
            t * z * (xx - yy),
            -p * x * (xx - three * yy),
        )

    @wp.func
    def slope(d: vec3, g: vec16):
        """The gradient of sum_k g_k basis_k in the direction."""
        x = d[0]
        y = d[1]
        z = d[2]
        xx, yy, zz = squares(d)
        gx = -c1 * g[3]
        gy = -c1 * g[1]
        gz = c1 * g[2]
        gx += m * (y * g[4] - z * g[7]) - two * n * x * g[6] + two * o * x * g[8]
        gy += m * (x * g[4] - z * g[5]) - two * n * y * g[6] - two * o * y * g[8]
        gz += four * n * z * g[6] - m * (y * g[5] + x * g[7])
        gx += -six * p * x * y * g[9] + q * y * z * g[10] + two * r * x * y * g[11] - six * s * x * z * g[12]
        gx += -r * (four * zz - three * xx - yy) * g[13] + two * t * x * z * g[14] - three * p * (xx - yy) * g[15]
        gy += -three * p * (xx - yy) * g[9] + q * x * z * g[10] - r * (four * zz - xx - three * yy) * g[11]
        gy += -six * s * y * z * g[12] + two * r * x * y * g[13] - two * t * y * z * g[14] + six * p * x * y * g[15]
        gz += q * x * y * g[10] - eight * r * y * z * g[11] + three * s * (two * zz - xx - yy) * g[12]
        gz += -eight * r * x * z * g[13] + t * (xx - yy) * g[14]
        return vec3(gx, gy, gz)

    @wp.func
    def sum_of(coefficients: reals3, first: wp.int32, y: vec16):
        total = vec3(half)
        for k in range(terms):
            total += y[k] * coefficients[first + k]
        return total

    @wp.kernel(**OPTIONS)
    def forward(
        start: wp.int32, views: wp.int32, count: wp.int32, radii: reals, means: reals3, coefficients: reals3,
        positions: reals3, colours: reals3,
    ):  # fmt: skip
        g = start + wp.tid()
        for b in range(views):
            colour = vec3()
            if radii[b * count + g] > zero:
                y = basis(wp.normalize(means[g] - positions[b]))
                colour = wp.max(sum_of(coefficients, g * terms, y), vec3())
            colours[b * count + g] = colour

    @wp.kernel(**OPTIONS)
    def adjoint(
        start: wp.int32, views: wp.int32, count: wp.int32, radii: reals, means: reals3, coefficients: reals3,
        positions: reals3, to_colours: reals3, to_coefficients: reals3, to_direction: reals3,
    ):  # fmt: skip
        g = start + wp.tid()
        for k in range(terms):
            to_coefficients[g * terms + k] = vec3()
        for b in range(views):
            i = b * count + g
            of_mean = vec3()
            if radii[i] > zero:
                d = means[g] - positions[b]
                away = wp.length(d)
                d = d * (one / away)
                y = basis(d)
                colour = sum_of(coefficients, g * terms, y)
                of_colour = to_colours[i]
                for c in range(3):
                    if colour[c] < zero:
                        of_colour[c] = zero
                weights = vec16()
                for k in range(terms):
                    weights[k] = wp.dot(of_colour, coefficients[g * terms + k])
                    to_coefficients[g * terms + k] = to_coefficients[g * terms + k] + y[k] * of_colour
                of_d = slope(d, weights)
                of_mean = (of_d - wp.dot(of_d, d) * d) * (one / away)
            to_direction[i] = of_mean

    return forward, adjoint
