"""The kernels that list the Gaussians of every tile and draw the pixels; `warp_kernel.py` launches them."""

import functools
from typing import Any, no_type_check

import numpy as np
import warp as wp

from dreamkit.kernels.launch import OPTIONS
from dreamkit.kernels.splat import DARK, LEAST_ALPHA, MOST_ALPHA
from dreamkit.kernels.splat.lanes import lanes as lane_operations

TILE = 16  # pixels along a side
LIMIT = 5.75  # powers beyond ln 255 = 5.54 are not seen
SHAPE = 9  # numbers that draw a Gaussian, see `count`


def slot_length(width: int, absolute: bool) -> int:
    """Numbers in a slot: six moments, the features, the depth, and two absolute sums where they are asked for."""
    return 6 + width + 1 + (2 if absolute else 0)


@functools.cache
@no_type_check  # inside, annotations are values that Warp reads
def list_kernels(real: Any, width: int, counting: bool) -> tuple[wp.Kernel, wp.Kernel]:
    """Count the tiles that Gaussians meet, and write them down."""
    vec2, vec3, shape = wp.types.vector(2, real), wp.types.vector(3, real), wp.types.vector(SHAPE, real)
    pair = wp.types.vector(2, wp.int32)
    shapes_of, pairs_of, reals, reals2, reals3 = (wp.array(dtype=of) for of in (shape, pair, real, vec2, vec3))
    ints, longs = wp.array(dtype=wp.int32), wp.array(dtype=wp.int64)
    zero, half, one, two = (real(x) for x in (0.0, 0.5, 1.0, 2.0))
    side, least = real(TILE), real(LEAST_ALPHA)
    slack = real(1e-2)  # pixels: rounding must not lose a pixel that alpha would keep

    @wp.func
    def clamped(x: real, most: wp.int32) -> wp.int32:
        return wp.int32(wp.clamp(x, real(-1.0), real(most)))

    @wp.func
    def span(low: real, high: real, tiles: wp.int32):
        """The tiles, first and past the last, with a pixel centre between low and high."""
        begin = clamped(wp.floor((low - half - slack) / side), tiles)
        end = clamped(wp.floor((high - half + slack) / side), tiles) + 1
        return wp.max(begin, 0), wp.min(end, tiles)

    @wp.func
    def edge(dy: real, s: shape):
        """Half the width of the ellipse at the height dy above its centre."""
        t = dy / s[6]
        return s[7] * wp.sqrt(wp.max(one - t * t, zero))

    @wp.func
    def columns(s: shape, row: wp.int32, tiles: wp.int32):
        """The tiles of one row of tiles that the ellipse meets."""
        low = wp.max(side * real(row) + half - slack - s[1], -s[6])
        high = wp.min(side * real(row) + side - half + slack - s[1], s[6])
        q = s[8] * s[6] / s[7]
        widest = s[6] * q / wp.sqrt(one + q * q)  # the height at which the ellipse reaches furthest right
        at = wp.clamp(widest, low, high)
        right = s[0] + s[8] * at + edge(at, s)
        at = wp.clamp(-widest, low, high)
        left = s[0] + s[8] * at - edge(at, s)
        return span(left, right, tiles)

    @wp.func
    def places_of(item: wp.int32, runs: wp.int32, total: wp.int32):
        """The places of a run, first and past the last; and the first Gaussian of its view."""
        length = (total + runs - 1) // runs
        begin = item % runs * length
        base = item // runs * total
        return base + begin, base + wp.min(begin + length, total), base

    @wp.kernel(**OPTIONS)
    def count(
        start: wp.int32, runs: wp.int32, total: wp.int32, down: wp.int32, across: wp.int32, order: longs,
        screen: reals2, conics: reals3, extent: reals2, opacity: reals, features: reals, depth: reals,
        shapes: shapes_of, rows: reals, touched: ints, tally: ints,
    ):  # fmt: skip
        # A shape: centre (0, 1), conic (2, 3, 4), opacity (5); half the height (6) of the ellipse within which alpha
        # is at least 1/255, half its width at the centre's height (7), and its slant, columns per row (8).
        item = start + wp.tid()
        tiles = down * across
        if wp.static(counting):
            for j in range(tiles):
                tally[item * tiles + j] = 0
        begin, end, base = places_of(item, runs, total)
        for p in range(begin, end):
            g = base + wp.int32(order[p])
            c = screen[g]
            k = conics[g]
            met = wp.int32(0)
            s = shape()
            if extent[g][1] > zero:
                w = wp.sqrt(two * wp.log(opacity[g] / least) / k[0])
                s = shape(c[0], c[1], k[0], k[1], k[2], opacity[g], extent[g][1], wp.max(w, slack), -k[1] / k[0])
                top, bottom = span(c[1] - s[6], c[1] + s[6], down)
                for row in range(top, bottom):
                    left, right = columns(s, row, across)
                    met += wp.max(right - left, 0)
                    if wp.static(counting):
                        for column in range(left, right):
                            j = item * tiles + row * across + column
                            tally[j] = tally[j] + 1
            shapes[p] = s
            for f in range(width):
                rows[p * (width + 1) + f] = features[g * width + f]
            rows[p * (width + 1) + width] = depth[g]
            touched[p] = met

    @wp.kernel(**OPTIONS)
    def fill(
        start: wp.int32, runs: wp.int32, total: wp.int32, down: wp.int32, across: wp.int32, shapes: shapes_of,
        first: ints, tiles: ints, pairs: pairs_of,
    ):  # fmt: skip
        # By counting, `tiles` says where the run's next pair of each tile goes. Else pairs are by entry, and `tiles`
        # becomes the tile of each.
        item = start + wp.tid()
        begin, end, base = places_of(item, runs, total)
        for p in range(begin, end):
            e = first[p]
            if first[p + 1] > e:
                s = shapes[p]
                top, bottom = span(s[1] - s[6], s[1] + s[6], down)
                for row in range(top, bottom):
                    left, right = columns(s, row, across)
                    for column in range(left, right):
                        if wp.static(counting):
                            j = (item * down + row) * across + column
                            pairs[tiles[j]] = pair(p, e)
                            tiles[j] = tiles[j] + 1
                        elif e < first[p + 1]:  # as many as were counted, however a compiler rounds this time
                            tiles[e] = (base // total * down + row) * across + column
                            pairs[e] = pair(p, e)
                        e += 1

    return count, fill


@functools.cache
@no_type_check  # inside, annotations are values that Warp reads
def raster_kernels(
    real: Any, width: int, absolute: bool, per_pixel: bool, native: bool
) -> tuple[wp.Kernel, wp.Kernel, wp.Kernel]:
    """Forward, adjoint, and the sum of the slots, for `width` features."""
    lanes = tall = 1 if per_pixel else TILE  # columns and rows of an item
    blocks = TILE // lanes  # items along a side of a tile
    planes = width + 1  # features and depth
    slot = slot_length(width, absolute)
    row, every, add, sub, mul, div, fma, low, high, choose, total = lane_operations(real, lanes, native)
    shape, pair = wp.types.vector(SHAPE, real), wp.types.vector(2, wp.int32)
    vec2, vec3, six = (wp.types.vector(n, real) for n in (2, 3, 6))
    shapes_of, pairs_of, pixels, reals, reals2, reals3 = (
        wp.array(dtype=of) for of in (shape, pair, row, real, vec2, vec3)
    )
    ints, longs = wp.array(dtype=wp.int32), wp.array(dtype=wp.int64)
    area, rows, colours = wp.constant(planes * tall), wp.constant(tall), wp.constant(planes)  # sizes of local arrays
    zero, half, one, past = real(0.0), real(0.5), real(1.0), real(tall)
    least, most, dark = real(LEAST_ALPHA), real(MOST_ALPHA), real(DARK)
    slack = real(1e-2)  # pixels, as in the lists

    # exp(-x) for 0 <= x <= LIMIT, and a constant beyond: a polynomial in x/8, squared three times. It is within
    # 1.2e-6 relative in float32 and 3e-15 in float64, and only sums and products: a row of pixels takes one step.
    # As opacity <= 1, LIMIT is past ln 255, where alpha counts as 0.
    limit = real(LIMIT)
    degree = 6 if real == wp.float32 else 12
    fit = np.polynomial.Chebyshev.interpolate(lambda x: np.exp(-x), degree, domain=[0, LIMIT / 8])
    powers = [c / 8.0**i for i, c in enumerate(fit.convert(kind=np.polynomial.Polynomial).coef)]
    ladder = wp.constant(wp.types.vector(degree + 1, real)(*powers[::-1]))

    @wp.func
    def decay(x: row):
        x = low(high(x, every(zero)), every(limit))
        e = every(ladder[0])
        for i in range(1, degree + 1):
            e = fma(e, x, every(ladder[i]))
        e = mul(e, e)
        e = mul(e, e)
        return mul(e, e)

    @wp.func
    def cover(s: shape, quadratic: row, slant: row, dy: real):
        """Opacity times exp(-power), not yet cut; quadratic = a dx^2 / 2 and slant = b dx."""
        power = fma(every(dy), slant, add(quadratic, every(half * s[4] * dy * dy)))
        return mul(every(s[5]), decay(power))

    @wp.func
    def visible(raw: row):
        """Alpha: cut at the most, 0 below the least."""
        return choose(raw, every(least), low(raw, every(most)), every(zero))

    @wp.func
    def rows_of(s: shape, y: real):
        """The rows of the item, first and past the last, that the ellipse can meet; y is the centre of row 0."""
        begin = wp.ceil(wp.clamp(s[1] - s[6] - slack - y, zero, past))
        end = wp.floor(wp.clamp(s[1] + s[6] + slack - y, -one, past - one))
        return wp.int32(begin), wp.int32(end) + 1

    @wp.func
    def corner(item: wp.int32, down: wp.int32, across: wp.int32):
        """The tile of an item, its view, and the row and column of its first pixel."""
        tile = item // (blocks * blocks)
        block = item % (blocks * blocks)
        top = tile // across % down * TILE + block // blocks * tall
        left = tile % across * TILE + block % blocks * lanes
        return tile, tile // (down * across), top, left

    @wp.func
    def pixel(plane: wp.int32, y: wp.int32, x: wp.int32, down: wp.int32, across: wp.int32):
        """The index of a row of pixels in pictures [planes, down * TILE, across * TILE]."""
        return ((plane * down * TILE + y) * across * TILE + x) // lanes

    @wp.func
    def centres(left: wp.int32):
        x = row()
        for i in range(lanes):
            x[i] = real(left) + real(i) + half
        return x

    @wp.kernel(**OPTIONS)
    def forward(
        start: wp.int32, down: wp.int32, across: wp.int32, ends: ints, pairs: pairs_of, shapes: shapes_of,
        features: reals, seen: pixels, far: pixels, alpha: pixels, through: pixels, last: pixels,
    ):  # fmt: skip
        tile, view, top, left = corner(start + wp.tid(), down, across)
        xs = centres(left)
        y0 = real(top) + half
        sums = wp.zeros(shape=(area,), dtype=row)
        light = wp.zeros(shape=(rows,), dtype=row)  # transmittance; negative where a pixel is finished
        finish = wp.zeros(shape=(rows,), dtype=row)  # how much of the list counts
        begin = ends[tile]
        count = ends[tile + 1] - begin
        for r in range(tall):
            light[r] = every(one)
            finish[r] = every(real(count))
        k = wp.int32(0)
        while k < count:
            p = pairs[begin + k][0]
            s = shapes[p]
            dx = sub(xs, every(s[0]))
            quadratic = mul(every(half * s[2]), mul(dx, dx))
            slant = mul(every(s[3]), dx)
            r0, r1 = rows_of(s, y0)
            for r in range(r0, r1):
                a = visible(cover(s, quadratic, slant, y0 + real(r) - s[1]))
                t = light[r]
                open = high(t, every(zero))
                weight = mul(open, a)
                left_over = sub(open, weight)
                # A pixel that would get too dark ends: it keeps its transmittance, with the sign turned.
                light[r] = choose(left_over, every(dark), left_over, low(t, sub(every(zero), t)))
                finish[r] = choose(left_over, every(dark), finish[r], low(finish[r], every(real(k))))
                weight = choose(left_over, every(dark), weight, every(zero))
                for c in range(planes):
                    sums[c * tall + r] = fma(every(features[p * planes + c]), weight, sums[c * tall + r])
            k += 1
            if k % 16 == 0:
                lightest = light[0]
                for r in range(1, tall):
                    lightest = high(lightest, light[r])
                if total(high(lightest, every(zero))) == zero:
                    k = count
        for r in range(tall):
            i = pixel(view, top + r, left, down, across)
            t = high(light[r], sub(every(zero), light[r]))
            through[i] = t
            last[i] = finish[r]
            alpha[i] = sub(every(one), t)
            far[i] = sums[width * tall + r]
            for c in range(width):
                seen[pixel(view * width + c, top + r, left, down, across)] = sums[c * tall + r]

    @wp.kernel(**OPTIONS)
    def adjoint(
        start: wp.int32, down: wp.int32, across: wp.int32, ends: ints, pairs: pairs_of, shapes: shapes_of,
        features: reals, to_seen: pixels, to_far: pixels, to_alpha: pixels, through: pixels, last: pixels, slots: reals,
    ):  # fmt: skip
        # From the far end of the list. With g_i = (gradient of the pixel) . c_i and w_i = T_i alpha_i:
        #     dL/dalpha_i = T_i g_i - (sum_{j>i} w_j g_j - T_end dL/dalpha_pixel) / (1 - alpha_i)
        # and T_i = T_{i+1} / (1 - alpha_i).
        tile, view, top, left = corner(start + wp.tid(), down, across)
        xs = centres(left)
        y0 = real(top) + half
        gradient = wp.zeros(shape=(area,), dtype=row)
        light = wp.zeros(shape=(rows,), dtype=row)
        finish = wp.zeros(shape=(rows,), dtype=row)
        behind = wp.zeros(shape=(rows,), dtype=row)
        longest = row()
        for r in range(tall):
            i = pixel(view, top + r, left, down, across)
            light[r] = through[i]
            finish[r] = last[i]
            longest = high(longest, last[i])
            if to_alpha.shape[0] > 0:
                behind[r] = sub(every(zero), mul(through[i], to_alpha[i]))
            if to_far.shape[0] > 0:
                gradient[width * tall + r] = to_far[i]
            if to_seen.shape[0] > 0:
                for c in range(width):
                    gradient[c * tall + r] = to_seen[pixel(view * width + c, top + r, left, down, across)]
        begin = ends[tile]
        count = wp.int32(wp.max(longest))
        if wp.static(not per_pixel):
            for k in range(count, ends[tile + 1] - begin):  # these are hidden
                for j in range(slot):
                    slots[pairs[begin + k][1] * slot + j] = zero
        of_features = wp.zeros(shape=(colours,), dtype=row)
        for n in range(count):
            k = count - 1 - n
            p = pairs[begin + k][0]
            s = shapes[p]
            dx = sub(xs, every(s[0]))
            squares = mul(dx, dx)
            quadratic = mul(every(half * s[2]), squares)
            slant = mul(every(s[3]), dx)
            sum_0 = row()  # of -dL/dpower, and times dy, and times dy^2: by column, where dx is the same
            sum_y = row()
            sum_yy = row()
            abs_x = row()
            abs_y = row()
            for c in range(planes):
                of_features[c] = row()
            r0, r1 = rows_of(s, y0)
            for r in range(r0, r1):
                dy = y0 + real(r) - s[1]
                raw = cover(s, quadratic, slant, dy)
                # finish > k, both whole: not where the pixel had ended.
                a = choose(finish[r], every(real(k + 1)), visible(raw), every(zero))
                over = div(every(one), sub(every(one), a))
                t = mul(light[r], over)
                light[r] = t
                weight = mul(t, a)
                g = row()
                for c in range(planes):
                    of_pixel = gradient[c * tall + r]
                    g = fma(every(features[p * planes + c]), of_pixel, g)
                    of_features[c] = fma(weight, of_pixel, of_features[c])
                of_alpha = sub(mul(t, g), mul(behind[r], over))
                behind[r] = fma(weight, g, behind[r])
                # d alpha / d power = -alpha, and 0 where alpha was cut.
                m = choose(raw, every(most), every(zero), mul(of_alpha, a))
                sum_0 = add(sum_0, m)
                sum_y = fma(every(dy), m, sum_y)
                sum_yy = fma(every(dy * dy), m, sum_yy)
                if wp.static(absolute):
                    x = mul(m, fma(every(s[2]), dx, every(s[3] * dy)))
                    y = mul(m, add(slant, every(s[4] * dy)))
                    abs_x = add(abs_x, high(x, sub(every(zero), x)))
                    abs_y = add(abs_y, high(y, sub(every(zero), y)))
            e = pairs[begin + k][1] * slot
            if wp.static(not per_pixel):
                slots[e] = total(sum_0)
                slots[e + 1] = total(mul(sum_0, dx))
                slots[e + 2] = total(mul(sum_0, squares))
                slots[e + 3] = total(sum_y)
                slots[e + 4] = total(mul(sum_y, dx))
                slots[e + 5] = total(sum_yy)
                for c in range(planes):
                    slots[e + 6 + c] = total(of_features[c])
                if wp.static(absolute):
                    slots[e + 6 + planes] = total(abs_x)
                    slots[e + 7 + planes] = total(abs_y)
            elif r1 > r0:
                wp.atomic_add(slots, e, total(sum_0))
                wp.atomic_add(slots, e + 1, total(mul(sum_0, dx)))
                wp.atomic_add(slots, e + 2, total(mul(sum_0, squares)))
                wp.atomic_add(slots, e + 3, total(sum_y))
                wp.atomic_add(slots, e + 4, total(mul(sum_y, dx)))
                wp.atomic_add(slots, e + 5, total(sum_yy))
                for c in range(planes):
                    wp.atomic_add(slots, e + 6 + c, total(of_features[c]))
                if wp.static(absolute):
                    wp.atomic_add(slots, e + 6 + planes, total(abs_x))
                    wp.atomic_add(slots, e + 7 + planes, total(abs_y))

    @wp.kernel(**OPTIONS)
    def gather(
        start: wp.int32, count: wp.int32, order: longs, first: ints, shapes: shapes_of, slots: reals,
        to_screen: reals2, to_conics: reals3, to_spread: reals2, to_opacity: reals, to_features: reals, to_depth: reals,
    ):  # fmt: skip
        p = start + wp.tid()
        g = p // count * count + wp.int32(order[p])
        s = shapes[p]
        moments = six()
        for c in range(width):
            to_features[g * width + c] = zero
        far = zero
        spread = vec2()
        for entry in range(first[p], first[p + 1]):
            e = entry * slot
            for j in range(6):
                moments[j] += slots[e + j]
            for c in range(width):
                to_features[g * width + c] = to_features[g * width + c] + slots[e + 6 + c]
            far += slots[e + 6 + width]
            if wp.static(absolute):
                spread += vec2(slots[e + 6 + planes], slots[e + 7 + planes])
        # The moments are those of -dL/dpower, about the centre: of 1, x, x^2, y, x y, y^2.
        # power = a x^2 / 2 + b x y + c y^2 / 2, alpha = opacity exp(-power)
        m = moments
        to_screen[g] = vec2(s[2] * m[1] + s[3] * m[3], s[3] * m[1] + s[4] * m[3])
        to_conics[g] = vec3(-half * m[2], -m[4], -half * m[5])
        to_opacity[g] = zero
        if s[5] > zero:
            to_opacity[g] = m[0] / s[5]
        to_depth[g] = far
        if wp.static(absolute):
            to_spread[g] = spread

    return forward, adjoint, gather
