"""Sketches: the loss by its closed form round a ball, a field that is pulled into a box, and how a run gets one."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreamkit import api, frozen
from dreamkit.assets.files import write
from dreamkit.cameras import Orbit, orbit
from dreamkit.compose import compose, sketched, wants_sketch
from dreamkit.errors import InputError
from dreamkit.images import Images, RaySamples
from dreamkit.kernels.hashgrid import HashGridShape
from dreamkit.losses import Weighted, opacity
from dreamkit.representations import Canvas, HashGrid
from dreamkit.representations.sketch import Sketch
from dreamkit.representations.surface import signed_distance
from dreamkit.run import Run
from dreamkit.streams import Streams
from dreamkit.toybox.kinds import ball, box
from tests.mesh_scenes import QUICK
from tests.test_loop import TINY

SMALL = HashGrid(encoding=HashGridShape(levels=4, log2_entries=12, finest=32), hidden=16, cells=16)
NOTHING = torch.zeros(1, 1, 1, 1)


@pytest.fixture(scope="module")
def round_file(tmp_path_factory) -> str:
    """A ball, in another place and size."""
    (path,) = write(ball((3.0, 1.0, 0.0), 2.0), tmp_path_factory.mktemp("sketch") / "ball.ply")
    return str(path)


def inside(position: torch.Tensor, opacities: torch.Tensor) -> Images:
    ones = torch.ones_like(opacities)
    return Images(NOTHING, NOTHING, NOTHING, samples=RaySamples(ones, None, position, opacities, position))


def test_the_loss_round_a_ball_is_its_closed_form(device, round_file):
    sketch = Sketch(round_file, radius=0.5, spread=0.2)
    radii, seen = torch.tensor([0.1, 0.3, 0.7, 0.9]), torch.tensor([0.9, 0.2, 0.4, 0.01])
    towards = torch.nn.functional.normalize(torch.tensor([[1.0, 2, 3], [-1, 0, 1], [0, -2, 1], [1, 1, 0]]), dim=-1)
    found = sketch(inside((towards * radii[:, None]).to(device), seen.to(device)), None).item()
    wrong = [-math.log(0.9), -math.log(0.2), -math.log(0.6), -math.log(0.99)]
    free = [1 - math.exp(-((r - 0.5) ** 2) / (2 * 0.2**2)) for r in radii.tolist()]
    want = sum(w * f for w, f in zip(wrong, free, strict=True)) / 4
    assert found == pytest.approx(want, rel=0.02)  # the ball's facets lie up to 1 % inside of it


def test_at_the_surface_anything_may_be(round_file):
    at = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]])
    assert Sketch(round_file, radius=0.5)(inside(at, torch.tensor([0.01, 0.99])), None).item() < 0.01


def test_its_gradient_is_that_of_finite_differences_and_finite_at_the_ends(round_file):
    position = 2 * torch.rand(12, 3, generator=torch.Generator().manual_seed(0)) - 1
    sketch = Sketch(round_file, radius=0.6)
    seen = torch.linspace(0.1, 0.9, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda o: sketch(inside(position, o), None), seen)
    ends = torch.tensor([0.0, 1.0] * 6, requires_grad=True)
    sketch(inside(position, ends), None).backward()
    assert bool(ends.grad.isfinite().all())


def test_samples_say_where_they_are(device):
    views = orbit([30.0], 20.0, size=16).to(device)
    images = SMALL.build(device, Streams(0, -1)).render(views)
    distance = (images.samples.position - views.positions).norm(dim=-1)
    # Depth is the mean distance of what is seen, so both sums are those of weight times distance over all rays.
    torch.testing.assert_close((images.samples.weight * distance).sum(), (images.depth * images.alpha).sum())


def test_a_field_is_pulled_into_the_sketch(device, tmp_path):
    shape = box((0.0, 0.0, 0.0), (0.5, 0.5, 1.1))
    (path,) = write(shape, tmp_path / "box.ply")
    radius = float((0.25**2 * 2 + 0.55**2) ** 0.5)  # the box as it is
    sketch = Sketch(str(path), radius, spread=0.03)
    built = replace(SMALL, table_rate=3e-2).build(device, Streams(0, -1))
    optimiser = torch.optim.Adam([dict(group) for group in built.parameters()], betas=(0.9, 0.99))
    for step in range(60):
        streams = Streams(0, step)
        images = built.render(Orbit(size=16).sample(2, streams), streams)
        optimiser.zero_grad()
        sketch(images, built).backward()
        optimiser.step()
        built.after_step(step, streams)
    points = (2 * torch.rand(4000, 3, generator=torch.Generator().manual_seed(1)) - 1).to(device)
    distance = signed_distance(shape, points)
    sure = distance.abs() > 0.1  # as wide as the finest cells are, and a half
    solid = built.density(points) > 5  # half opaque within 0.14 world units
    assert (solid == (distance < 0))[sure].float().mean() > 0.97
    assert solid[distance < -0.1].float().mean() > 0.9  # also where there was no fog at first


# ---- In a recipe ----------------------------------------------------------------------------------------------------


def test_a_system_that_wants_a_sketch_takes_the_file_that_is_given(round_file):
    recipe = compose("sketch_shape")
    assert wants_sketch(recipe)
    filled = sketched(recipe, round_file)
    assert not wants_sketch(filled)
    (loss, *_) = filled.stages[0].losses
    assert loss.function == Sketch(round_file)
    assert loss.name == "sketch"
    assert frozen.read(frozen.write(loss, "loss"), "loss") == loss
    other = compose("toybox")
    assert sketched(other, None) == other
    assert Weighted(opacity).name == "opacity"


def test_a_run_is_not_resumed_with_another_file_than_it_was_begun_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(ball((0.0, 0.0, 0.0), 1.0), "ball.obj")
    pull = "(Weighted(Sketch('ball.obj'), 1.0),)"
    api.generate("a red ball", system=str(TINY), out="run", steps=2, settings={"losses": pull, **QUICK["settings"]})
    run = Run.open("run")
    file = tmp_path / "ball.obj"
    assert run.recipe.stages[0].losses[0].function.path == str(file)
    run.check_files()
    before = file.read_bytes()
    file.write_bytes(before + b"# and more")
    with pytest.raises(InputError, match=r"ball\.obj, which has changed since"):
        run.check_files()
    file.unlink()
    with pytest.raises(InputError, match=r"ball\.obj, which is not there"):
        run.check_files()
    file.write_bytes(before)
    run.check_files()


def test_a_sketch_that_cannot_be_used_is_refused(tmp_path):
    recipe, flat = compose("sketch_shape"), Path(tmp_path, "flat.ply")
    with pytest.raises(InputError, match="give a mesh file with --from"):
        sketched(recipe, None)
    with pytest.raises(InputError, match=r"mesh\.glb in it"):
        sketched(recipe, tmp_path)
    with pytest.raises(InputError, match="no file"):
        sketched(recipe, flat)
    with pytest.raises(InputError, match="spread > 0"):
        Sketch(spread=0.0)
    with pytest.raises(ValueError, match="Canvas"):
        Sketch("any.obj")(Images(NOTHING, NOTHING, NOTHING), Canvas().build("cpu", Streams(0, -1)))
