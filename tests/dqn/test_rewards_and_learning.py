"""Reward formulas, their running scale, Double DQN targets and losses, the target network, epsilon."""

from __future__ import annotations

import copy
from dataclasses import fields

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_core.dqn.actions import Action
from trm_core.dqn.learner import (
    ReplayedTargets,
    RewardDivisors,
    TargetNetwork,
    no_transitions,
    sequence_targets,
    td_loss,
    td_targets,
)
from trm_core.dqn.replay import Transitions
from trm_core.dqn.rewards import RewardScale, step_reward, terminal_reward
from trm_core.dqn.schedules import epsilon_at
from trm_core.model.q_head import NUM_SCALARS, QHead, RecurrentValueNet


def test_step_reward() -> None:
    dqn = tiny.make_config(
        dqn={"reward_step_penalty": 0.01, "reward_expansion_bonus": 0.1, "reward_min_rise": 0.05}
    ).dqn
    before, after = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.2]), torch.tensor([0.7, 0.7, 0.54, 0.3, 0.25])
    action = torch.tensor([Action.CONTINUE, Action.EXPAND, Action.EXPAND, Action.EXPAND, Action.EXPAND])
    cost, price = torch.tensor([0.0, 2.0, 1.0, 1.0, 0.0]), torch.tensor([9.0, 0.03, 0.03, 0.1, 1.0])
    expected = [0.2 - 0.01, 0.2 - 0.01 - 0.06 + 0.1, 0.04 - 0.01 - 0.03, -0.2 - 0.01 - 0.1, 0.05 - 0.01 + 0.1]
    after[4] += 1e-6  # a rise of exactly the minimum counts; 0.25 - 0.2 is a hair below 0.05 in float32
    reward = step_reward(dqn, before, after, action, cost, price, remembers=False)
    assert reward.total.tolist() == pytest.approx(expected, abs=1e-5)
    assert reward.price.tolist() == pytest.approx([0.0, -0.06, -0.03, -0.1, 0.0])
    assert not reward.memory_bonus.any()
    remembering = step_reward(dqn, before, after, action, cost, price, remembers=True)
    bonus = (remembering.total - reward.total).tolist()
    assert bonus == pytest.approx([0.05, 0.05, 0.0, 0.0, 0.05], abs=1e-6)


def test_a_rise_of_exactly_the_minimum_is_enough() -> None:
    dqn = tiny.make_config(dqn={"reward_min_rise": 0.25, "reward_expansion_bonus": 1.0}).dqn
    before, after, nothing = torch.full((3,), 0.5), torch.tensor([0.5, 0.75, 1.0]), torch.zeros(3)
    reward = step_reward(dqn, before, after, torch.full((3,), Action.EXPAND), nothing, nothing, remembers=False)
    assert reward.expansion_bonus.tolist() == [0.0, 1.0, 1.0]


def test_a_rise_of_at_least_0_is_any_rise_and_not_none() -> None:
    dqn = tiny.make_config(dqn={"reward_min_rise": 0.0, "reward_expansion_bonus": 1.0, "memory_reward_bonus": 2.0}).dqn
    before, after, nothing = torch.full((3,), 0.5), torch.tensor([0.4, 0.5, 0.501]), torch.zeros(3)
    reward = step_reward(dqn, before, after, torch.full((3,), Action.EXPAND), nothing, nothing, remembers=True)
    assert reward.expansion_bonus.tolist() == [0.0, 0.0, 1.0]
    assert reward.memory_bonus.tolist() == [0.0, 0.0, 2.0]


def test_terminal_reward_goes_by_accuracy() -> None:
    dqn = tiny.make_config(dqn={"reward_terminal_correct": 2.0, "reward_terminal_incorrect": -1.0}).dqn
    assert terminal_reward(dqn, torch.tensor([0.0, 1.0, 0.5])).tolist() == [-1.0, 2.0, 0.5]


@given(
    seed=st.integers(0, 10**6), sizes=st.lists(st.integers(0, 60), min_size=8, max_size=12), offset=st.floats(-100, 100)
)
@settings(max_examples=30, deadline=None)
def test_scale_is_the_standard_deviation(seed: int, sizes: list[int], offset: float) -> None:
    random = np.random.default_rng(seed)
    parts = [random.normal(offset, 3.0, size) for size in sizes]
    scale = RewardScale()
    for part in parts:
        scale.update(torch.tensor(part))
    seen = np.concatenate(parts)
    assert scale.count == len(seen)
    if len(seen) < 100:
        assert scale.value == 1.0
    else:
        assert scale.value == pytest.approx(seen.std(), rel=1e-9)


