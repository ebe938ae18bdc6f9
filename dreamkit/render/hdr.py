"""Radiance pictures (.hdr, .pic): RGBE pixels, one exponent for three mantissas, run by run.

After Greg Ward, Real Pixels (Graphics Gems II, 1991), and the Radiance Synthetic Imaging System's "Radiance File
Formats" (filefmts.pdf, picture files).
"""

import math
from pathlib import Path

import numpy as np

LONGEST = 1 << 15
"""Scanlines are run-length encoded, a component at a time, from 8 to this many pixels (exclusive)."""


def read_hdr(path: Path | str) -> np.ndarray:
    """The linear radiance in a Radiance picture, [H, W, 3] float32, the top row first.

    A pixel is (mantissa + 1/2) 2^(exponent - 136), or 0 where the exponent is 0, over the product of the file's
    exposures. Raises ValueError for a file that is none, that is damaged, holds CIE XYZ, or whose rows do not run from
    the top, left to right.
    """
    data = Path(path).read_bytes()
    head, _, _ = data.partition(b"\n\n")
    if not data.startswith(b"#?") or len(head) == len(data):
        raise ValueError("it does not begin as a Radiance picture does, with #? and an empty line after the header")
    said = [line.split("=", 1) for line in head.decode("latin-1").splitlines() if "=" in line]
    form = [value.strip() for name, value in said if name.strip() == "FORMAT"]
    if form not in ([], ["32-bit_rle_rgbe"]):
        raise ValueError(f"its FORMAT is {form[-1]}, not 32-bit_rle_rgbe")
    size, _, rest = data[len(head) + 2 :].partition(b"\n")
    words = size.decode("latin-1").split()
    if len(words) != 4 or words[::2] != ["-Y", "+X"] or not (words[1].isdecimal() and words[3].isdecimal()):
        raise ValueError(f"its size is given as {' '.join(words)[:40]!r}, not as -Y height +X width")
    rgbe = _pixels(np.frombuffer(rest, np.uint8), int(words[1]), int(words[3]))
    scale = np.ldexp(1.0, rgbe[..., 3:].astype(np.int64) - 136) * (rgbe[..., 3:] > 0)
    exposure = math.prod(float(value) for name, value in said if name.strip() == "EXPOSURE")
    return ((rgbe[..., :3] + 0.5) * scale / exposure).astype(np.float32)


def _pixels(data: np.ndarray, height: int, width: int) -> np.ndarray:
    """[height, width, 4] bytes of all scanlines: in runs if they begin with 2, 2 and their length, else plain."""
    marker = [2, 2, width >> 8, width & 255]
    runs = 8 <= width < LONGEST and data[:4].tolist() == marker
    least = height * (4 + 8 * -(-width // 127) if runs else 4 * width)
    if len(data) < least:
        raise ValueError(f"{height} x {width} pixels take at least {least} bytes, and it has {len(data)}")
    if not runs:
        plain = data[:least].reshape(height, width, 4)
        if bool((plain[..., :3] == 1).all(-1).any()):
            raise ValueError("its pixels are run-length encoded in the way of before 1991: save it anew")
        return plain
    found, at = np.zeros((height, 4, width), np.uint8), 0
    for row in found:
        if data[at : at + 4].tolist() != marker:
            raise ValueError("a scanline does not begin with 2, 2 and its length: the file is damaged")
        at += 4
        for component in row:
            at = _run_lengths(data, at, component)
    return found.transpose(0, 2, 1)


def _run_lengths(data: np.ndarray, at: int, into: np.ndarray) -> int:
    """Fill one component of a scanline from position `at` on; returns the position after it.

    A byte over 128 repeats the next byte so many times less 128; any other says how many bytes follow as they are.
    """
    done = 0
    while done < len(into):
        count = int(data[at]) if at < len(data) else 0
        repeats = count > 128
        length = count - 128 if repeats else count
        values = data[at + 1 : at + (2 if repeats else 1 + count)]
        if not length or length > len(into) - done or len(values) < (1 if repeats else length):
            raise ValueError("a run of pixels is empty, or goes beyond its scanline or the file: the file is damaged")
        into[done : done + length] = values
        done, at = done + length, at + 1 + len(values)
    return at
