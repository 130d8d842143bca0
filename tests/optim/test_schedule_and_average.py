"""Learning rate schedule, averaged weights, and the partition of the parameters into optimisers."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from torch import nn

from trm_core.optim.build import POLICY_PREFIXES, build_optimizers
from trm_core.optim.ema import WeightAverage
from trm_core.optim.schedule import lr_factor


def test_schedule_warms_up_linearly_and_falls_as_a_cosine() -> None:
    factors = [lr_factor(step, 4, 14, 0.1) for step in range(15)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[9] == pytest.approx(0.55)  # half way between 1 and 0.1
    assert factors[6] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.2)))
    assert factors[14] == pytest.approx(0.1)
    assert lr_factor(99, 4, 14, 0.1) == pytest.approx(0.1)
    assert lr_factor(0, 0, 10, 0.0) == 1.0
    assert lr_factor(3, 4, 4, 0.1) == 1.0


def test_average_follows_the_formula() -> None:
    model = nn.Linear(2, 1)
    average = WeightAverage(model, 0.5)
    expected = model.weight.detach().clone()
    for update in range(1, 30):
        with torch.no_grad():
            model.weight.add_(update)
        average.update()
        decay = min(0.5, update / (update + 10))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.average["weight"], expected)


def test_applied_average_is_taken_back_exactly() -> None:
    model = nn.Linear(3, 3)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.mul_(math.pi)
    average.update()
    own = {name: p.detach().clone() for name, p in model.named_parameters()}

    def leave_by_an_exception() -> None:
        with average.applied():
            assert torch.equal(model.weight, average.average["weight"])
            assert not torch.equal(model.weight, own["weight"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave_by_an_exception()
    assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("optimizer", ["adamatan2", "adamw", "muon"])
@pytest.mark.parametrize("with_cmi", [True, False])
def test_groups_partition_the_parameters(optimizer: str, with_cmi: bool) -> None:
    config = tiny.make_config(
        training={"optimizer": optimizer, "base_lr": 1e-3, "muon_lr": 0.05, "weight_decay": 0.03}, dqn={"lr": 5e-4}
    )
    model = tiny.make_model(config, with_cmi=with_cmi)
    built = build_optimizers(model, config)
    held = [p for one in built.all for group in one.param_groups for p in group["params"]]
    assert len({id(p) for p in held}) == len(held)
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert {id(p) for p in built.model_params + built.policy_params} == {id(p) for p in held}
    policy = {name for name, p in model.named_parameters() if any(p is q for q in built.policy_params)}
    assert policy == {name for name, _ in model.named_parameters() if name.startswith(POLICY_PREFIXES)}
    assert len(policy) == (8 if with_cmi else 4)
    if optimizer == "muon":
        matrices = {id(p) for group in built.all[0].param_groups for p in group["params"]}
        assert matrices == {id(p) for p in model.recursion.parameters()}
    built.set_factors(model=0.5, policy=0.2)
    rates = [one.param_groups[0]["lr"] for one in built.all]
    assert rates == pytest.approx([0.025] * (optimizer == "muon") + [5e-4, 1e-4])
    assert all(one.param_groups[0]["weight_decay"] == 0.03 for one in built.all)


def test_each_part_is_clipped_by_its_own_limit() -> None:
    config = tiny.make_config()
    model = tiny.make_model(config)
    built = build_optimizers(model, config)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    sizes = [math.sqrt(sum(p.numel() for p in part)) for part in (built.model_params, built.policy_params)]
    norms = built.norms()
    built.clip(norms, (0.5, 2.0))
    assert [float(norm) for norm in norms] == pytest.approx(sizes, rel=1e-5)
    for part, limit in ((built.model_params, 0.5), (built.policy_params, 2.0)):
        clipped = math.sqrt(sum(float(p.grad.square().sum()) for p in part if p.grad is not None))
        assert clipped == pytest.approx(limit, rel=1e-3)
    built.zero_grad()
    assert all(p.grad is None for p in model.parameters())
