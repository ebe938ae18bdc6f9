"""Spherical harmonics of splats, and how their coefficients turn with the splat."""

import numpy as np

BASE = float(np.sqrt(1 / (4 * np.pi)))
"""Y_0, the harmonic of degree 0."""


def harmonics_turn(rotation: np.ndarray, degree: int) -> np.ndarray:
    """[K, K]: coefficients c of a function f become those of f(R^T d), the function turned by R.

    The harmonics of one degree turn among themselves, so the matrix solves Y(d) D = Y(R^T d) exactly for any directions
    d that tell them apart; 60 of a Fibonacci sphere do (least squares, float64).
    """
    i = np.arange(60) + 0.5
    height, angle = 1 - 2 * i / 60, np.pi * (1 + np.sqrt(5)) * i
    wide = np.sqrt(1 - height**2)
    directions = np.stack([wide * np.cos(angle), wide * np.sin(angle), height], axis=-1)
    solved = np.linalg.lstsq(harmonics(directions, degree), harmonics(directions @ rotation, degree), rcond=None)[0]
    block = np.repeat(np.arange(degree + 1), 2 * np.arange(degree + 1) + 1)
    return np.where(block[:, None] == block[None], solved, 0.0)


def harmonics(directions: np.ndarray, degree: int) -> np.ndarray:
    """Real spherical harmonics [N, (degree + 1)^2] of unit directions [N, 3], with the signs and the order of 3D
    Gaussian Splatting, which are those of KHR_gaussian_splatting (appendix A)."""
    x, y, z = directions.T
    xx, yy, zz = x * x, y * y, z * z
    values = [np.full_like(x, BASE)]
    if degree > 0:
        values += [np.sqrt(3 / (4 * np.pi)) * v for v in (-y, z, -x)]
    if degree > 1:
        cross, axial, planar = (np.sqrt(n / np.pi) for n in (15 / 4, 5 / 16, 15 / 16))
        values += [cross * x * y, -cross * y * z, axial * (2 * zz - xx - yy), -cross * x * z, planar * (xx - yy)]
    if degree > 2:
        a, b, c, d, e = (np.sqrt(n / np.pi) for n in (35 / 32, 105 / 4, 21 / 32, 7 / 16, 105 / 16))
        values += [-a * y * (3 * xx - yy), b * x * y * z, -c * y * (4 * zz - xx - yy)]
        values += [d * z * (2 * zz - 3 * xx - 3 * yy), -c * x * (4 * zz - xx - yy)]
        values += [e * z * (xx - yy), -a * x * (xx - 3 * yy)]
    return np.stack(values, axis=-1)
