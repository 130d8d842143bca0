"""The comparison with other acquisition methods: curves, the flat view of capsules, orders, and the whole script.

The published code is not part of the tests; a stand-in with the same interface replaces it.
"""

from __future__ import annotations

import itertools
import json
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from benchmarks.acquisition import __main__ as script
from benchmarks.acquisition import curves as cv
from benchmarks.acquisition import data as flat
from benchmarks.acquisition import field, networks, ours
from benchmarks.acquisition.summary import summarise
from trm_core.data.fields import IGNORE_LABEL
from trm_core.data.store import CapsuleWriter, open_capsules
from trm_core.evaluation.load import load_run
from trm_core.evaluation.report import EvaluationData, Evaluator

K, M, D = tiny.K, tiny.M, tiny.D
accuracies = st.floats(0, 1)
point_lists = st.lists(st.tuples(st.integers(0, 8), accuracies), min_size=1, max_size=8)


def points(pairs: list[tuple[float, float]]) -> list[cv.Point]:
    return [cv.Point(None, opened, opened, accuracy) for opened, accuracy in pairs]


@given(point_lists)
def test_the_grid_passes_through_points_and_holds_the_last(pairs: list[tuple[int, float]]) -> None:
    places = cv.grid(10)
    line = cv.on_grid(points(pairs), places)
    for opened in {o for o, _ in pairs}:
        expected = np.mean([a for o, a in pairs if o == opened])
        assert line[opened * cv.PLACES_PER_CAPSULE] == pytest.approx(expected)
    last = max(o for o, _ in pairs)
    assert np.allclose(line[last * cv.PLACES_PER_CAPSULE :], line[-1])
    low, high = min(a for _, a in pairs), max(a for _, a in pairs)
    assert low - 1e-9 <= cv.area(line, places) <= high + 1e-9


def test_area_of_a_ramp_and_of_a_step() -> None:
    places = cv.grid(4)
    assert cv.area(cv.on_grid(points([(0, 0.0), (4, 1.0)]), places), places) == pytest.approx(0.5)
    assert cv.area(cv.on_grid(points([(0, 0.0), (2, 1.0)]), places), places) == pytest.approx(0.75)


def test_shares_are_zero_for_the_random_order_and_one_for_everything() -> None:
    places = cv.grid(10)
    random = cv.on_grid(points([(0, 0.5), (10, 0.9)]), places)
    reference = cv.Reference(0.5, 0.9, random)
    same = cv.figures(random, places, reference)
    assert same["gap_share"] == pytest.approx(0.0)
    assert same["way_early"] == pytest.approx(0.4)
    best = cv.figures(np.full_like(random, 0.9), places, reference)
    assert best["gap_share"] == pytest.approx(1.0)
    assert best["gap_share_early"] == pytest.approx(1.0)
    assert best["way_early"] == pytest.approx(1.0)
    nothing = cv.figures(random, places, cv.Reference(0.9, 0.9, np.full_like(random, 0.9)))
    assert nothing["way_early"] is None
    assert nothing["gap_share"] is None


@given(st.lists(accuracies, min_size=2, max_size=6))
def test_interval_is_students(values: list[float]) -> None:
    found = cv.interval([*values, None])
    error = np.std(values, ddof=1) / len(values) ** 0.5
    assert found["seeds"] == len(values)
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["high"] - found["mean"] == pytest.approx(error * stats.t.ppf(0.975, len(values) - 1), abs=1e-12)


def test_one_value_has_no_interval() -> None:
    assert cv.interval([0.5]) == {"mean": 0.5, "low": None, "high": None, "seeds": 1}
    assert cv.interval([None])["mean"] is None


def seed_record(seed: int, learned: float, gdfs: float) -> dict[str, object]:
    ramp = points([(0, 0.5), (4, 0.9)])
    found = [
        cv.Curve("learned", "ours", "trm", points([(0, 0.5), (1, learned)])),
        cv.Curve("random order", "reference", "trm", ramp),
        cv.Curve("gdfs, budget", "field", "gdfs", points([(0, 0.5), (1, gdfs)])),
        cv.Curve("gdfs, random order", "reference", "gdfs", ramp),
        cv.Curve("threshold, checksum", "peeks", "trm", points([(0, 0.99)])),
    ]
    return {"seed": seed, "all": {"trm": 0.9, "gdfs": 0.8}, "curves": [c.record() for c in found]}


