"""How much of a scene every conversion keeps, and how long it takes: `python -m benchmarks.conversions`.

The sources are a thing of the toybox's world as a mesh, a hash grid and a tetrahedral grid made of it, and Gaussians
fitted to pictures of it. Every scene is rendered from twelve views at 128 pixels, and so is what was made of it;
printed are the overlap of the silhouettes, the PSNR of the pictures and the seconds. Exported files are read back, as
`dreamkit export` does it. `--sheet` writes all the pictures, source and result under each other.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dreamkit import device as devices
from dreamkit.assets.files import write
from dreamkit.cameras import Orbit
from dreamkit.export import BACKGROUND, export_scene
from dreamkit.images import Images, png
from dreamkit.metrics.compare import Comparison, compare
from dreamkit.recipe import Export
from dreamkit.representations import DMTet, Gaussians, HashGrid, MeshSurface, Scene, SignedDistance
from dreamkit.representations.distil import descend
from dreamkit.representations.gaussians import GaussiansScene
from dreamkit.representations.representation import Solid, Startable, Volume
from dreamkit.representations.surface import check_cameras
from dreamkit.streams import Streams
from dreamkit.toybox import world

STREAMS = Streams(0, -1)
TARGETS: dict[str, Startable] = {
    "nerf": HashGrid(),
    "sdf": SignedDistance(),
    "dmtet": DMTet(resolution=48),
    "mesh": MeshSurface(),
    "gaussians": Gaussians(count=10_000),
}
PATHS = (
    ("mesh", "nerf"),
    ("mesh", "sdf"),
    ("mesh", "dmtet"),
    ("mesh", "gaussians"),
    ("nerf", "dmtet"),
    ("nerf", "mesh"),
    ("nerf", "gaussians"),
    ("dmtet", "mesh"),
    ("gaussians", "mesh"),
    ("gaussians", "nerf"),
)
EXPORTED = ("nerf", "dmtet", "gaussians")
SHOWN = [0, 2, 4, 6, 8, 10]


@dataclass(frozen=True)
class Row:
    path: str
    kept: Comparison
    seconds: float
    pictures: Tensor | None
    """[3, H, W]: the source above the result; none of files."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--thing", default="a striped red and blue mug", help="a prompt of the toybox's world")
    parser.add_argument("--sheet", type=Path, help="where to write the pictures (.png)")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    where = devices.choose(arguments.device)
    print(f"{arguments.thing}, {where}, {torch.get_num_threads()} threads\n")
    print("| conversion | silhouette IoU | PSNR | seconds |\n|---|---|---|---|")
    pictures = []
    for row in rows(arguments.thing, where):
        print(f"| {row.path} | {row.kept.iou:.3f} | {row.kept.psnr:.1f} | {row.seconds:.1f} |", flush=True)
        pictures += [] if row.pictures is None else [row.pictures]
    if arguments.sheet:
        arguments.sheet.write_bytes(png(torch.cat(pictures, dim=1)))


def rows(thing: str, device: torch.device) -> Iterator[Row]:
    """Every path of PATHS and every export, measured."""
    mesh = thing_scene(thing, device)
    sources: dict[str, Scene] = {name: TARGETS[name].from_scene(mesh, device, STREAMS) for name in ("nerf", "dmtet")}
    sources |= {"mesh": mesh, "gaussians": fitted_splat(mesh, device)}
    for source, target in PATHS:
        began = time.perf_counter()
        made = TARGETS[target].from_scene(sources[source], device, STREAMS)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
        yield _row(f"{source} to {target}", sources[source], seen(made), seconds)
    for source in EXPORTED:
        scene = sources[source]
        assert isinstance(scene, Solid | Volume)
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            exported = export_scene(scene, Export(formats=("glb", "splat-ply")), Path(folder), {}, device)
        seconds = time.perf_counter() - began
        for name, kept in (("GLB", exported.agreement), ("splat PLY", exported.splats)):
            assert kept is not None
            yield Row(f"{source} to a {name}, read back", kept, seconds, None)


def thing_scene(prompt: str, device: torch.device) -> Scene:
    """A thing of the toybox's world as a painted mesh."""
    with tempfile.TemporaryDirectory() as folder:
        asked = world.named(prompt)
        assert asked is not None, prompt
        (path,) = write(world.mesh_of(asked), Path(folder, "thing.glb"))
        scene = MeshSurface(source=str(path)).build(device, STREAMS)
        scene.mesh()  # reads the file
    return scene


def fitted_splat(teacher: Scene, device: torch.device, count: int = 4000, steps: int = 150) -> GaussiansScene:
    """Gaussians fitted to pictures of another scene, as those are that a run optimises."""
    scene = Gaussians(count=count, strategy=None).from_scene(teacher, device, STREAMS)
    cameras = Orbit(elevation_degrees=(-30.0, 80.0), size=96)

    def loss(own: Streams) -> Tensor:
        views, behind = cameras.sample(2, own), own.uniform("background", (2, 3)).to(device)
        with torch.no_grad():
            want = teacher.render(views, shading="albedo", background=behind)
        return torch.nn.functional.mse_loss(scene.render(views, background=behind).rgb, want.rgb)

    tensors = [tensor for group in scene.parameters() for tensor in group["params"]]
    descend(tensors, loss, steps, STREAMS.within("splat"), scene.after_step, rate=2e-3)
    return scene


@torch.no_grad()
def seen(scene: Scene) -> Images:
    """A scene from twelve views."""
    return scene.render(check_cameras(), shading="albedo", background=BACKGROUND)


def _row(path: str, source: Scene, made: Images, seconds: float) -> Row:
    given = seen(source)
    both = [torch.cat(list(images.rgb[SHOWN]), dim=-1) for images in (given, made)]
    return Row(path, compare(given, made), seconds, torch.cat(both, dim=1).cpu())


if __name__ == "__main__":
    main()
