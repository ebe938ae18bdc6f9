"""Fantasia3D: first the shape, by its normals alone, then a material on it (arXiv:2303.13873).

The shape begins as an ellipsoid and is a hash-grid network of signed distances; the prior sees its normals as a colour
picture. Then the shape is smoothed a little and kept, and colour, roughness and metal are painted on it, in the light
of a studio. Steps, picture sizes, level ranges, weights of levels and learning rates are those of threestudio's
`fantasia3d` and `fantasia3d-texture`. Left out are the start of the shape's stage, in which normals and mask stand for
a latent, and the normal map of the second.
Needs the prior's weights (about 5 GB) and a GPU: 10,000 steps of 512 x 512 pixels, then 5,000.
"""

from dataclasses import replace

from dreamkit.cameras import Orbit
from dreamkit.guidance.levels import Uniform
from dreamkit.guidance.rules import SDS
from dreamkit.guidance.weight import AlphaSigmaSquared
from dreamkit.kernels.hashgrid import HashGridShape
from dreamkit.priors import STABLE_DIFFUSION, Diffusers
from dreamkit.recipe import Cadence, Export, Guide, Recipe, Stage
from dreamkit.render.lighting import Studio
from dreamkit.representations import DMTet, MeshSurface
from dreamkit.representations.dmtet import Ellipsoid
from dreamkit.representations.network import Network

prior = Diffusers(STABLE_DIFFUSION)
encoding = HashGridShape(levels=16, log2_entries=19, coarsest=16, finest=4096)
cameras = Orbit(distance=(3.0, 3.0), fov_degrees=(25.0, 45.0), elevation_degrees=(-10.0, 45.0), size=512)
rule = replace(SDS, levels=Uniform(0.02, 0.5))

shape = Stage(
    representation=DMTet(
        resolution=64,
        start=Ellipsoid((0.5, 0.5, 0.6)),
        geometry=Network(encoding, hidden=64, table_rate=1e-3),
        colour=None,
    ),
    guides=(Guide(replace(rule, weight=AlphaSigmaSquared()), prior, sees="normal"),),
    cameras=cameras,
    steps=10_000,
    batch=1,
)

appearance = Stage(
    representation=MeshSurface(
        keep_geometry=True,
        face_budget=100_000,
        paint=Network(encoding, hidden=64, network_rate=1e-2),
        texture_size=2048,
        environment=Studio(),
    ),
    guides=(Guide(rule, prior),),
    cameras=cameras,
    steps=5_000,
    batch=1,
)

recipe = Recipe(
    description="Fantasia3D: a shape by its normals, then its material, under SDS from Stable Diffusion 2.1",
    stages=(shape, appearance),
    export=Export(face_budget=100_000, texture_size=2048),
    cadence=Cadence(log=10, checkpoint=500, preview=250),
)
