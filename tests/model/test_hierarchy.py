"""Hierarchical attention: the bias against a loop over pairs, and that it reaches every attention of the model."""

from __future__ import annotations

from dataclasses import replace

import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trm_core.config.schema import HierarchyBias
from trm_core.model.layers import attention_bias

WEIGHTS = HierarchyBias(parent_to_child=3.0, child_to_parent=2.0, sibling=1.0, unrelated=-1.0)
K = 5
PARENTS = st.tuples(*(st.integers(-1, i - 1) for i in range(K))).map(list)  # parents before children: a forest


@given(parents=PARENTS, mask=st.none() | st.lists(st.booleans(), min_size=K, max_size=K))
@settings(max_examples=60, deadline=None)
def test_bias_equals_a_loop_over_pairs(parents: list[int], mask: list[bool] | None) -> None:
    got = attention_bias(None if mask is None else torch.tensor([mask]), torch.tensor([parents]), WEIGHTS)
    assert got is not None
    assert got.shape == (1, 1, K, K)
    for looks in range(K):
        for at in range(K):
            if parents[at] == looks:
                expected = 3.0
            elif parents[looks] == at:
                expected = 2.0
            elif looks == at or (parents[looks] == parents[at] and parents[at] >= 0):
                expected = 1.0
            else:
                expected = -1.0
            if mask is not None and not mask[at]:
                expected = -torch.inf
            assert float(got[0, 0, looks, at]) == expected, (looks, at)


def logits(parents: Tensor, on: bool) -> Tensor:
    config = tiny.make_config(arch={"enable_hierarchical_attention": on, "hierarchy_bias": WEIGHTS.model_dump()})
    model = tiny.make_model(config, tiny.make_shape(has_parents=on)).eval()
    capsules = replace(tiny.make_capsules(2), parents=parents)
    ones = torch.ones(2, dtype=torch.int64)
    with torch.no_grad():
        return model(*model.first_latents(2), capsules, ones, torch.ones(2)).logits


def test_parents_matter_only_where_the_switch_is_on() -> None:
    chain, star = torch.tensor([[-1, 0, 1, 2]] * 2), torch.tensor([[-1, 0, 0, 0]] * 2)
    assert torch.equal(logits(chain, False), logits(star, False))
    assert not torch.allclose(logits(chain, True), logits(star, True))
    assert not torch.allclose(logits(chain, True), logits(chain, False))


def test_padding_stays_hidden_under_the_bias() -> None:
    config = tiny.make_config(arch={"enable_hierarchical_attention": True})
    model = tiny.make_model(config, tiny.make_shape(has_parents=True)).eval()
    mask = torch.tensor([[True, True, True, False]] * 2)
    capsules = replace(tiny.make_capsules(2, mask=mask), parents=torch.tensor([[-1, 0, 0, -1]] * 2))
    other = replace(capsules, sketches=torch.where(mask[:, :, None], capsules.sketches, 1e6))
    ones = torch.ones(2, dtype=torch.int64)
    with torch.no_grad():
        first, second = (model(*model.first_latents(2), c, ones, torch.ones(2)).logits for c in (capsules, other))
    assert torch.equal(first, second)
