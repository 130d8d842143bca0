"""Which actions and capsules are allowed, and the choice among them, against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trm_core.config.schema import Selector
from trm_core.dqn.actions import Action, act_continues, affordable, epsilon_greedy, greedy, uniform_valid, valid_actions
from trm_core.dqn.selectors import PEEKING, choose_capsules, selection_scores
from trm_core.keyed_random import Purpose, keyed_uniform
from trm_core.model.capsule_state import CapsuleState


@st.composite
def states(draw: st.DrawFn) -> CapsuleState:
    """Random prices, padding and open capsules."""
    rows = 4
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    k = draw(st.integers(1, 6))
    shape = tiny.make_shape(num_capsules=k, num_children=draw(st.sampled_from([0, 2, 2, 2])))
    mask = torch.rand(rows, k, generator=generator) < 0.8 if draw(st.booleans()) else None
    prices = torch.randint(1, 9, (k,), generator=generator).float() / 2
    capsules = replace(tiny.make_capsules(rows, shape, mask=mask), prices=prices)
    return capsules.opened(torch.rand(rows, k, generator=generator) < draw(st.floats(0, 1)))


BUDGETS = st.none() | st.integers(1, 24).map(lambda half: half / 2)


def may_open(capsules: CapsuleState, row: int, capsule: int, budget: float | None) -> bool:
    if capsules.children is None or bool(capsules.expanded[row, capsule]):
        return False
    if capsules.mask is not None and not bool(capsules.mask[row, capsule]):
        return False
    spent = sum(float(capsules.prices[i]) for i in range(len(capsules.prices)) if capsules.expanded[row, i])
    return budget is None or spent + float(capsules.prices[capsule]) <= budget


@given(capsules=states(), budget=BUDGETS, seed=st.integers(0, 1000), num_actions=st.sampled_from([2, 3]))
@settings(max_examples=60, deadline=None)
def test_valid_actions(capsules: CapsuleState, budget: float | None, seed: int, num_actions: int) -> None:
    rows, k = capsules.expanded.shape
    T = 3
    steps = torch.randint(1, T + 1, (rows,), generator=torch.Generator().manual_seed(seed))
    valid = valid_actions(capsules, steps, T, num_actions, budget)
    allowed = affordable(capsules, budget)
    assert valid.shape == (rows, num_actions)
    for row in range(rows):
        openable = [i for i in range(k) if may_open(capsules, row, i, budget)]
        assert allowed[row].nonzero().flatten().tolist() == openable
        last = int(steps[row]) == T
        expected = [not last, True, bool(openable) and not last][:num_actions]
        assert valid[row].tolist() == expected


def test_a_budget_of_three_tenths_buys_three_tenths() -> None:
    capsules = replace(tiny.make_capsules(1), prices=torch.full((tiny.K,), 0.1))
    for _ in range(3):
        assert affordable(capsules, 0.3).any()
        capsules = capsules.opened(torch.eye(tiny.K, dtype=torch.bool)[capsules.num_opened])
    assert not affordable(capsules, 0.3).any()


def chosen_by_loop(scores: Tensor, capsules: CapsuleState, allowed: Tensor, count: int, budget: float | None) -> Tensor:
    picked = torch.zeros_like(allowed)
    for row in range(len(scores)):
        k = scores.shape[1]
        spent = float(sum(capsules.prices[i] for i in range(k) if capsules.expanded[row, i]))
        order = sorted(
            (i for i in range(k) if allowed[row, i]), key=lambda i: -float(scores[row, i] / capsules.prices[i])
        )
        for i in order[:count]:
            if budget is not None and spent + float(capsules.prices[i]) > budget:
                break
            spent += float(capsules.prices[i])
            picked[row, i] = True
    return picked


@given(
    capsules=states(),
    budget=BUDGETS,
    count=st.integers(1, 7),
    seed=st.integers(0, 1000),
    ties=st.booleans(),
    some=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_capsule_choice_equals_a_loop(
    capsules: CapsuleState, budget: float | None, count: int, seed: int, ties: bool, some: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(capsules.expanded.shape, generator=generator)
    if ties:
        scores = (scores * 2).round()
    allowed = affordable(capsules, budget)
    if some:
        allowed = allowed & (torch.rand(allowed.shape, generator=generator) < 0.6)
    picked = choose_capsules(scores, capsules, allowed, count, budget)
    assert torch.equal(picked, chosen_by_loop(scores, capsules, allowed, count, budget))
    assert not (picked & ~allowed).any()
    assert not (picked & capsules.expanded).any()
    assert torch.equal(capsules.opened(picked).expanded, capsules.expanded | picked)
    assert bool((picked.any(1) == allowed.any(1)).all()), "an EXPAND that is allowed opens something"
    if budget is not None:
        assert bool((capsules.opened(picked).spent <= torch.maximum(capsules.spent, torch.tensor(budget)) + 1e-5).all())


def test_what_no_longer_fits_waits_with_all_behind_it() -> None:
    """Worth per price falls from the first to the last; the first is open already in the second row."""
    capsules = replace(tiny.make_capsules(2), prices=torch.tensor([1.0, 2.0, 4.0, 1.0]))
    capsules = capsules.opened(torch.tensor([[False] * 4, [True, False, False, False]]))
    scores = torch.tensor([4.0, 6.0, 8.0, 1.0]).expand(2, 4)

    def chosen(budget: float | None, count: int = 4) -> list[list[int]]:
        picked = choose_capsules(scores, capsules, affordable(capsules, budget), count, budget)
        return [row.nonzero().flatten().tolist() for row in picked]

    assert chosen(None) == [[0, 1, 2, 3], [1, 2, 3]]
    assert chosen(8.0) == [[0, 1, 2, 3], [1, 2, 3]]
    assert chosen(7.5) == [[0, 1, 2], [1, 2]]
    assert chosen(6.0) == [[0, 1], [1]], "the last would fit"
    assert chosen(3.0) == [[0, 1], [1]]
    assert chosen(2.5) == [[0], [3]], "what could not be opened alone is not in the way"
    assert chosen(7.0, 2) == [[0, 1], [1, 2]]
    tenths = replace(tiny.make_capsules(1), prices=torch.full((tiny.K,), 0.1))
    everything = affordable(tenths, 0.3)
    assert int(choose_capsules(torch.ones(1, tiny.K), tenths, everything, 4, 0.3).sum()) == 3


def test_nothing_opens_a_closed_door() -> None:
    """`opened` refuses padding and files without children, whatever it is asked for."""
    everything = torch.ones(2, tiny.K, dtype=torch.bool)
    mask = torch.tensor([[True, False, True, True], [True] * 4])
    assert torch.equal(tiny.make_capsules(2, mask=mask).opened(everything).expanded, mask)
    assert not tiny.make_capsules(2, tiny.make_shape(num_children=0)).opened(everything).expanded.any()


@given(seed=st.integers(0, 10**6), epsilon=st.sampled_from([0.0, 0.3, 1.0]), actions=st.sampled_from([2, 3]))
@settings(max_examples=40, deadline=None)
def test_epsilon_greedy_equals_a_loop(seed: int, epsilon: float, actions: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = 8
    q = torch.randn(rows, actions, generator=generator)
    valid = torch.rand(rows, actions, generator=generator) < 0.6
    valid[:, Action.HALT] = True
    explore, choice = torch.rand(2, rows, generator=generator)
    action, exploring = epsilon_greedy(q, valid, epsilon, explore, choice)
    for row in range(rows):
        there = [a for a in range(actions) if valid[row, a]]
        best = max(there, key=lambda a: float(q[row, a]))
        drawn = there[int(float(choice[row]) * len(there))]
        assert int(greedy(q, valid)[row]) == best
        assert int(uniform_valid(valid, choice)[row]) == drawn
        assert bool(exploring[row]) == (float(explore[row]) < epsilon)
        assert int(action[row]) == (drawn if exploring[row] else best)


def test_without_epsilon_nobody_explores() -> None:
    """Not even a row that draws a zero."""
    valid, draws = torch.ones(2, 3, dtype=torch.bool), torch.tensor([0.0, 0.5])
    action, exploring = epsilon_greedy(torch.tensor([[0.0, 1.0, 2.0]]).expand(2, 3), valid, 0.0, draws, draws)
    assert (action.tolist(), exploring.tolist()) == ([2, 2], [False, False])


def test_the_numbers_of_the_actions_are_those_of_old_checkpoints() -> None:
    """They are columns of the Q-head and lie in saved replay."""
    assert {action.name: int(action) for action in Action} == {"CONTINUE": 0, "HALT": 1, "EXPAND": 2}


def test_without_q_learning_a_row_thinks_on_until_halting_is_worth_more() -> None:
    model = tiny.make_model(tiny.make_config())
    with torch.no_grad():
        output = model(*model.first_latents(3), tiny.make_capsules(3), torch.ones(3, dtype=torch.int64), torch.ones(3))
    output = replace(output, halt_logit=torch.tensor([-0.5, 0.0, 0.5]), continue_logit=None)
    assert act_continues(output).tolist() == [True, True, False]
    assert act_continues(output, 0.5).tolist() == [True, True, True]
    assert act_continues(output, -0.25).tolist() == [True, False, False]
    both = replace(output, continue_logit=torch.tensor([-1.0, 0.0, 1.0]))
    assert act_continues(both, 99.0).tolist() == [False, True, True], "the threshold is for the halt logit alone"


def test_uniform_choice_is_uniform() -> None:
    valid = torch.tensor([[True, False, True]]).expand(30_000, 3)
    draws = keyed_uniform(0, 0, Purpose.EXPLORE_ACTION, torch.arange(30_000))
    counts = torch.bincount(uniform_valid(valid, draws), minlength=3)
    assert counts[1] == 0
    assert abs(int(counts[0]) - 15_000) < 500


def test_each_selector_scores_what_it_says() -> None:
    config = tiny.make_config()
    model = tiny.make_model(config)
    capsules = tiny.make_capsules(3)
    with torch.no_grad():
        output = model(*model.first_latents(3), capsules, torch.ones(3, dtype=torch.int64), torch.ones(3))
    model.requires_grad_(False)
    assert capsules.children is not None
    draws = torch.rand(3, tiny.K)

    def scores(selector: str, **changes: Any) -> Tensor:
        return selection_scores(selector, model, output, replace(capsules, **changes), draws)

    assert torch.equal(scores("random"), draws)
    assert capsules.checksums is not None
    assert model.reconstruction.checksum is not None
    error = (model.reconstruction.checksum(output.z_H) - capsules.checksums).square().mean(-1)
    assert torch.equal(scores("checksum"), error)
    assert bool((scores("cmi") > 0).all())
    for selector in set(get_args(Selector)) - set(PEEKING):
        other = {"checksums": None, "children": capsules.children + 1.0}
        assert torch.equal(scores(selector), scores(selector, **other)), f"{selector} peeks"
    assert torch.equal(scores("variance"), capsules.children.var((2, 3), correction=0))
    votes = model.answer.votes(output.z_H)
    torch.testing.assert_close(votes.mean(1), output.logits[:, 0])
    p = votes.softmax(-1)
    torch.testing.assert_close(scores("entropy"), -(p * p.log()).sum(-1) / math.log(tiny.CLASSES))
    attention = scores("attention")
    torch.testing.assert_close(attention.sum(1), torch.ones(3))
    block = model.recursion.high.blocks[-1].attention
    q, k, _ = block.split(output.z_H)
    weights = torch.stack([(q[:, h] @ k[:, h].mT / q.shape[-1] ** 0.5).softmax(-1) for h in range(2)])
    torch.testing.assert_close(attention, weights.mean(0).mean(1))
    assert model.opening_worth is not None
    model.opening_worth.observe(torch.tensor([2.0, -1.0, 0.0, 3.0]), torch.tensor([2.0, 2.0, 0.0, 2.0]))
    # Means 1, -0.5, (never opened: the mean of all) 4/6, 1.5; raised so that none is negative.
    static = torch.tensor([1.5, 0.0, 4 / 6 + 0.5, 2.0])
    torch.testing.assert_close(scores("static"), static.expand(3, -1))
    assert not torch.equal(scores("checksum"), scores("checksum", checksums=capsules.checksums + 1))


@pytest.mark.parametrize("classes", [1, 2])
def test_the_entropy_of_few_classes_is_a_share_of_the_largest(classes: int) -> None:
    """1 where both classes are as likely; of a single class nothing is left to learn."""
    model = tiny.make_model(tiny.make_config(), tiny.make_shape(num_classes=classes))
    capsules = tiny.make_capsules(2)
    with torch.no_grad():
        for parameter in model.answer.parameters():
            parameter.zero_()
        output = model(*model.first_latents(2), capsules, torch.ones(2, dtype=torch.int64), torch.ones(2))
        scores = selection_scores("entropy", model, output, capsules, torch.rand(2, tiny.K))
    torch.testing.assert_close(scores, torch.full((2, tiny.K), float(classes - 1)))
