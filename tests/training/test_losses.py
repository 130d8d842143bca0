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
    cmi_term,
    continue_term,
    entropy_term,
    halt_term,
    mtp_term,
    reconstruction_term,
    vq_term,
)
from trm_core.model.carry import Carry, Pending
from trm_core.model.concepts import Quantised
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


def test_halt_term_leaves_rows_without_labels_out() -> None:
    quality = answer_quality(torch.randn(3, 2, 3), torch.tensor([[0, 1], [IGNORE_LABEL] * 2, [2, IGNORE_LABEL]]))
    logits = torch.tensor([0.5, 100.0, -1.0])
    term = halt_term(output_with(logits), quality, torch.zeros(3, 2, dtype=torch.int64))
    expected = 0.0
    for row in (0, 2):
        p = 1 / (1 + math.exp(-float(logits[row])))
        a = float(quality.accuracy[row])
        expected -= a * math.log(p) + (1 - a) * math.log(1 - p)
    assert float(term.total) == pytest.approx(expected, abs=1e-5)
    assert float(term.weight) == 2.0


def make_carry(model: TinyRecursiveModel, rows: int = 4, seed: int = 0, mask: Tensor | None = None) -> Carry:
    """Rows in the middle of their episodes; every second one has just opened a capsule."""
    shape = model.data
    torch.manual_seed(seed)
    opened = torch.zeros(rows, shape.num_capsules, dtype=torch.bool)
    if shape.num_children:
        opened[::2, 1] = True
        opened[0, 0] = True
    capsules = tiny.make_capsules(rows, shape, seed, mask).opened(opened)
    z_H, z_L, x = (torch.randn(rows, shape.num_capsules, HIDDEN) for _ in range(3))
    return Carry(
        z_H=z_H,
        z_L=z_L,
        x=x,
        steps=torch.full((rows,), 2),
        min_steps=torch.ones(rows, dtype=torch.int64),
        halted=torch.zeros(rows, dtype=torch.bool),
        capsules=capsules,
        labels=torch.randint(shape.num_classes, (rows, shape.answers)),
        price=torch.full((rows,), 0.02),
        q_state=torch.rand(rows, model.q_head.state_width),
        q_memory=torch.rand(rows, model.q_head.recurrent_width),
        accuracy=torch.rand(rows).round(),
        utility=torch.rand(rows),
        loss=torch.rand(rows),
        pending=Pending(torch.arange(rows), torch.where(opened.any(1), 2, 0), opened.sum(1).float(), capsules.expanded),
    )


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
    carry = make_carry(model, mask=mask)
    model.embedding.fit_scale(carry.capsules.sketches, carry.capsules.children)
    output = model(carry.z_H, carry.z_L, carry.capsules, carry.steps, carry.price)
    term = reconstruction_term(model, carry, output)
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
                decoded = model.sketch_decoder.decode(embedding.child_aggregation(detail))[0, 0]
                total += 0.2 * float((decoded - target).square().mean().detach())
    assert float(term.total.detach()) == pytest.approx(total, rel=1e-4)
    assert float(term.weight) == 12.0


def test_cmi_term_compares_the_promise_with_the_measured_fall() -> None:
    model = tiny.make_model(tiny.make_config())
    assert model.cmi_head is not None
    carry = make_carry(model)
    carry = replace(carry, labels=carry.labels.clone())
    carry.labels[2] = IGNORE_LABEL  # opened, but without a label
    quality = answer_quality(torch.randn(4, 1, tiny.CLASSES), carry.labels)
    promised = model.cmi_head(carry.z_H, carry.x, carry.q_state, None).detach()
    fall = float(carry.loss[0] - quality.loss[0])
    term = cmi_term(model, carry, quality)
    assert float(term.total.detach()) == pytest.approx((float(promised[0, 0] + promised[0, 1]) - fall) ** 2, rel=1e-4)
    assert float(term.weight) == 1.0


