"""3D Gaussians (3DGS, arXiv:2308.04079) that are drawn by splatting, and grow where the pictures ask for more."""

from dreamkit.representations.gaussians.cloud import Cloud
from dreamkit.representations.gaussians.control import Densify, Relocate
from dreamkit.representations.gaussians.scene import Gaussians, GaussiansScene, mean_opacity, mean_scale
from dreamkit.representations.gaussians.start import File, Points

__all__ = [
    "Cloud",
    "Densify",
    "File",
    "Gaussians",
    "GaussiansScene",
    "Points",
    "Relocate",
    "mean_opacity",
    "mean_scale",
]
