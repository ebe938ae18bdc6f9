"""Representations: what a 3D scene is made of."""

from dreamkit.representations.canvas import Canvas
from dreamkit.representations.dmtet import DMTet
from dreamkit.representations.gaussians import Gaussians
from dreamkit.representations.hashgrid import HashGrid
from dreamkit.representations.mesh import MeshSurface
from dreamkit.representations.representation import Representation, Scene
from dreamkit.representations.sdf import SignedDistance

REPRESENTATIONS: dict[str, Representation] = {
    "nerf": HashGrid(radius=0.85, table_rate=1.5e-2, network_rate=2e-3),
    "sdf": SignedDistance(),
    "dmtet": DMTet(),
    "mesh": MeshSurface(),
    "gaussians": Gaussians(),
    "image": Canvas(),
}
"""By the names the command line takes, with settings for a small scene."""

__all__ = [
    "Canvas",
    "DMTet",
    "Gaussians",
    "HashGrid",
    "MeshSurface",
    "Representation",
    "Scene",
    "SignedDistance",
    "REPRESENTATIONS",
]
