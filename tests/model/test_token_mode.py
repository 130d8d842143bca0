"""Token mode against plain formulas: probabilities, rotations, the MLP mixer, the Q-head, embeddings, learning."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_puzzles import ARCH, SIZE, VOCAB
from torch import Tensor

from trm_core.data.batch import CapsuleBatch
from trm_core.data.fields import IGNORE_LABEL
from trm_core.losses import StepLoss, answer_quality, mtp_term
from trm_core.model.capsule_state import CapsuleState
from trm_core.model.data_shape import DataShape
from trm_core.model.elementwise import rotated
from trm_core.model.layers import Attention, Block, rope
from trm_core.model.probabilities import log_probabilities
from trm_core.model.trm import StepOutput, TinyRecursiveModel
from trm_core.optim.build import build_optimizers
from trm_core.training.episodes import Episodes

ROWS, PUZZLES = 4, 6
SHAPE = DataShape(SIZE, 0, 0, 0, VOCAB, 2, float(SIZE), vocab_size=VOCAB, num_puzzles=PUZZLES)
ROWS_OF = torch.tensor([3, 1, 4, 1])  # identifiers


def make_model(seed: int = 0, **arch: Any) -> TinyRecursiveModel:
    """With puzzle embeddings that are no zeros."""
    torch.manual_seed(seed)
    config = tiny.make_config(arch={**ARCH, **arch}, dqn={"enabled": False})
    model = tiny.make_model(config, SHAPE, seed, with_cmi=False)
    if model.embedding.puzzles is not None:
        model.embedding.puzzles.weights.normal_()
    return model


def make_puzzles(rows: int = ROWS, seed: int = 0) -> CapsuleState:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCAB, (rows, SIZE), generator=generator)
    return CapsuleState.closed(
        tokens, None, None, None, torch.ones(SIZE), puzzles=ROWS_OF.repeat(-(-rows // ROWS))[:rows]
    )


def think(model: TinyRecursiveModel, puzzles: CapsuleState, steps: int = 2) -> StepOutput:
    z_H, z_L = model.first_latents(puzzles.rows)
    for step in range(1, steps + 1):
        output = model(z_H, z_L, puzzles, torch.full((puzzles.rows,), step), torch.ones(puzzles.rows))
        z_H, z_L = output.z_H.detach(), output.z_L.detach()
    return output


# Probabilities


def stablemax(logits: np.ndarray) -> np.ndarray:
    scores = np.where(logits >= 0, logits + 1, 1 / (1 - np.minimum(logits, 0)))
    return scores / scores.sum(-1, keepdims=True)


@settings(deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=7))
def test_stablemax_is_its_formula(logits: list[float]) -> None:
    got = log_probabilities(torch.tensor([logits]), "stablemax")
    expected = np.log(stablemax(np.array([logits], np.float64)))
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-8, -1e-8, 0.5, -0.5, 80.0, -80.0])
def test_the_gradient_of_stablemax_is_its_formula(value: float) -> None:
    """At 0 too, where heads begin: both halves of s have the slope 1 there."""
    logits = torch.tensor([[value, 0.3, -0.7]], requires_grad=True)
    (-log_probabilities(logits, "stablemax")[0, 0]).backward()
    x = np.array([value, 0.3, -0.7])
    s = np.where(x >= 0, x + 1, 1 / (1 - np.minimum(x, 0)))
    slope = np.where(x >= 0, 1.0, 1 / (1 - np.minimum(x, 0)) ** 2)
    expected = slope / s.sum() - np.array([1.0, 0, 0]) * slope / s
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad[0].numpy(), expected, rtol=1e-4, atol=1e-7)


def test_a_row_is_judged_by_the_probabilities_of_its_model() -> None:
    """Loss and probability over valid labels only; a puzzle is right when it is whole."""
    logits, labels = torch.randn(3, 4, VOCAB), torch.randint(VOCAB, (3, 4))
    labels[0, 1:] = labels[2] = IGNORE_LABEL
    logits[0, 0] = 0.0
    logits[0, 0, labels[0, 0]] = 1.0
    found = answer_quality(logits, labels, probabilities="stablemax", whole=True)
    p = stablemax(logits.double().numpy())
    for row in range(2):
        places = [place for place in range(4) if labels[row, place] != IGNORE_LABEL]
        chosen = np.array([p[row, place, labels[row, place]] for place in places])
        assert float(found.loss[row]) == pytest.approx(-np.log(chosen).mean(), rel=1e-5)
        assert float(found.probability[row]) == pytest.approx(chosen.mean(), rel=1e-5)
        hits = [int(logits[row, place].argmax()) == int(labels[row, place]) for place in places]
        assert float(found.accuracy[row]) == pytest.approx(np.mean(hits))
        assert bool(found.exact[row]) == bool(found.right[row]) == all(hits)
    assert found.right[0] == 1.0
    assert found.valid.tolist() == [True, True, False]
    assert float(found.loss[2]) == float(found.accuracy[2]) == 0.0


@pytest.mark.parametrize("probabilities", ["stablemax", "softmax"])
def test_later_tokens_are_predicted_with_the_same_probabilities(probabilities: str) -> None:
    model, puzzles = make_model(enable_mtp=True, mtp_depth=1, probabilities=probabilities), make_puzzles()
    labels = puzzles.sketches.clone()
    labels[0, 2] = IGNORE_LABEL
    output = think(model, puzzles, 1)
    term, _ = mtp_term(model, output, labels, [labels[:, 1:] != IGNORE_LABEL])
    (logits,) = model.mtp(output.z_H)
    x = logits.detach().double().numpy()
    p = stablemax(x) if probabilities == "stablemax" else np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    expected = -sum(
        math.log(p[row, place - 1, labels[row, place]])
        for row in range(ROWS)
        for place in range(1, SIZE)
        if labels[row, place] != IGNORE_LABEL
    )
    assert float(term.total.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(term.weight) == ROWS * (SIZE - 1) - 1


# Rotations


@pytest.mark.parametrize(("positions", "width", "theta"), [(7, 8, 10000.0), (3, 2, 10.0), (90, 64, 10000.0)])
def test_rope_turns_complex_numbers(positions: int, width: int, theta: float) -> None:
    x = torch.randn(2, positions, 3, width, dtype=torch.float64)
    half = width // 2
    z = torch.complex(x[..., :half], x[..., half:])
    frequency = theta ** (-torch.arange(half, dtype=torch.float64) * 2 / width)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
    turned = z * torch.polar(torch.ones_like(angle), angle)[:, None]
    got = rotated(x[:, :, None], rope(positions, width, theta))[:, :, 0]
    torch.testing.assert_close(got, torch.cat([turned.real, turned.imag], -1), rtol=0, atol=2e-5)


def test_rope_depends_on_the_distance_only() -> None:
    rotation = rope(40, 8, 10000.0)
    q, k = torch.randn(8), torch.randn(8)

    def product(i: int, j: int) -> float:
        both = torch.zeros(1, 40, 2, 1, 8)
        both[0, i, 0, 0], both[0, j, 1, 0] = q, k
        turned = rotated(both, rotation)
        return float(turned[0, i, 0, 0] @ turned[0, j, 1, 0])

    for distance in (-5, 0, 3):
        values = [product(i, i + distance) for i in range(6, 35, 4)]
        assert max(values) - min(values) < 1e-4
    assert abs(product(5, 5) - product(5, 9)) > 1e-3
    assert product(7, 7) == pytest.approx(float(q @ k), abs=1e-4)


def test_attention_turns_queries_and_keys_but_not_values() -> None:
    torch.manual_seed(0)
    attention, x, rotation = Attention(8, 2), torch.randn(2, 5, 8), rope(5, 4, 100.0)
    q, k, v = (part.view(2, 5, 2, 4).transpose(1, 2) for part in attention.qkv(x).chunk(3, -1))
    q, k = (rotated(part.transpose(1, 2)[:, :, None], rotation)[:, :, 0].transpose(1, 2) for part in (q, k))
    weights = (q @ k.transpose(2, 3) / 2.0).softmax(-1)
    expected = attention.out((weights @ v).transpose(1, 2).reshape(2, 5, 8))
    torch.testing.assert_close(attention(x, None, rotation), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(attention.received(x, None, rotation), weights.mean((1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("pos_encodings", "mixer"), [("rope", "attention"), ("learned", "attention"), ("none", "mlp")])
def test_the_place_of_a_token_counts(pos_encodings: str, mixer: str) -> None:
    model, puzzles = make_model(pos_encodings=pos_encodings, mixer=mixer), make_puzzles()
    turned = CapsuleState.closed(puzzles.sketches.flip(1), None, None, None, torch.ones(SIZE), puzzles=puzzles.puzzles)
    here, there = think(model, puzzles).logits, think(model, turned).logits.flip(1)
    assert not torch.allclose(here, there, atol=1e-3)


def test_without_positions_attention_does_not_know_places() -> None:
    """So the test above sees positions, and nothing else."""
    model, puzzles = make_model(pos_encodings="none"), make_puzzles()
    turned = CapsuleState.closed(puzzles.sketches.flip(1), None, None, None, torch.ones(SIZE), puzzles=puzzles.puzzles)
    torch.testing.assert_close(think(model, puzzles).logits, think(model, turned).logits.flip(1), rtol=0, atol=1e-5)


# The mixer over positions


def test_the_mlp_mixer_is_a_loop_over_channels() -> None:
    """SwiGLU and normalisation over the positions of each channel, then both over the channels of each position."""
    arch = tiny.make_config(arch={**ARCH, "mixer": "mlp", "hidden_size": 4, "puzzle_emb_ndim": 0}).arch
    torch.manual_seed(1)
    block, K = Block(arch, 5), 5
    x = torch.randn(2, K, 4, dtype=torch.float64)
    weights = {name: value.detach().double().numpy() for name, value in block.named_parameters()}

    def swiglu(name: str, values: np.ndarray) -> np.ndarray:
        gate, up = np.split(weights[f"{name}.gate_up.weight"] @ values, 2)
        return weights[f"{name}.down.weight"] @ (gate / (1 + np.exp(-gate)) * up)

    def normed(values: np.ndarray) -> np.ndarray:
        return values / np.sqrt((values**2).mean() + 1e-5)

    expected = x.numpy().copy()
    for row in expected:
        for channel in range(4):
            row[:, channel] = normed(row[:, channel] + swiglu("mixer", row[:, channel]))
        for place in range(K):
            row[place] = normed(row[place] + swiglu("ffn", row[place]))
    np.testing.assert_allclose(block.double()(x, None, None).detach().numpy(), expected, rtol=1e-9, atol=1e-9)


# The Q-head


def test_the_linear_q_head_reads_the_first_position_only() -> None:
    model = make_model()
    head = model.q_head
    z_H = torch.randn(ROWS, model.positions, 16)
    puzzles, ones = make_puzzles(), torch.ones(ROWS)

    def said(z: Tensor) -> tuple[Tensor, Tensor]:
        reading = model.read(z, puzzles, ones.long(), ones, model.first_q_memory(ROWS))
        return reading.halt_logit, reading.q_state[:, :16]

    halt, pooled = said(z_H)
    expected = z_H[:, 0] @ head.halt_net.weight[0] + head.halt_net.bias
    torch.testing.assert_close(halt, expected)
    torch.testing.assert_close(pooled, z_H[:, 0])
    other = z_H.clone()
    other[:, 1:] = torch.randn_like(other[:, 1:])
    assert torch.equal(said(other)[0], halt)
    assert torch.equal(said(other)[1], pooled)
    other[:, 0] += 1.0
    assert not torch.allclose(said(other)[0], halt)


def test_nothing_halts_before_anything_is_known() -> None:
    torch.manual_seed(0)
    model = TinyRecursiveModel(tiny.make_config(arch=ARCH, dqn={"enabled": False}), SHAPE, with_cmi=False)
    assert think(model, make_puzzles()).halt_logit.tolist() == [-5.0] * ROWS


# Embeddings


@pytest.mark.parametrize(
    ("arch", "prefix"),
    [
        ({}, 2),
        ({"puzzle_emb_ndim": 0}, 0),
        ({"puzzle_emb_ndim": 20, "puzzle_emb_len": 0}, 2),
        ({"puzzle_emb_len": 5}, 5),
    ],
)
@pytest.mark.parametrize("pos_encodings", ["rope", "learned"])
def test_the_embedding_is_its_formula(arch: dict[str, Any], prefix: int, pos_encodings: str) -> None:
    model, puzzles = make_model(pos_encodings=pos_encodings, **arch), make_puzzles()
    embedding = model.embedding
    assert model.positions == prefix + SIZE
    expected = torch.zeros(ROWS, prefix + SIZE, 16)
    for row in range(ROWS):
        if prefix:
            own = embedding.puzzles.weights[ROWS_OF[row]]
            expected[row, :prefix].view(-1)[: len(own)] = own
        expected[row, prefix:] = embedding.tokens.weight[puzzles.sketches[row]]
    if pos_encodings == "learned":
        expected = (expected + embedding.position) / math.sqrt(2)
    torch.testing.assert_close(embedding(puzzles), 4.0 * expected)


def test_the_answers_are_those_of_the_tokens() -> None:
    """The prefix is read by no answer: position i of the logits is token i."""
    model = make_model()
    z_H = torch.randn(ROWS, model.positions, 16)
    expected = z_H[:, 2:] @ model.answer.output.weight.T
    torch.testing.assert_close(model.answer(z_H, None), expected)
    assert model.answer.output.bias is None


@pytest.mark.parametrize("mixer", ["attention", "mlp"])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_another_row_reaches_a_row(mixer: str, training: bool) -> None:
    """Neither its tokens, nor its puzzle's embedding, be it NaN."""
    model, puzzles = make_model(mixer=mixer), make_puzzles()
    model.train(training)
    before = think(model, puzzles)
    model.embedding.puzzles.weights[[0, 2, 5, 1, 4]] = torch.nan
    tokens = puzzles.sketches.clone()
    tokens[1:] = 1
    after = think(model, CapsuleState.closed(tokens, None, None, None, torch.ones(SIZE), puzzles=puzzles.puzzles))
    for name in ("logits", "halt_logit", "q_values", "q_state", "z_H", "z_L"):
        assert torch.equal(getattr(before, name)[0], getattr(after, name)[0]), name
        assert bool(getattr(after, name)[1:].isnan().any()), name
    model.embedding.puzzles.weights[3] += 1.0
    assert not torch.equal(think(model, puzzles).logits[0], before.logits[0]), "its own does"


