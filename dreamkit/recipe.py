"""Recipes: a whole run as one frozen value.

A recipe is a tree of frozen dataclasses, tuples, numbers, text and functions, and nothing else. So it can be printed,
compared, hashed, changed from the command line, and written to JSON, all without loading anything heavy. It holds
objects, not names: a system file imports what it uses.
"""

import hashlib
import json
import os
import sys
import traceback
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dreamkit import frozen, settings
from dreamkit.assets.usd import need_usd
from dreamkit.cameras import Orbit
from dreamkit.disk import expanded
from dreamkit.errors import InputError, nearest
from dreamkit.guidance.rule import Rule
from dreamkit.losses import Weighted
from dreamkit.priors.prior import PriorSpec
from dreamkit.prompts import Related
from dreamkit.representations.mesh import MeshSurface
from dreamkit.representations.particles import Particles
from dreamkit.representations.representation import Representation
from dreamkit.schedule import Number, resolve

SEES = ("rgb", "normal", "depth", "rgb_depth", "latent")
FORMATS = ("glb", "obj", "ply", "stl", "usdz", "splat-ply", "splat-glb")
"""What a scene can be written as: a mesh, and Gaussian splats (3DGS's PLY, glTF's KHR_gaussian_splatting)."""


@dataclass(frozen=True)
class Guide:
    """One prior looking at the scene through one rule."""

    rule: Rule
    prior: PriorSpec
    """A specification from `dreamkit.priors`, such as `Diffusers("toybox")`."""
    sees: str = "rgb"
    """Which of the rendered images the prior is shown: one of SEES."""
    weight: Number = 1.0
    clip: Number = 0.0
    """The largest gradient that a pixel of the picture may have (`guidance.post.clip_pixels`); 0 is no limit."""

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule):
            raise InputError(f"Guide.rule is a Rule; got {type(self.rule).__name__}.")
        if self.sees not in SEES:
            raise InputError(f"a guide cannot look at {self.sees!r}. {nearest(str(self.sees), SEES)}")


@dataclass(frozen=True)
class Adam:
    """Settings of the optimiser (arXiv:1412.6980). The learning rates live in the representation's specification."""

    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-15


@dataclass(frozen=True)
class Stage:
    """One optimisation: a scene, who guides it, from which cameras, for how long. Loss = guides + losses."""

    representation: Representation
    """A specification from `dreamkit.representations`, such as `HashGrid()`."""
    guides: tuple[Guide, ...]
    cameras: Orbit = field(default_factory=Orbit)
    losses: tuple[Weighted, ...] = ()
    steps: int = 1000
    batch: int = 4
    """Cameras a step."""
    adam: Adam = Adam()
    negative_prompt: str = ""
    view_words: bool = True
    """Whether the prompt says from which side each camera looks ("front view")."""
    particles: int = 1
    """Scenes that are optimised at once and share what the rules train. A step shows some of them, through one camera
    each time (one group of them, where the prior sees several views together), `batch` pictures in all."""
    debias: str = ""
    """A masked language model, by folder or hub name, whose opinion takes words out of the prompt for views that they
    argue against (`prompts.debiased`)."""
    source_prompt: str = ""
    """For rules that edit: what the scene is at the start of the stage, the source."""

    things: Related | None = None
    """Two things that are made each by itself, both at every step, `batch` pictures of each, under their own words
    (`compose.apart`); at the end they are put together (`state.whole`)."""

    def __post_init__(self) -> None:
        _check_tuple("Stage.guides", self.guides, Guide)
        if not self.guides:
            raise InputError("Stage.guides holds no guide: nobody would say how the pictures should change.")
        _check_tuple("Stage.losses", self.losses, Weighted)
        _check_whole("Stage.steps", self.steps, 1)
        _check_whole("Stage.batch", self.batch, 1)
        _check_whole("Stage.particles", self.particles, 1)
        if self.batch % self.cameras.group:
            raise InputError(
                f"Stage.batch is a multiple of its cameras' group; got {self.batch} in groups of {self.cameras.group}."
            )
        if self.things and self.particles > 1:
            raise InputError(f"Stage.things are made each by itself, and have no particles; got {self.particles}.")

    @property
    def scenes(self) -> Representation:
        """What the stage builds: the representation, so many particles of it, or one for each thing."""
        if self.things:
            return Particles(self.representation, 2)
        if self.particles == 1:
            return self.representation
        return Particles(self.representation, self.particles, self.cameras.group)

    @property
    def edits(self) -> bool:
        """Whether a rule compares with the scene as it is at the start of the stage."""
        return any(guide.rule.edits for guide in self.guides)

    def at(self, step: int) -> "Stage":
        """The stage with every Schedule in it replaced by its number after `step` of its steps."""
        return resolve(self, step / self.steps)


LARGEST_TEXTURE = 8192
"""Texels along each side; read back, a picture of more than 89 million would be taken for an attack by Pillow."""