def test_rewards_are_divided_from_the_hundredth_on() -> None:
    scale = RewardScale()
    scale.update(torch.tensor([0.0, 8.0]).repeat(49))
    scale.update(torch.zeros(1))
    assert (scale.count, scale.value) == (99, 1.0)
    before = copy.copy(scale)
    scale.update(torch.zeros(0))
    assert scale == before, "a step without rewards"
    scale.update(torch.full((1,), 8.0))
    assert (scale.count, scale.mean, scale.value) == (100, pytest.approx(4.0), pytest.approx(4.0))


def test_scale_has_a_floor() -> None:
    scale = RewardScale()
    scale.update(torch.full((200,), 5.0))
    assert scale.value == 1e-3


def head(seed: int, kind: str = "mlp") -> QHead:
    torch.manual_seed(seed)
    made = QHead(
        tiny.make_config(arch={"hidden_size": 4, "q_head_hidden_dim": 8, "q_head_type": kind}).arch, 0.02, 10.0
    )
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return made


def transitions(rows: int = 16) -> Transitions:
    generator = torch.Generator().manual_seed(3)
    states = torch.rand(2, rows, 4 + NUM_SCALARS, generator=generator)
    valid = torch.rand(rows, 3, generator=generator) < 0.5
    valid[:, Action.HALT] = True
    reward = torch.randn(rows, generator=generator) + 5.0
    return Transitions(
        slot=torch.arange(rows),
        state=states[0],
        action=torch.arange(rows) % 3,
        reward=reward,
        intrinsic=torch.rand(rows, generator=generator),
        next_state=states[1],
        next_valid=valid,
        done=torch.arange(rows) % 4 == 0,
        weight=torch.linspace(0.5, 1.0, rows),
    )


def test_double_dqn_targets_are_scaled_but_not_centred() -> None:
    online, target, batch = head(0), head(1), transitions()
    made = td_targets(online, target, batch, 0.9, RewardDivisors(4.0, 2.0))
    for row in range(16):
        state = batch.next_state[row : row + 1]
        mine, theirs = online.values(state)[0].tolist(), target.values(state)[0].tolist()
        best = max((a for a in range(3) if batch.next_valid[row, a]), key=lambda a: mine[a])
        future = 0.0 if batch.done[row] else 0.9 * theirs[best]
        reward = float(batch.reward[row]) / 4.0 + float(batch.intrinsic[row]) / 2.0
        assert float(made.target[row]) == pytest.approx(reward + future, abs=1e-5)
    assert not made.target.requires_grad


def test_runs_of_a_recurrent_head_equal_a_loop() -> None:
    """The memory starts as it was stored and is computed along the run, by each network for itself."""
    online, target = head(0, "rnn"), head(1, "rnn")
    n, length, width = 3, 4, online.state_width
    generator = torch.Generator().manual_seed(5)
    states = torch.rand(n, length, width, generator=generator)
    following = torch.rand(n, length, width, generator=generator)
    alive = torch.tensor([[True, True, True, True], [True, True, False, False], [True, False, False, False]])
    actions = torch.arange(n * length).view(n, length) % 3
    flat = Transitions(
        slot=torch.arange(n * length),
        state=states.flatten(0, 1),
        action=actions.flatten(),
        reward=torch.randn(n * length, generator=generator),
        intrinsic=torch.zeros(n * length),
        next_state=following.flatten(0, 1),
        next_valid=torch.ones(n * length, 3, dtype=torch.bool),
        done=torch.zeros(n * length, dtype=torch.bool),
        weight=torch.full((n * length,), 0.5),
    )
    made = sequence_targets(online, target, flat, alive, 0.9, RewardDivisors(1.0, 1.0))
    loss, _ = td_loss(online, made, "mse")
    assert torch.equal(made.weight, 0.5 * alive)
    h = online.recurrent_width
    for run in range(n):
        mine = theirs = states[run, 0, :h][None]
        for place in range(length):
            now = states[run, place, h:][None]
            values, mine = online.read(torch.cat([mine, now], 1))
            _, theirs = target.read(torch.cat([theirs, now], 1))
            after = following[run, place, h:][None]
            best = int(online.values(torch.cat([mine, after], 1)).argmax())
            future = float(target.values(torch.cat([theirs, after], 1))[0, best].detach())
            wanted = float(flat.reward.view(n, length)[run, place]) + 0.9 * future
            assert float(made.target[run, place]) == pytest.approx(wanted, abs=1e-5)
            miss = float(values[0, actions[run, place]].detach()) - wanted
            assert float(loss[run, place].detach()) == pytest.approx(miss**2, abs=1e-4)
    assert isinstance(online.value_net, RecurrentValueNet)
    loss[0, 2:].sum().backward()
    moved = online.value_net.cell.weight_hh.grad
    assert moved is not None
    assert bool(moved.any()), "the gradient runs through the memory"


