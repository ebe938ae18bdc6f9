"""The system in which representations and rules are compared: SDS from the toybox, of single views, in a single stage.

The default changes from Gaussians to a mesh on the way, and from SDS to another rule, which would hide what each of
them, or a rule that goes through levels in an order of its own, makes by itself. Chosen for the nerf.
"""

from dataclasses import replace

from dreamkit import losses
from dreamkit.cameras import Orbit
from dreamkit.guidance.estimate import Guided
from dreamkit.guidance.levels import Uniform
from dreamkit.guidance.rules import SDS
from dreamkit.priors import Diffusers
from dreamkit.recipe import Guide, Stage, load
from dreamkit.representations import REPRESENTATIONS
from dreamkit.schedule import Linear

rule = replace(SDS, levels=Uniform(Linear(0.4, 0.02), Linear(0.98, 0.4)), trust=Guided(10.0))
recipe = replace(
    load("toybox"),
    description="a small NeRF under annealed SDS from the prior that ships, in one stage",
    stages=(
        Stage(
            representation=REPRESENTATIONS["nerf"],
            guides=(Guide(rule, Diffusers("toybox")),),
            cameras=Orbit(elevation_degrees=(-10.0, 60.0)),
            losses=(
                losses.Weighted(losses.opacity, 10.0),
                losses.Weighted(losses.entropy, Linear(0.0, 60.0, begin=0.4)),
            ),
            steps=800,
            batch=2,
        ),
    ),
)
