"""Latent-NeRF: the part of it that paints a mesh, Latent-Paint (arXiv:2211.07600, section 4.3).

    dreamkit generate "a goldfish" --system latent_nerf --from fish.obj

The texture first holds the prior's own latents, so that no step needs its encoder; then it is turned into colours and
refined. The shape stays as it is. Without --from, a ball is painted. Needs the prior's weights and a GPU.

The loss that keeps a radiance field near a sketched shape is in the system `sketch_shape`; a radiance field of latents
is not here.
"""

from dataclasses import replace

from dreamkit.cameras import Orbit
from dreamkit.guidance.estimate import Guided
from dreamkit.guidance.rules import SDS
from dreamkit.guidance.weight import AlphaSigmaSquared
from dreamkit.priors import STABLE_DIFFUSION, Diffusers
from dreamkit.recipe import Cadence, Export, Guide, Recipe, Stage
from dreamkit.representations import MeshSurface
from dreamkit.representations.paint import LatentTexture, Texture

prior = Diffusers(STABLE_DIFFUSION)
rule = replace(SDS, trust=Guided(100.0), weight=AlphaSigmaSquared())

recipe = Recipe(
    description="a mesh painted by SDS in Stable Diffusion's latents, then refined in colour",
    stages=(
        Stage(
            representation=MeshSurface(keep_geometry=True, paint=LatentTexture(size=128, rate=1e-2)),
            guides=(Guide(rule, prior, sees="latent"),),
            cameras=Orbit(size=64),  # as many pixels as that prior's latents have
            steps=5_000,
            batch=1,
        ),
        Stage(
            representation=MeshSurface(keep_geometry=True, paint=Texture(size=1024, rate=5e-3)),
            guides=(Guide(rule, prior),),
            cameras=Orbit(size=512),
            steps=2_000,
            batch=1,
        ),
    ),
    export=Export(face_budget=40_000),
    cadence=Cadence(log=10, checkpoint=500, preview=250),
)
