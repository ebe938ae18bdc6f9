"""How well pictures fit words, by a CLIP model (Radford et al., arXiv:2103.00020) from a folder on this machine."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from dreamkit.disk import expanded
from dreamkit.errors import InputError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""What pictures are normalised by, from CLIP's own preprocessing; every published CLIP uses the same."""


class Clip:
    """A CLIP model and its tokenizer."""

    def __init__(self, folder: Path | str, device: torch.device | str = "cpu"):
        """Read a folder that transformers can read a CLIPModel and its tokenizer from. Raises InputError if not."""
        from transformers import AutoTokenizer, CLIPModel

        self.folder, self.device = expanded(folder), torch.device(device)
        if not (self.folder / "config.json").is_file():
            raise InputError(
                f"{folder} is not the folder of a CLIP model: there is no config.json in it. Give the folder of one "
                "that transformers reads, such as a download of openai/clip-vit-base-patch32."
            )
        try:
            model: Any = CLIPModel.from_pretrained(str(self.folder), local_files_only=True, dtype=torch.float32)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        except Exception as error:  # transformers raises whatever its parts meet
            raise InputError(f"{folder} cannot be read as a CLIP model: {error}") from error
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.size = int(model.config.vision_config.image_size)

    @torch.no_grad()
    def pictures(self, rgb: Tensor) -> Tensor:
        """Unit vectors [B, D] of pictures [B, 3, H, W] in [0, 1], resized (bicubic, antialiased)."""
        fitted = interpolate(rgb, (self.size, self.size), mode="bicubic", align_corners=False, antialias=True)
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        pixels = ((fitted.clamp(0, 1).cpu() - mean) / std).to(self.device)
        seen = self.model.vision_model(pixel_values=pixels).pooler_output
        return normalize(self.model.visual_projection(seen), dim=-1).cpu()

    @torch.no_grad()
    def texts(self, prompts: list[str]) -> Tensor:
        """Unit vectors [N, D] of prompts."""
        length = int(self.model.config.text_config.max_position_embeddings)
        tokens = self.tokenizer(prompts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        given = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
        read = self.model.text_model(**given).pooler_output
        return normalize(self.model.text_projection(read), dim=-1).cpu()


def clip_score(pictures: Tensor, text: Tensor) -> float:
    """100 times the mean cosine between pictures' unit vectors [B, D] and a prompt's [D] (the similarity of Hessel et
    al., arXiv:2104.08718, without its factor of 2.5 and its cut at zero)."""
    return float(100 * (pictures.double() @ text.double()).mean())


def r_precision(pictures: Tensor, texts: Tensor, own: int) -> float:
    """Share of pictures [B, D] that fit their own prompt, texts[own], better than every other of texts [N, D].

    Park et al. 2021 (CLIP R-precision, R = 1), as Dream Fields (arXiv:2112.01455) used it for text to 3D. It means
    little for few prompts, and nothing for one.
    """
    if len(texts) < 2:
        raise ValueError(f"R-precision tells prompts apart: it needs at least two; got {len(texts)}")
    fits = pictures @ texts.T
    others = torch.cat([fits[:, :own], fits[:, own + 1 :]], 1).amax(1)
    return float((fits[:, own] > others).double().mean())
