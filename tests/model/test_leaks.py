"""Nothing of what the model may not see reaches its outputs: children of unopened capsules, content of padding."""

from __future__ import annotations

from dataclasses import replace

import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trm_core.model.capsule_state import CapsuleState
from trm_core.model.trm import StepOutput, TinyRecursiveModel

ROWS = 3
KINDS = st.sampled_from(["project", "attention", "mean", "first"])
MASKS = st.lists(st.lists(st.booleans(), min_size=tiny.K, max_size=tiny.K), min_size=ROWS, max_size=ROWS).map(
    torch.tensor
)
HUGE = st.sampled_from([1.0, 1e6, 1e30, float("inf"), float("nan")])


def think(model: TinyRecursiveModel, capsules: CapsuleState, steps: int = 2) -> StepOutput:
    z_H, z_L = model.first_latents(ROWS)
    price = torch.full((ROWS,), 0.02)
    for step in range(1, steps + 1):
        output = model(z_H, z_L, capsules, torch.full((ROWS,), step), price)
        z_H, z_L = output.z_H, output.z_L
    return output


def seen(model: TinyRecursiveModel, capsules: CapsuleState) -> dict[str, Tensor]:
    """All that decisions and answers are made of."""
    output = think(model, capsules)
    assert model.cmi_head is not None
    return {
        "logits": output.logits,
        "halt_logit": output.halt_logit,
        "q_values": output.q_values,
        "q_state": output.q_state,
        "cmi": model.cmi_head(output.z_H, output.x, output.q_state, capsules.mask),
    }


def setting(kind: str, rank: int, readout: str, mask: Tensor | None) -> tuple[TinyRecursiveModel, CapsuleState]:
    config = tiny.make_config(arch={"child_aggregation": kind, "readout": readout, "L_cycles": 2})
    shape = tiny.make_shape(label_rank=rank)
    if mask is not None:
        mask = mask.clone()
        mask[:, 0] = True  # a sample has at least one capsule
    return tiny.make_model(config, shape), tiny.make_capsules(ROWS, shape, mask=mask)


@given(
    kind=KINDS,
    expanded=MASKS,
    mask=st.none() | MASKS,
    rank=st.sampled_from([1, 2]),
    readout=st.sampled_from(["flat", "mean"]),
    scale=HUGE,
)
@settings(max_examples=40, deadline=None)
def test_children_of_unopened_capsules_stay_hidden(
    kind: str, expanded: Tensor, mask: Tensor | None, rank: int, readout: str, scale: float
) -> None:
    model, capsules = setting(kind, rank, readout, mask)
    assert capsules.children is not None
    capsules = capsules.opened(expanded)
    closed = ~capsules.expanded
    before = seen(model, capsules)
    noise = torch.randn_like(capsules.children) * scale
    other = replace(capsules, children=torch.where(closed[:, :, None, None], noise, capsules.children))
    after = seen(model, other)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    if bool(capsules.expanded.any()):
        moved = replace(
            capsules, children=torch.where(closed[:, :, None, None], capsules.children, capsules.children + 1.0)
        )
        changed = seen(model, moved)
        rows = capsules.expanded.any(1)
        for name in ("halt_logit", "q_values", "q_state", "logits"):
            assert not torch.allclose(before[name][rows], changed[name][rows]), name
            assert torch.equal(before[name][~rows], changed[name][~rows]), name


@given(kind=KINDS, mask=MASKS, rank=st.sampled_from([1, 2]), readout=st.sampled_from(["flat", "mean"]))
@settings(max_examples=20, deadline=None)
def test_the_content_of_padding_does_not_matter(kind: str, mask: Tensor, rank: int, readout: str) -> None:
    model, capsules = setting(kind, rank, readout, mask)
    capsules = capsules.opened(torch.ones_like(capsules.expanded))
    assert capsules.mask is not None
    assert capsules.children is not None
    assert torch.equal(capsules.expanded, capsules.mask), "padding cannot be opened"
    before = seen(model, capsules)
    padding = ~capsules.mask
    sketches = torch.where(padding[:, :, None], 1e6, capsules.sketches)
    children = torch.where(padding[:, :, None, None], 1e6, capsules.children)
    after = seen(model, replace(capsules, sketches=sketches, children=children))
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def test_a_row_does_not_see_its_neighbours() -> None:
    model, capsules = setting("project", 1, "flat", None)
    before = seen(model, capsules)
    sketches = capsules.sketches.clone()
    sketches[1] += 1.0
    after = seen(model, replace(capsules, sketches=sketches))
    for name, value in before.items():
        assert torch.equal(value[[0, 2]], after[name][[0, 2]]), name
        assert not torch.equal(value[1], after[name][1]), name
