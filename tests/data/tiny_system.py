"""A run of a second: a tiny hash grid under an exact prior that finds every picture should be red."""

from dreamkit.cameras import Orbit
from dreamkit.guidance.rules import SDS
from dreamkit.kernels.hashgrid import HashGridShape
from dreamkit.losses import Weighted, opacity
from dreamkit.priors import Bell, Gaussian
from dreamkit.recipe import Cadence, Export, Guide, Recipe, Stage
from dreamkit.representations import HashGrid
from dreamkit.schedule import Linear

recipe = Recipe(
    description="tiny",
    stages=(
        Stage(
            representation=HashGrid(
                encoding=HashGridShape(levels=4, log2_entries=10, coarsest=4, finest=16), hidden=8, step=0.1, cells=16
            ),
            guides=(Guide(SDS, Gaussian((Bell("", 0.0, 0.5), Bell("a red ball", (0.8, -0.8, -0.8), 0.5)), size=8)),),
            cameras=Orbit(size=16),
            losses=(Weighted(opacity, Linear(0.0, 0.1)),),
            steps=30,
            batch=2,
        ),
    ),
    export=Export(grid_resolution=32, face_budget=500, texture_size=64, unwrap_seconds=0.0, turntable_seconds=0.2),
    cadence=Cadence(log=1, checkpoint=5, preview=15),
)