def test_entropy_term_rewards_undecided_actions() -> None:
    term = entropy_term(torch.tensor([[1.0, 1.0, 1.0], [0.0, 100.0, 0.0]]), 1.0)
    assert float(term.total) == pytest.approx(-math.log(3), abs=1e-5)
    assert float(term.weight) == 2.0


def test_halting_is_learned_after_every_cycle() -> None:
    labels = torch.tensor([[0], [2], [IGNORE_LABEL]])
    quality = answer_quality(torch.randn(3, 1, 3), labels)
    early = [Reading(torch.randn(3, 1, 3), torch.randn(3), torch.zeros(3, 0)) for _ in range(2)]
    last = torch.randn(3)
    term = halt_term(output_with(last, early), quality, labels)
    expected = 0.0
    for logits, halt in [(None, last), *((r.logits, r.halt_logit) for r in early)]:
        for row in (0, 1):
            right = float(quality.accuracy[row]) if logits is None else float(logits[row, 0].argmax() == labels[row, 0])
            p = 1 / (1 + math.exp(-float(halt[row])))
            expected -= right * math.log(p) + (1 - right) * math.log(1 - p)
    assert float(term.total) == pytest.approx(expected, abs=1e-4)
    assert float(term.weight) == 6.0


def per_capsule_model(**arch: Any) -> tuple[TinyRecursiveModel, Carry]:
    config = tiny.make_config(arch=arch)
    model = tiny.make_model(config, tiny.make_shape(label_rank=2))
    carry = make_carry(model)
    carry.labels[0, 1] = carry.labels[2] = IGNORE_LABEL
    return model, carry


def test_mtp_equals_a_loop_over_positions() -> None:
    """Depth d at position i predicts the label of i + d; the tail has none; nothing wraps around."""
    model, carry = per_capsule_model(enable_mtp=True, mtp_depth=3)
    assert model.mtp is not None
    output = model(carry.z_H, carry.z_L, carry.capsules, carry.steps, carry.price)
    term, accuracies = mtp_term(model, output, carry.labels)
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


def test_vq_term_leaves_padding_out() -> None:
    mask = torch.tensor([[True, False, True, True]] * 2)
    capsules = tiny.make_capsules(2, mask=mask)
    distance = torch.rand(2, tiny.K)
    nothing = torch.zeros(2, tiny.K)
    term = vq_term(Quantised(nothing.long(), distance, nothing[..., None], mask), capsules)
    assert float(term.total) == pytest.approx(float(distance[mask].sum()))
    assert float(term.weight) == 6.0


def test_continue_learns_what_the_next_step_is_worth() -> None:
    config = tiny.make_config(
        arch={"enable_q_continue": True, "enable_capsule_expansion": False, "q_head_num_actions": 2}
    )
    model = tiny.make_model(config, with_cmi=False)
    assert model.q_head.continue_net is not None
    with torch.no_grad():
        model.q_head.continue_net.output.bias += 3.0  # going on looks better than halting, so the last step shows
    carry = replace(make_carry(model), steps=torch.tensor([1, 2, 3, 1]))  # of at most 3
    carry.labels[3] = IGNORE_LABEL
    output = model(carry.z_H, carry.z_L, carry.capsules, carry.steps, carry.price)
    quality = answer_quality(output.logits, carry.labels)
    term = continue_term(model, carry, output, quality)
    following = model(output.z_H, output.z_L, carry.capsules, carry.steps + 1, carry.price)
    assert following.continue_logit is not None
    assert output.continue_logit is not None
    expected = 0.0
    for row in (0, 1):  # row 2 is at its last step, row 3 has no label
        halt, going_on = float(following.halt_logit[row].detach()), float(following.continue_logit[row].detach())
        worth = halt if row == 1 else max(halt, going_on)
        target = 1 / (1 + math.exp(-worth))
        p = 1 / (1 + math.exp(-float(output.continue_logit[row].detach())))
        expected -= target * math.log(p) + (1 - target) * math.log(1 - p)
    assert float(term.total.detach()) == pytest.approx(expected, abs=1e-4)
    assert float(term.weight) == 2.0


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


