"""Views seen together: self-attention over all of them, and nothing else."""

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention

from dreamkit.priors.joint import see_together


@pytest.fixture
def attention():
    torch.manual_seed(0)
    return Attention(query_dim=8, heads=2, dim_head=4).double()


def test_joint_self_attention_is_attention_over_the_pixels_of_all_views(attention):
    """Against softmax(q k / sqrt(d)) v written out, for each object by itself."""
    seen = torch.randn(6, 5, 8, dtype=torch.float64)  # two objects of three views of five pixels
    holder = torch.nn.ModuleDict({"attn1": attention})
    see_together(holder, 3)
    found = attention(seen)
    for number in range(2):
        pixels = seen[3 * number : 3 * number + 3].reshape(15, 8)
        q, k, v = (layer(pixels).reshape(15, 2, 4) for layer in (attention.to_q, attention.to_k, attention.to_v))
        rows = []
        for head in range(2):
            weights = (q[:, head] @ k[:, head].T / 2.0).softmax(-1)
            rows.append(weights @ v[:, head])
        wanted = attention.to_out[0](torch.cat(rows, 1)).reshape(3, 5, 8)
        assert torch.allclose(found[3 * number : 3 * number + 3], wanted, atol=1e-12)  # float64, one softmax


def test_views_of_one_object_matter_to_each_other_and_those_of_others_do_not():
    torch.manual_seed(0)
    block = BasicTransformerBlock(8, 2, 4, cross_attention_dim=8).double()
    see_together(block, 2)
    seen, words = torch.randn(4, 5, 8, dtype=torch.float64), torch.randn(4, 3, 8, dtype=torch.float64)
    first = block(seen, encoder_hidden_states=words)
    changed = seen.clone()
    changed[1] = torch.randn(5, 8, dtype=torch.float64)  # a constant would be taken out by the layer norm
    second = block(changed, encoder_hidden_states=words)
    assert (second[0] - first[0]).abs().max() > 1e-3
    assert torch.equal(second[2:], first[2:])


def test_one_view_changes_nothing_and_a_wrong_number_of_samples_is_said(attention):
    seen = torch.randn(4, 5, 8, dtype=torch.float64)
    before = attention(seen)
    see_together(torch.nn.ModuleDict({"attn1": attention}), 1)
    assert torch.equal(attention(seen), before)
    see_together(torch.nn.ModuleDict({"attn1": attention}), 2)
    assert not torch.equal(attention(seen), before)
    see_together(torch.nn.ModuleDict({"attn1": attention}), 1)
    assert torch.equal(attention(seen), before)
    see_together(torch.nn.ModuleDict({"attn1": attention}), 3)
    with pytest.raises(ValueError, match="3 views together was given 4 samples"):
        attention(seen)
