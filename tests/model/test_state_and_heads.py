"""q_state, the answer's readout, the input scale, the carry's bookkeeping, and initial values."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from trm_core.model.capsule_state import CapsuleState
from trm_core.model.carry import tensors_of, with_tensors
from trm_core.model.embedding import CapsuleEmbedding
from trm_core.model.heads import AnswerHead
from trm_core.model.q_head import NUM_SCALARS, QHead, build_q_state, pool_tokens
from trm_core.model.trm import TinyRecursiveModel


@pytest.mark.parametrize("masked", [False, True])
def test_q_state_holds_what_it_says(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    z_H = torch.randn(2, 3, 4, generator=generator)
    logits = torch.randn(2, 3, 5, generator=generator)
    mask = torch.tensor([[True, False, True], [True, True, True]]) if masked else None
    progress, spent, log_price = torch.tensor([0.5, 1.0]), torch.tensor([0.0, 0.25]), torch.tensor([-2.0, -3.0])
    state = build_q_state(pool_tokens(z_H, mask, 1), mask, logits, progress, spent, log_price)
    for row in range(2):
        kept = [i for i in range(3) if mask is None or mask[row, i]]
        assert state[row, :4].tolist() == pytest.approx(
            torch.stack([z_H[row, i] for i in kept]).mean(0).tolist(), abs=1e-6
        )
        largest = entropy = 0.0
        for i in kept:
            weights = [math.exp(value) for value in logits[row, i].tolist()]
            p = [w / sum(weights) for w in weights]
            largest += max(p) / len(kept)
            entropy -= sum(v * math.log(v) for v in p) / math.log(5) / len(kept)
        expected = [largest, entropy, float(progress[row]), float(spent[row]), float(log_price[row])]
        assert state[row, -NUM_SCALARS:].tolist() == pytest.approx(expected, abs=1e-5)


def test_readable_spreads_certainty_and_centres_the_price() -> None:
    def state(largest: float, log_price: float) -> torch.Tensor:
        return torch.tensor([[7.0, largest, 0.1, 0.5, 0.25, log_price]])

    level, spread = 0.02, 10.0
    readable = QHead(tiny.make_config().arch, level, spread).readable
    middle = readable(state(0.5, math.log(level)))[0].tolist()
    assert middle[0] == 7.0
    assert middle[1] == pytest.approx(0.0, abs=1e-6)
    assert middle[3:] == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)
    dear = readable(state(0.5, math.log(level * spread)))[0]
    assert float(dear[-1]) == pytest.approx(1.0, abs=1e-6)
    odds = [float(readable(state(p, 0.0))[0, 1]) for p in (0.99, 0.999, 1.0)]
    assert odds[1] - odds[0] > 0.5
    assert math.isfinite(odds[2])


def test_the_state_counts_steps_prices_and_openings() -> None:
    config = tiny.make_config(arch={"max_steps": 4})
    prices = torch.tensor([1.0, 2.0, 3.0, 4.0])
    model = tiny.make_model(config, tiny.make_shape(total_price=10.0))
    capsules = tiny.make_capsules(2)
    capsules = CapsuleState(capsules.sketches, capsules.children, None, None, capsules.expanded, prices)
    capsules = capsules.opened(torch.tensor([[True, False, True, False], [False] * 4]))
    assert capsules.spent.tolist() == [4.0, 0.0]
    assert capsules.num_opened.tolist() == [2, 0]
    output = model(*model.first_latents(2), capsules, torch.tensor([1, 4]), torch.tensor([0.5, 2.0]))
    assert output.q_state[:, -3:].flatten().tolist() == pytest.approx(
        [0.25, 0.4, math.log(0.5), 1.0, 0.0, math.log(2.0)]
    )
    assert torch.equal(output.q_values, model.q_head.values(output.q_state))


@pytest.mark.parametrize("readout", ["flat", "mean"])
def test_answer_reads_valid_positions(readout: str) -> None:
    head = AnswerHead(tiny.make_config(arch={"readout": readout}).arch, tiny.make_shape())
    z = torch.randn(2, tiny.K, 16)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    got = head(z, mask)
    assert got.shape == (2, 1, tiny.CLASSES)
    if readout == "flat":
        expected = head.output((z * mask[:, :, None]).reshape(2, -1))
    else:
        expected = head.output(torch.stack([z[0, :2].mean(0), z[1].mean(0)]))
    torch.testing.assert_close(got[:, 0], expected)
    per_capsule = AnswerHead(tiny.make_config().arch, tiny.make_shape(label_rank=2))
    assert per_capsule(z, mask).shape == (2, tiny.K, tiny.CLASSES)


def test_input_is_standardised_whatever_its_scale() -> None:
    arch, shape = tiny.make_config().arch, tiny.make_shape()
    torch.manual_seed(0)
    embedding = CapsuleEmbedding(arch, shape)
    torch.nn.init.zeros_(embedding.position)
    torch.nn.init.zeros_(embedding.opened_mark)
    raw = tiny.make_capsules(500)
    scaled = CapsuleState(1e3 + 50.0 * raw.sketches, -7.0 + 1e-3 * raw.children, None, None, raw.expanded, raw.prices)
    outputs = []
    for capsules in (raw, scaled):
        embedding.fit_scale(capsules.sketches, capsules.children)
        outputs.append(embedding(capsules.opened(torch.ones_like(capsules.expanded))))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-2, atol=1e-2)


def test_a_constant_dimension_is_left_alone() -> None:
    embedding = CapsuleEmbedding(tiny.make_config().arch, tiny.make_shape())
    sketches = torch.randn(50, tiny.K, tiny.D)
    sketches[..., 1] = 0.3
    embedding.fit_scale(sketches, None)
    assert embedding.sketch_scale[1] == 1.0
    assert embedding.sketch_mean[1] == pytest.approx(0.3)
    assert bool(embedding.sketch_scale.isfinite().all())
    assert torch.equal(embedding.child_scale, torch.ones(tiny.D))


def test_initial_values() -> None:
    config = tiny.make_config(arch={"hidden_size": 64, "num_heads": 4, "residual_init_scale": 0.1})
    torch.manual_seed(0)
    model = TinyRecursiveModel(config, tiny.make_shape(), with_cmi=True)
    output = model(*model.first_latents(2), tiny.make_capsules(2), torch.ones(2, dtype=torch.int64), torch.ones(2))
    assert not output.logits.any(), "the first loss is ln V"
    assert not output.q_values.any()
    assert not output.halt_logit.any()
    block = model.recursion.low.blocks[0].requires_grad_(False)
    # A normal truncated at two standard deviations keeps 0.88 of the spread.
    assert float(block.attention.qkv.weight.std()) == pytest.approx(0.88 / 8, rel=0.1)
    assert float(block.attention.out.weight.std()) == pytest.approx(0.088 / 8, rel=0.1)
    assert float(block.ffn.down.weight.std()) == pytest.approx(0.088 / math.sqrt(block.ffn.down.in_features), rel=0.1)
    x = output.x.detach()
    assert 0.5 < float(x.square().mean().sqrt()) < 2.0, "x is about as large as z"
    again = TinyRecursiveModel(config, tiny.make_shape(), with_cmi=True)
    assert not torch.equal(model.embedding.position, again.embedding.position)


def test_tensors_by_name() -> None:
    ones, others = tiny.make_capsules(3, seed=1), tiny.make_capsules(3, seed=2)
    names = tensors_of(ones)
    assert set(names) == {"sketches", "children", "checksums", "expanded", "prices"}
    assert torch.equal(tensors_of(with_tensors(others, names))["children"], names["children"])
    with pytest.raises(KeyError):
        with_tensors(others, {})


@pytest.mark.parametrize("kind", ["project", "attention", "mean", "first"])
def test_embedding_formula(kind: str) -> None:
    torch.manual_seed(0)
    embedding = CapsuleEmbedding(tiny.make_config(arch={"child_aggregation": kind}).arch, tiny.make_shape())
    torch.nn.init.normal_(embedding.position)
    torch.nn.init.normal_(embedding.opened_mark)
    embedding.requires_grad_(False)
    capsules = tiny.make_capsules(2)
    capsules = capsules.opened(torch.tensor([[True, False, True, False], [False, True, False, False]]))
    assert capsules.children is not None
    embedding.fit_scale(capsules.sketches + 3.0, 2.0 * capsules.children)
    x = embedding(capsules)
    aggregation = embedding.child_aggregation
    assert aggregation is not None
    for row in range(2):
        for i in range(tiny.K):
            sketch = (capsules.sketches[row, i] - embedding.sketch_mean) * embedding.sketch_scale
            expected = embedding.sketch.weight @ sketch + embedding.position[i]
            if capsules.expanded[row, i]:
                children = (capsules.children[row, i] - embedding.child_mean) * embedding.child_scale
                if kind == "attention":
                    weights = [math.exp(float(aggregation.score.weight[0] @ child)) for child in children]
                    pooled = sum(w * child for w, child in zip(weights, children, strict=True)) / sum(weights)
                else:
                    pooled = {"project": children.flatten(), "mean": children.mean(0), "first": children[0]}[kind]
                expected = expected + aggregation.project.weight @ pooled + embedding.opened_mark
            torch.testing.assert_close(x[row, i], expected / math.sqrt(2), rtol=1e-4, atol=1e-5)
