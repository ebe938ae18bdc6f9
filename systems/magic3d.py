"""Magic3D: a hash-grid NeRF for the shape, then a mesh for the detail (arXiv:2211.10440).

The published system with the parts people can have: Stable Diffusion 2.1 in the place of eDiff-I, at both stages.
Steps, picture sizes, level ranges, weights of levels and losses, and learning rates are those of threestudio's
`magic3d-coarse-sd` and `magic3d-refine-sd`; the background is one learned colour. The second stage begins with the
surface of the first, at the level whose silhouettes its pictures show, and with its colours, and then moves both.
Needs the prior's weights (about 5 GB) and a GPU: 10,000 steps of 64 x 64 pixels, then 5,000 of 512 x 512.
"""

from dataclasses import replace

from dreamkit import losses
from dreamkit.cameras import Orbit
from dreamkit.guidance.levels import Uniform
from dreamkit.guidance.rules import SDS
from dreamkit.guidance.weight import One
from dreamkit.kernels.hashgrid import HashGridShape
from dreamkit.priors import STABLE_DIFFUSION, Diffusers
from dreamkit.recipe import Cadence, Export, Guide, Recipe, Stage
from dreamkit.representations import DMTet, HashGrid
from dreamkit.representations.dmtet import Explicit
from dreamkit.representations.network import Network
from dreamkit.representations.representation import LearnedColour, Shading
from dreamkit.schedule import Linear, Switch

prior = Diffusers(STABLE_DIFFUSION)
encoding = HashGridShape(levels=16, log2_entries=19, coarsest=16, finest=4096)
cameras = Orbit(distance=(2.8, 3.2), fov_degrees=(33.0, 45.0), elevation_degrees=(-10.0, 45.0), size=64)

coarse = Stage(
    representation=HashGrid(
        encoding=encoding,
        hidden=64,
        step=0.02,
        cells=64,
        background=LearnedColour(),
        shading=Shading(albedo=Switch(1.0, 0.25, 0.2), textureless=0.375),
        network_rate=1e-2,
    ),
    guides=(Guide(replace(SDS, weight=One()), prior),),
    cameras=cameras,
    losses=(
        losses.Weighted(losses.orientation, Linear(10.0, 1000.0, until=0.5)),
        losses.Weighted(losses.opacity, 1.0),
    ),
    steps=10_000,
    batch=1,
)

fine = Stage(
    representation=DMTet(
        resolution=64,
        geometry=Explicit(sdf_rate=1e-2, deform_rate=1e-2),
        colour=Network(encoding, hidden=64, network_rate=1e-2),
        background=LearnedColour(),
        shading=Shading(albedo=0.25, textureless=0.375),
    ),
    guides=(Guide(replace(SDS, levels=Uniform(0.02, 0.5)), prior),),
    cameras=replace(cameras, size=512),
    losses=(losses.Weighted(losses.normal_consistency, 10_000.0),),
    steps=5_000,
    batch=1,
)

recipe = Recipe(
    description="Magic3D: a NeRF, then a mesh in a tetrahedral grid, under SDS from Stable Diffusion 2.1",
    stages=(coarse, fine),
    export=Export(face_budget=100_000, texture_size=2048),
    cadence=Cadence(log=10, checkpoint=500, preview=250),
)
