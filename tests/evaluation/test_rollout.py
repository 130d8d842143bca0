"""Rollouts against a plain loop, compaction, batch size, policies, intervals, chance and FLOPs."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_puzzles
import torch
from scipy.stats import binomtest
from torch import Tensor

from trm_core.config.schema import Config
from trm_core.data.batch import CapsuleBatch
from trm_core.data.store import open_capsules
from trm_core.data.stream import sequential_batches
from trm_core.dqn.actions import Action
from trm_core.errors import StoppedEarly
from trm_core.evaluation import report
from trm_core.evaluation.intervals import accuracy_interval
from trm_core.evaluation.policies import (
    ActPolicy,
    FixedPolicy,
    LearnedPolicy,
    Policy,
    RandomPolicy,
    Situation,
    ThresholdPolicy,
)
from trm_core.evaluation.report import EvaluationData, Evaluator, chance, count_flops, pick_split, rows_at_once
from trm_core.evaluation.rollout import Outcome, rollout
from trm_core.model.capsule_state import CapsuleState
from trm_core.model.data_shape import DataShape
from trm_core.model.trm import TinyRecursiveModel

N = 60
PRICES = torch.tensor([1.0, 2.0, 0.5, 1.5])


def batches(size: int) -> list[CapsuleBatch]:
    whole = tiny.make_batch(N)
    columns = vars(whole).values()
    return [CapsuleBatch(*(None if c is None else c[i : i + size] for c in columns)) for i in range(0, N, size)]


def setup(selector: str = "cmi", **dqn: Any) -> tuple[TinyRecursiveModel, Config]:
    arch = {"max_steps": 4, "enable_capsule_expansion": True}
    config = tiny.make_config(arch=arch, dqn={"expansion_selector": selector, "enabled": True, **dqn})
    model = tiny.make_model(config, seed=3)
    with torch.no_grad():
        # Q-values of the same mean, HALT's a little lower, so that all three actions are taken.
        first = model(*model.first_latents(N), tiny.make_capsules(N), torch.full((N,), 2), torch.full((N,), 0.02))
        q = first.q_values
        shift = q.mean(0) + torch.tensor([0.0, 0.5, -0.3]) * q.std(0)
        model.q_head.value_net.output.bias -= torch.cat([shift, torch.zeros(3)])  # values, and spending as it was
    return model.eval(), config


def run(policy: Policy, selector: str = "cmi", size: int = N, **dqn: Any) -> Outcome:
    model, config = setup(selector, **dqn)
    return rollout(model, config, batches(size), policy, PRICES)


POLICIES = {
    "learned": LearnedPolicy(0.02),
    "threshold": ThresholdPolicy(0.6, 0.02),
    "never": FixedPolicy(False, 0.02, "never"),
    "all": FixedPolicy(True, 0.02, "all"),
    "act": ActPolicy(0.02),
}


@pytest.mark.parametrize("selector", ["cmi", "checksum", "random"])
@pytest.mark.parametrize("name", list(POLICIES))
def test_results_do_not_depend_on_the_batch_size(name: str, selector: str) -> None:
    whole, small = (run(POLICIES[name], selector, size) for size in (N, 7))
    for field in fields(Outcome):
        mine, theirs = getattr(whole, field.name), getattr(small, field.name)
        if mine.is_floating_point():
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(mine, theirs), field.name


@pytest.mark.parametrize("restart", [True, False])
def test_learned_policy_equals_one_row_at_a_time(restart: bool) -> None:
    """A row alone, without compaction: think, take the best valid action, open what scores best per price. Once it has
    opened something, its answer starts over.
    """
    model, config = setup(budget=3.0)
    model.restart_on_expand = restart
    outcome = rollout(model, config, batches(N), LearnedPolicy(0.02), PRICES)
    batch = tiny.make_batch(N)
    assert {int(a) for a in outcome.actions.unique()} == {-1, 0, 1, 2}, "the example shows every action"
    for row in range(0, N, 4):
        capsules = CapsuleState.closed(
            batch.sketches[row : row + 1], batch.children[row : row + 1], batch.checksums[row : row + 1], None, PRICES
        )  # fmt: skip
        z_H, z_L = model.first_latents(1)
        taken = []
        for t in range(1, 5):
            with torch.no_grad():
                output = model(z_H, z_L, capsules, torch.tensor([t]), torch.tensor([0.02]))
            assert model.cmi_head is not None
            left = 3.0 - float(capsules.spent)
            openable = [i for i in range(tiny.K) if not capsules.expanded[0, i] and float(PRICES[i]) <= left]
            allowed = [1] if t == 4 else [0, 1, *([2] if openable else [])]
            action = max(allowed, key=lambda a: float(output.q_values[0, a]))
            taken.append(action)
            if action == Action.HALT:
                break
            if action == Action.EXPAND:
                worth = (model.cmi_head(output.z_H, output.x, output.q_state, None)[0] / PRICES).tolist()
                chosen = torch.zeros(1, tiny.K, dtype=torch.bool)
                chosen[0, max(openable, key=lambda i: worth[i])] = True
                capsules = capsules.opened(chosen)
            z_H, z_L = output.z_H, output.z_L
            if restart and action == Action.EXPAND:
                z_H = model.first_latents(1)[0]
        assert outcome.actions[row, : len(taken)].tolist() == taken
        assert bool((outcome.actions[row, len(taken) :] == -1).all())
        assert int(outcome.steps[row]) == len(taken)
        assert int(outcome.opened[row]) == int(capsules.num_opened)
        assert float(outcome.spent[row]) == pytest.approx(float(capsules.spent))
        p = output.logits[0, 0].softmax(-1)
        assert int(outcome.prediction[row, 0]) == int(p.argmax())
        assert float(outcome.confidence[row]) == pytest.approx(float(p.max()), abs=1e-5)
        assert float(outcome.loss[row]) == pytest.approx(-math.log(float(p[batch.labels[row]])), abs=1e-4)
        assert float(outcome.accuracy[row]) == float(p.argmax() == batch.labels[row])


@pytest.mark.parametrize("name", list(POLICIES))
def test_halted_rows_leave_the_batch(name: str) -> None:
    model, config = setup()
    sizes: list[int] = []
    model.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    outcome = rollout(model, config, batches(25), POLICIES[name], PRICES)
    assert sum(sizes) == int(outcome.steps.sum()), "a row is computed for as many steps as it thinks"
    expected = []
    for start in range(0, N, 25):
        steps = outcome.steps[start : start + 25]
        expected += [int((steps >= t).sum()) for t in range(1, int(steps.max()) + 1)]
    assert sizes == expected


@pytest.mark.parametrize("count", [1, 2])
def test_random_policy_opens_as_many_at_the_same_moments(count: int) -> None:
    source = run(LearnedPolicy(0.02), expand_count=count)
    policy = RandomPolicy(source.actions, source.counts, 0.02)
    outcome = run(policy, expand_count=count)
    assert int(source.opened.max()) > count
    for name in ("opened", "steps", "actions", "counts"):
        assert torch.equal(getattr(source, name), getattr(outcome, name)), name
    assert torch.equal(source.opened, source.counts.sum(1))
    assert not torch.equal(source.spent, outcome.spent), "other capsules, at other prices"
    assert torch.equal(run(policy, expand_count=count).spent, outcome.spent)


def test_random_policy_is_uniform_over_closed_capsules() -> None:
    rows = 4000
    policy = RandomPolicy(torch.full((rows, 4), 2, dtype=torch.int8), torch.full((rows, 4), 1, dtype=torch.int8), 0.02)
    capsules = tiny.make_capsules(rows).opened(torch.tensor([True, False, False, False]).expand(rows, 4))
    model, config = setup()
    steps = torch.ones(rows, dtype=torch.int64)
    output: Any = None
    _, opened = policy.decide(Situation(model, config.dqn, output, capsules, steps, torch.arange(rows), Tensor()))
    assert bool((opened.sum(1) == 1).all())
    shares = opened.float().mean(0).tolist()
    assert shares == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3], abs=0.03)


def test_what_the_plain_policies_do() -> None:
    never, everything = run(POLICIES["never"]), run(POLICIES["all"])
    assert int(never.opened.max()) == 0
    assert bool((never.steps == 4).all())
    assert bool((everything.opened == tiny.K).all())
    assert bool((everything.spent == float(PRICES.sum())).all())
    threshold = run(ThresholdPolicy(0.6, 0.02))
    sure = threshold.confidence >= 0.6
    assert bool((threshold.steps[~sure] == 4).all())
    assert bool((threshold.opened == threshold.steps - 1).all()), "one capsule before each further step"
    at_once = run(ThresholdPolicy(0.0, 0.02))
    assert bool((at_once.steps == 1).all())
    assert int(at_once.opened.max()) == 0


@pytest.mark.parametrize("name", [n for n in POLICIES if n != "all"])
def test_no_policy_needs_a_selector_where_nothing_can_be_opened(name: str) -> None:
    config = tiny.make_config(arch={"enable_capsule_expansion": False, "q_head_num_actions": 2}, dqn={"enabled": True})
    model = tiny.make_model(config, tiny.make_shape(num_children=0), with_cmi=False)
    outcome = rollout(model, config, batches(N), POLICIES[name], PRICES)
    assert int(outcome.opened.max()) == 0


def test_the_model_is_given_back_as_it_was() -> None:
    model, config = setup()
    model.train()
    rollout(model, config, batches(N), POLICIES["never"], PRICES)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("right", "n"), [(45, 50), (0, 7), (1, 1), (9, 9), (1, 90_000), (333, 1000)])
def test_intervals_of_right_and_wrong_rows_are_wilsons(right: int, n: int) -> None:
    values = torch.tensor([1.0] * right + [0.0] * (n - right))
    oracle = binomtest(right, n).proportion_ci(0.95, method="wilson")
    found = accuracy_interval(values)
    assert found == pytest.approx((oracle.low, oracle.high), abs=1e-12)
    assert 0 <= found[0] < found[1] <= 1


def test_intervals_of_partly_right_rows() -> None:
    partly = torch.tensor([0.5, 0.75, 1.0, 0.25]).repeat(25)
    low, high = accuracy_interval(partly)
    assert (low + high) / 2 == pytest.approx(0.625)
    assert high - low == pytest.approx(2 * 1.959964 * float(partly.std()) / 10, rel=1e-5)
    for alike in (torch.full((3,), 0.5), torch.full((100,), 0.5), partly[:4]):
        right = torch.arange(len(alike)) < alike.sum()
        low, high = accuracy_interval(alike)
        if float(alike.sum()).is_integer():
            assert (low, high) == pytest.approx(accuracy_interval(right.float()))
        assert high - low > 1.9 * 0.5 / math.sqrt(len(alike) + 4), "as of rows that are right or wrong"
    assert all(math.isnan(value) for value in accuracy_interval(torch.zeros(0)))


def test_chance_and_split(capsule_file: Path) -> None:
    file = open_capsules(capsule_file)
    labels = torch.from_numpy(file.read("test", slice(None))["labels"])
    got = chance(EvaluationData(file, "test"), tiny.CLASSES)
    assert got["majority"] == pytest.approx(int(labels.bincount().max()) / 30)
    assert got["uniform"] == pytest.approx(1 / 3)
    assert pick_split(file, "auto")[0] == "validation"
    assert pick_split(file, "test")[0] == "test"
    some = torch.cat([b.rows for b in EvaluationData(file, "train", 50).batches()])
    assert len(some.unique()) == 50
    assert (int(some[0]), int(some[-1])) == (0, 49 * file.rows["train"] // 50), "spread over the split"


def test_fewer_large_rows_are_evaluated_at_once(capsule_file: Path) -> None:
    """A batch of whole ARC grids at the paper's width would need some ten GB."""
    arch = {**tiny_puzzles.ARCH, "hidden_size": 512, "num_heads": 8, "puzzle_emb_len": 16}
    with torch.device("meta"):
        for cells, expected in ((81, 168), (900, 17)):
            shape = DataShape(cells, 0, 0, 0, 12, 2, float(cells), vocab_size=12, num_puzzles=5)
            config = tiny.make_config(arch=arch, dqn={"enabled": False})
            model = TinyRecursiveModel(config, shape, with_cmi=False)
            assert rows_at_once(model, 1) == expected
    model, config = setup()
    evaluator = Evaluator(model, config, EvaluationData(open_capsules(capsule_file), "validation", 33, at_once=10))
    assert [len(batch) for batch in evaluator.data.batches()] == [10, 10, 10, 3]
    assert Evaluator(model, config, EvaluationData(open_capsules(capsule_file), "validation")).data.batch == 512


