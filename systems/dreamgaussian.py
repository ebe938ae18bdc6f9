"""DreamGaussian, stage 1: 3D Gaussians under annealed SDS, from text (arXiv:2309.16653, and the authors' settings).

500 steps of one view: 5000 Gaussians in a ball of radius 0.5, doubled every 50 steps where the picture pulls at them,
under levels that only come down, in pictures of 128, then 256, then 512 pixels: one stage for each, since a stage has
one picture size. Needs the prior's weights (about 5 GB) and a GPU.

What is not theirs: the background is any grey, not black or white; copies share the opacity of what they were copied
from (`Densify`); the optimiser starts anew with each picture size. Their second stage, which refines the texture of the
extracted mesh, is not here.
"""

import math
from dataclasses import replace

from dreamkit.cameras import Orbit
from dreamkit.guidance.estimate import Guided
from dreamkit.guidance.levels import At
from dreamkit.guidance.rules import SDS
from dreamkit.priors import STABLE_DIFFUSION, Diffusers
from dreamkit.recipe import Adam, Cadence, Export, Guide, Recipe, Stage
from dreamkit.representations.gaussians import Densify, Gaussians
from dreamkit.representations.representation import RandomColour
from dreamkit.schedule import Geometric, Linear

STEPS = 500
MOVED = 300
"""Steps in which the means' rate falls from 1e-2 to 2e-4: the authors' settings say a tenth of
that, which their code multiplies by 10."""


def stage(first: int, last: int, size: int) -> Stage:
    """Steps `first` to `last` of STEPS, in pictures of `size` pixels."""

    def rate(step: int) -> float:
        return 1e-2 * 0.02 ** min(step / MOVED, 1.0)

    def level(step: int) -> float:
        return min(max(1 - step / STEPS, 0.02), 0.98)

    return Stage(
        representation=Gaussians(
            count=5000,
            ball=0.5,
            opacity=0.1,
            radius=1.8,
            largest=math.inf,
            smallest=1e-6,
            anisotropy=math.inf,
            strategy=Densify(
                begin=0,
                every=50,
                gradient=0.01,
                growth=1.0,
                clone_below=0.04,
                prune_opacity=0.01,
                prune_scale=0.4,
                max_count=1_000_000,
            ),
            background=RandomColour(grey=1.0),
            means_rate=Geometric(rate(first), rate(last), until=(min(MOVED, last) - first) / (last - first)),
            scale_rate=5e-3,
            turn_rate=5e-3,
            opacity_rate=5e-2,
            colour_rate=1e-2,
        ),
        guides=(
            Guide(
                replace(SDS, levels=At(Linear(level(first), level(last))), trust=Guided(100.0)),
                Diffusers(STABLE_DIFFUSION),
            ),
        ),
        cameras=Orbit(distance=(2.5, 2.5), fov_degrees=(49.1, 49.1), elevation_degrees=(-30.0, 30.0), size=size),
        steps=last - first,
        batch=1,
        adam=Adam(betas=(0.9, 0.999)),
    )


recipe = Recipe(
    description="Gaussians under annealed SDS from Stable Diffusion 2.1: DreamGaussian's first stage",
    stages=(stage(0, 150, 128), stage(150, 300, 256), stage(300, STEPS, 512)),
    export=Export(grid_resolution=192, face_budget=40_000, texture_size=2048),
    cadence=Cadence(log=10, checkpoint=50, preview=50),
)
