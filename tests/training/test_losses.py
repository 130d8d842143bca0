"""Every term against plain numbers, how terms are combined over processes, and which parameters each one moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from trm_core.data.fields import IGNORE_LABEL
from trm_core.dqn.learner import ReplayedTargets
from trm_core.losses import (
    StepLoss,
    Term,
    answer_quality,
    cmi_losses,
    continue_losses,
    halt_losses,
    mtp_term,
    negative_entropy,
    reconstruction_losses,
    term_examples,
)
from trm_core.model.carry import Carry
from trm_core.model.q_head import NUM_SCALARS
from trm_core.model.trm import Reading, StepOutput, TinyRecursiveModel

HIDDEN = 16


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_answer_quality(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, 3, generator=generator)
    labels = torch.randint(3, (5, 4), generator=generator)
    labels[0, 1] = labels[1, :3] = IGNORE_LABEL
    labels[2] = IGNORE_LABEL
    labels[3] = logits[3].argmax(-1)
    labels[4, 0] = IGNORE_LABEL
    labels[4, 1:] = logits[4, 1:].argmax(-1)
    got = answer_quality(logits, labels, smoothing)
    for row in range(5):
        losses, probabilities, rights = [], [], []
        for place in range(4):
            label = int(labels[row, place])
            if label == IGNORE_LABEL:
                continue
            values = logits[row, place].tolist()
            log_z = math.log(sum(math.exp(v) for v in values))
            log_p = [v - log_z for v in values]
            losses.append(-(1 - smoothing) * log_p[label] - smoothing * sum(log_p) / 3)
            probabilities.append(math.exp(log_p[label]))
            rights.append(max(range(3), key=lambda c: values[c]) == label)
        n = max(len(losses), 1)
        assert float(got.loss[row]) == pytest.approx(sum(losses) / n, abs=1e-5)
        assert float(got.probability[row]) == pytest.approx(sum(probabilities) / n, abs=1e-5)
        assert float(got.accuracy[row]) == pytest.approx(sum(rights) / n)
        assert bool(got.exact[row]) == all(rights)
        assert bool(got.valid[row]) == bool(losses)
    assert got.exact[3]
    assert got.exact[4]


def output_with(halt_logit: Tensor, early: Sequence[Reading] = ()) -> StepOutput:
    """An output of which only the halt logits are looked at."""
    nothing = torch.zeros(0)
    return StepOutput(*[nothing] * 4, halt_logit, *[nothing] * 4, early=list(early))


def test_halting_is_compared_with_the_answer() -> None:
    quality = answer_quality(torch.randn(3, 2, 3), torch.tensor([[0, 1], [IGNORE_LABEL] * 2, [2, IGNORE_LABEL]]))
    logits = torch.tensor([0.5, 100.0, -1.0])
    losses = halt_losses(output_with(logits), quality, torch.zeros(3, 2, dtype=torch.int64))
    for row in (0, 2):
        p = 1 / (1 + math.exp(-float(logits[row])))
        a = float(quality.accuracy[row])
        assert float(losses[row]) == pytest.approx(-a * math.log(p) - (1 - a) * math.log(1 - p), abs=1e-5)


def make_replayed(rows: int = 6) -> ReplayedTargets:
    return ReplayedTargets(
        torch.arange(rows),
        torch.rand(rows, HIDDEN + NUM_SCALARS),
        torch.arange(rows) % 3,
        torch.randn(rows),
        torch.linspace(0.5, 1.5, rows),
    )


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("children", [True, False])
def test_reconstruction_term(dim: int, children: bool) -> None:
    shape = tiny.make_shape(dim=dim, num_children=2 if children else 0)
    config = tiny.make_config(arch={"q_head_num_actions": 3 if children else 2})
    model = tiny.make_model(config, shape, with_cmi=children)
    mask = torch.tensor([[True, True, False, True]] * 4)
    carry = tiny.make_carry(model, mask=mask)
    model.embedding.fit_scale(carry.capsules.sketches, carry.capsules.children)
    output = model(carry.z_H, carry.z_L, carry.capsules, carry.steps, carry.price)
    losses = reconstruction_losses(model, carry, output)
    capsules, embedding = carry.capsules, model.embedding
    assert model.reconstruction.checksum is not None
    assert capsules.checksums is not None
    total = 0.0
    for row in range(4):
        for i in range(tiny.K):
            if not mask[row, i]:
                continue
            target = (capsules.sketches[row, i] - embedding.sketch_mean) * embedding.sketch_scale
            predicted = model.reconstruction.sketch(output.z_H[row, i])
            if dim == 1:
                total += float((predicted - target).square().mean().detach())
            else:
                total += 1 - float(predicted.detach() @ target / predicted.norm().detach() / target.norm())
            checksum = model.reconstruction.checksum(output.z_H[row, i])
            total += float((checksum - capsules.checksums[row, i]).square().mean().detach())
            if children:
                assert capsules.children is not None
                assert model.sketch_decoder is not None
                assert embedding.child_aggregation is not None
                detail = (capsules.children[row : row + 1, i : i + 1] - embedding.child_mean) * embedding.child_scale
                decoded = model.sketch_decoder.decode(embedding.child_aggregation.project(detail.flatten(2)))[0, 0]
                total += 0.2 * float((decoded - target).square().mean().detach())
    assert float(losses[mask].sum().detach()) == pytest.approx(total, rel=1e-4)


def test_cmi_compares_the_promise_with_the_measured_fall() -> None:
    model = tiny.make_model(tiny.make_config())
    assert model.cmi_head is not None
    carry = tiny.make_carry(model)
    carry = replace(carry, labels=carry.labels.clone())
    carry.labels[2] = IGNORE_LABEL  # opened, but without a label
    quality = answer_quality(torch.randn(4, 1, tiny.CLASSES), carry.labels)
    promised = model.cmi_head(carry.z_H, carry.x, carry.q_state, None).detach()
    fall = float(carry.loss[0] - quality.loss[0])
    losses = cmi_losses(model, carry, quality)
    assert float(losses[0].detach()) == pytest.approx((float(promised[0, 0] + promised[0, 1]) - fall) ** 2, rel=1e-4)


def test_undecided_actions_are_rewarded() -> None:
    losses = negative_entropy(torch.tensor([[1.0, 1.0, 1.0], [0.0, 100.0, 0.0]]), 1.0)
    assert losses.tolist() == pytest.approx([-math.log(3), 0.0], abs=1e-5)


def test_halting_is_learned_after_every_cycle() -> None:
    labels = torch.tensor([[0], [2], [IGNORE_LABEL]])
    quality = answer_quality(torch.randn(3, 1, 3), labels)
    early = [Reading(torch.randn(3, 1, 3), torch.randn(3), torch.zeros(3, 0)) for _ in range(2)]
    last = torch.randn(3)
    losses = halt_losses(output_with(last, early), quality, labels)
    expected = 0.0
    for logits, halt in [(None, last), *((r.logits, r.halt_logit) for r in early)]:
        for row in (0, 1):
            right = float(quality.accuracy[row]) if logits is None else float(logits[row, 0].argmax() == labels[row, 0])
            p = 1 / (1 + math.exp(-float(halt[row])))
            expected -= right * math.log(p) + (1 - right) * math.log(1 - p)
    assert float(losses[:2].sum()) == pytest.approx(expected / 3, abs=1e-4)


def per_capsule_model(**arch: Any) -> tuple[TinyRecursiveModel, Carry]:
    config = tiny.make_config(arch=arch)
    model = tiny.make_model(config, tiny.make_shape(label_rank=2))
    carry = tiny.make_carry(model)
    carry.labels[0, 1] = carry.labels[2] = IGNORE_LABEL
    return model, carry


def test_mtp_equals_a_loop_over_positions() -> None:
    """Depth d at position i predicts the label of i + d; the tail has none; nothing wraps around."""
    model, carry = per_capsule_model(enable_mtp=True, mtp_depth=3)
    assert model.mtp is not None
    output = model(carry.z_H, carry.z_L, carry.capsules, carry.steps, carry.price)
    valid = term_examples(model, carry, None)["mtp_loss"]
    term, accuracies = mtp_term(model, output, carry.labels, valid)
    means = []
    for depth in (1, 2, 3):
        total, right, count = 0.0, 0, 0
        for row in range(4):
            for i in range(tiny.K - depth):
                label = int(carry.labels[row, i + depth])
                if label == IGNORE_LABEL:
                    continue
                log_p = model.mtp.depths[depth - 1](output.z_H[row, i]).detach().log_softmax(-1)
                total, right, count = total - float(log_p[label]), right + int(log_p.argmax() == label), count + 1
        means.append(total / count)
        assert float(term.weight[depth - 1]) == count
        assert float(accuracies[depth - 1].mean()) == pytest.approx(right / count)
    assert float(term.mean().detach()) == pytest.approx(sum(means) / 3, rel=1e-5)


def test_no_input_carries_the_label() -> None:
    model, carry = per_capsule_model(enable_mtp=True)
    loss = StepLoss(model, tiny.make_config(arch={"enable_mtp": True}))
    other = replace(carry, labels=(carry.labels + 1) % tiny.CLASSES)
    first, second = loss(carry, None, 0).output, loss(other, None, 0).output
    assert torch.equal(first.z_H, second.z_H)
    assert torch.equal(first.logits, second.logits)


def test_which_examples_a_term_is_over() -> None:
    """Rows without a label, padding and what was not opened are left out, each where it matters."""
    model = tiny.make_model(tiny.make_config(), tiny.make_shape(label_rank=2))
    mask = torch.tensor([[True, False, True, True]] * 4)
    carry = replace(tiny.make_carry(model, mask=mask), steps=torch.tensor([1, 2, 3, 1]))  # of at most 3
    carry.labels[1] = IGNORE_LABEL
    replayed = make_replayed()
    over = term_examples(model, carry, replayed)
    labelled = torch.tensor([True, False, True, True])
    for name in ("lm_loss", "q_halt_loss", "q_continue_loss"):
        assert torch.equal(over[name], labelled)
    for name in ("reconstruction_loss", "vq_loss"):
        assert torch.equal(over[name], mask)
    assert over["cmi_loss"].tolist() == [True, False, False, False]  # the others opened nothing that is no padding
    assert over["rnd_loss"].all()
    assert torch.equal(over["dqn_loss"], replayed.weight)
    assert over["entropy_bonus"].tolist() == [1.0] * len(replayed.weight)


def test_continue_learns_what_the_next_step_is_worth() -> None:
    config = tiny.make_config(
        arch={"enable_q_continue": True, "enable_capsule_expansion": False, "q_head_num_actions": 2}
    )
    model = tiny.make_model(config, with_cmi=False)
    assert model.q_head.continue_net is not None
    with torch.no_grad():
        model.q_head.continue_net.output.bias += 3.0  # going on looks better than halting, so the last step shows
    carry = replace(tiny.make_carry(model), steps=torch.tensor([1, 2, 3, 1]))  # of at most 3
    carry.labels[3] = IGNORE_LABEL
    output = model(carry.z_H, carry.z_L, carry.capsules, carry.steps, carry.price)
    losses = continue_losses(model, carry, output)
    steps = torch.tensor([2, 3, 3, 2])  # no row takes a fourth one
    following = model(output.z_H, output.z_L, carry.capsules, steps, carry.price)
    assert following.continue_logit is not None
    assert output.continue_logit is not None
    for row in (0, 1, 2):  # row 2 is at its last step, row 3 has no label
        halt, going_on = float(following.halt_logit[row].detach()), float(following.continue_logit[row].detach())
        worth = halt if row == 2 else max(halt, going_on)
        target = 1 / (1 + math.exp(-worth))
        p = 1 / (1 + math.exp(-float(output.continue_logit[row].detach())))
        expected = -target * math.log(p) - (1 - target) * math.log(1 - p)
        assert float(losses[row].detach()) == pytest.approx(expected, abs=1e-4)


def test_a_look_ahead_is_no_use_of_the_memory() -> None:
    config = tiny.make_config(
        arch={"enable_q_continue": True, "enable_capsule_expansion": False, "q_head_num_actions": 2},
        memory={"enabled": True, "capacity": 16, "num_heads": 2, "top_k": 2},
    )
    model = tiny.make_model(config, with_cmi=False).train()
    assert model.memory is not None
    model.memory.write(torch.randn(6, model.first_z_H.shape[-1]), torch.ones(6), 0)
    carry = tiny.make_carry(model)
    output = model(carry.z_H, carry.z_L, carry.capsules, carry.steps, carry.price)
    before = model.memory.pending.clone()
    assert bool(before.any())
    continue_losses(model, carry, output)
    assert torch.equal(model.memory.pending, before)


def test_a_term_without_examples_is_not_left_out_in_silence() -> None:
    config = tiny.make_config()
    model = tiny.make_model(config)
    loss = StepLoss(model, config)
    loss.names.append("new_loss")
    for replayed in (None, make_replayed()):
        with pytest.raises(KeyError, match="new_loss"):
            loss(tiny.make_carry(model), replayed, 0)


def test_combine_weighs_means() -> None:
    config = tiny.make_config(
        loss_weights={"lm_loss": 2.0, "mtp_loss": 3.0, "dqn_loss": {"low": 0.0, "high": 1.0}},
        dqn={"entropy_regularization_weight": 0.1},
        training={"total_steps": 12},
    )
    loss = StepLoss(tiny.make_model(config), config)
    terms = {
        "lm_loss": Term(torch.tensor(6.0), torch.tensor(3.0)),
        "dqn_loss": Term(torch.tensor(8.0), torch.tensor(2.0)),
        "mtp_loss": Term(torch.tensor([8.0, 1.0]), torch.tensor([4.0, 1.0])),  # means 2 and 1 of two depths
        "cmi_loss": Term(torch.tensor(0.0), torch.tensor(0.0)),  # nothing was opened
        "entropy_bonus": Term(torch.tensor(-4.0), torch.tensor(2.0)),
    }
    assert float(loss.combine(terms, 3)) == pytest.approx(2 * 2 + 0.25 * 4 + 3 * 1.5 + 0.0 + 0.1 * -2)


def moved_by(loss: Tensor, model: TinyRecursiveModel) -> set[str]:
    """The parts (first two names) whose parameters get a gradient that is not zero."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {
        ".".join(n.split(".")[:2]) for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())
    }


