"""Representations: what a 3D scene is made of."""

from dreamkit.representations.hashgrid import HashGrid
from dreamkit.representations.representation import Representation, Scene

REPRESENTATIONS: dict[str, Representation] = {"nerf": HashGrid()}
"""By the names the command line takes, with settings for a small scene."""

__all__ = ["HashGrid", "Representation", "Scene", "REPRESENTATIONS"]
