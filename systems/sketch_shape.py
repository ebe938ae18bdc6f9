"""Sketch-Shape: a NeRF that keeps near a rough mesh, the sketch (Latent-NeRF, arXiv:2211.07600, section 3.2).

    dreamkit generate "a lego man" --system sketch_shape --from man.obj

The mesh says what is inside and what is outside; within `Sketch.spread` of its surface the prior draws as it likes
(`dreamkit/representations/sketch.py`). In the paper the field holds latents; here it holds colours. Steps and the
weights of the losses are ours. Needs the prior's weights (about 5 GB) and a GPU.
"""

from dataclasses import replace

from dreamkit import losses
from dreamkit.cameras import Orbit
from dreamkit.guidance.estimate import Guided
from dreamkit.guidance.rules import SDS
from dreamkit.guidance.weight import AlphaSigmaSquared
from dreamkit.kernels.hashgrid import HashGridShape
from dreamkit.priors import STABLE_DIFFUSION, Diffusers
from dreamkit.recipe import Cadence, Export, Guide, Recipe, Stage
from dreamkit.representations import HashGrid
from dreamkit.representations.sketch import Sketch

rule = replace(SDS, trust=Guided(100.0), weight=AlphaSigmaSquared())

recipe = Recipe(
    description="a NeRF that keeps near a sketched mesh, under SDS from Stable Diffusion 2.1",
    stages=(
        Stage(
            representation=HashGrid(
                encoding=HashGridShape(levels=16, log2_entries=19, finest=2048), hidden=64, step=0.02, cells=64
            ),
            guides=(Guide(rule, Diffusers(STABLE_DIFFUSION)),),
            cameras=Orbit(fov_degrees=(33.0, 45.0), elevation_degrees=(-10.0, 75.0), size=64),
            losses=(losses.Weighted(Sketch(), 2.0), losses.Weighted(losses.entropy, 0.1)),
            steps=5_000,
            batch=1,
        ),
    ),
    export=Export(grid_resolution=256, face_budget=40_000, texture_size=2048),
    cadence=Cadence(log=10, checkpoint=500, preview=250),
)
