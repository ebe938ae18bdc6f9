"""The system in which representations and rules are compared: the default's prior, rule and cameras in a single stage.

The default changes from Gaussians to a mesh on the way, which would hide what each of them, or a rule that goes through
levels in an order of its own, makes by itself. Chosen for the nerf.
"""

from dataclasses import replace

from dreamkit import losses
from dreamkit.guidance.levels import Uniform
from dreamkit.recipe import load
from dreamkit.representations import REPRESENTATIONS
from dreamkit.schedule import Linear

default = load("toybox")
stage = default.stages[0]
guide = stage.guides[0]

recipe = replace(
    default,
    description="a small NeRF under annealed SDS from the prior that ships, in one stage",
    stages=(
        replace(
            stage,
            representation=REPRESENTATIONS["nerf"],
            guides=(replace(guide, rule=replace(guide.rule, levels=Uniform(Linear(0.4, 0.02), Linear(0.98, 0.4)))),),
            losses=(*stage.losses, losses.Weighted(losses.entropy, Linear(0.0, 60.0, begin=0.4))),
            steps=800,
            batch=2,
        ),
    ),
)
