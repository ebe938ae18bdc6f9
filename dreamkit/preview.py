"""What a finished mesh looks like: a sheet of eight views, a turntable, and a page that needs nothing but a browser."""

import base64
import html
import io
import json
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from dreamkit.assets.bake import to_bytes, vertex_normals
from dreamkit.assets.conventions import png_bytes
from dreamkit.cameras import Cameras, ring
from dreamkit.disk import plainly, write_whole
from dreamkit.meshes import Mesh
from dreamkit.render.mesh import render_mesh

BACKGROUND = (0.95, 0.95, 0.96)


def preview_png(mesh: Mesh, path: Path | str, size: int = 256, device: torch.device | str = "cpu") -> Path:
    """Eight views from all round, the front first, in two rows of four; each `size` pixels square, softly lit."""
    views = _pictures(framed(mesh), ring(8, size=size), device)
    rows = [np.concatenate(list(views[i : i + 4]), axis=1) for i in (0, 4)]
    write_whole(Path(path), png_bytes(np.concatenate(rows)))
    return Path(path)


def stacked(pictures: Sequence[Path], path: Path) -> Path:
    """Pictures of one width from files, one under another."""
    from PIL import Image

    write_whole(path, png_bytes(np.concatenate([np.asarray(Image.open(file).convert("RGB")) for file in pictures])))
    return path


def can_film() -> bool:
    """Whether there is an ffmpeg that writes H.264: imageio's own, which some platforms lack, or the system's."""
    import imageio_ffmpeg

    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
        said = subprocess.run([program, "-hide_banner", "-h", "encoder=libx264"], capture_output=True, text=True)
    except (RuntimeError, OSError):
        return False
    return said.stdout.startswith("Encoder libx264")


def turntable(
    mesh: Mesh,
    path: Path | str,
    *,
    seconds: float = 4.0,
    fps: int = 24,
    size: int = 320,
    device: torch.device | str = "cpu",
) -> Path:
    """One turn of the mesh as an MP4 that every browser plays (H.264, yuv420p); it loops without a jump.

    Args:
        size: width and height in pixels, even (yuv420p halves the colour planes).
    """
    import imageio.v2 as imageio

    if size % 2 or size < 16:
        raise ValueError(f"a turntable needs an even size of at least 16 pixels; got {size}")
    cameras = ring(max(round(seconds * fps), 1), size=size)
    centred = framed(mesh)
    with plainly(Path(path)), tempfile.TemporaryDirectory(prefix="dreamkit-turntable-") as folder:
        film = Path(folder, "turntable.mp4")
        with imageio.get_writer(
            film,
            fps=fps,
            codec="libx264",
            pixelformat="yuv420p",
            macro_block_size=2,
            quality=8,
            ffmpeg_log_level="error",
        ) as writer:
            for i in range(0, len(cameras), 4):  # a few at a time: rays take memory
                for picture in _pictures(centred, cameras[i : i + 4], device):
                    writer.append_data(picture)  # type: ignore[attr-defined]
        write_whole(Path(path), film.read_bytes())
    return Path(path)


def preview_html(mesh: Mesh, path: Path | str, title: str, facts: Mapping[str, object] | None = None) -> Path:
    """A page that shows the mesh, turning; it holds everything it needs and loads nothing.

    Args:
        title: the prompt; any text.
        facts: rows of a small table, name -> value; any text.
    """
    rows = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in (facts or {}).items()
    )
    parts = {"TITLE": html.escape(title), "FACTS": rows, "MESH": _mesh_json(framed(mesh, radius=1.0))}
    template = resources.files("dreamkit").joinpath("preview.html.template").read_text(encoding="utf-8")
    # In one pass, so that a title that looks like a placeholder stays a title.
    page = re.sub(r"@@(TITLE|FACTS|MESH)@@", lambda found: parts[found[1]], template)
    write_whole(Path(path), page.encode("utf-8", "replace"))  # the name of a file may be no text
    return Path(path)


def framed(mesh: Mesh, radius: float = 0.85) -> Mesh:
    """The mesh moved and scaled so that the ball around its bounding box has this radius, at the origin.

    0.85 fills the view of `cameras.ring`, whose cone touches a ball of 3 sin(18 degrees) = 0.93.
    """
    if not len(mesh.vertices):
        return mesh
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    scale = 2 * radius / max(float(np.linalg.norm(high - low)), 1e-9)
    return replace(mesh, vertices=((mesh.vertices - (low + high) / 2) * scale).astype(np.float32))


def _pictures(mesh: Mesh, cameras: Cameras, device: torch.device | str) -> np.ndarray:
    """[B, H, W, 3] uint8."""
    images = render_mesh(mesh, cameras, background=BACKGROUND, lit=True, device=device)
    return to_bytes(images.rgb.permute(0, 2, 3, 1).cpu().numpy())


def _mesh_json(mesh: Mesh) -> str:
    """The mesh as the page's script reads it: arrays in base64, the texture as a data address."""
    count = len(mesh.vertices)
    normals = np.zeros((count, 4), np.int8)
    normals[:, :3] = np.rint(vertex_normals(mesh) * 127)
    colours = np.full((count, 4), 255, np.uint8)
    uv = np.zeros((count, 2), np.uint16)
    picture = None
    if mesh.texture is not None and mesh.uv is not None:
        # WebGL puts row 0 of an image at v = 0.
        uv[:] = np.rint(np.stack([mesh.uv[:, 0], 1 - mesh.uv[:, 1]], axis=-1).clip(0, 1) * 65535)
        picture = "data:image/jpeg;base64," + base64.b64encode(_jpeg(mesh.texture)).decode()
    elif mesh.colours is not None:
        colours[:, :3] = to_bytes(mesh.colours)
    arrays = {
        "positions": mesh.vertices.astype("<f4"),
        "normals": normals,
        "uv": uv.astype("<u2"),
        "colours": colours,
        "faces": mesh.faces.astype("<u4"),
    }
    packed = {name: base64.b64encode(a.tobytes()).decode() for name, a in arrays.items()}
    return json.dumps({**packed, "corners": mesh.faces.size, "texture": picture})


def _jpeg(picture: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=92, subsampling=0)  # a fifth of the PNG
    return buffer.getvalue()
