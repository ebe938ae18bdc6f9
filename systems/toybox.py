"""The default: Gaussians and then a mesh, under annealed SDS from the prior that ships; about a minute on a CPU.

Made for the toybox prior, which knows an object from eight sides by name and draws it in 64 x 64 pixels:

- a small guidance scale, because that prior was trained on nothing but such pictures, and draws what it is told;
- the scene is kept inside the ball that every camera sees whole;
- levels come down slowly, both bounds of them, from shape to detail;
- Gaussians find the shape, thin parts too. But what the last levels ask for is mostly noise, which makes their surface
  rough. So then a mesh takes over, whose vertices move together with their neighbours, and whose colours are a texture.
"""

from dataclasses import replace

from dreamkit import losses
from dreamkit.cameras import Orbit
from dreamkit.guidance.estimate import Guided
from dreamkit.guidance.levels import Uniform
from dreamkit.guidance.rules import SDS
from dreamkit.priors import Diffusers
from dreamkit.recipe import Cadence, Export, Guide, Recipe, Stage
from dreamkit.representations import Gaussians, MeshSurface
from dreamkit.schedule import Linear

prior = Diffusers("toybox")
rule = replace(SDS, trust=Guided(10.0))

coarse = Stage(
    representation=Gaussians(radius=0.85),
    guides=(Guide(replace(rule, levels=Uniform(Linear(0.7, 0.1), Linear(0.98, 0.55))), prior),),
    cameras=Orbit(elevation_degrees=(-10.0, 60.0)),
    losses=(losses.Weighted(losses.opacity, 10.0),),
    steps=300,
    batch=4,
)
fine = replace(
    coarse,
    representation=MeshSurface(face_budget=3000, grid_resolution=64, vertex_rate=Linear(5e-3, 1e-3)),
    guides=(Guide(replace(rule, levels=Uniform(Linear(0.2, 0.02), Linear(0.6, 0.4))), prior),),
    # No fog is left: of use where --representation puts a volume in the place of the mesh.
    losses=(*coarse.losses, losses.Weighted(losses.entropy, Linear(0.0, 60.0))),
    steps=150,
)

recipe = Recipe(
    description="Gaussians, then a mesh, under annealed SDS from the prior that ships; no download, made for a CPU",
    stages=(coarse, fine),
    export=Export(grid_resolution=96, face_budget=10_000, texture_size=1024, unwrap_seconds=20.0),
    cadence=Cadence(log=10, checkpoint=100, preview=50),
)