@dataclass(frozen=True)
class Export:
    """How the finished scene becomes files. A scene that is a textured mesh itself keeps its faces and its texture."""

    formats: tuple[str, ...] = ("glb",)
    grid_resolution: int = 128
    """Nodes along each side of the grid a surface is extracted on."""
    face_budget: int = 20_000
    texture_size: int = 1024
    """Texels along each side."""
    splats: int = 10_000
    """Gaussians that are put on the surface of a scene that is not made of them."""
    unwrap_seconds: float = 60.0
    """How long the UV unwrap may take before the simple one is used."""
    turntable_seconds: float = 3.0
    """Length of turntable.mp4; 0 makes none."""

    def __post_init__(self) -> None:
        _check_tuple("Export.formats", self.formats, str)
        if not self.formats:
            raise InputError(f"Export.formats names no format. Known: {', '.join(FORMATS)}.")
        for name in self.formats:
            if name not in FORMATS:
                raise InputError(f"cannot export to {name!r}. {nearest(str(name), FORMATS)}")
        if len(set(self.formats)) < len(self.formats):
            raise InputError(f"Export.formats names a format twice: {', '.join(self.formats)}.")
        if "usdz" in self.formats:
            need_usd()
        _check_whole("Export.grid_resolution", self.grid_resolution, 8, 1024)
        _check_whole("Export.face_budget", self.face_budget, 4)
        _check_whole("Export.texture_size", self.texture_size, 8, LARGEST_TEXTURE)
        _check_whole("Export.splats", self.splats, 1)
        for name, most in (("unwrap_seconds", 86_400), ("turntable_seconds", 600)):
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"Export.{name} is a time of 0 to {most} seconds; got {getattr(self, name):g}.")


@dataclass(frozen=True)
class Cadence:
    """Every how many steps a run logs its figures, writes a checkpoint, draws a preview."""

    log: int = 10
    checkpoint: int = 200
    preview: int = 100

    def __post_init__(self) -> None:
        for name in ("log", "checkpoint", "preview"):
            _check_whole(f"Cadence.{name}", getattr(self, name), 1)


@dataclass(frozen=True)
class Propeller:
    """Steps that are taken several at once (`dreamkit.propeller`): DreamPropeller, arXiv:2311.17082.

    On the device "cuda" it uses every GPU there is, on "cuda:0" that one.

    window      how many steps are worked on at once
    threshold   the error of a guess up to which the steps that were built on it count; at the start of a stage
    decay       of the threshold towards the errors there are; 1 keeps it
    error       which of a window's errors it follows: the middle one or their mean
    """

    window: int = 4
    threshold: float = 0.0
    decay: float = 0.9
    error: Literal["middle", "mean"] = "middle"

    def __post_init__(self) -> None:
        _check_whole("Propeller.window", self.window, 1)
        if not 0 <= self.decay <= 1:
            raise InputError(f"Propeller.decay is a share in [0, 1]; got {self.decay}.")


@dataclass(frozen=True)
class Recipe:
    """All that a run needs beside the prompt, the seed and the device."""

    stages: tuple[Stage, ...]
    """In turn; each goes on with the scene of the one before."""
    export: Export = field(default_factory=Export)
    cadence: Cadence = field(default_factory=Cadence)
    propeller: Propeller | None = None
    """Takes several steps at once, where there are processors for them."""
    apart: bool = False
    """Whether the things of a prompt such as "a red mug on top of a table" are made each by itself and then put
    together, which takes twice the time; `compose.apart` says when."""
    description: str = ""

    def __post_init__(self) -> None:
        _check_tuple("Recipe.stages", self.stages, Stage)
        if not self.stages:
            raise InputError("a recipe needs at least one stage.")
        if len({stage.things for stage in self.stages}) > 1:
            raise InputError("two things are made apart in all stages of a recipe, or in none.")
        if self.stages[-1].things and not isinstance(self.stages[-1].representation, MeshSurface):
            raise InputError("two things that are made apart are meshes in the last stage, to be put together.")
        if self.propeller and any(guide.rule.trains for stage in self.stages for guide in stage.guides):
            raise InputError(
                "a propeller cannot drive a rule that trains or remembers something, such as VSD: its steps depend on "
                "one another. Take the propeller away, or choose another rule."
            )
        # A strategy goes by what the renders of its own scene showed; the propeller's are of guesses.
        if self.propeller and any(getattr(stage.representation, "strategy", None) for stage in self.stages):
            raise InputError(
                "a propeller cannot drive Gaussians that split or move (representation.strategy). Take the propeller "
                "away, set that strategy to none, or choose another representation."
            )

    @property
    def steps(self) -> int:
        """Steps of all stages together."""
        return sum(stage.steps for stage in self.stages)


def _check_tuple(name: str, value: Any, of: type = object) -> None:
    if not isinstance(value, tuple):
        raise InputError(f"{name} is a tuple; got {type(value).__name__}. For a single item write (item,).")
    for item in value:
        if not isinstance(item, of):
            raise InputError(f"{name} holds {of.__name__}s; got {type(item).__name__}.")


