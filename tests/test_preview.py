"""Previews: pictures that show the mesh, a film that plays, and a page that is complete in itself."""

import base64
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from dreamkit.assets.unwrap import grid_atlas
from dreamkit.meshes import Mesh, coloured
from dreamkit.preview import framed, preview_html, preview_png, turntable

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def ball() -> Mesh:
    sphere = trimesh.creation.icosphere(subdivisions=3, radius=0.2)
    return Mesh((sphere.vertices + np.array([0.5, 0, 0.3])).astype(np.float32), sphere.faces.astype(np.int32))


def two_sided() -> Mesh:
    """Red in front (+x), blue behind."""
    mesh = ball()
    front = mesh.vertices[:, :1] > 0.5
    return replace(mesh, colours=np.where(front, [1, 0, 0], [0, 0, 1]).astype(np.float32))


def test_framed_puts_any_mesh_in_the_middle() -> None:
    vertices = framed(ball()).vertices
    np.testing.assert_allclose(vertices.min(0) + vertices.max(0), 0, atol=1e-5)
    corner = np.linalg.norm(vertices.max(0) - vertices.min(0)) / 2
    assert corner == pytest.approx(0.85, abs=1e-5)


def test_the_sheet_shows_eight_views_the_front_first(tmp_path: Path) -> None:
    picture = np.array(Image.open(preview_png(two_sided(), tmp_path / "preview.png", size=32)))
    assert picture.shape == (64, 128, 3)
    middles = [picture[16 + 32 * (i // 4), 16 + 32 * (i % 4)].astype(int) for i in range(8)]
    assert [m[0] > 100 > m[2] for m in middles] == [True, True, False, False, False, False, False, True]
    assert middles[4][2] > 100 > middles[4][0]  # from behind
    assert picture[0, 0].min() > 235  # a light ground


def test_the_film_plays_everywhere_and_turns(tmp_path: Path) -> None:
    import imageio.v3 as imageio
    import imageio_ffmpeg

    path = turntable(two_sided(), tmp_path / "turntable.mp4", seconds=1, fps=8, size=48)
    frames = imageio.imread(path)
    assert frames.shape == (8, 48, 48, 3)
    assert frames[0, 24, 24, 0] > 150 > frames[0, 24, 24, 2]  # red first, and blue after half a turn
    assert frames[4, 24, 24, 2] > 150 > frames[4, 24, 24, 0]
    said = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)], capture_output=True, text=True).stderr
    assert "h264" in said
    assert "yuv420p" in said
    assert [p.name for p in tmp_path.iterdir()] == ["turntable.mp4"]


def test_odd_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even size"):
        turntable(ball(), tmp_path / "a.mp4", size=47)


def embedded(page: str) -> dict:
    found = re.search(r'<script id="mesh" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def array(data: dict, name: str, type_: str, width: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(data[name]), type_).reshape(-1, width)


def test_the_page_holds_the_mesh(tmp_path: Path) -> None:
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:16, :, 1] = 200
    mesh = replace(grid_atlas(ball(), 32), texture=picture)
    data = embedded(preview_html(mesh, tmp_path / "a.html", "a mug").read_text(encoding="utf-8"))
    np.testing.assert_array_equal(array(data, "positions", "<f4", 3), framed(mesh, radius=1.0).vertices)
    np.testing.assert_array_equal(array(data, "faces", "<u4", 3), mesh.faces)
    assert data["corners"] == mesh.faces.size
    assert mesh.uv is not None
    uv = array(data, "uv", "<u2", 2) / 65535
    np.testing.assert_allclose(uv, np.stack([mesh.uv[:, 0], 1 - mesh.uv[:, 1]], -1), atol=1 / 65535)
    outward = array(data, "normals", "i1", 4)[:, :3] / 127 * framed(mesh, radius=1.0).vertices
    assert outward.sum(1).min() > 0.5
    header, jpeg = data["texture"].split(",")
    assert header == "data:image/jpeg;base64"
    assert base64.b64decode(jpeg)[:3] == b"\xff\xd8\xff"
    painted = embedded(preview_html(coloured(ball(), (1, 0, 0.5)), tmp_path / "b.html", "b").read_text())
    assert painted["texture"] is None
    assert (array(painted, "colours", "u1", 4)[:, :3] == [255, 0, 128]).all()


def test_any_text_is_shown_and_none_is_obeyed(tmp_path: Path) -> None:
    nasty = '</script><script>alert("1")</script> & @@MESH@@ \\1 é'
    page = preview_html(ball(), tmp_path / "a.html", nasty, {"<b>": nasty}).read_text(encoding="utf-8")
    assert page.count("<script") == 2
    assert page.count(html.escape(nasty)) == 3  # title, heading, fact
    assert "<th>&lt;b&gt;</th>" in page
    embedded(page)


def test_the_page_asks_nobody_for_anything(tmp_path: Path) -> None:
    page = preview_html(ball(), tmp_path / "a.html", "a mug", {"faces": 3}).read_text(encoding="utf-8")
    assert not re.findall(r"(?:https?:)?//[a-z0-9]+\.", page)
    assert not re.findall(r"<(?:link|iframe|img|object|embed)\b|@import|url\(|fetch\(|XMLHttpRequest|\simport\s", page)
    assert "default-src 'none'" in page
    assert "@@" not in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_draws_the_mesh(tmp_path: Path) -> None:
    page = preview_html(coloured(ball(), (1, 0, 0)), tmp_path / "a.html", "a red ball")
    shot = tmp_path / "shot.png"
    flags = "--headless --no-sandbox --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader"
    quiet = "--disable-background-networking --no-first-run --hide-scrollbars"
    size = "--window-size=900,500 --virtual-time-budget=2000"
    command = [str(CHROMIUM), *flags.split(), *quiet.split(), *size.split(), f"--user-data-dir={tmp_path / 'profile'}"]
    subprocess.run([*command, f"--screenshot={shot}", page.as_uri()], check=True, capture_output=True, timeout=120)
    picture = np.array(Image.open(shot).convert("RGB")).astype(int)
    red = (picture[..., 0] > 100) & (picture[..., 1] < 60) & (picture[..., 2] < 60)
    rows, columns = np.nonzero(red)
    # The stage is the 580 pixels left of the table; the ball stands in its middle.
    assert red.sum() > 3000
    assert columns.mean() == pytest.approx(290, abs=25)
    assert rows.mean() == pytest.approx(picture.shape[0] / 2, abs=40)