def test_only_what_learns_is_kept_for_the_optimiser() -> None:
    model, puzzles = make_model(), make_puzzles()
    kept = model.embedding.puzzles.used
    model.eval()
    think(model, puzzles)
    model.train()
    with torch.no_grad():
        think(model, puzzles)
    assert kept == []
    think(model, puzzles, 1)
    assert [identifiers.tolist() for identifiers, _ in kept] == [ROWS_OF.tolist()]


# Learning


def a_batch(rows: int, seed: int = 0) -> CapsuleBatch:
    puzzles = make_puzzles(rows, seed)
    tokens = puzzles.sketches
    return CapsuleBatch(
        tokens, None, None, tokens.flip(1), None, None, None, torch.arange(rows), puzzles=puzzles.puzzles
    )


ALL: dict[str, Any] = {
    "attention": {},
    "mlp": {"mixer": "mlp", "pos_encodings": "none"},
    "learned": {"pos_encodings": "learned", "tied": False},
    "everything": {
        "enable_mtp": True,
        "enable_q_continue": True,
        "q_head_type": "mlp",
        "enable_adaptive_hcycles": True,
    },
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("probabilities", ["stablemax", "softmax"])
def test_the_signal_reaches_every_parameter(name: str, probabilities: str) -> None:
    """And every number of the embeddings of the puzzles that were seen, but of no other."""
    model = make_model(probabilities=probabilities, **ALL[name])
    config = tiny.make_config(arch={**ARCH, **ALL[name], "probabilities": probabilities}, dqn={"enabled": False})
    model.q_head.value_net.requires_grad_(False)
    optimizers = build_optimizers(model, config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    episodes = Episodes(model, config, torch.ones(SIZE), None)
    batch = a_batch(ROWS)
    carry = episodes.begin(episodes.initial_carry(batch), batch, 0)
    model.train()
    StepLoss(model, config)(carry, None, 0).loss.backward()
    optimizers.set_factors(1.0, 1.0)
    optimizers.step()
    for key, parameter in model.named_parameters():
        if key.startswith("q_head.value_net."):
            continue
        if key == "embedding.tokens.weight":
            seen = batch.sketches.unique()
            assert bool((parameter != before[key])[seen].any(1).all())
            continue
        moved = (parameter.detach() != before[key]).double().mean()
        assert moved > 0.5, f"{key}: {moved:.0%} of it moved"
    weights, old = model.embedding.puzzles.weights, before["embedding.puzzles.weights"]
    assert bool((weights[[1, 3, 4]] != old[[1, 3, 4]]).all())
    assert torch.equal(weights[[0, 2, 5]], old[[0, 2, 5]])


@pytest.mark.parametrize("arch", [{}, {"mixer": "mlp", "pos_encodings": "none"}], ids=["attention", "mlp"])
def test_a_few_puzzles_are_learned_whole(arch: dict[str, Any]) -> None:
    """Tokens alone do not tell: every question has another answer for each of two puzzles."""
    settings = {**ARCH, **arch, "hidden_size": 32, "puzzle_emb_ndim": 32, "puzzle_emb_len": 1}
    config = tiny.make_config(
        arch=settings, training={"base_lr": 5e-3, "weight_decay": 0.0, "puzzle_emb_lr": 1e-2}, dqn={"enabled": False}
    )
    torch.manual_seed(0)
    model = TinyRecursiveModel(config, SHAPE, with_cmi=False)
    model.q_head.value_net.requires_grad_(False)
    optimizers = build_optimizers(model, config)
    batch = a_batch(4)
    batch.sketches = batch.sketches[[0, 0, 1, 1]]
    batch.puzzles = torch.tensor([1, 2, 1, 2])
    batch.labels = torch.where(batch.puzzles[:, None] == 1, batch.sketches.flip(1), batch.sketches)
    episodes, loss = Episodes(model, config, torch.ones(SIZE), None), StepLoss(model, config)
    carry = episodes.initial_carry(batch)
    optimizers.set_factors(1.0, 1.0)
    for step in range(250):
        carry = episodes.begin(carry, batch.select(carry.halted.nonzero().squeeze(1)), step)
        result = loss(carry, None, step)
        result.loss.backward()
        optimizers.step()
        optimizers.zero_grad()
        carry, _ = episodes.decide(carry, result, step)
        if bool(result.quality.exact.all()) and bool((result.output.halt_logit > 0).all()):
            break
    assert bool(result.quality.exact.all())
    assert bool((result.output.halt_logit > 0).all()), "it knows that it knows"