def _check_whole(name: str, value: int, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        limit = "" if most is None else f" and at most {most}"
        raise InputError(f"{name} is a whole number of at least {least}{limit}; got {value!r}.")


# ---- Systems: recipes in files -------------------------------------------------------------------------------------


def data_folder(kind: str) -> Path:
    """Where the "systems" or the "prompts" that come with dreamkit lie.

    An installed wheel carries them inside the package (`dreamkit/systems`, `dreamkit/prompt_lists`); in a source
    checkout they stand beside it. The pyproject.toml tells a checkout from a stranger's folder in site-packages.
    """
    package = Path(__file__).parent
    packaged = package / {"systems": "systems", "prompts": "prompt_lists"}[kind]
    checkout = package.parent / kind
    return checkout if not packaged.is_dir() and (package.parent / "pyproject.toml").is_file() else packaged


def names() -> list[str]:
    """The systems that `load` knows by name, sorted."""
    return sorted(path.stem for path in data_folder("systems").glob("*.py") if not path.name.startswith("_"))


def load(name_or_path: str | Path) -> Recipe:
    """The recipe of a system, by name (`dreamfusion`) or by the path of any Python file that sets `recipe`.

    The file is run, as any Python script you start would be. Raises InputError, with file and line where there is one.
    """
    text = str(name_or_path)
    if not text.endswith(".py") and "/" not in text and "\\" not in text:
        if text not in names():
            raise InputError(f"there is no system {text!r}. {nearest(text, names())} Or give the path of a .py file.")
        return _run_file(data_folder("systems") / f"{text}.py")
    path = expanded(text)
    if not os.path.isfile(path):  # unlike Path.is_file it takes any name
        raise InputError(
            f"there is no system file {path}. {nearest(path.stem, names())} Or give the path of a .py file."
        )
    return _run_file(path)


def _run_file(path: Path) -> Recipe:
    digest = hashlib.blake2b(str(path.resolve()).encode(errors="surrogateescape"), digest_size=4).hexdigest()
    module = types.ModuleType(f"dreamkit_system_{path.stem}_{digest}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # a dataclass defined in the file looks its module up there
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise InputError(_place(path, error)) from error
    recipe = getattr(module, "recipe", None)
    if not isinstance(recipe, Recipe):
        found = "sets no `recipe`" if recipe is None else f"sets `recipe` to a {type(recipe).__name__}"
        raise InputError(f"{path} {found}. A system file ends with `recipe = Recipe(...)`.")
    return recipe


def _place(path: Path, error: BaseException) -> str:
    """One line that says where in the user's own file the error is."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}, line {error.lineno}: {error.msg}."
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    what = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return f"{path}{f', line {lines[-1]}' if lines else ''}: {what}"


# ---- Text to recipe and back ---------------------------------------------------------------------------------------


def to_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON values (`dreamkit.frozen`), every bit of every number kept.

    Raises InputError for anything `from_json` would refuse, so that no run starts that could not be resumed.
    """
    return frozen.write(recipe, "recipe")


def from_json(data: Any) -> Recipe:
    """The recipe that `to_json` wrote. Builds only frozen dataclasses defined under `dreamkit.`. Raises InputError."""
    recipe = frozen.read(data, "recipe")
    if not isinstance(recipe, Recipe):
        raise InputError(f"recipe: a Recipe is expected; got {type(recipe).__name__}.")
    return recipe


def fingerprint(recipe: Recipe | dict[str, Any]) -> str:
    """32 hex digits that are the same for equal recipes (or their JSON), on every machine and in every session."""
    data = to_json(recipe) if isinstance(recipe, Recipe) else recipe
    return hashlib.blake2b(json.dumps(_plain(data), sort_keys=True).encode(), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    """JSON values with 2.0 written as 2: equal recipes may differ in that."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with `--set key=value` changes applied. Raises InputError.

    A key is a path of field names and tuple positions: `stages.0.guides.0.rule.trust.scale`. A key that starts with a
    field of Stage is set in every stage: `steps`, `guides.0.rule`. What a value may be, `dreamkit.settings` says.
    """
    return settings.applied(
        recipe, [(path, value) for key, value in changes.items() for path in _full_keys(recipe, key)]
    )


def _full_keys(recipe: Recipe, key: str) -> list[list[str]]:
    words = key.strip().split(".")
    of_recipe, of_stage = frozen.fields_of(Recipe), frozen.fields_of(Stage)
    if words[0] in of_recipe:
        return [words]
    if words[0] in of_stage:
        return [["stages", str(i), *words] for i in range(len(recipe.stages))]
    raise InputError(
        f"{key}: neither Recipe nor Stage has a field {words[0]!r}. {nearest(words[0], of_recipe + of_stage)}"
    )
