"""Radiance pictures: by bytes that were written by hand, by a writer of ten lines, and damaged."""

import numpy as np
import pytest

from dreamkit.render.hdr import read_hdr

HEAD = b"#?RADIANCE\n# made by hand\nFORMAT=32-bit_rle_rgbe\n"


def rgbe(picture: np.ndarray) -> np.ndarray:
    """[H, W, 4] bytes: mantissas of a half to one of the largest component's exponent."""
    exponent = np.frexp(picture.max(-1, keepdims=True))[1]
    mantissas = np.floor(picture * np.ldexp(1.0, 8 - exponent)).astype(np.uint8)
    return np.concatenate([mantissas, (exponent + 128).astype(np.uint8)], axis=-1)


def in_runs(values: bytes) -> bytes:
    """One component of a scanline: equal neighbours as runs, the others as they are."""
    out, at = b"", 0
    while at < len(values):
        end = at + 1
        while end < min(len(values), at + 127) and values[end] == values[at]:
            end += 1
        out += bytes([128 + end - at, values[at]]) if end - at > 2 else bytes([end - at]) + values[at:end]
        at = end
    return out


def encoded(picture: np.ndarray) -> bytes:
    height, width = picture.shape[:2]
    rows = [
        bytes([2, 2, width >> 8, width & 255]) + b"".join(in_runs(c.tobytes()) for c in row.T) for row in rgbe(picture)
    ]
    return HEAD + f"\n-Y {height} +X {width}\n".encode() + b"".join(rows)


def test_a_picture_comes_back_up_to_the_bits_that_are_kept(tmp_path):
    draw = np.random.default_rng(0)
    picture = np.exp(draw.normal(0, 4, (5, 300, 3)))  # over ten orders of magnitude
    picture[:, 40:240] = picture[:, 40:41]  # longer than a run can be
    (tmp_path / "room.hdr").write_bytes(encoded(picture))
    found = read_hdr(tmp_path / "room.hdr")
    assert found.shape == picture.shape
    assert found.dtype == np.float32
    # Half of a mantissa's step, 1/128 of the largest component's at least, either way.
    assert (np.abs(found - picture) <= picture.max(-1, keepdims=True) / 256 * 1.0001).all()


def test_bytes_by_hand_mean_what_the_format_says(tmp_path):
    plain = bytes([128, 0, 255, 129, 9, 9, 9, 0])  # 2^(129 - 136) = 1/128; exponent 0 is black
    (tmp_path / "two.hdr").write_bytes(HEAD + b"EXPOSURE=4\nEXPOSURE= 0.5\n\n-Y 1 +X 2\n" + plain)
    want = np.array([[[128.5, 0.5, 255.5], [0, 0, 0]]]) / 128 / 2
    np.testing.assert_array_equal(read_hdr(tmp_path / "two.hdr"), want.astype(np.float32))


def test_the_longest_runs_are_those_of_the_format(tmp_path):
    """128 bytes as they are; a byte 127 times, then once more."""
    component = bytes([128, *range(128, 256), 255, 7, 1, 7])
    exponents = bytes([255, 136, 255, 136, 130, 136])  # 2^0
    row = bytes([2, 2, 1, 0]) + 3 * component + exponents
    (tmp_path / "long.hdr").write_bytes(HEAD + b"\n-Y 1 +X 256\n" + row)
    want = np.array([*range(128, 256), *[7] * 128])[:, None] + [0.5, 0.5, 0.5]
    np.testing.assert_array_equal(read_hdr(tmp_path / "long.hdr")[0], want)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"no picture", "does not begin"),
        (HEAD, "does not begin"),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_xyze\n\n-Y 1 +X 1\n1234", "xyze"),
        (HEAD + b"\n+Y 1 +X 1\n1234", "not as -Y height"),
        (HEAD + b"\n-Y 9999999 +X 9999999\n1234", "at least"),
        (HEAD + b"\n-Y 1 +X 2\n" + bytes([9, 9, 9, 130, 1, 1, 1, 5]), "before 1991"),
        (HEAD + b"\n-Y 2 +X 8\n" + bytes([2, 2, 0, 8] + 4 * [136, 5] + 20 * [7]), "does not begin with 2, 2"),
        (HEAD + b"\n-Y 1 +X 8\n" + bytes([2, 2, 0, 8] + 4 * [137, 5]), "beyond its scanline"),
        (HEAD + b"\n-Y 1 +X 8\n" + bytes([2, 2, 0, 8] + 4 * [0, 5]), "is empty"),
        (HEAD + b"\n-Y 1 +X 8\n" + bytes([2, 2, 0, 8] + 3 * [136, 5] + [8, 1]), "or the file"),
    ],
)
def test_what_is_no_sound_picture_is_refused(tmp_path, data, says):
    (tmp_path / "bad.hdr").write_bytes(data)
    with pytest.raises(ValueError, match=says):
        read_hdr(tmp_path / "bad.hdr")


def test_every_cut_short_file_is_refused(tmp_path):
    whole = encoded(np.random.default_rng(1).uniform(0, 1, (3, 20, 3)))
    for length in range(len(whole)):
        (tmp_path / "cut.hdr").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"begin|size|at least|damaged"):
            read_hdr(tmp_path / "cut.hdr")
