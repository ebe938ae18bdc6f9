"""The canvas: one picture for every camera, changed by any rule, written with its history."""

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from dreamkit import api
from dreamkit.cameras import orbit
from dreamkit.errors import InputError
from dreamkit.representations import Canvas
from dreamkit.streams import Streams

TINY = str(Path(__file__).parent / "data" / "tiny_system.py")
VIEWS = orbit([0.0, 90.0], 10.0, size=16)


def canvas(device="cpu", size: int = 16):
    return Canvas(size=size).build(device, Streams(0, -1))


def test_every_camera_sees_the_one_picture_and_its_gradient_comes_back(device):
    scene = canvas(device)
    images = scene.render(VIEWS.to(device), normals=True)
    assert torch.equal(images.rgb[0], images.rgb[1])
    assert torch.equal(images.rgb[0], torch.sigmoid(scene.logits))
    assert (images.alpha == 1).all()
    assert torch.equal(images.normal[0, :, 3, 4].cpu(), torch.tensor([1.0, 0.0, 0.0]))
    images.rgb.sum().backward()
    p = images.rgb[0].detach()
    torch.testing.assert_close(scene.logits.grad, 2 * p * (1 - p))  # seen twice; the sigmoid's slope is p (1 - p)


def test_a_canvas_of_another_size_is_scaled_to_the_cameras():
    rgb = canvas(size=32).render(VIEWS).rgb
    assert rgb.shape == (2, 3, 16, 16)
    assert (rgb.mean() - torch.sigmoid(canvas(size=32).logits).mean()).abs() < 1e-3


def test_a_fresh_canvas_is_grey_with_the_noise_it_says():
    rgb = Canvas(size=64, noise=0.05).build("cpu", Streams(0, -1)).render(orbit([0.0], 0.0, size=64)).rgb
    assert rgb.mean().item() == pytest.approx(0.5, abs=0.002)  # four standard errors of 0.05 / sqrt(3 * 64^2)
    assert rgb.std().item() == pytest.approx(0.05, rel=0.03)


def test_a_state_comes_back_and_that_of_another_size_is_refused():
    scene, other = canvas(), Canvas(size=16).build("cpu", Streams(1, -1))
    other.load(scene.state())
    assert torch.equal(scene.logits, other.logits)
    assert other.logits.requires_grad
    with pytest.raises(ValueError, match="16 pixels cannot take over"):
        other.load(canvas(size=8).state())


def test_a_run_on_a_canvas_writes_the_picture_and_its_history(tmp_path):
    result = api.generate(
        "a red ball", system=TINY, representation="image", out=tmp_path / "run", settings={"stages.0.steps": "120"}
    )
    picture = imageio.imread(tmp_path / "run" / "picture.png").astype(float)
    mean = picture.mean((0, 1))
    # The prior's mean is (0.9, 0.1, 0.1).
    assert mean[0] > 190
    assert max(mean[1:]) < 70
    frames = imageio.imread(tmp_path / "run" / "history.gif", index=None)
    assert len(frames) == 120 // 15
    assert np.ptp([frame.mean() for frame in frames]) > 5
    assert result.exported.facts()["size"] == [64, 64]
    with pytest.raises(ValueError, match="no mesh"):
        _ = result.mesh


def test_export_writes_a_canvas_again(tmp_path):
    api.generate("a red ball", system=TINY, representation="image", out=tmp_path / "run", steps=15)
    first = (tmp_path / "run" / "picture.png").read_bytes()
    (tmp_path / "run" / "picture.png").unlink()
    api.export(tmp_path / "run")
    assert (tmp_path / "run" / "picture.png").read_bytes() == first
    with pytest.raises(InputError, match=r"written as picture\.png, and there is nothing to set"):
        api.export(tmp_path / "run", settings={"formats": "('glb',)"})
    with pytest.raises(InputError, match="made a picture, not a mesh"):
        api.evaluate([tmp_path / "run"])
