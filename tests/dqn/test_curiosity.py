"""Curiosity: counts against a dictionary, the predictor that really learns, schedules."""

from __future__ import annotations

from collections import Counter

import pytest
import tiny
import torch

from trm_core.config.schema import WeightRange
from trm_core.dqn.curiosity import Curiosity
from trm_core.dqn.schedules import beta_at, price_share_at, temperature_at, weight_at


def make(**dqn: object) -> Curiosity:
    torch.manual_seed(0)
    return Curiosity(tiny.make_config(dqn={"curiosity_hash_bits": 3, **dqn}).dqn, 6)


def test_counts_are_those_of_a_dictionary() -> None:
    curiosity, seen = make(), Counter[tuple[bool, ...]]()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        states = torch.randn(40, 6, generator=generator)
        curiosity.observe(states)
        signs = [tuple(row) for row in (states @ curiosity.projections > 0).tolist()]
        seen.update(signs)
        expected = [seen[sign] for sign in signs]
        assert curiosity.counts[curiosity.cells(states)].tolist() == expected
        bonus = curiosity.bonus(states) - curiosity.errors(states)
        assert bonus.tolist() == pytest.approx([count**-0.5 for count in expected], abs=1e-5)
    assert int(curiosity.counts.sum()) == 200


def test_the_predictor_learns_what_it_visits_and_nothing_else() -> None:
    curiosity = make()
    generator = torch.Generator().manual_seed(1)
    known = torch.randn(64, 6, generator=generator) * 0.3 + 1.0
    strange = torch.randn(64, 6, generator=generator) * 0.3 - 3.0
    target = [p.clone() for p in curiosity.target.parameters()]
    before = float(curiosity.errors(known).mean().detach())
    optimizer = torch.optim.Adam([p for p in curiosity.parameters() if p.requires_grad], 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        curiosity.errors(known).mean().backward()
        optimizer.step()
    assert float(curiosity.errors(known).mean().detach()) < 0.05 * before
    assert float(curiosity.errors(strange).mean().detach()) > 10 * float(curiosity.errors(known).mean().detach())
    assert all(torch.equal(a, b) for a, b in zip(target, curiosity.target.parameters(), strict=True))


def test_schedules_go_by_the_step() -> None:
    config = tiny.make_config(
        training={"total_steps": 10},
        dqn={
            "temperature_start": 2.0,
            "temperature_end": 1.0,
            "temperature_decay": 4,
            "price_warmup_steps": 4,
            "priority_beta_start": 0.4,
        },
    )
    assert [temperature_at(config.dqn, s) for s in (0, 2, 4, 9)] == pytest.approx([2.0, 1.5, 1.0, 1.0])
    assert [price_share_at(config.dqn, s) for s in (0, 1, 3, 9)] == pytest.approx([0.25, 0.5, 1.0, 1.0])
    assert price_share_at(tiny.make_config().dqn, 0) == 1.0
    assert [beta_at(config, s) for s in (0, 5, 10)] == pytest.approx([0.4, 0.7, 1.0])
    weight = WeightRange(low=0.1, high=0.5)
    assert [weight_at(weight, at) for at in (-1.0, 0.0, 0.5, 1.0, 2.0)] == pytest.approx([0.1, 0.1, 0.3, 0.5, 0.5])
    assert weight_at(0.7, 0.3) == 0.7
