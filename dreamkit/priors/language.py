"""A masked language model's opinion on the words of a prompt, for prompt debiasing (`dreamkit.prompts.debiased`)."""

from functools import cache
from typing import Any

import torch

from dreamkit.errors import InputError
from dreamkit.prompts import FOUR, Guess, debiased


@cache
def reworded(source: str, prompt: str, views: tuple[str, ...]) -> dict[str, str]:
    """The prompt for every one of these views, without the words that argue against that view; worked out once.

    `source` is the folder or the hub name of a BERT-like model. Raises InputError if there is none.
    """
    return debiased(prompt, views, _guess(source))


def _guess(source: str) -> Guess:
    tokenizer, model = _load(source)
    words = sorted({*FOUR, "overhead"})
    numbers = [tokenizer.convert_tokens_to_ids(word) for word in words]
    if tokenizer.mask_token is None or tokenizer.unk_token_id in numbers:
        raise InputError(
            f"the language model {source!r} has no mask, or not the words {', '.join(words)} in one token."
        )

    @torch.no_grad()
    def guess(text: str) -> dict[str, float]:
        inputs = tokenizer(text.replace("[MASK]", tokenizer.mask_token), return_tensors="pt")
        place = (inputs.input_ids[0] == tokenizer.mask_token_id).nonzero()[0, 0]
        chances = torch.softmax(model(**inputs).logits[0, place].double(), 0)
        return {word: float(chances[number]) for word, number in zip(words, numbers, strict=True)}

    return guess


@cache
def _load(source: str) -> tuple[Any, Any]:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        return tokenizer, AutoModelForMaskedLM.from_pretrained(source, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{source!r} is not a masked language model that could be had: {str(error).splitlines()[0]} Give the "
            "folder of one, or a hub name such as google-bert/bert-base-uncased."
        ) from error
