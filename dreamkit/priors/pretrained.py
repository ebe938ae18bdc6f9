"""Diffusion models stored as diffusers folders: the toybox that ships, Stable Diffusion, DeepFloyd-like pixel models.

How a folder is found and read is `folder.py`'s.

- With a VAE it is a latent prior: x = scaling_factor * E(2 rgb - 1), the posterior sampled or its mean.
- Without one it is a pixel prior: x = 2 rgb - 1, and a UNet of 3 f^2 channels sees it pixel-unshuffled by f (exact and
  invertible: every f x f patch becomes channels). Where the UNet also predicts a variance, that half is dropped.

diffusers and transformers are imported when a prior is loaded, never before.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from dreamkit.diffusion import Level, NoiseSchedule
from dreamkit.errors import InputError
from dreamkit.priors.analytic import resized
from dreamkit.priors.attention import Watched
from dreamkit.priors.folder import (
    alpha_squared,
    chosen_views,
    find,
    fingerprint,
    load_part,
    meaning_of,
    read_index,
    read_json,
    view_words_of,
)
from dreamkit.priors.joint import see_together
from dreamkit.priors.prior import CAMERA_NUMBERS, Condition, Prior
from dreamkit.priors.student import UNetStudent
from dreamkit.streams import Streams


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
        parts = read_index(folder)
        config = read_json(folder / "scheduler" / "scheduler_config.json")
        self.parameterization = meaning_of(config, folder)
        self.schedule = NoiseSchedule(alpha_squared(config))
        self.dtype = _choose_dtype(spec.dtype, device)
        self.tokenizer = load_part("tokenizer", parts, folder)
        self.text_encoder = _frozen(load_part("text_encoder", parts, folder, torch.float32), device)
        self.unet = _frozen(load_part("unet", parts, folder, self.dtype), device)
        self.views = chosen_views(spec.views, folder)
        if self.views > 1:
            # Where it looks for a word is not known by view when it sees several at once.
            self.capabilities = self.capabilities - {"attention_maps"} | {"joint_views"}
            see_together(self.unet, self.views)
        self.vae = _frozen(load_part("vae", parts, folder, self.dtype), device) if "vae" in parts else None
        side, channels = int(self.unet.config.sample_size), int(self.unet.config.in_channels)
        self.shape = (channels, side, side)
        self.space: Literal["pixel", "latent"] = "latent" if self.vae is not None else "pixel"
        self.factor = (
            _patch(channels, folder) if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)
        )
        self.size = side * self.factor
        self.words = _words(self.tokenizer)
        self.view_words = view_words_of(folder)

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
        t = level.t.to(device=z.device, dtype=torch.float32, non_blocking=z.is_cuda)  # waits for no GPU
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


def _frozen(model: Any, device: torch.device) -> Any:
    return model.eval().requires_grad_(False).to(device)


def _patch(channels: int, folder: Path) -> int:
    """f, where a pixel prior's network has 3 f^2 channels."""
    factor = math.isqrt(channels // 3)
    if 3 * factor**2 != channels:
        raise InputError(
            f"{folder} has no VAE, so it is a pixel prior and its UNet should see 3 f^2 channels (3, 12, 48, ...); "
            f"it sees {channels}."
        )
    return factor


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
