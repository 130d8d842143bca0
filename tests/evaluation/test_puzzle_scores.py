"""What is measured of puzzles: exactness after every step, more steps than trained with, restarts, votes on ARC."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import tiny_puzzles
import torch
from made_tasks import task, write_subset
from torch import Tensor

from trm_core.config.schema import Config
from trm_core.data.dataset import batches_of
from trm_core.data.puzzles.reader import PuzzleData, open_puzzles
from trm_core.evaluation.policies import ActPolicy, FixedPolicy
from trm_core.evaluation.puzzles import tasks_of, vote
from trm_core.evaluation.report import EvaluationData, Evaluator
from trm_core.evaluation.rollout import Outcome, Thinking, rollout
from trm_core.inference.restarts import Beginnings
from trm_core.model.capsule_state import CapsuleState
from trm_core.model.trm import TinyRecursiveModel
from trm_core.training.features import resolve_features, resolved


@pytest.fixture
def data(tmp_path: Path) -> PuzzleData:
    return open_puzzles(tiny_puzzles.write_puzzles(tmp_path / "puzzles", groups=30))


def made(data: PuzzleData) -> tuple[TinyRecursiveModel, Config]:
    """A model that halts after the first step in half of the rows."""
    arch = {**tiny_puzzles.ARCH, "max_steps": 4, "halt_threshold": 0.5}
    config = tiny.make_config(arch=arch, dqn={"enabled": False})
    features = resolve_features(config, data)
    config = resolved(config, features)
    model = tiny.make_model(config, features.shape, with_cmi=False)
    torch.nn.init.normal_(model.q_head.halt_net.weight, std=2.0)
    torch.nn.init.zeros_(model.q_head.halt_net.bias)
    halting = torch.stack(by_hand(model.eval(), data, 4)[1])
    torch.nn.init.constant_(model.q_head.halt_net.bias, model.halt_above - float(halting[0].median()))
    return model, config


def run(model: TinyRecursiveModel, config: Config, data: PuzzleData, policy: str, thinking: Thinking) -> Outcome:
    chosen = ActPolicy(1.0) if policy == "act" else FixedPolicy(False, 1.0, policy)
    prices = torch.ones(tiny_puzzles.SIZE)
    return rollout(model, config, batches_of(data, "test", 16), chosen, prices, thinking=thinking)


def by_hand(
    model: TinyRecursiveModel, data: PuzzleData, steps: int, latents: tuple[Tensor, Tensor] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Predictions and halt logits after each step, nobody halting."""
    (batch,) = batches_of(data, "test", 1000)
    n = len(batch)
    prices = torch.ones(data.num_capsules)
    state = CapsuleState.closed(batch.sketches, None, None, None, prices, puzzles=batch.puzzles)
    z_H, z_L = model.first_latents(n) if latents is None else tuple(z.expand(n, *z.shape) for z in latents)
    predictions, halting = [], []
    with torch.no_grad():
        for step in range(1, steps + 1):
            seen_as = torch.full((n,), min(step, model.max_steps))
            output = model(z_H, z_L, state, seen_as, torch.ones(n))
            z_H, z_L = output.z_H, output.z_L
            predictions.append(output.logits.argmax(-1))
            halting.append(output.halt_logit)
    return predictions, halting


@pytest.mark.parametrize("steps", [None, 2, 7])
def test_exactness_after_every_step(data: PuzzleData, steps: int | None) -> None:
    model, config = made(data)
    T = steps or 4
    predictions, halting = by_hand(model, data, T)
    # Random answers are never all right: what is compared is with those of the last step.
    labels = predictions[-1]
    for part in data.sets["test"]:
        part.__dict__["labels"] = labels.numpy()
    outcome = run(model, config, data, "never", Thinking(steps))
    ignored = labels == 0  # the padding is no answer
    expected = torch.stack([((prediction == labels) | ignored).all(1) for prediction in predictions], 1)
    assert torch.equal(outcome.exact_at, expected)
    assert bool(outcome.exact.all())
    assert not bool(expected[:, 0].all()), "the answers change from step to step"
    halted = run(model, config, data, "act", Thinking(steps))
    ends = torch.stack(
        [torch.cat([h > config.arch.halt_threshold, torch.ones(1, dtype=torch.bool)]) for h in torch.stack(halting, 1)]
    )
    ends = ends.int().argmax(1).clamp(max=T - 1)
    assert torch.equal(halted.steps, ends + 1)
    assert len(ends.unique()) > 1, "rows halt at different steps"
    kept = expected.gather(1, torch.minimum(torch.arange(T), ends[:, None]))
    assert torch.equal(halted.exact_at, kept)


def test_of_several_beginnings_the_surest_answer_counts(data: PuzzleData) -> None:
    model, config = made(data)
    outcome = run(model, config, data, "never", Thinking(restarts=6))
    found = [by_hand(model, data, 4, latents) for latents in Beginnings(model, 6).latents]
    sure = torch.stack([halting[-1] for _, halting in found])
    best = sure.argmax(0)
    answers = torch.stack([predictions[-1] for predictions, _ in found])
    assert torch.equal(outcome.prediction.long(), answers[best, torch.arange(answers.shape[1])])
    torch.testing.assert_close(outcome.halt_logit, sure.amax(0))
    assert bool((outcome.steps == 24).all()), "all beginnings are counted"
    assert bool((best > 0).any()), "the first beginning is not always the best"


