"""Silhouettes between pixels: the walk over the mesh that finds them, the mixing of pixels, and both adjoints."""

import functools
from typing import Any, no_type_check

import warp as wp

from dreamkit.kernels.launch import OPTIONS
from dreamkit.kernels.raster import WALK
from dreamkit.kernels.raster.warp_tiles import Frame, adding, centre_x, centre_y, flattening, ints, ints3, tile_of, vec3


@wp.func
@no_type_check
def leaving(n: vec3, side: wp.float64, near: vec3, far: vec3, barred: wp.bool):
    """How far near is inside an edge, and how much of that is lost on the way to far: the first over the second is the
    share of the way at which the edge is crossed outwards. Nothing is lost if it is not."""
    here = wp.dot(n, near) * side
    lost = here - wp.dot(n, far) * side
    if lost <= wp.max(here, wp.float64(0.0)) or barred:
        lost = wp.float64(0.0)
    return here, lost


@wp.func
@no_type_check
def sooner(here: wp.float64, lost: wp.float64, than_here: wp.float64, than_lost: wp.float64) -> wp.bool:
    """Whether an edge is crossed before another: by products, which are quicker than quotients."""
    zero = wp.float64(0.0)
    return lost > zero and (than_lost == zero or here * than_lost < than_here * lost)


