"""dreamkit: from a text prompt to a textured 3D mesh, by score distillation from a frozen 2D diffusion prior.

    import dreamkit

    result = dreamkit.generate("a red mug")

All verbs (generate, resume, export, convert, render, evaluate) are in `dreamkit.api`.

Importing this loads nothing heavy: each name below is imported when it is first used.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamkit.api import Result, generate, resume
    from dreamkit.cameras import Cameras, Orbit, orbit
    from dreamkit.errors import InputError, RunError
    from dreamkit.guidance.rule import Rule, gradient
    from dreamkit.images import Images
    from dreamkit.meshes import Mesh
    from dreamkit.recipe import Export, Guide, Recipe, Stage
    from dreamkit.run import Run

# After a parallel loop, torch's OpenMP threads wait busily for the next one, by default so long that they keep Warp's
# threads off the cores. This many turns are enough for a network's operators, which follow each other closely. It
# counts only if torch is imported after this, and never against a setting of the user's own.
os.environ.setdefault("GOMP_SPINCOUNT", "50000")

_HOMES = {
    "dreamkit.api": ("generate", "resume", "Result"),
    "dreamkit.cameras": ("Cameras", "Orbit", "orbit"),
    "dreamkit.errors": ("InputError", "RunError"),
    "dreamkit.guidance.rule": ("Rule", "gradient"),
    "dreamkit.images": ("Images",),
    "dreamkit.meshes": ("Mesh",),
    "dreamkit.recipe": ("Recipe", "Stage", "Guide", "Export"),
    "dreamkit.run": ("Run",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "generate",
    "resume",
    "Result",
    "Cameras",
    "Orbit",
    "orbit",
    "InputError",
    "RunError",
    "Rule",
    "gradient",
    "Images",
    "Mesh",
    "Recipe",
    "Stage",
    "Guide",
    "Export",
    "Run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'dreamkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
