"""What is installed and what will be used; what there is to choose from."""

import ast
import inspect
import itertools
import os
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from dreamkit import device as devices
from dreamkit.cameras import ring
from dreamkit.errors import InputError
from dreamkit.guidance import gradient, rules
from dreamkit.guidance.geometry import Geometry
from dreamkit.guidance.noise import Inverted, Simulated
from dreamkit.kernels import choose
from dreamkit.priors import Bell, Gaussian
from dreamkit.recipe import load, names
from dreamkit.representations import REPRESENTATIONS
from dreamkit.schedule import resolve
from dreamkit.streams import Streams

PACKAGES = ("torch", "warp-lang", "diffusers", "transformers", "trimesh", "xatlas", "imageio-ffmpeg")
OPTIONAL = ("gsplat", "nerfacc")
OPERATORS = ("hashgrid", "march", "composite", "splat", "raster", "texture", "tets", "query")


def findings() -> Iterator[tuple[str, str]]:
    """Name and value of everything worth knowing when something does not work."""
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield "cores", f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}"
    for package in ("dreamkit", *PACKAGES, *OPTIONAL):
        yield package, _version(package)
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            yield f"cuda:{number}", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    else:
        yield "cuda", "torch sees no CUDA device; everything runs on the CPU"
    yield "device auto", str(devices.choose("auto"))
    for operator in OPERATORS:
        yield f"kernel {operator}", _backend(operator)
    yield "prior toybox", _toybox()
    yield "disk free here", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB"


def catalogue(what: str | None = None) -> dict[str, dict[str, str]]:
    """Names and one line each, by kind: systems, guidance, priors, representations; or only the kind asked for."""
    kinds = {
        "systems": lambda: {name: load(name).description for name in names()},
        "guidance": lambda: _documented_rules(),
        "priors": lambda: {
            "toybox": "a small world of coloured things, 64 x 64 pixels, one view or four at once; ships with dreamkit",
            "PATH or HUB ID": "a diffusers pipeline: Stable Diffusion 1.x and 2.x, or a pixel-space one",
            "Tiled(base=...)": "one of these that is shown several views as one picture: --set guides.0.prior=...",
        },
        "representations": lambda: {
            name: (inspect.getdoc(type(spec)) or "").splitlines()[0] for name, spec in REPRESENTATIONS.items()
        },
    }
    return {kind: entries() for kind, entries in kinds.items() if what in (None, kind)}


def _documented_rules() -> dict[str, str]:
    """The constants of guidance/rules.py with the first line of the text that stands under each."""
    body = ast.parse(Path(rules.__file__).read_text(encoding="utf-8")).body
    texts = {}
    for assignment, text in itertools.pairwise(body):
        if not (
            isinstance(assignment, ast.Assign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        ):
            continue
        name = ast.unparse(assignment.targets[0])
        rule = getattr(rules, name, None)
        if isinstance(rule, rules.Rule):
            texts[name.lower()] = f"{str(text.value.value).splitlines()[0]} [{_costs(rule)}]"
    return texts


def _costs(rule: rules.Rule) -> str:
    """What a rule takes for one view, found by running it on a prior that counts: samples and calls, scale, needs."""
    prior = Gaussian((Bell("", 0.0, 1.0),), size=2).load("cpu")
    null, x = prior.condition([""]), torch.zeros(1, *prior.shape)
    asked = {ask.condition for ask in rule.asks()}
    conditions = dict.fromkeys({"prompt", "bare", "null", "negative", "source", "layout_bare"} | asked, null)
    parts, empty = rule.parts(prior, Streams(0, -1)), torch.zeros(1, 1, 8, 8)
    where = Geometry(ring(1), empty, empty)
    gradient(rule, prior, x, conditions, Streams(0, 0), 0.5, {"source": x}, parts, where)
    samples, calls = (f"{n} {what}{'s' * (n != 1)}" for n, what in ((prior.samples, "sample"), (prior.calls, "call")))
    walks = isinstance(rule.noise, Inverted | Simulated)  # a path, whose length depends on the level
    facts = [f"{'about ' if walks else ''}{samples} in {calls}"]
    ends = (getattr(resolve(rule, progress).trust, "scale", None) for progress in (0.0, 1.0))
    scales = list(dict.fromkeys(f"{scale:g}" for scale in ends if scale is not None))
    if scales:
        facts.append("scale " + " to ".join(scales))
    if parts:
        facts.append("trains " + ", ".join(parts))
    if any(ask.image == "source" for ask in rule.asks()):
        facts.append("edits a source")
    if rule.needs:
        facts.append("the prior needs " + ", ".join(sorted(rule.needs)))
    return "; ".join(facts)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed" + ("; not needed" if package in OPTIONAL else "")


def _backend(operator: str) -> str:
    """The backend that "auto" takes on the best device here, then why not another."""
    state = choose.available(f"dreamkit.kernels.{operator}")
    used = next(name for name, why in state.items() if why == "ok")
    return "; ".join([used, *(f"{name}: {why}" for name, why in state.items() if why != "ok")])


def _toybox() -> str:
    from dreamkit.priors import Diffusers

    try:
        identity = Diffusers("toybox").load("cpu").identity()
    except InputError as error:
        return str(error)
    return ", ".join(f"{key} {value}" for key, value in identity.items())