def test_summary_pairs_the_seeds_and_keeps_peeking_apart() -> None:
    summary = summarise([seed_record(0, 0.8, 0.7), seed_record(1, 0.9, 0.8)], 4)
    lines = summary["comparison"]["area"]
    assert lines["best"] == {
        "ours": "learned",
        "reference": "random order",
        "field": "gdfs, budget",
        "peeks": "threshold, checksum",
    }
    found = lines["best of ours minus best of field"]
    assert found["values"] == pytest.approx([0.0875, 0.0875])  # 0.1 over 3 of 4 capsules, half of it over the first
    assert found["high"] - found["low"] < 1e-9, "seeds differ, their paired difference does not"
    gdfs = summary["methods"]["gdfs, budget"]
    assert gdfs["own"]["way_early"]["mean"] > gdfs["way_early"]["mean"], "its own `all` is lower"


@pytest.fixture(scope="module")
def padded_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows 3j, 3j+1, 3j+2 share a source; the last capsule of every second row is padding; one row has no label."""
    path = tmp_path_factory.mktemp("acquisition") / "padded.h5"
    random = np.random.default_rng(0)
    writer = CapsuleWriter(path, num_capsules=K, dim=D, num_children=M, dtype="float32", with_mask=True, with_ids=True)
    with writer:
        for split, n in (("train", 60), ("test", 12)):
            mask = np.ones((n, K), bool)
            mask[1::2, -1] = False
            labels = random.integers(0, 3, n)
            labels[0] = IGNORE_LABEL
            arrays = {"sketches": random.normal(5, 3, (n, K, D)), "children": random.normal(5, 3, (n, K, M, D))}
            writer.append(split, {**arrays, "labels": labels, "mask": mask, "ids": np.arange(n) // 3})
        writer.close({"task": "classes", "num_classes": 3, "kind": "arrays"})
    return path


def test_flat_rows_hold_what_every_method_may_see(padded_file: Path) -> None:
    file = open_capsules(padded_file)
    data = flat.flat_data(file, "test", seed=1)
    rows = [split.x for split in (data.train, data.held_out, data.test)]
    assert [len(x) for x in rows] == [59 - len(rows[1]), len(rows[1]), 11]
    assert len(rows[1]) in (11, 12), "a fifth of the 20 sources of 3 rows; one row is unlabelled"
    assert rows[0].shape[1] == K * D + K + K * M * D, "no checksums"
    assert torch.equal(data.test.x[:, data.padding_at].bool(), ~data.test.real)
    paid = data.train.x[:, data.free :]
    assert torch.allclose(paid[data.train.real.all(1)].mean(), torch.tensor(0.0), atol=0.3)
    assert torch.allclose(data.train.x[:, : K * D].std(0), torch.ones(K * D), atol=1e-4)


def test_copies_of_a_source_are_held_out_together() -> None:
    source = np.repeat(np.arange(20), 3)
    chosen = flat.held_out_rows(source, seed=3)
    assert chosen.sum() == 12
    assert not set(source[chosen]) & set(source[~chosen])
    assert (chosen != flat.held_out_rows(source, seed=4)).any()


class Grouped(nn.Module):
    """Does what the grouped mask layers of the published code do."""

    def __init__(self, groups: torch.Tensor, append: bool = True) -> None:
        super().__init__()
        self.groups, self.mask_size = groups, len(groups)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.cat([x * (mask @ self.groups), mask], 1)


def test_masking_leaves_sketches_and_hides_the_children_of_closed_capsules(padded_file: Path) -> None:
    data = flat.flat_data(open_capsules(padded_file), "test", seed=1)
    layer = networks.RevealedSketches(Grouped(data.group_matrix), data.free)
    mask = torch.zeros(len(data.test.y), K)
    mask[:, 1] = 1
    seen = layer(data.test.x, mask)
    children = seen[:, data.free : -K].reshape(-1, K, M * D)
    assert torch.equal(seen[:, : data.free], data.test.x[:, : data.free])
    assert torch.equal(children[:, 1], data.test.x[:, data.free :].reshape(-1, K, M * D)[:, 1])
    assert not children[:, [0, 2, 3]].any()


def test_padding_is_chosen_last(padded_file: Path) -> None:
    data = flat.flat_data(open_capsules(padded_file), "test", seed=1)
    chooser, _ = networks.build(data, 16)
    scores = chooser(torch.cat([data.test.x, torch.zeros(len(data.test.y), K)], 1))
    assert (scores.masked_fill(data.test.real, 0.0).amin(1)[~data.test.real.all(1)] < -1e5).all()
    assert (scores[data.test.real] > -1e3).all()


def test_losses_of_several_answers_are_means_over_the_labelled() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, K, 3), torch.randint(3, (6, K))
    labels[0, 1:], labels[1, 0] = IGNORE_LABEL, IGNORE_LABEL
    losses, right = [], []
    for row in range(6):
        kept = [c for c in range(K) if labels[row, c] != IGNORE_LABEL]
        losses.append(np.mean([-float(logits[row, c].log_softmax(0)[labels[row, c]]) for c in kept]))
        right.append(np.mean([int(logits[row, c].argmax() == labels[row, c]) for c in kept]))
    assert networks.CrossEntropy(per_row=True)(logits, labels).tolist() == pytest.approx(losses, rel=1e-5)
    assert float(networks.CrossEntropy()(logits, labels)) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(networks.Accuracy()(logits, labels)) == pytest.approx(np.mean(right), rel=1e-5)


def test_networks_have_about_as_many_parameters_as_asked(padded_file: Path) -> None:
    data = flat.flat_data(open_capsules(padded_file), "test", seed=1)
    found = networks.parameters(*networks.build(data, networks.width_for(data, 100_000)))
    assert found == pytest.approx(100_000, rel=0.05)


def test_a_capped_loader_runs_dry() -> None:
    loader = field.CappedLoader([[torch.zeros(1)]] * 3, seconds=0.05)  # type: ignore[arg-type]
    assert len(list(loader)) == 3
    assert (loader.epochs, loader.capped) == (1, False)
    time.sleep(0.06)
    assert list(loader) == []
    assert (loader.epochs, loader.capped) == (1, True)


def test_stopping_when_sure_takes_the_first_confident_selection() -> None:
    test = flat.Flat(torch.zeros(2, 1), torch.tensor([0, 0]), torch.tensor([[True, True], [True, False]]))
    masks = [torch.zeros(2, 2), torch.eye(2)[[0, 0]], torch.ones(2, 2)]
    sure = torch.tensor([[0.5, 0.5], [0.99, 0.01]]).log()
    logits = [sure, sure.flip(0), torch.tensor([[0.4, 0.6], [0.4, 0.6]]).log()]
    low, high = field.stop_when_sure(masks, logits, test, torch.tensor([2.0, 1.0]), (0.9, 0.999))
    assert (low.opened, low.spent, low.accuracy) == (0.5, 1.0, 1.0)
    assert (high.opened, high.spent, high.accuracy) == (1.5, 2.5, 0.0), "padding costs nothing"


def test_orders_open_the_first_openable_capsules() -> None:
    mask = torch.ones(5, K, dtype=torch.bool)
    mask[:, 2] = False
    capsules = tiny.make_capsules(5, mask=mask)
    fixed = ours.OrderPolicy(torch.tensor([1.0, 3.0, 4.0, 2.0]), 2, 0.0).open_first(capsules)
    assert fixed.tolist() == [[False, True, False, True]] * 5
    nested = [ours.OrderPolicy(None, n, 0.0).open_first(capsules) for n in range(K + 1)]
    for n, (fewer, more) in enumerate(itertools.pairwise(nested)):
        assert (fewer & ~more).sum() == 0
        assert (fewer.sum(1) == min(n, 3)).all()
    assert len({tuple(row) for row in nested[1].tolist()}) > 1, "every row has its own order"


def test_the_fixed_order_begins_with_the_most_helpful_capsule(trained_run: Path) -> None:
    run = load_run(trained_run, torch.device("cpu"))
    data = EvaluationData(open_capsules(run.data["eval"]["path"]), "test")
    order = ours.greedy_order(run, Evaluator(run.model, run.config, data), 1000)
    assert sorted(order) == list(range(K))
    chosen_on = Evaluator(run.model, run.config, EvaluationData(data.file, "validation"))
    losses = [float(chosen_on.run(ours.SetPolicy(one > 0, 1.0)).loss.mean()) for one in torch.eye(K)]
    assert order[0] == int(np.argmin(losses))


GDFS_STAND_IN = """
    import torch
    from torch import nn

    class MaskLayerGrouped(nn.Module):
        def __init__(self, group_matrix, append):
            super().__init__()
            self.groups, self.mask_size = group_matrix, len(group_matrix)

        def forward(self, x, m):
            return torch.cat([x * (m @ self.groups), m], 1)

    class MaskingPretrainer:
        def __init__(self, model, mask_layer):
            pass

        def fit(self, train_loader, val_loader, lr, nepochs, loss_fn, patience, verbose):
            torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD([torch.zeros(1)], 0.1), verbose=False)
            assert len(list(train_loader)) and len(list(val_loader))

    class GreedyDynamicSelection(nn.Module):
        def __init__(self, selector, predictor, mask_layer):
            super().__init__()
            self.selector, self.predictor, self.mask_layer = selector, predictor, mask_layer

        def fit(self, train_loader, val_loader, lr, nepochs, max_features, loss_fn, patience, verbose):
            x, y = next(iter(train_loader))
            loss_fn(self.predictor(self.mask_layer(x, torch.zeros(len(x), max_features))), y).backward()

        def forward(self, x, max_features):
            m = torch.zeros(len(x), self.mask_layer.mask_size)
            m[:, :max_features] = 1
            return self.predictor(self.mask_layer(x, m)), None, m