@functools.cache
@no_type_check
def silhouettes(real: Any, channels: int) -> tuple[wp.Kernel, wp.Kernel]:
    """Where silhouettes cross between pixels, and the adjoint of that."""
    vec4, vec2, row_type = (wp.types.vector(n, real) for n in (4, 2, channels))
    reals4, reals2, rows, reals, ints2 = (wp.array(dtype=of) for of in (vec4, vec2, row_type, real, wp.vec2i))
    zero, one, half = wp.float64(0.0), wp.float64(1.0), wp.float64(0.5)
    (add, slot_of), (flat, corners), (mixed, to_mixed) = adding(4, real), flattening(real), mixing(real, channels)

    @wp.func
    def walk(
        near_face: wp.int32, far_face: wp.int32, near: vec3, far: vec3, upright: wp.bool, frame: Frame, base: wp.int32,
        faces: ints3, neighbours: ints3, clip: reals4,
    ):  # fmt: skip
        """From near on its face over the surface towards far on its face: the silhouette edge (3 face + number, or -1)
        where it ends, and at which share of the way."""
        f = wp.int32(near_face)
        came = wp.int32(-2)
        edge = wp.int32(-1)
        share = wp.float64(0.0)
        for _ in range(WALK):
            ids = faces[f]
            across = neighbours[f]
            v0, v1, v2, _z = corners(clip, base, ids)
            n0 = wp.cross(v1, v2)
            n1 = wp.cross(v2, v0)
            n2 = wp.cross(v0, v1)
            side = wp.where(wp.dot(v0, n0) < zero, -one, one)
            here, lost = leaving(n0, side, near, far, across[0] == came)
            here1, lost1 = leaving(n1, side, near, far, across[1] == came)
            here2, lost2 = leaving(n2, side, near, far, across[2] == came)
            k = wp.int32(0)
            n = n0
            if sooner(here1, lost1, here, lost):
                k = 1
                n = n1
                here = here1
                lost = lost1
            if sooner(here2, lost2, here, lost):
                k = 2
                n = n2
                here = here2
                lost = lost2
            next = across[k]
            if lost == zero or (next >= 0 and next == far_face):
                break  # the other pixel lies in this face; or in the next, which is then on the edge's other side
            others = ids  # without a face there, this one, as if it lay on the same side
            if next >= 0:
                others = faces[wp.min(next, faces.shape[0] - 1)]
            other = others[0] + others[1] + others[2] - ids[(k + 1) % 3] - ids[(k + 2) % 3]
            # Clamped: neighbours of another mesh give nonsense, but read nothing that is not there.
            if wp.dot(n, flat(clip[wp.clamp(base + other, 0, clip.shape[0] - 1)])) * side >= zero:
                steep = wp.abs(n[0]) * wp.float64(frame.height) >= wp.abs(n[1]) * wp.float64(frame.width)
                if steep == upright:
                    edge = 3 * f + k
                    share = here / lost
                break
            came = wp.int32(f)
            f = wp.min(next, faces.shape[0] - 1)
        return edge, share

    @wp.func
    def pair(
        p: wp.int32, q: wp.int32, at_p: vec3, at_q: vec3, upright: wp.bool, frame: Frame, base: wp.int32,
        faces: ints3, neighbours: ints3, clip: reals4, face: ints, depth: reals,
    ):  # fmt: skip
        """The silhouette between two pixels: 2 edge, and 1 more if q is the nearer, or -1; and p's share of q."""
        fp = face[p]
        fq = face[q]
        code = wp.int32(-1)
        share = zero
        if fp != fq:
            p_near = fq < 0
            if fp >= 0 and fq >= 0:
                p_near = depth[p] < depth[q] or (depth[p] == depth[q] and fp < fq)
            f = wp.where(p_near, fp, fq)
            other = wp.where(p_near, fq, fp)
            near = wp.where(p_near, at_p, at_q)
            far = wp.where(p_near, at_q, at_p)
            edge, t = walk(f, other, near, far, upright, frame, base, faces, neighbours, clip)
            if edge >= 0:
                code = 2 * edge + wp.where(p_near, 0, 1)
                share = wp.where(p_near, half - t, t - half)
        return code, real(share)

    @wp.kernel(**OPTIONS)
    def cross(
        start: wp.int32, frame: Frame, faces: ints3, neighbours: ints3, clip: reals4, face: ints, depth: reals,
        edges: ints2, shares: reals2,
    ):  # fmt: skip
        tile = tile_of(start + wp.tid(), frame)
        view = tile[0]
        base = view * frame.vertices
        for row in range(tile[1], tile[2]):
            y = centre_y(row, frame.height)
            for column in range(tile[3], tile[4]):
                p = (view * frame.height + row) * frame.width + column
                at = vec3(centre_x(column, frame.width), y, one)
                right = wp.int32(-1)
                down = wp.int32(-1)
                of_right = real(0.0)
                of_down = real(0.0)
                if column + 1 < frame.width:
                    q = vec3(centre_x(column + 1, frame.width), y, one)
                    right, of_right = pair(p, p + 1, at, q, True, frame, base, faces, neighbours, clip, face, depth)
                if row + 1 < frame.height:
                    q = vec3(at[0], centre_y(row + 1, frame.height), one)
                    below = p + frame.width
                    down, of_down = pair(p, below, at, q, False, frame, base, faces, neighbours, clip, face, depth)
                edges[p] = wp.vec2i(right, down)
                shares[p] = vec2(of_right, of_down)

    @wp.func
    def to_edge(near: vec3, far: vec3, n: vec3) -> vec3:
        """The derivative of the share of the way from near to far at which the edge n is crossed."""
        here = wp.dot(n, near)
        there = wp.dot(n, far)
        return (here * far - there * near) / ((here - there) * (here - there))

    @wp.kernel(**OPTIONS)
    def adjoint(
        start: wp.int32, frame: Frame, faces: ints3, clip: reals4, edges: ints2, shares: reals2, to_result: rows,
        picture: rows, where: ints, sums: reals4,
    ):  # fmt: skip
        tile = tile_of(start + wp.tid(), frame)
        slot = slot_of(start + wp.tid(), frame, sums)
        for row in range(tile[1], tile[2]):
            for column in range(tile[3], tile[4]):
                p = (tile[0] * frame.height + row) * frame.width + column
                found = edges[p]
                for axis in range(2):
                    code = found[axis]
                    if code >= 0:
                        of_share = real(0.0)
                        near = vec3(centre_x(column, frame.width), centre_y(row, frame.height), one)
                        far = near
                        if axis == 0:
                            q = p + 1
                            far[0] = centre_x(column + 1, frame.width)
                            target = wp.where(shares[p][0] >= real(0.0), p, q)
                            g = to_mixed(to_result, shares, target, row, frame)
                            of_share = wp.dot(g, picture[q] - picture[p])
                        else:
                            q = p + frame.width
                            far[1] = centre_y(row + 1, frame.height)
                            target = wp.where(shares[p][1] >= real(0.0), p, q)
                            g = to_result[target]
                            step = mixed(picture, shares, q, column) - mixed(picture, shares, p, column)
                            of_share = wp.dot(g, step)
                        of_t = -wp.float64(of_share)  # p's share of q is 1/2 - t if p is the nearer, t - 1/2 if q is
                        if code % 2 == 1:
                            of_t = -of_t
                            swap = near
                            near = far
                            far = swap
                        ids = faces[code // 6]
                        k = (code // 2) % 3
                        i = ids[(k + 1) % 3]
                        j = ids[(k + 2) % 3]
                        a = flat(clip[tile[0] * frame.vertices + i])
                        b = flat(clip[tile[0] * frame.vertices + j])
                        g3 = of_t * to_edge(near, far, wp.cross(a, b))
                        to_a = wp.cross(b, g3)
                        to_b = wp.cross(g3, a)
                        s_a = vec4(real(to_a[0]), real(to_a[1]), real(0.0), real(to_a[2]))
                        s_b = vec4(real(to_b[0]), real(to_b[1]), real(0.0), real(to_b[2]))
                        add(sums, where, frame, slot, 4 * p + 2 * axis, tile[0], i, s_a)
                        add(sums, where, frame, slot, 4 * p + 2 * axis + 1, tile[0], j, s_b)

    return cross, adjoint


@functools.cache
@no_type_check
def mixing(real: Any, channels: int) -> tuple[wp.Function, wp.Function]:
    """A pixel mixed along its row; and what reaches it from the mixing along its column."""
    reals2, rows = (wp.array(dtype=wp.types.vector(n, real)) for n in (2, channels))
    zero = real(0.0)

    @wp.func
    def mixed(picture: rows, shares: reals2, p: wp.int32, column: wp.int32):
        value = picture[p]
        result = value
        share = shares[p][0]
        if share > zero:
            result += share * (picture[p + 1] - value)
        if column > 0:
            share = shares[p - 1][0]
            if share < zero:
                result += share * (value - picture[p - 1])
        return result

    @wp.func
    def to_mixed(gradient: rows, shares: reals2, p: wp.int32, row: wp.int32, frame: Frame):
        value = gradient[p]
        result = value
        share = shares[p][1]
        if share > zero:
            result -= share * value
        if share < zero:
            result -= share * gradient[p + frame.width]
        if row > 0:
            share = shares[p - frame.width][1]
            if share > zero:
                result += share * gradient[p - frame.width]
            if share < zero:
                result += share * value
        return result

    return mixed, to_mixed


@functools.cache
@no_type_check
def blending(real: Any, channels: int) -> tuple[wp.Kernel, wp.Kernel]:
    """Mixing pixels by their shares, along rows and then along columns, and its adjoint."""
    reals2, rows = (wp.array(dtype=wp.types.vector(n, real)) for n in (2, channels))
    zero = real(0.0)
    mixed, to_mixed = mixing(real, channels)

    @wp.func
    def blended(picture: rows, shares: reals2, p: wp.int32, row: wp.int32, column: wp.int32, frame: Frame):
        value = mixed(picture, shares, p, column)
        total = value
        share = shares[p][1]
        if share > zero:
            total += share * (mixed(picture, shares, p + frame.width, column) - value)
        if row > 0:
            share = shares[p - frame.width][1]
            if share < zero:
                total += share * (value - mixed(picture, shares, p - frame.width, column))
        return total

    @wp.func
    def to_blended(gradient: rows, shares: reals2, p: wp.int32, row: wp.int32, column: wp.int32, frame: Frame):
        value = to_mixed(gradient, shares, p, row, frame)
        total = value
        share = shares[p][0]
        if share > zero:
            total -= share * value
        if share < zero:
            total -= share * to_mixed(gradient, shares, p + 1, row, frame)
        if column > 0:
            share = shares[p - 1][0]
            if share > zero:
                total += share * to_mixed(gradient, shares, p - 1, row, frame)
            if share < zero:
                total += share * value
        return total

    @no_type_check
    def everywhere(pixel):
        @wp.kernel(**OPTIONS)
        def blend(start: wp.int32, frame: Frame, shares: reals2, picture: rows, result: rows):
            tile = tile_of(start + wp.tid(), frame)
            for row in range(tile[1], tile[2]):
                for column in range(tile[3], tile[4]):
                    p = (tile[0] * frame.height + row) * frame.width + column
                    result[p] = pixel(picture, shares, p, row, column, frame)

        return blend

    return everywhere(blended), everywhere(to_blended)