@pytest.mark.parametrize(("vocabulary", "kept"), [(5, torch.uint8), (256, torch.uint8), (257, torch.int16)])
def test_predictions_are_kept_in_the_smallest_type(
    data: PuzzleData, monkeypatch: pytest.MonkeyPatch, vocabulary: int, kept: torch.dtype
) -> None:
    """With each the answers are those of the logits, and the scores those of any other type."""
    data.num_classes = vocabulary
    model, config = made(data)
    found, _ = by_hand(model, data, 4)
    evaluator = Evaluator(model, config, EvaluationData(data, "test"))
    policy = FixedPolicy(False, 1.0, "never")
    outcome = evaluator.run(policy)
    assert outcome.prediction.dtype == kept
    assert vocabulary == 5 or int(outcome.prediction.max()) > 127, "answers that a sign bit would change"
    assert torch.equal(outcome.prediction.long(), found[-1])
    assert evaluator.run(policy).instead(outcome, outcome.exact).prediction.dtype == kept
    monkeypatch.setattr("trm_core.evaluation.rollout._smallest_type", lambda classes: torch.int64)
    wide = evaluator.run(policy)
    assert wide.prediction.dtype == torch.int64
    assert evaluator.score(policy, None, wide) == evaluator.score(policy, None, outcome)


def test_votes_on_narrow_predictions_are_those_on_wide_ones(tmp_path: Path) -> None:
    write_subset(tmp_path / "src", "training", {"t": task(0)})
    write_subset(tmp_path / "src", "evaluation", {"e": task(1), "f": task(2)})
    built = tiny.invoke(
        "build-puzzles", "arc", str(tmp_path / "src"), "--augmentations", "3", "--out", str(tmp_path / "d")
    )
    assert built.returncode == 0, built.stderr
    arc = open_puzzles(tmp_path / "d")
    model, config = made(arc)
    data = EvaluationData(arc, "test")
    outcome = Evaluator(model, config, data).run(FixedPolicy(False, 1.0, "never"))
    assert outcome.prediction.dtype == torch.uint8
    # What a new model answers is hardly ever a grid: solutions in half of the rows, to have votes.
    labels = torch.from_numpy(arc.read("test", slice(None))["labels"]).clamp(min=0)
    solved = (torch.arange(len(labels)) % 2 == 0)[:, None]
    wide = torch.where(solved, labels, outcome.prediction.long())
    tasks = tasks_of(data)
    results = [vote(data, replace(outcome, prediction=one), tasks) for one in (wide, wide.to(torch.uint8))]
    assert results[0] == results[1]
    later = EvaluationData(arc.numbered(arc.num_puzzles), "test")  # as of a second folder of training
    assert vote(later, replace(outcome, prediction=wide), tasks_of(later)) == results[0]
    assert results[0].pass_at is not None
    assert results[0].pass_at[1] == 1.0
    assert results[0].submission["f"][0]["attempt_1"] == task(2)["test"][0]["output"]


@pytest.mark.parametrize("solved", [True, False])
def test_arc_tasks_are_voted_on(tmp_path: Path, solved: bool) -> None:
    """Also where no solution is known, as in a competition: training goes on, and the answers are written."""
    write_subset(tmp_path / "src", "training", {"t": task(0)})
    write_subset(tmp_path / "src", "evaluation", {"e": task(1)}, solved=solved)
    built = tiny.invoke(
        "build-puzzles", "arc", str(tmp_path / "src"), "--augmentations", "2", "--out", str(tmp_path / "d")
    )
    assert built.returncode == 0, built.stderr
    run_ = tmp_path / "run"
    overrides = tiny.as_overrides(
        data={"path": tmp_path / "d"},
        arch={**tiny_puzzles.ARCH, "max_steps": 1},
        training={"run_dir": run_, "total_steps": 2, "lr_warmup_steps": 1, "global_batch_size": 4, "eval_interval": 1},
    )
    trained = tiny.invoke("train", *overrides)
    assert trained.returncode == 0, trained.stderr
    assert ("no test row has a label" in trained.stderr) is not solved
    nowhere = tiny.invoke("eval", str(run_), "--submission", str(tmp_path / "none" / "s.json"))
    assert nowhere.returncode == 2
    assert "there is no folder" in nowhere.stderr
    done = tiny.invoke("eval", str(run_), "--submission", str(tmp_path / "s.json"), "--json")
    assert done.returncode == 0, done.stderr
    arc = json.loads(done.stdout)["arc"]
    assert arc["tasks"] == int(solved)
    assert arc["policy"] == "never"
    assert set(arc["pass_at"] or {"1": 0, "2": 0}) >= {"1", "2"}
    submission = json.loads((tmp_path / "s.json").read_text())
    assert list(submission) == ["e"]
    assert set(submission["e"][0]) == {"attempt_1", "attempt_2"}


def test_a_submission_of_anything_else_is_refused(trained_run: Path, tmp_path: Path) -> None:
    done = tiny.invoke("eval", str(trained_run), "--submission", str(tmp_path / "s.json"))
    assert done.returncode == 2
    assert "holds no ARC tasks" in done.stderr
    assert not (tmp_path / "s.json").exists()
