"""A run folder: what a run leaves on the disk, written so that it can be killed at any moment.

    outputs/a-red-mug/<time>-<system>-<seed>/
      run.json       the recipe in full, prompt, seed, versions, device, prior, status
      log.jsonl      one line per logged step
      checkpoints/   step_000400.safetensors + .json, the last two
      images/        previews
      mesh.glb, preview.png and others: what the export made of the scene

A step counts finished steps, over all stages: checkpoint 400 is the state after 400 steps, and the log line of step 400
was written right before it. Whole files are written to a temporary name, flushed to the disk, and renamed, so that a
file that is there is complete; only the log grows in place, and a torn last line is repaired on resume. Nothing in the
folder can run code. One process writes at a time: a lock that ends with its process sees to it.
"""

import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dreamkit import frozen
from dreamkit.disk import check_folder, check_space, expanded, is_locked, lock, plainly, sweep, write_whole
from dreamkit.errors import InputError, RunError, nearest
from dreamkit.recipe import Recipe, fingerprint, from_json, to_json

FORMAT = 1
"""Version of the folder's layout. A reader refuses a newer one."""
STATUSES = ("running", "interrupted", "failed", "complete")
SPACE = 256 * 2**20
"""Bytes that must be free before a run starts, unless the caller knows better."""
RECORD: dict[str, type] = {
    **dict.fromkeys(("prompt", "system", "device", "status"), str),
    **dict.fromkeys(("seed", "step"), int),
    **dict.fromkeys(("versions", "recipe"), dict),
}
"""What every run.json says."""
LATER: dict[str, type] = {"files": dict, "export": dict, "prior": list}
"""What it may say beside."""
PACKAGES = ("dreamkit", "torch", "numpy", "warp-lang", "diffusers", "transformers", "safetensors")


