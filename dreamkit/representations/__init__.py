"""Representations: what a 3D scene is made of."""

from dreamkit.representations.canvas import Canvas
from dreamkit.representations.hashgrid import HashGrid
from dreamkit.representations.representation import Representation, Scene

REPRESENTATIONS: dict[str, Representation] = {"nerf": HashGrid(), "image": Canvas()}
"""By the names the command line takes, with settings for a small scene."""

__all__ = ["Canvas", "HashGrid", "Representation", "Scene", "REPRESENTATIONS"]
