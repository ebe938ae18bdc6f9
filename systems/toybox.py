"""The default: a small hash grid under annealed SDS from the prior that ships, in about a minute and a half on a CPU.

Made for the toybox prior, which knows an object from eight sides by name and draws it in 64 x 64 pixels:

- a small guidance scale, because that prior was trained on nothing but such pictures, and draws what it is told;
- the scene is kept inside the ball that every camera sees whole;
- levels come down slowly, both bounds of them, from shape to detail; an entropy loss at the end leaves no fog.
"""

from dataclasses import replace

from dreamkit import losses
from dreamkit.cameras import Orbit
from dreamkit.guidance.estimate import Guided
from dreamkit.guidance.levels import Uniform
from dreamkit.guidance.rules import SDS
from dreamkit.priors import Diffusers
from dreamkit.recipe import Cadence, Export, Guide, Recipe, Stage
from dreamkit.representations import HashGrid
from dreamkit.schedule import Linear

rule = replace(SDS, levels=Uniform(Linear(0.4, 0.02), Linear(0.98, 0.4)), trust=Guided(10.0))

recipe = Recipe(
    description="a small NeRF under annealed SDS from the prior that ships; no download, made for a CPU",
    stages=(
        Stage(
            representation=HashGrid(radius=0.85, table_rate=1.5e-2, network_rate=2e-3),
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
    export=Export(grid_resolution=96, face_budget=10_000, texture_size=1024, unwrap_seconds=20.0),
    cadence=Cadence(log=10, checkpoint=100, preview=100),
)
