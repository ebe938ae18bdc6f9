"""3D Gaussians (3DGS, arXiv:2308.04079) that are drawn by splatting, and grow where the pictures ask for more."""

from dreamkit.representations.gaussians.cloud import Cloud
from dreamkit.representations.gaussians.control import Densify, Relocate
from dreamkit.representations.gaussians.scene import (
    Gaussians,
    GaussiansScene,
    as_they_are,
    in_file,
    mean_opacity,
    mean_scale,
)
from dreamkit.representations.gaussians.start import File, Points, holds_splats

__all__ = [
    "Cloud",
    "Densify",
    "File",
    "Gaussians",
    "GaussiansScene",
    "Points",
    "Relocate",
    "as_they_are",
    "holds_splats",
    "in_file",
    "mean_opacity",
    "mean_scale",
]
