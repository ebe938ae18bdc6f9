"""The default: Gaussians and then a mesh, under score distillation from the prior that ships; a minute or two on a CPU.

Made for the toybox prior, which knows an object from eight sides by name and draws it in 64 x 64 pixels:

- a small guidance scale, because that prior was trained on nothing but such pictures, and draws what it is told: larger
  ones make what is tall taller and what is thin thinner;
- the scene is kept inside the ball that every camera sees whole;
- Gaussians find the shape, thin parts too, by SDS. Levels come down slowly, both bounds of them, from shape to detail;
- then a mesh takes over, whose vertices move together with their neighbours, and whose colours are a texture. It stands
  in the light of the prior's world, so that shades make its shape, and not stains. It begins from what is a quarter
  opaque: at a half the ends of a handle, which are still faint then, would be cut off;
- what the mesh is to look like are pictures denoised in several steps. SDS asks for the mean of all that a noisy
  picture may be, which has no doors and no edges;
- the prior sees four views of the object together, so that what it asks of one fits the others;
- of two things ("a red mug on top of a white table") each is made by itself, as the prior draws them well alone and
  hardly together.
"""

from dataclasses import replace

from dreamkit import losses
from dreamkit.cameras import Orbit
from dreamkit.guidance.estimate import Denoised, Guided
from dreamkit.guidance.levels import Uniform
from dreamkit.guidance.rules import SDS
from dreamkit.guidance.weight import SigmaOverAlpha
from dreamkit.priors import Diffusers
from dreamkit.recipe import Cadence, Export, Guide, Recipe, Stage
from dreamkit.representations import Gaussians, MeshSurface
from dreamkit.representations.representation import Shading
from dreamkit.schedule import Linear
from dreamkit.toybox.pictures import AMBIENT, LAMP_SPREAD

SCALE = 4.0
VIEWS = 4
prior = Diffusers("toybox", views=VIEWS)
shape = replace(SDS, levels=Uniform(Linear(0.7, 0.1), Linear(0.98, 0.55)), trust=Guided(SCALE))
detail = replace(
    SDS,
    levels=Uniform(Linear(0.5, 0.2), Linear(0.9, 0.5)),
    trust=Denoised(SCALE, stride=0.3),
    weight=SigmaOverAlpha(),  # with it, and such pictures, an L2 loss to them
)

coarse = Stage(
    representation=Gaussians(radius=0.85),
    guides=(Guide(shape, prior),),
    cameras=Orbit(elevation_degrees=(-10.0, 60.0), group=VIEWS),
    losses=(losses.Weighted(losses.opacity, 3.0),),
    steps=300,
    batch=VIEWS,
)
fine = replace(
    coarse,
    representation=MeshSurface(
        face_budget=3000,
        grid_resolution=64,
        vertex_rate=Linear(5e-3, 1e-3),
        opaque=0.25,
        shading=Shading(albedo=0.0, ambient=AMBIENT, diffuse=1 - AMBIENT, spread=LAMP_SPREAD, distance=(1.0, 1.0)),
    ),
    guides=(Guide(detail, prior),),
    # No fog is left: of use where --representation puts a volume in the place of the mesh.
    losses=(*coarse.losses, losses.Weighted(losses.entropy, Linear(0.0, 60.0))),
    steps=200,
)

recipe = Recipe(
    description="Gaussians, then a mesh, under score distillation from the prior that ships; no download, for a CPU",
    stages=(coarse, fine),
    export=Export(grid_resolution=96, face_budget=10_000, texture_size=1024, unwrap_seconds=20.0),
    cadence=Cadence(log=10, checkpoint=100, preview=50),
    apart=True,
)
