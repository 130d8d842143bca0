"""The kinds of Q-head: what their state holds, what they remember, and where their gradient goes."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor

from trm_core.config.schema_keys import choices
from trm_core.model.q_head import NUM_SCALARS, QHead, RecurrentValueNet, pool_tokens
from trm_core.model.trm import TinyRecursiveModel

KINDS = [kind for kind in choices("arch.q_head_type") if kind != "linear"]  # a linear one reads the first position


def make(kind: str, **arch: object) -> QHead:
    torch.manual_seed(0)
    head = QHead(tiny.make_config(arch={"q_head_type": kind, "q_head_tokens": 2, **arch}).arch, 0.02, 10.0)
    for p in head.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return head


def states(head: QHead, rows: int = 5, seed: int = 0) -> Tensor:
    return torch.rand(rows, head.state_width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 3, 5])
def test_tokens_are_means_of_runs_of_positions(tokens: int, masked: bool) -> None:
    z = torch.randn(2, 7, 3)
    mask = torch.rand(2, 7) < 0.6 if masked else None
    if mask is not None:
        mask[0, :4] = False  # whole runs without a valid position
    got = pool_tokens(z, mask, tokens).view(2, tokens, 3)
    for row in range(2):
        for token in range(tokens):
            places = [i for i in range(7) if i * tokens // 7 == token and (mask is None or mask[row, i])]
            expected = z[row, places].mean(0) if places else torch.zeros(3)
            torch.testing.assert_close(got[row, token], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_the_state_matters(kind: str) -> None:
    head = make(kind)
    assert head.state_width == head.recurrent_width + head.tokens * 16 + NUM_SCALARS
    state = states(head).requires_grad_(False)
    before = head.values(state)
    assert before.shape == (5, 3)
    for place in range(head.state_width):
        moved = state.clone()
        moved[:, place] += 0.05
        assert not torch.equal(head.values(moved), before), place


@pytest.mark.parametrize("kind", KINDS)
def test_td_reaches_the_value_net_alone(kind: str) -> None:
    head = make(kind)
    state = states(head).requires_grad_()
    head.values(state).sum().backward()
    assert state.grad is None or not state.grad[:, head.recurrent_width :].any(), "the trunk is not moved"
    assert all(p.grad is not None and bool(p.grad.any()) for p in head.value_net.parameters())
    assert all(p.grad is None for p in head.halt_net.parameters())


@pytest.mark.parametrize("kind", choices("arch.q_head_type"))
def test_no_action_is_preferred_before_anything_is_learned(kind: str) -> None:
    config = tiny.make_config(arch={"q_head_type": kind, "q_head_tokens": 2})
    model = TinyRecursiveModel(config, tiny.make_shape(), with_cmi=True)
    assert not model.q_head.values(states(model.q_head)).any(), "the last layer of its net has to be called output"


def test_a_recurrent_head_remembers() -> None:
    head = make("rnn")
    first, second = states(head, seed=1), states(head, seed=2)
    first[:, : head.recurrent_width] = 0
    _, memory = head.read(first)
    assert isinstance(head.value_net, RecurrentValueNet)
    x = head.readable(second)
    expected = head.at_price(head.value_net.output(head.value_net.cell(x, memory)), second)
    again = torch.cat([memory, second[:, head.recurrent_width :]], 1)
    torch.testing.assert_close(head.values(again), expected)
    assert not torch.allclose(head.values(second), expected)
    assert make("mlp").read(states(make("mlp")))[1].shape == (5, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_carries_the_memory_from_step_to_step(kind: str) -> None:
    model = tiny.make_model(tiny.make_config(arch={"q_head_type": kind, "q_head_tokens": 2}))
    capsules, ones = tiny.make_capsules(3), torch.ones(3, dtype=torch.int64)
    first = model(*model.first_latents(3), capsules, ones, torch.ones(3))
    second = model(first.z_H, first.z_L, capsules, ones + 1, torch.ones(3), first.q_memory)
    width = model.q_head.recurrent_width
    assert second.q_state.shape == (3, model.q_head.state_width)
    assert torch.equal(second.q_state[:, :width], first.q_memory)
    values, memory = model.q_head.read(second.q_state)
    assert torch.equal(second.q_values, values)
    assert torch.equal(second.q_memory, memory)
    forgetful = model(first.z_H, first.z_L, capsules, ones + 1, torch.ones(3))
    assert torch.equal(forgetful.q_values, second.q_values) == (kind != "rnn")


@pytest.mark.parametrize("gradient", ["trunk", "head"])
@pytest.mark.parametrize("kind", KINDS)
def test_halting_reads_the_pooled_trunk_but_never_the_confidence(kind: str, gradient: str) -> None:
    config = tiny.make_config(
        arch={"q_head_type": kind, "q_head_tokens": 2, "enable_q_continue": True}, training={"halt_gradient": gradient}
    )
    model = tiny.make_model(config)
    output = model(*model.first_latents(2), tiny.make_capsules(2), torch.ones(2, dtype=torch.int64), torch.ones(2))
    assert output.continue_logit is not None
    for logit in (output.halt_logit, output.continue_logit):
        moved = torch.autograd.grad(logit.sum(), [output.z_H, output.logits], retain_graph=True, allow_unused=True)
        assert (moved[0] is not None) == (gradient == "trunk")
        assert moved[1] is None or not moved[1].any(), "confidence is an input, not a way to move the answer"


def test_replay_and_acting_read_one_state() -> None:
    """What float16 makes of a state near certainty must not look like another one."""
    head = make("mlp")
    sure = 1 - torch.logspace(-6, -1, 60)
    state = states(head, len(sure))
    state[:, -NUM_SCALARS] = sure
    acting, replayed = head.readable(state), head.readable(state.half().float())
    moved = (acting - replayed)[:, -NUM_SCALARS].abs()
    assert float(moved.max()) < 0.1, "0.15 is what lies between 0.95 and 0.97"


@pytest.mark.parametrize("spread", [1.0, 1.05, 10.0])
def test_prices_are_read_in_units_that_other_prices_fit(spread: float) -> None:
    torch.manual_seed(0)
    head = QHead(tiny.make_config(arch={"q_head_type": "mlp"}).arch, 0.02, spread)
    state = states(head, 3)
    state[:, -1] = torch.log(torch.tensor([0.02, 0.02 / 1000, 0.02 * spread]))
    own, warming, edge = head.readable(state)[:, -1].tolist()
    assert own == pytest.approx(0, abs=1e-5)
    assert -7 < warming < -2.9, "dqn.price_warmup_steps begins near 0"
    assert 0 <= edge <= 1 + 1e-5
    stored = head.readable(state.half().float())[:, -1]
    assert float((stored - head.readable(state)[:, -1]).abs().max()) < 0.01