def test_two_processes_average_to_the_global_mean() -> None:
    """With uneven numbers of labels, DDP's mean of both ranks' gradients is the gradient over all rows at once."""
    config = tiny.make_config(dqn={"expansion_selector": "cmi"})
    model = tiny.make_model(config)
    carry = make_carry(model, rows=6)
    carry.labels[0] = IGNORE_LABEL
    carry.labels[5] = IGNORE_LABEL

    def rows(part: Any, index: Tensor) -> Any:
        if isinstance(part, Tensor):
            return part[index] if part.dim() and len(part) == 6 else part
        if hasattr(part, "__dataclass_fields__"):
            return type(part)(*(rows(getattr(part, name), index) for name in part.__dataclass_fields__))
        return part

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        named = [(name, p) for name, p in model.named_parameters() if not name.startswith("q_head.value_net")]
        return dict(
            zip([n for n, _ in named], torch.autograd.grad(loss, [p for _, p in named], allow_unused=True), strict=True)
        )

    whole = StepLoss(model, config)(carry, None, 0)
    expected = gradients(whole.loss)
    shards = [rows(carry, torch.tensor(index)) for index in ([0, 1], [2, 3, 4, 5])]
    local = []
    for shard in shards:
        result = StepLoss(model, config)(shard, None, 0)
        local.append(torch.cat([term.weight.flatten() for term in result.terms.values()]))
    world = len(shards)
    all_reduced = torch.stack(local).sum(0)
    parts = []
    for shard in shards:
        loss = StepLoss(model, config, share_weights=lambda mine: all_reduced / world)
        parts.append(loss(shard, None, 0))
    assert float(sum(part.loss.detach() for part in parts) / world) == pytest.approx(
        float(whole.loss.detach()), rel=1e-5
    )
    averaged = [gradients(part.loss) for part in parts]
    for name, value in expected.items():
        if value is not None:
            both = [part[name] for part in averaged]
            torch.testing.assert_close(sum(g for g in both if g is not None) / world, value, rtol=1e-4, atol=1e-6)


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
    return model, StepLoss(model, config)(make_carry(model), make_replayed(), 6).terms


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
    carry = make_carry(model)
    expanded = carry.pending.opened.any(1)
    assert expanded.any(), "the example has such rows"
    assert not expanded.all(), "and others"
    z_H = carry.z_H.clone()
    if restart:
        z_H[expanded] = model.first_latents(1)[0][0]
    expected = model(z_H, carry.z_L, carry.capsules, carry.steps, carry.price, carry.q_memory)
    result = StepLoss(model, config)(carry, None, 6)
    torch.testing.assert_close(result.output.logits, expected.logits)
    settled = cmi_term(model, carry, result.quality)
    torch.testing.assert_close(result.terms["cmi_loss"].total, settled.total)


def test_policy_only_moves_the_policy_alone() -> None:
    config = tiny.make_config()
    model = tiny.make_model(config)
    result = StepLoss(model, config)(make_carry(model), make_replayed(), 6, True)
    assert not result.output.z_H.requires_grad
    assert moved_by(result.loss, model) == {"q_head.value_net", "cmi_head.net"}
    both = StepLoss(model, config)(make_carry(model), make_replayed(), 6, False)
    for name in both.terms.keys() - {"dqn_loss"}:
        torch.testing.assert_close(both.terms[name].total, result.terms[name].total)


def test_the_td_term_is_weighed_by_importance() -> None:
    config = tiny.make_config()
    model = tiny.make_model(config)
    replayed = make_replayed()
    term = StepLoss(model, config)(make_carry(model), replayed, 0).terms["dqn_loss"]
    predicted = model.q_head.values(replayed.state).gather(1, replayed.action[:, None]).squeeze(1)
    losses = F.huber_loss(predicted, replayed.target, reduction="none")
    assert float(term.total.detach()) == pytest.approx(float((losses * replayed.weight).sum().detach()), rel=1e-5)
    assert float(term.weight) == pytest.approx(6.0)