class Run:
    """One run folder, open. `create` and `resume` hold its lock until `close` (or the end of a `with`)."""

    def __init__(self, path: Path, facts: dict[str, Any], recipe: Recipe):
        self.path, self.facts, self.recipe = path, facts, recipe
        self._lock: BinaryIO | None = None
        self._log: io.FileIO | None = None

    # ---- Opening and closing

    @staticmethod
    def check(out: str | Path | None, prompt: str, recipe: Recipe, root: str | Path = "outputs") -> None:
        """Say what `create` would say against these, without writing anything: before a model is loaded for nothing."""
        _check_prompt(prompt)
        to_json(recipe)
        folder = expanded(out or root)
        check_folder(folder)
        check_space(folder, SPACE)
        if out is not None and os.path.lexists(folder):
            _check_empty(folder)

    @staticmethod
    def create(
        out: str | Path | None,
        prompt: str,
        system: str,
        seed: int,
        recipe: Recipe,
        device: str = "cpu",
        root: str | Path = "outputs",
        space: int = SPACE,
        facts: Mapping[str, Any] | None = None,
    ) -> "Run":
        """A new run folder: exactly `out`, or <root>/<prompt>/<time>-<system>-<seed>.

        Args:
            system: the system's name, or the path of its file.
            space: bytes that must be free there.
            facts: further JSON values that the record holds from the beginning.

        Raises InputError, with nothing written, for an empty prompt, a folder that cannot be written or already holds
        something, too little space, and a recipe that could not be read back.
        """
        _check_prompt(prompt)
        data = to_json(recipe)
        check_space(expanded(out or root), space)
        run = Run(_new_folder(out, expanded(root), prompt, system, seed), {}, recipe)
        run._lock = lock(run.path)
        sweep(run.path)
        try:
            run.update(
                **(facts or {}),
                format=FORMAT,
                prompt=prompt,
                system=system,
                seed=seed,
                device=device,
                status="running",
                step=0,
                started=_now(),
                versions=_versions(),
                recipe=data,
            )
        except RunError as error:
            run.close()
            raise InputError(f"{error} Choose another folder with --out.") from error
        return run

    @staticmethod
    def open(path: str | Path) -> "Run":
        """An existing run folder, to read. Raises InputError if it is none, is damaged, or is of a newer dreamkit."""
        folder = expanded(path)
        file = folder / "run.json"
        if not os.path.isfile(file):  # unlike Path.is_file it takes any name
            found = "it holds no run.json" if os.path.isdir(folder) else "there is no such folder"
            found = "it is a file" if os.path.isfile(folder) else found
            raise InputError(f"{folder} is not a run: {found}. Give a folder such as outputs/a-red-mug/<time>-...")
        facts = _read_json(file)
        if not isinstance(facts.get("format"), int):
            raise InputError(f"{file} is not the record of a dreamkit run.")
        if facts["format"] > FORMAT:
            by = (facts.get("versions") or {}).get("dreamkit")
            raise InputError(
                f"{file} has format {facts['format']}, written by dreamkit {by}; this one knows format {FORMAT}. "
                "Upgrade dreamkit to open it."
            )
        if absent := [name for name in RECORD if name not in facts]:
            raise InputError(f"{file} lacks {', '.join(absent)}, so the run cannot be opened.")
        kinds = RECORD | {name: kind for name, kind in LATER.items() if facts.get(name) is not None}
        if odd := [name for name, kind in kinds.items() if not isinstance(facts[name], kind)]:
            raise InputError(f"{file} is damaged: {', '.join(odd)} cannot be what is written there.")
        try:
            recipe = from_json(facts["recipe"])
        except InputError as error:
            raise InputError(f"the recipe in {file} cannot be read: {error}") from error
        return Run(folder, facts, recipe)

    @staticmethod
    def resume(path: str | Path) -> "Run":
        """An existing run folder, to go on writing it. Raises InputError as `open` does, or if a process writes it."""
        run = Run.open(path)
        run._lock = lock(run.path)
        run.facts = _read_json(run.path / "run.json")  # as it stands now that nobody else writes it
        sweep(run.path)
        return run

    def close(self) -> None:
        """Close the log and let go of the lock. A closed run can still be read."""
        for file in (self._log, self._lock):
            if file is not None:
                file.close()
        self._log = self._lock = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ---- The record

    @property
    def prompt(self) -> str:
        return self.facts["prompt"]

    @property
    def seed(self) -> int:
        return self.facts["seed"]

    @property
    def fingerprint(self) -> str:
        """Which recipe this is; taken from the record, so that a later dreamkit with more fields agrees."""
        return fingerprint(self.facts["recipe"])

    @property
    def status(self) -> str:
        """One of STATUSES; "interrupted" for a run that was killed before it could say so."""
        said = self.facts["status"]
        return "interrupted" if said == "running" and self._lock is None and not is_locked(self.path) else said

    def update(self, **facts: Any) -> None:
        """Write these facts into run.json, all of them or none. Raises RunError if the disk says no."""
        self._check_open()
        if facts.get("status", "running") not in STATUSES:
            raise ValueError(f"status {facts['status']!r} is not known. {nearest(str(facts['status']), STATUSES)}")
        new = self.facts | facts | {"updated": _now()}
        write_whole(self.path / "run.json", (json.dumps(new, indent=1, allow_nan=False) + "\n").encode())
        self.facts = new

    def check_prior(self, identities: list[dict[str, Any]]) -> None:
        """Record which priors guide this run (JSON values); on a resume, raise InputError if they are others now."""
        before = self.facts.get("prior")
        if before is None:
            self.update(prior=identities)
        elif _weights(before) != _weights(json.loads(json.dumps(identities))):
            raise InputError(
                f"{self.path} was begun with the prior {json.dumps(before)}, but now it is {json.dumps(identities)}. "
                "A resumed run needs the same weights; start a new run to use others."
            )

    def check_files(self) -> None:
        """Raise InputError if a file that the recipe names is not what it was when the run was begun."""
        now = file_digests(self.recipe)
        for name, digest in self.facts.get("files", {}).items():
            if now.get(name) != digest:
                found = "has changed since" if now.get(name) else "is not there"
                raise InputError(f"{self.path} was begun with the file {name}, which {found}. Put it back to go on.")

    def _check_open(self) -> None:
        if self._lock is None:
            raise ValueError(f"{self.path} is open for reading only; use Run.create or Run.resume to write")

    # ---- The log

    def log(self, step: int, **figures: Any) -> None:
        """Append one line to log.jsonl. Figures are numbers, text, tensors, or lists, tuples and dicts of them."""
        self._check_open()
        line = json.dumps({"step": step} | {name: _figure(value) for name, value in figures.items()}) + "\n"
        with plainly(self.path / "log.jsonl"):
            if self._log is None:
                self._log = (self.path / "log.jsonl").open("ab", buffering=0)
            rest = line.encode()
            while rest:  # a disk that is nearly full takes a part, and then complains
                rest = rest[self._log.write(rest) :]

    def history(self) -> list[dict[str, Any]]:
        """The log, line by line; a torn last line is left out."""
        file = self.path / "log.jsonl"
        lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
        return [entry for line in lines if (entry := _entry(line)) is not None]

    def rewind(self, step: int) -> None:
        """Drop what came after `step`, for a run that goes on from there: log lines, checkpoints, and torn lines."""
        self._check_open()
        if self._log is not None:
            self._log.close()
            self._log = None
        file = self.path / "log.jsonl"
        lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
        kept = [line for line in lines if (entry := _entry(line)) is not None and entry["step"] <= step]
        if kept != lines:
            write_whole(file, b"".join(kept))
        for other in self._steps():
            if other > step:
                self._remove(other)
        self.update(step=step)

    # ---- Checkpoints

    def save_checkpoint(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the state after `step` steps and keep the last two. `facts` are JSON values (see `flatten`).

        The JSON comes last and knows the size and hash of the tensors, so a half-written pair is never taken for a
        checkpoint. Raises RunError if the disk says no; the checkpoints before are then untouched.
        """
        self._check_open()
        from safetensors.torch import save

        data = save({name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()})
        record = {
            "format": FORMAT,
            "step": step,
            "recipe": self.fingerprint,
            "size": len(data),
            "blake2b": _digest(data, facts := json.loads(json.dumps(dict(facts)))),
            "facts": facts,
        }
        if self._log is not None:
            with plainly(self.path / "log.jsonl"):
                os.fsync(self._log.fileno())  # the log never knows less than the checkpoint
        with plainly(self._stem(step)):
            self._stem(step).parent.mkdir(exist_ok=True)
        write_whole(self._stem(step).with_suffix(".safetensors"), data)
        write_whole(self._stem(step).with_suffix(".json"), json.dumps(record).encode())
        for other in self._steps()[2:]:
            self._remove(other)
        self.update(step=step)

    def latest_checkpoint(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """(step, tensors on the CPU, facts) of the last checkpoint that is whole; None if there is none.

        A damaged one is passed over with a warning. Raises InputError for one of another recipe, or if there are
        some and none is whole.
        """
        from safetensors.torch import load

        for step in self._steps():
            try:
                record, data = self._verified(step)
                return step, load(data), record["facts"]
            except _Damaged as damage:
                warnings.warn(f"checkpoint {self._stem(step)} is passed over: {damage}", stacklevel=2)
        if self._steps():
            raise InputError(
                f"no checkpoint in {self._stem(0).parent} is whole. Put back a good one; or take the folder away, and "
                "resume begins the run again."
            )
        return None

    def _verified(self, step: int) -> tuple[dict[str, Any], bytes]:
        """The record and the bytes of a checkpoint, if the one vouches for the other."""
        stem = self._stem(step)
        try:
            record = json.loads(stem.with_suffix(".json").read_bytes())
            size, digest, recipe, facts = (record[name] for name in ("size", "blake2b", "recipe", "facts"))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise _Damaged(f"its .json cannot be read ({type(error).__name__}: {error})") from error
        if recipe != self.fingerprint:
            raise InputError(
                f"checkpoint {stem} belongs to another recipe ({recipe}) than {self.path / 'run.json'} "
                f"({self.fingerprint}). Take it out of the folder, or restore the run.json it was written with."
            )
        try:
            data = stem.with_suffix(".safetensors").read_bytes()
        except OSError as error:
            raise _Damaged(f"its tensors cannot be read ({error})") from error
        if _digest(data, facts) != digest:
            raise _Damaged(f"it holds {len(data)} bytes that are not the {size} bytes that were written")
        return record, data

    def _stem(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step_{step:06d}"

    def _steps(self) -> list[int]:
        """Steps that have a finished checkpoint, the last first."""
        found = (re.fullmatch(r"step_(\d+)\.json", file.name) for file in self._stem(0).parent.glob("step_*.json"))
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def _remove(self, step: int) -> None:
        for suffix in (".json", ".safetensors"):  # in this order a half-removed pair is no checkpoint
            self._stem(step).with_suffix(suffix).unlink(missing_ok=True)


def _weights(identities: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Identities without the number format, which follows the device a run goes on, and without the hub's revision,
    which changes with any file there: the fingerprint of the weights is what counts."""
    passing = ("dtype", "revision")
    return [{key: value for key, value in identity.items() if key not in passing} for identity in identities]


class _Damaged(Exception):
    """A checkpoint that is not what was written."""


def file_digests(recipe: Recipe) -> dict[str, str]:
    """blake2b of every file that a recipe names (of a folder: of the files in it); "" for one that is not there."""
    return {name: _file_digest(name) for name in frozen.files(recipe)}


def _file_digest(name: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    files = [Path(name)] if os.path.isfile(name) else sorted(file for file in Path(name).rglob("*") if file.is_file())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else ""


def _digest(data: bytes, facts: Any) -> str:
    digest = hashlib.blake2b(data)
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise InputError("the prompt is empty. Say what to make, such as 'a red mug'.")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # bytes of the command line that no text has come to Python as surrogates
        said = f"the prompt {prompt!r} is not text in UTF-8. Type it again, or set a UTF-8 locale."
        raise InputError(said) from error


def _new_folder(out: str | Path | None, root: Path, prompt: str, system: str, seed: int) -> Path:
    """Make the folder of a new run. Raises InputError if it cannot be made or already holds something."""
    if out is not None:
        return _made(expanded(out))
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug(Path(system).stem)}-{seed}"
    for number in range(1, 1000):
        folder = root / slug(prompt) / (name if number == 1 else f"{name}-{number}")
        if not os.path.lexists(folder):
            return _made(folder)
    raise InputError(f"{root / slug(prompt)} already holds a thousand runs of this second.")


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass  # the folder can be written
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        raise InputError(
            f"the output folder {folder} cannot be written: {getattr(error, 'strerror', None) or error}. "
            "Choose another with --out."
        ) from error
    _check_empty(folder)
    return folder


def _check_empty(folder: Path) -> None:
    try:
        # What a process left that was killed while it began is nobody's: `create` sweeps it away.
        held = [item.name for item in folder.iterdir() if item.name != ".lock" and not item.match(".*.tmp")]
    except OSError as error:
        raise InputError(
            f"the output folder {folder} cannot be written: {error.strerror or error}. Choose another with --out."
        ) from error
    if "run.json" in held:
        raise InputError(
            f"{folder} already holds a run. Go on with `dreamkit resume {folder}`, or choose another --out."
        )
    if held:
        raise InputError(f"{folder} is not empty (it holds {held[0]}). Choose a new or an empty folder with --out.")


def slug(text: str) -> str:
    """A folder name from any text: lower case, letters and digits of any script, hyphens; at most 60 characters.

    >>> slug("A red mug, on the moon!")
    'a-red-mug-on-the-moon'
    """
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-_")[:60].rstrip("-_") or "untitled"


# ---- Figures and facts ---------------------------------------------------------------------------------------------


def _figure(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _figure(value.item() if value.numel() == 1 else value.tolist())
    if isinstance(value, list | tuple):
        return [_figure(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _figure(item) for name, item in value.items()}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(float(value))  # JSON has no nan and no inf
    if value is None or isinstance(value, bool | int | str):
        return value
    raise ValueError(f"a figure is a number, text, a tensor, or a list or dict of them; got {type(value).__name__}")


def _entry(line: bytes) -> dict[str, Any] | None:
    """One line of the log; None for a torn one."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
        return None
    return _unfigured(entry)


def _unfigured(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _unfigured(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_unfigured(item) for item in value]
    return float(value) if value in ("nan", "inf", "-inf") else value


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {error}. Without it the run cannot be opened.") from error
    if not isinstance(data, dict):
        raise InputError(f"{file} is not the record of a dreamkit run.")
    return data


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _versions() -> dict[str, str | None]:
    """Versions of what makes the numbers, without importing more of it."""
    found: dict[str, str | None] = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found | {"torch": str(torch.__version__)}  # which says the build, "+cu130", where its package does not