"""


def test_the_script_from_runs_to_a_merged_record(
    tmp_path: Path, trained_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "gdfs" / "dynamic_selection"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(textwrap.dedent(GDFS_STAND_IN))
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*arguments: object) -> dict[str, object]:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        monkeypatch.setattr(sys, "argv", ["acquisition", *map(str, arguments), "--out", str(out)])
        script.main()
        return json.loads(out.read_text()) | {"path": out}

    options = ["--gdfs", package.parent, "--dime", tmp_path, "--selectors", "cmi", "random", "checksum", "nonsense"]
    first = call("--run", trained_run, "--seeds", "0", *options)
    second = call("--run", trained_run, "--seeds", "1", *options)
    assert "dynamic_selection" in sys.modules
    monkeypatch.delitem(sys.modules, "dynamic_selection")
    plot = tmp_path / "curves.png"
    both = call("--merge", first["path"], second["path"], "--plot", plot)
    assert [one["seed"] for one in both["seeds"]] == [0, 1]
    assert plot.stat().st_size > 10_000
    groups = {name: method["group"] for name, method in both["methods"].items()}
    assert groups["learned"] == groups["threshold, cmi"] == "ours"
    assert groups["threshold, checksum"] == "peeks"
    assert groups["gdfs, budget"] == groups["gdfs, confidence"] == "field"
    assert any("dime: did not install" in note for note in both["notes"])
    assert any("nonsense" in note for note in both["notes"])
    assert not any("cut short" in note for note in both["notes"])
    assert both["split"] == "test"
    for curve in both["seeds"][0]["curves"]:
        assert all(0 <= p["opened"] <= K for p in curve["points"])
        if curve["name"].endswith("order") or curve["name"] == "gdfs, budget":
            assert [p["opened"] for p in curve["points"]] == [0, 1, 2, 3, 4]
    output = capsys.readouterr().out
    assert output.index("learned") < output.index("peeks at unopened detail") < output.rindex("threshold, checksum")


def test_selectors_that_this_version_lacks_are_left_out(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unimplemented selector falls back to `random`, and must not appear under its name."""
    run = load_run(trained_run, torch.device("cpu"))
    data = EvaluationData(open_capsules(run.data["eval"]["path"]), "test")
    never = cv.Point(None, 0.0, 0.0, 0.5)
    notes: list[str] = []
    monkeypatch.setattr(ours, "with_selector", lambda config, selector: run.config)
    found = ours.thresholds(run, data, never, ours.OursOptions(selectors=("entropy", "random")), notes.append)
    assert [curve.name for curve in found] == ["threshold, random"]
    assert "not implemented" in notes[0]