def test_a_rollout_can_be_stopped_between_steps() -> None:
    model, config = setup()
    asked: list[int] = []

    def stop(rows: int) -> None:
        asked.append(rows)
        if len(asked) == 3:
            raise StoppedEarly("enough")

    with pytest.raises(StoppedEarly):
        rollout(model, config, batches(N), FixedPolicy(False, 0.02, "never"), PRICES, stop)
    assert asked == [0, 0, 0], "no batch was through"


def test_the_table_does_not_depend_on_the_batch_size(capsule_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = setup()
    file = open_capsules(capsule_file)
    names = ["learned", "threshold", "never", "all", "random", "act"]
    tables = []
    for size in (512, 7):
        monkeypatch.setattr(report, "EVAL_BATCH", size)
        tables.append(Evaluator(model, config, EvaluationData(file, "validation", 33)).table(names, [0.01, 0.1]))
    assert [(s.policy, s.setting) for s in tables[0]] == [
        ("learned", 0.01), ("learned", 0.1), ("threshold", 0.95), ("never", None), ("all", None),
        ("random", 0.01), ("random", 0.1), ("act", None),
    ]  # fmt: skip
    for one, other in zip(*tables, strict=True):
        assert one.rows == 33
        assert (one.policy, one.setting) == (other.policy, other.setting)
        for name, mine in (vars(one) | vars(one.answers)).items():
            if name not in ("policy", "setting", "answers"):
                theirs = (vars(other) | vars(other.answers))[name]
                assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6), name
        assert one.flops == pytest.approx(count_flops(model, torch.ones(tiny.K)).of(one.steps, one.cycles))
        assert one.low <= one.accuracy <= one.high
    by_name = {(s.policy, s.setting): s for s in tables[0]}
    for level in (0.01, 0.1):
        assert by_name["random", level].opened == by_name["learned", level].opened


