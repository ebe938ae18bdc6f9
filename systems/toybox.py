"""The default: a small hash grid under annealed SDS from the prior that ships, in about a minute and a half on a CPU.

Made for the toybox prior, which knows an object from four sides by name and draws it in 64 x 64 pixels:

- view words get a guidance scale of their own, above that of the rest of the prompt, or a car would be as wide as it is
  long, the average of its sides;
- the first fog stands off the middle, because "side view" is both sides: in the middle it would grow two heads;
- the scene is kept inside the ball that every camera sees whole;
- levels come down slowly, both bounds of them, from shape to detail; an entropy loss at the end leaves no fog.
"""

from dataclasses import replace

from dreamkit import losses
from dreamkit.cameras import Orbit
from dreamkit.guidance.estimate import ViewGuided
from dreamkit.guidance.levels import Uniform
from dreamkit.guidance.rules import SDS
from dreamkit.priors import Diffusers
from dreamkit.recipe import Cadence, Export, Guide, Recipe, Stage
from dreamkit.representations import HashGrid
from dreamkit.schedule import Linear

recipe = Recipe(
    description="a small NeRF under annealed SDS from the prior that ships; no download, made for a CPU",
    stages=(
        Stage(
            representation=HashGrid(radius=0.85, blob_centre=(-0.25, 0.0, 0.0), table_rate=1.5e-2, network_rate=2e-3),
            guides=(
                Guide(
                    replace(
                        SDS,
                        levels=Uniform(Linear(0.4, 0.02), Linear(0.98, 0.4)),
                        trust=ViewGuided(8.0, view_scale=20.0),
                    ),
                    Diffusers("toybox"),
                ),
            ),
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
