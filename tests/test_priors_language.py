"""Prompt debiasing: which words go, by a language model that is a table, and by a real one that is tiny."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreamkit import rehearsal
from dreamkit.errors import InputError
from dreamkit.priors.language import reworded
from dreamkit.prompts import EIGHT, FOUR, debiased
from dreamkit.recipe import load
from dreamkit.rehearsal import load_priors

VIEWS = ("front", "side", "back", "overhead")


def table(text: str) -> dict[str, float]:
    """A smiling thing is thought to be seen from the front; nothing else matters. Of a whole vocabulary."""
    front = 0.06 if "smiling" in text.split() else 0.02
    return {"front": front, "side": 0.02, "back": 0.02, "overhead": 0.02}


def test_a_word_goes_from_the_views_it_argues_against():
    """P(front) is 1/2 with the word and 1/4 without, the others' 1/6 and 1/4: 1/6 < 0.95 (1/6 + 1/4) / 2."""
    got = debiased("a smiling red mug", VIEWS, table)
    assert got == {"front": "a smiling red mug"} | dict.fromkeys(("side", "back", "overhead"), "a red mug")


def test_views_of_several_words_count_as_the_one_they_hold():
    got = debiased("a smiling mug", (*EIGHT, "left", "high front"), table)
    assert {view for view, prompt in got.items() if "smiling" in prompt} == {
        "front",
        "front left",
        "front right",
        "high front",
    }


def test_a_model_without_an_opinion_takes_nothing_and_only_named_words_may_go():
    flat = debiased("a smiling red mug", VIEWS, lambda text: dict.fromkeys(VIEWS, 0.1))
    assert set(flat.values()) == {"a smiling red mug"}
    assert set(debiased("a smiling red mug", VIEWS, table, words=(0, 2, 3)).values()) == {"a smiling red mug"}
    assert set(debiased("smiling", VIEWS, table).values()) == {"smiling"}  # never the last word


def test_the_threshold_is_where_the_paper_has_it():
    """With P = p and Q = q a word goes if p < 0.95 (p + q) / 2, that is p / q < 0.95 / 1.05."""
    for ratio, kept in ((0.95 / 1.05 + 1e-6, "odd mug"), (0.95 / 1.05 - 1e-6, "mug")):
        likely = {"odd mug": 0.25 * ratio, "mug": 0.25}

        def guess(text: str, likely: dict[str, float] = likely) -> dict[str, float]:
            back = likely[text.removeprefix("This image is depicting a [MASK] view of ")]
            return {"back": back} | dict.fromkeys(("front", "side", "overhead"), (1 - back) / 3)

        assert debiased("odd mug", VIEWS, guess, words=(0,))["back"] == kept


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """A BERT of one small layer, with random weights."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FOUR[:3], "overhead", "this", "image", "is", "depicting"]
    words += ["a", "view", "of", "red", "mug", "smiling"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=32, initializer_range=0.3, **size)
    BertForMaskedLM(config).save_pretrained(folder)
    return str(folder)


def test_a_real_model_is_asked_and_its_answer_kept(tiny):
    said = reworded(tiny, "a smiling red mug", VIEWS)
    assert said.keys() == {"front", "side", "back", "overhead"}
    assert all(prompt and set(prompt.split()) <= {"a", "smiling", "red", "mug"} for prompt in said.values())
    assert len(set(said.values())) > 1  # random weights have opinions
    assert reworded(tiny, "a smiling red mug", VIEWS) is said


def test_what_is_no_language_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a masked language model"):
        reworded(str(tmp_path), "a mug", VIEWS)


def test_a_stage_asks_its_prior_for_the_debiased_prompts(monkeypatch):
    recipe = load(Path(__file__).parent / "data" / "tiny_system.py")
    stage = replace(recipe.stages[0], debias="a model")
    monkeypatch.setattr(rehearsal, "reworded", lambda source, prompt, views: {"back": "a ball"})
    recipe = replace(recipe, stages=(stage,))
    with pytest.raises(InputError, match="a ball, back view"):  # which this prior does not know
        load_priors(recipe, "a red ball", torch.device("cpu"))