def test_flops_count_the_network() -> None:
    model, _ = setup()
    # The two network calls alone: projections, attention and SwiGLU of every position; a multiply-add counts as two.
    hidden, ffn, k = 16, 32, tiny.K
    network = 2 * 2 * k * (4 * hidden * hidden + 3 * hidden * ffn + 2 * k * hidden)
    counted = count_flops(model, torch.ones(k))
    flops = counted.cycle + counted.rest
    assert counted.cycle == network
    assert network < flops < 2 * network


def test_sequential_batches_are_what_the_rollout_reads(capsule_file: Path) -> None:
    file = open_capsules(capsule_file)
    model, config = setup()
    outcome = rollout(model, config, sequential_batches(file, "test", 16), POLICIES["never"], PRICES)
    labels = torch.from_numpy(file.read("test", slice(None))["labels"])
    assert torch.equal(outcome.accuracy, (outcome.prediction[:, 0] == labels).float())


def test_random_openings_stay_within_the_budget() -> None:
    rows, prices = 500, torch.tensor([1.0, 1.0, 1.0, 5.0])
    policy = RandomPolicy(torch.full((rows, 4), 2, dtype=torch.int8), torch.full((rows, 4), 2, dtype=torch.int8), 0.02)
    model, config = setup()
    capsules = replace(tiny.make_capsules(rows), prices=prices)
    steps, output = torch.ones(rows, dtype=torch.int64), None
    now = Situation(
        model,
        config.dqn.model_copy(update={"budget": 2.0}),
        output,
        capsules,
        steps,
        torch.arange(rows),
        Tensor(),  # type: ignore[arg-type]
    )
    opened = policy.decide(now)[1]
    assert float((opened * prices).sum(1).max()) == 2.0
    assert not opened[:, 3].any()
    assert opened[:, :3].float().mean(0).tolist() == pytest.approx([2 / 3] * 3, abs=0.07)


def test_a_model_that_opens_nothing_pays_nothing(capsule_file: Path) -> None:
    config = tiny.make_config(arch={"enable_capsule_expansion": False, "q_head_num_actions": 2}, dqn={"enabled": False})
    model = tiny.make_model(config, tiny.make_shape(num_children=0)).eval()
    with open_capsules(capsule_file) as file:
        batches = list(EvaluationData(file, "test").batches())
    assert batches[0].children is not None
    outcome = rollout(model, config, batches, POLICIES["all"], PRICES)
    assert int(outcome.opened.max()) == 0
    assert float(outcome.spent.max()) == 0