@pytest.mark.parametrize("kind", ["huber", "mse"])
def test_td_loss_moves_the_value_of_the_action_taken(kind: str) -> None:
    online, batch = head(0), transitions()
    made = td_targets(online, head(1), batch, 0.9, RewardDivisors(1.0, 1.0))
    loss, error = td_loss(online, made, kind)
    values = online.values(batch.state)
    for row in range(16):
        miss = float(values[row, batch.action[row]].detach() - made.target[row])
        assert float(error[row]) == pytest.approx(miss, abs=1e-5)
        expected = miss**2 if kind == "mse" else (0.5 * miss**2 if abs(miss) <= 1 else abs(miss) - 0.5)
        assert float(loss[row].detach()) == pytest.approx(expected, abs=1e-4)
    loss.sum().backward()
    assert all(p.grad is not None for p in online.value_net.parameters())
    assert all(p.grad is None for p in online.halt_net.parameters())


def test_target_network_follows_hard_or_softly() -> None:
    online = head(0)
    hard = TargetNetwork(online, tiny.make_config(dqn={"target_update_freq": 3}).dqn)
    soft = TargetNetwork(online, tiny.make_config(dqn={"target_tau": 0.25}).dqn)
    start = copy.deepcopy(online.value_net.hidden.weight.detach())
    assert not any(p.requires_grad for p in hard.head.parameters())
    expected = start.clone()
    for step in range(1, 7):
        with torch.no_grad():
            online.value_net.hidden.weight.add_(1.0)
        for target in (hard, soft):
            target.follow(online, step)
        now = online.value_net.hidden.weight.detach()
        expected = expected + 0.25 * (now - expected)
        torch.testing.assert_close(soft.head.value_net.hidden.weight, expected)
        torch.testing.assert_close(hard.head.value_net.hidden.weight, start + (step // 3) * 3.0)


@pytest.mark.parametrize(("length", "kind"), [(1, "mlp"), (5, "rnn")])
def test_nothing_to_replay_is_a_step_like_any_other(length: int, kind: str) -> None:
    """The value net takes part and gets gradients of zero, as other processes wait for them."""
    online = head(0, kind)
    none = no_transitions(online.state_width, length, torch.device("cpu"))
    loss, error = td_loss(online, none, "huber")
    assert loss.shape == error.shape == none.target.shape == none.weight.shape == none.slot.shape
    (none.weight * loss).sum().backward()
    gradients = [p.grad for p in online.value_net.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    full = ReplayedTargets(
        torch.zeros(3, length, dtype=torch.int64),
        torch.ones(3, length, online.state_width),
        torch.zeros(3, length, dtype=torch.int64),
        *torch.ones(2, 3, length),
    )
    if length == 1:
        full = ReplayedTargets(*(getattr(full, field.name).squeeze(1) for field in fields(full)))
    for field in fields(full):
        made, empty = getattr(full.without_rows(), field.name), getattr(none, field.name)
        assert (made.shape, made.dtype) == (empty.shape, empty.dtype), field.name


def test_the_target_says_when_it_moves_and_how_far_it_is() -> None:
    online = head(0)
    hard = TargetNetwork(online, tiny.make_config(dqn={"target_update_freq": 3}).dqn)
    soft = TargetNetwork(online, tiny.make_config(dqn={"target_tau": 0.25}).dqn)
    assert [step for step in range(1, 10) if hard.due(step)] == [3, 6, 9]
    assert all(soft.due(step) for step in range(1, 10))
    assert float(hard.distance(online)) == 0.0
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.mul_(2.0)
    assert float(hard.distance(online)) == pytest.approx(0.5), "of the weights as they are now"
    soft.follow(online, 1)
    assert float(soft.distance(online)) == pytest.approx(0.375)
    with torch.no_grad():
        for parameter in [*online.parameters(), *hard.head.parameters()]:
            parameter.zero_()
    assert float(hard.distance(online)) == 0.0, "no division by zero"


def test_epsilon_falls_linearly() -> None:
    dqn = tiny.make_config(dqn={"epsilon_start": 1.0, "epsilon_end": 0.2, "epsilon_decay": 8}).dqn
    assert [epsilon_at(dqn, step) for step in (0, 4, 8, 100)] == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_neither_q_values_nor_promises_move_the_trunk() -> None:
    """Even for a state that carries a gradient."""
    online = head(0)
    state = torch.rand(2, 4 + NUM_SCALARS, requires_grad=True)
    online.values(state).sum().backward()
    assert state.grad is None
    assert bool(online.value_net.hidden.weight.grad.any())  # type: ignore[union-attr]
    online.halt_logit(state).sum().backward()
    assert state.grad is not None
    model = tiny.make_model(tiny.make_config())
    assert model.cmi_head is not None
    inputs = [torch.rand(2, tiny.K, 16, requires_grad=True) for _ in range(2)]
    row = torch.rand(2, 16 + NUM_SCALARS, requires_grad=True)
    model.cmi_head(*inputs, row, None).sum().backward()
    assert all(tensor.grad is None for tensor in [*inputs, row])
