"""The first asset, as a user makes it: seconds from process start to the written GLB, and peak memory.

    python -m benchmarks.first_asset                          one asset, "a red mug"
    python -m benchmarks.first_asset --prompts prompts/toybox.txt --sheet sheet.png

Each prompt is one `dreamkit generate` in a process of its own, so imports, loading, optimising and exporting all count.
The step's time (wall clock, everything included) is set against the prior's own forward time: one call of its network
on the batch that a step asks for, timed alone in this process between the runs. What the toybox's world knows is also
measured against its true mesh, in the world's pose: F-score (at 5 % of the diagonal), Chamfer distance, and over eight
views the silhouettes' IoU and the PSNR.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dreamkit import device as devices
from dreamkit.assets.files import read
from dreamkit.cameras import ring
from dreamkit.errors import InputError
from dreamkit.metrics.compare import compare
from dreamkit.metrics.shape import likeness
from dreamkit.prompts import read_list
from dreamkit.recipe import load
from dreamkit.render.mesh import render_mesh
from dreamkit.toybox import world


def measure(prompt: str, out: Path, arguments: list[str]) -> dict[str, Any]:
    """Run one generate and read what it left."""
    began = time.time()
    child = subprocess.Popen(
        [sys.executable, "-m", "dreamkit.cli", "generate", prompt, "--out", str(out), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    peak = 0.0
    while child.poll() is None:
        peak = max(peak, _resident(child.pid))
        time.sleep(0.2)
    if child.returncode:
        return {"prompt": prompt, "failed": child.returncode}
    record = json.loads((out / "run.json").read_text())
    # Each line holds the mean over the steps since the line before. The first has the compilation of kernels in it.
    steps = [json.loads(line)["seconds"]["step"] for line in (out / "log.jsonl").read_text().splitlines()][1:]
    step, forward = sum(steps) / len(steps), forward_seconds(prompt, devices.choose(record["device"]))
    return {
        "prompt": prompt,
        "seconds_to_glb": round((out / "mesh.glb").stat().st_mtime - began, 1),
        "seconds_in_all": round(time.time() - began, 1),
        "peak_gib": round(peak, 2),
        "ms_per_step": round(1000 * step, 1),
        "ms_prior_forward": round(1000 * forward, 1),
        "step_over_prior": round(step / forward, 2),
        **{key: record["export"][key] for key in ("faces", "psnr", "silhouette_iou", "unwrapped")},
        **against_truth(out / "mesh.glb", prompt),
    }


def against_truth(file: Path, prompt: str) -> dict[str, float]:
    """The asset against the world's own mesh; nothing for a prompt that the world has no mesh for."""
    thing = world.named(prompt)
    if thing is None:
        return {}
    mesh, truth, cameras = read(file), world.mesh_of(thing), ring(8, size=128)
    found, seen = likeness(mesh, truth), compare(*(render_mesh(one, cameras, lit=True) for one in (mesh, truth)))
    return {
        "true_f_score": round(found.f_score, 3),
        "true_chamfer": round(found.chamfer, 4),
        "true_iou": round(seen.iou, 3),
        "true_psnr": round(seen.psnr, 1),
    }


def forward_seconds(prompt: str, device: torch.device) -> float:
    """One forward pass of the toybox's network on what the default system asks for in a step; the median of 30."""
    stage = load("toybox").stages[0]
    prior = stage.guides[0].prior.load(device)
    count = len(stage.guides[0].rule.asks()) * stage.batch
    z, level = torch.randn(count, *prior.shape, device=device), prior.level(torch.full((count,), 0.5))
    condition = prior.condition([prompt] * count)
    times = []
    for _ in range(33):
        began = time.perf_counter()
        prior.eps(z, level, condition).sum().item()  # waits for a GPU
        times.append(time.perf_counter() - began)
    return sorted(times[3:])[15]


def import_seconds() -> dict[str, float]:
    """Seconds that `import dreamkit`, and everything that a run needs before it loads a model, cost beyond torch."""
    code = "import time, torch; began = time.perf_counter(); import {}; print(time.perf_counter() - began)"

    def best(name: str) -> float:
        command = [sys.executable, "-c", code.format(name)]
        return min(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(5))

    return {name: round(best(name), 3) for name in ("dreamkit", "dreamkit.api")}


def _resident(pid: int) -> float:
    """Resident memory of a process and its children, GiB."""
    total = 0.0
    for process in (pid, *_children(pid)):
        try:
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 2**20
    return total


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def sheet(folders: list[Path], path: Path) -> None:
    """All previews in a page about 2300 pixels wide, down one column and then the next, about as high as it is wide."""
    from PIL import Image

    columns = max(2, math.isqrt(len(folders) // 2))
    width = 2304 // columns
    previews = [Image.open(folder / "preview.png").convert("RGB") for folder in folders]
    small = [picture.resize((width, round(picture.height * width / picture.width))) for picture in previews]
    rows, height, gap = math.ceil(len(small) / columns), small[0].height, 16
    page = Image.new("RGB", (columns * (width + gap) - gap, rows * height), "white")
    for number, picture in enumerate(small):
        page.paste(picture, ((number // rows) * (width + gap), (number % rows) * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.quantize(256).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, help="a prompt list; default: only 'a red mug'")
    parser.add_argument("--out", type=Path, help="keep the runs in this folder")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of all previews here")
    parser.add_argument("rest", nargs="*", help="further arguments of `dreamkit generate`, after --")
    given = parser.parse_args()
    try:
        prompts = read_list(given.prompts) if given.prompts else ["a red mug"]
    except InputError as error:
        parser.error(str(error))
    root = given.out or Path(tempfile.mkdtemp(prefix="dreamkit-benchmark-"))
    folders = [root / prompt.replace(" ", "-") for prompt in prompts]
    print(json.dumps({"import_seconds_beyond_torch": import_seconds()}), flush=True)
    found = []
    for prompt, folder in zip(prompts, folders, strict=True):
        found.append(measure(prompt, folder, given.rest))
        print(json.dumps(found[-1]), flush=True)
    keys = [key for key in found[0] if key.startswith("true_") and all(key in line for line in found)]
    print(json.dumps({f"mean_{key}": round(sum(line[key] for line in found) / len(found), 3) for key in keys}))
    if given.sheet:
        sheet([folder for folder in folders if (folder / "preview.png").exists()], given.sheet)


if __name__ == "__main__":
    main()
