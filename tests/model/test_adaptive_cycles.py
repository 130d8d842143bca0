"""Rows leave the H loop early: the same as one row at a time, and rows that left are not computed."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from trm_core.model.rows import take_rows
from trm_core.model.trm import StepOutput, TinyRecursiveModel

ROWS, H = 12, 4


def make(threshold: float, **arch: Any) -> TinyRecursiveModel:
    config = tiny.make_config(
        arch={
            "H_cycles": H,
            "grad_cycles": 2,
            "enable_adaptive_hcycles": True,
            "hcycle_confidence_threshold": threshold,
            **arch,
        }
    )
    return tiny.make_model(config, seed=4)


def think(model: TinyRecursiveModel, rows: slice = slice(None), grad: bool = False) -> StepOutput:
    capsules = tiny.make_capsules(ROWS)
    capsules = capsules.opened(torch.rand(ROWS, tiny.K, generator=torch.Generator().manual_seed(1)) < 0.5)
    capsules = take_rows(capsules, torch.arange(ROWS)[rows])
    n = len(capsules.expanded)
    memory = torch.rand(ROWS, model.q_head.recurrent_width, generator=torch.Generator().manual_seed(2))[rows]
    with torch.set_grad_enabled(grad):
        return model(
            *model.first_latents(n), capsules, torch.ones(n, dtype=torch.int64), torch.full((n,), 0.02), memory
        )


def middling_threshold() -> float:
    """A threshold that some rows pass at every cycle and some never do."""
    readings = think(make(0.0).train()).early
    return float(torch.stack([reading.halt_logit for reading in readings]).flatten().quantile(0.7))


@pytest.mark.parametrize("kind", ["mlp", "rnn", "attention"])
def test_equals_one_row_at_a_time(kind: str) -> None:
    arch = {"q_head_type": kind, "q_head_tokens": 2}
    logits = think(make(0.0, **arch).train()).early[1].halt_logit.sort().values
    threshold = float(logits[5] + logits[6]) / 2  # between two rows, so that no rounding decides
    model = make(threshold, **arch)
    training = think(model.train())
    whole = think(model.eval())
    assert len(whole.cycles.unique()) > 1, "the example shows rows that leave and rows that stay"
    for row in range(ROWS):
        by_cycle = [*training.early, training]
        logits_at = [float(reading.halt_logit[row]) for reading in by_cycle]
        leaves = next((c for c in range(H - 1) if logits_at[c] > threshold), H - 1)
        assert int(whole.cycles[row]) == leaves + 1
        torch.testing.assert_close(whole.logits[row], by_cycle[leaves].logits[row], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole.q_state[row], by_cycle[leaves].q_state[row].detach(), rtol=1e-4, atol=1e-5)
        alone = think(model, slice(row, row + 1))
        torch.testing.assert_close(whole.z_H[row], alone.z_H[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole.z_L[row], alone.z_L[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole.q_values[row], alone.q_values[0], rtol=1e-4, atol=1e-5)


def test_rows_that_left_are_not_computed() -> None:
    model = make(middling_threshold()).eval()
    sizes: list[int] = []
    model.recursion.low.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    output = think(model)
    assert sum(sizes) == 2 * int(output.cycles.sum()), "one low and one high update for every cycle of every row"
    assert int(output.cycles.sum()) < H * ROWS


@pytest.mark.parametrize("threshold", [-1e9, 1e9])
def test_extremes(threshold: float) -> None:
    output = think(make(threshold).eval())
    assert bool((output.cycles == (1 if threshold < 0 else H)).all())


def test_training_runs_every_cycle_and_reads_each() -> None:
    model = make(-1e9).train()
    output = think(model, grad=True)
    assert bool((output.cycles == H).all())
    assert len(output.early) == H - 1
    without_gradient, with_gradient = output.early[0], output.early[H - 2]
    assert not model.recursion.low.blocks[0].attention.qkv.weight.grad_fn  # a leaf
    grads = [
        torch.autograd.grad(r.halt_logit.sum(), [model.embedding.position], retain_graph=True, allow_unused=True)[0]
        for r in (without_gradient, with_gradient)
    ]
    assert grads[0] is None, "early cycles carry no gradient to the trunk"
    assert grads[1] is not None
    assert not think(make(0.0, enable_adaptive_hcycles=False).train()).early
