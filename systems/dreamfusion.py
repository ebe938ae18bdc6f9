"""DreamFusion: a NeRF optimised by score distillation (arXiv:2209.14988).

The published system with the parts people can have: Stable Diffusion 2.1 in the place of Imagen, a hash grid in the
place of Mip-NeRF 360; weights of losses are those of threestudio's `dreamfusion-sd`. Needs the prior's weights (about
5 GB) and a GPU: 10,000 steps.
"""

from dreamkit import losses
from dreamkit.cameras import Orbit
from dreamkit.guidance.rules import SDS
from dreamkit.kernels.hashgrid import HashGridShape
from dreamkit.priors import STABLE_DIFFUSION, Diffusers
from dreamkit.recipe import Cadence, Export, Guide, Recipe, Stage
from dreamkit.representations import HashGrid
from dreamkit.representations.representation import LearnedColour, Shading
from dreamkit.schedule import Linear, Switch

recipe = Recipe(
    description="a NeRF under SDS from Stable Diffusion 2.1, shaded as in the paper",
    stages=(
        Stage(
            representation=HashGrid(
                encoding=HashGridShape(levels=16, log2_entries=19, finest=2048),
                hidden=64,
                step=0.02,
                cells=64,
                background=LearnedColour(),
                shading=Shading(albedo=Switch(1.0, 0.25, 0.1), textureless=0.375),
            ),
            guides=(Guide(SDS, Diffusers(STABLE_DIFFUSION)),),
            cameras=Orbit(fov_degrees=(33.0, 45.0), elevation_degrees=(-10.0, 75.0), size=64),
            losses=(
                losses.Weighted(losses.orientation, Linear(10.0, 1000.0, until=0.5)),
                losses.Weighted(losses.opacity, 1.0),
            ),
            steps=10_000,
            batch=1,
        ),
    ),
    export=Export(grid_resolution=256, face_budget=40_000, texture_size=2048),
    cadence=Cadence(log=10, checkpoint=500, preview=250),
)