TRUNK = {
    "embedding.sketch",
    "embedding.position",
    "embedding.child_aggregation",
    "embedding.opened_mark",
    "recursion.low",
}


def terms_of(**changes: Any) -> tuple[TinyRecursiveModel, dict[str, Term]]:
    config = tiny.make_config(
        training=changes, dqn={"enable_entropy_regularization": True, "entropy_regularization_weight": 0.1}
    )
    model = tiny.make_model(config)
    return model, StepLoss(model, config)(tiny.make_carry(model), make_replayed(), 6).terms


@pytest.mark.parametrize(
    ("term", "changes", "expected"),
    [
        ("lm_loss", {}, TRUNK | {"answer.output"}),
        ("q_halt_loss", {"halt_gradient": "trunk"}, TRUNK | {"q_head.halt_net"}),
        ("q_halt_loss", {"halt_gradient": "head"}, {"q_head.halt_net"}),
        ("dqn_loss", {}, {"q_head.value_net"}),
        ("entropy_bonus", {}, {"q_head.value_net"}),
        ("cmi_loss", {}, {"cmi_head.net"}),
        (
            "reconstruction_loss",
            {},
            TRUNK | {"reconstruction.sketch", "reconstruction.checksum", "sketch_decoder.decode"},
        ),
    ],
)
def test_which_parameters_a_term_moves(term: str, changes: dict[str, str], expected: set[str]) -> None:
    model, terms = terms_of(**changes)
    assert moved_by(terms[term].total, model) == expected


