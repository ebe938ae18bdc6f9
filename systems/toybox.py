"""The default: a small hash grid under annealed SDS from the prior that ships, in about a minute and a half on a CPU.

Made for the toybox prior and its 64 x 64 pictures: a guidance scale of 10 (a pixel prior that was trained on the very
world it is asked about needs no more), levels that come down from coarse to fine, and an entropy loss that at the end
leaves no fog.
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

recipe = Recipe(
    description="a small NeRF under annealed SDS from the prior that ships; no download, about 90 s on 2 CPU cores",
    stages=(
        Stage(
            representation=HashGrid(),
            guides=(
                Guide(
                    replace(SDS, levels=Uniform(Linear(0.4, 0.02), Linear(0.98, 0.5)), trust=Guided(10.0)),
                    Diffusers("toybox"),
                ),
            ),
            cameras=Orbit(elevation_degrees=(-10.0, 60.0)),
            losses=(
                losses.Weighted(losses.opacity, Linear(0.0, 1.0)),
                losses.Weighted(losses.entropy, Linear(0.0, 1.0, begin=0.5)),
            ),
            steps=500,
            batch=2,
        ),
    ),
    export=Export(grid_resolution=96, face_budget=10_000, texture_size=1024, unwrap_seconds=20.0),
    cadence=Cadence(log=10, checkpoint=100, preview=50),
)
