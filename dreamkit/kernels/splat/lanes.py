"""A row of pixels as one value: the few operations of the pixel loops, on all its lanes at once.

Warp's own vectors are loops over their components. LLVM unrolls those first and then finds only some of the vector
instructions again. So on a CPU the operations are written with the compiler's vector types: three times as fast, and
the same bits whatever the compiler's mood. CUDA, where a row is one pixel, takes Warp's own.
"""

import functools
from typing import Any, NamedTuple, no_type_check

import warp as wp


class Lanes(NamedTuple):
    """The type of a row, and what can be done with rows a, b, c and a number x.

    every(x)             x in every lane
    add, sub, mul, div   a + b, a - b, a * b, a / b
    fma(a, b, c)         a * b + c, rounded once where the processor can
    low, high            the smaller, the larger of a and b
    choose(a, b, c, d)   c in the lanes where a >= b, d in the others (also where a is NaN)
    total(a)             the sum of the lanes, as a number
    """

    row: Any
    every: Any
    add: Any
    sub: Any
    mul: Any
    div: Any
    fma: Any
    low: Any
    high: Any
    choose: Any
    total: Any


@functools.cache
def lanes(real: Any, count: int, native: bool) -> Lanes:
    """The operations for rows of `count` numbers, a power of two; native: by the vectors of a CPU's compiler."""
    return _native(real, count) if native else _plain(real, count)


@no_type_check  # annotations are values that Warp reads
def _native(real: Any, count: int) -> Lanes:
    row = wp.types.vector(count, real)
    number = {wp.float32: "float", wp.float64: "double"}[real]
    kind = f"typedef {number} V __attribute__((ext_vector_type({count})));\n"
    give = f"wp::vec_t<{count}, {number}> row; __builtin_memcpy(&row, &result, sizeof(V)); return row;"

    def code(expression: str, names: str) -> str:
        take = "".join(f"V v{n}; __builtin_memcpy(&v{n}, &{n}, sizeof(V));\n" for n in names)
        return f"{kind}{take}V result = {expression};\n{give}"

    fused = "#if defined(__FMA__) || defined(__aarch64__)\n{}\n#else\n{}\n#endif\n"
    fused = fused.format(code("__builtin_elementwise_fma(va, vb, vc)", "abc"), code("va * vb + vc", "abc"))
    halves, width = f"{kind}V v{count}; __builtin_memcpy(&v{count}, &a, sizeof(V));\n", count
    while width > 1:
        halves += f"auto v{width // 2} = v{width}.lo + v{width}.hi;\n"
        width //= 2

    @wp.func_native(code("(V)(x)", ""))
    def every(x: real) -> row: ...

    @wp.func_native(code("va + vb", "ab"))
    def add(a: row, b: row) -> row: ...

    @wp.func_native(code("va - vb", "ab"))
    def sub(a: row, b: row) -> row: ...

    @wp.func_native(code("va * vb", "ab"))
    def mul(a: row, b: row) -> row: ...

    @wp.func_native(code("va / vb", "ab"))
    def div(a: row, b: row) -> row: ...

    @wp.func_native(fused)
    def fma(a: row, b: row, c: row) -> row: ...

    @wp.func_native(code("va < vb ? va : vb", "ab"))
    def low(a: row, b: row) -> row: ...

    @wp.func_native(code("va > vb ? va : vb", "ab"))
    def high(a: row, b: row) -> row: ...

    @wp.func_native(code("va >= vb ? vc : vd", "abcd"))
    def choose(a: row, b: row, c: row, d: row) -> row: ...

    @wp.func_native(halves + "return v1;")
    def total(a: row) -> real: ...

    return Lanes(row, every, add, sub, mul, div, fma, low, high, choose, total)


@no_type_check  # annotations are values that Warp reads
def _plain(real: Any, count: int) -> Lanes:
    row, none = wp.types.vector(count, real), real(0.0)

    @wp.func
    def every(x: real):
        return row(x)

    @wp.func
    def add(a: row, b: row):
        return a + b

    @wp.func
    def sub(a: row, b: row):
        return a - b

    @wp.func
    def mul(a: row, b: row):
        return wp.cw_mul(a, b)

    @wp.func
    def div(a: row, b: row):
        return wp.cw_div(a, b)

    @wp.func
    def fma(a: row, b: row, c: row):
        return wp.cw_mul(a, b) + c

    @wp.func
    def low(a: row, b: row):
        return wp.min(a, b)

    @wp.func
    def high(a: row, b: row):
        return wp.max(a, b)

    @wp.func
    def choose(a: row, b: row, c: row, d: row):
        for i in range(count):
            if a[i] >= b[i]:
                d[i] = c[i]
        return d

    @wp.func
    def total(a: row):
        x = none
        for i in range(count):
            x += a[i]
        return x

    return Lanes(row, every, add, sub, mul, div, fma, low, high, choose, total)
