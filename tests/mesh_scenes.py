"""Small painted meshes for tests, and steps that change them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dreamkit.assets.prepare import cube_sphere
from dreamkit.cameras import orbit
from dreamkit.kernels.hashgrid import HashGridShape
from dreamkit.render.lighting import Studio
from dreamkit.representations.mesh import MeshSurface
from dreamkit.representations.network import Network
from dreamkit.representations.paint import LatentTexture, Texture
from dreamkit.representations.representation import PlainColour
from dreamkit.streams import Streams
from tests.training import descend, redness

TINY = str(Path(__file__).parent / "data" / "tiny_system.py")
QUICK = {"settings": {"export.turntable_seconds": "0"}}
VIEWS = orbit([20.0, 140.0, 260.0], [15.0, -20.0, 40.0], size=(36, 40))
SMALL = MeshSurface(cells=4, paint=Texture(size=32), background=PlainColour((0.2, 0.4, 0.6)), light_size=16)
NET = Network(HashGridShape(levels=3, log2_entries=9, coarsest=4, finest=16), hidden=8)
KINDS = {
    "unlit": SMALL,
    "lit": replace(SMALL, environment=Studio()),
    "network": replace(SMALL, paint=NET, texture_size=32),
    "latents": replace(SMALL, paint=LatentTexture(size=8)),
    "lit network": replace(SMALL, paint=NET, texture_size=32, environment=Studio()),
}


def noise(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scene(device="cpu", spec=SMALL, rough=True):
    """A scene; `rough` gives its parameters other values than the first ones, away from the ends of their ranges."""
    built = spec.build(device, Streams(3, 0))
    if rough:
        shake(built)
    return built


@torch.no_grad()
def shake(built):
    for group in built.parameters():
        for i, parameter in enumerate(group["params"]):
            draw = noise(parameter.shape, i).to(parameter)
            if group["name"] == "offsets":
                parameter += 0.2 * (draw - 0.5)
            elif group["name"].startswith("texture"):
                parameter.copy_(0.6 * (draw - 0.5) if "bump" in group["name"] else 0.2 + 0.6 * draw)
            else:
                parameter += 0.5 * (draw - 0.5)


def train(built, steps):
    """A few steps towards a red picture, as the loop would take them."""
    return descend(built, steps, VIEWS, lambda images: redness(images).mean() + 0.1 * images.alpha.mean())


def a_mesh(**given):
    """A sphere of half a unit with its own texture and maps, somewhere, in centimetres."""
    ball = cube_sphere(4, 0.5)
    pictures = {
        "texture": (64, 64, 3),
        "roughness": (64, 64),
        "metallic": (32, 32),
    }
    maps = {n: (255 * noise(shape, i)).numpy().astype(np.uint8) for i, (n, shape) in enumerate(pictures.items())}
    tilt = 0.5 * noise((64, 64, 2), 9).numpy() - 0.25
    normal = np.concatenate([tilt, np.sqrt(1 - (tilt**2).sum(-1, keepdims=True))], axis=-1)
    maps["normal_map"] = np.rint(127.5 * (normal + 1)).astype(np.uint8)
    return replace(ball, vertices=(100 * ball.vertices + [30, -20, 70]).astype(np.float32), **maps | given)