@pytest.mark.parametrize("restart", [True, False])
def test_the_answer_starts_over_where_something_was_opened(restart: bool) -> None:
    """And the cmi head still learns from the z_H that it saw when the capsules were chosen."""
    config = tiny.make_config(arch={"restart_on_expand": restart})
    model = tiny.make_model(config)
    assert model.cmi_head is not None
    carry = tiny.make_carry(model)
    expanded = carry.pending.opened.any(1)
    assert expanded.any(), "the example has such rows"
    assert not expanded.all(), "and others"
    z_H = carry.z_H.clone()
    if restart:
        z_H[expanded] = model.first_latents(1)[0][0]
    expected = model(z_H, carry.z_L, carry.capsules, carry.steps, carry.price, carry.q_memory)
    result = StepLoss(model, config)(carry, None, 6)
    torch.testing.assert_close(result.output.logits, expected.logits)
    settled = cmi_losses(model, carry, result.quality) * expanded
    torch.testing.assert_close(result.terms["cmi_loss"].total, settled.sum())


def test_policy_only_moves_the_policy_alone() -> None:
    config = tiny.make_config()
    model = tiny.make_model(config)
    result = StepLoss(model, config)(tiny.make_carry(model), make_replayed(), 6, True)
    assert not result.output.z_H.requires_grad
    assert moved_by(result.loss, model) == {"q_head.value_net", "cmi_head.net"}
    both = StepLoss(model, config)(tiny.make_carry(model), make_replayed(), 6, False)
    for name in both.terms.keys() - {"dqn_loss"}:
        torch.testing.assert_close(both.terms[name].total, result.terms[name].total)


def test_the_td_term_is_weighed_by_importance() -> None:
    config = tiny.make_config()
    model = tiny.make_model(config)
    replayed = make_replayed()
    term = StepLoss(model, config)(tiny.make_carry(model), replayed, 0).terms["dqn_loss"]
    predicted = model.q_head.values(replayed.state).gather(1, replayed.action[:, None]).squeeze(1)
    losses = F.huber_loss(predicted, replayed.target, reduction="none")
    assert float(term.total.detach()) == pytest.approx(float((losses * replayed.weight).sum().detach()), rel=1e-5)
    assert float(term.weight) == pytest.approx(6.0)
