"""Facts of capsule files with one thing wrong, and of files where nothing is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from tests.faults.capsules import write as write_capsules
from tests.faults.healthy import messages
from trm_core.config.schema import Config
from trm_core.data.build.digits import DigitsReader
from trm_core.data.fields import IGNORE_LABEL
from trm_core.data.store import CapsuleWriter
from trm_core.diagnose.check import Verdict
from trm_core.diagnose.copies import Copies, Labelled, near_copies, row_hashes
from trm_core.diagnose.data_facts import DataFacts
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.linear_probe import broken_stretch, right_in_folds, told_apart
from trm_core.diagnose.registry import CHECKS, OF_DATA
from trm_core.diagnose.resemblance import shift_between, shift_by_chance, told_by_sketches
from trm_core.diagnose.series import Metrics, Series

K, M, D, CLASSES = 4, 2, 6, 5
BY_ID = {check.id: check for check in CHECKS}


def write(path: Path, change: str = "", seed: int = 0, rows: int = 900, noise: float = 1.0) -> Path:
    """Classes lie around centres; sketches are a noisy look at children. `change` breaks one thing."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((CLASSES, K, D))
    parts: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    for split, count in (("validation", rows // 3), ("train", rows)):
        labels = random.integers(0, CLASSES, count)
        children = centres[labels][:, :, None] + 0.3 * random.standard_normal((count, K, M, D))
        sketches = children.mean(2) + noise * random.standard_normal((count, K, D))
        if split == "train" and change == "constant":
            labels = np.where(random.random(count) < 0.9, 0, labels)
        if split == "train" and change == "shuffled":
            labels = random.permutation(labels)
        if change == "leaked":
            sketches[:, 0, :CLASSES] = 3 * np.eye(CLASSES)[labels] + 0.01 * random.standard_normal((count, CLASSES))
        if change == "equal":
            children = np.repeat(sketches[:, :, None], M, axis=2)
        arrays = {"sketches": sketches, "children": children}
        if change == "told":
            edge = np.concatenate([sketches[:, :1], sketches, sketches[:, -1:]], axis=1)
            slope = (edge[:, 2:] - edge[:, :-2]) / 2
            children = sketches[:, :, None] + np.array([-0.25, 0.25])[:, None] * slope[:, :, None]
            arrays["children"] = np.where(random.random(count)[:, None, None, None] < 0.9, children, arrays["children"])
        if change.endswith("late"):  # of sketches that say something of their own children
            sketches = arrays["sketches"] = children.mean(2) + 0.1 * random.standard_normal((count, K, D))
        if change == "one capsule late":
            arrays["children"] = np.roll(children, 1, axis=1)
        if change == "one row late":
            arrays["children"] = np.roll(children, 1, axis=0)
        if change.startswith("rows in another order"):
            sketches = arrays["sketches"] = centres[labels] + 0.1 * random.standard_normal((count, K, D))
            moved = round(count * (0.4 if "part" in change else 1))
            arrays["children"] = np.concatenate([random.permutation(children[:moved]), children[moved:]])
        if split == "validation" and change == "other encoder":
            arrays = {name: values * np.where(np.arange(D) % 2, -1, 1) for name, values in arrays.items()}
        if split == "train" and change == "counted from one":
            labels = (labels + 1) % CLASSES
        if split == "validation" and change == "other scale":
            arrays = {name: 2 * values for name, values in arrays.items()}
        if split == "validation" and change == "other offset":
            arrays = {name: values + 1 for name, values in arrays.items()}
        if split == "train" and change == "other classes":
            labels = np.where(labels == 2, 3, labels)
        arrays = {name: values.astype(np.float32) for name, values in arrays.items()} | {"labels": labels}
        if change == "filled in":
            arrays["children"][random.random(count) < 0.95] = arrays["children"].mean(0)
        if split == "train" and change == "revised":
            revised = {n: parts["validation"][n][:60].copy() for n in arrays}
            for name in ("sketches", "children"):
                revised[name][np.arange(60), random.integers(0, K, 60)] += 1.0
            arrays = {n: np.concatenate([revised[n], v[60:]]).astype(v.dtype) for n, v in arrays.items()}
        if split == "train" and change == "nearly twins":
            scale = 1 + 0.03 * random.standard_normal((60, 1, 1, 1))
            near = {n: parts["validation"][n][:60] for n in arrays}
            near = {n: v if n == "labels" else scale.reshape(-1, *[1] * (v.ndim - 1)) * v for n, v in near.items()}
            near = {n: v if n == "labels" else v + 0.02 * random.standard_normal(v.shape) for n, v in near.items()}
            arrays = {n: np.concatenate([near[n], v[60:]]).astype(v.dtype) for n, v in arrays.items()}
        if split == "train" and change == "twins":
            arrays = {n: np.concatenate([parts["validation"][n][:60], v[60:]]) for n, v in arrays.items()}
        parts[split] = arrays
    with CapsuleWriter(path, num_capsules=K, num_children=M, dim=D, dtype="float32") as writer:
        for split, arrays in parts.items():
            writer.append(split, arrays)
        writer.close({"task": "classes", "num_classes": CLASSES, "kind": "arrays"})
    return path


def verdicts(path: Path) -> dict[str, Verdict]:
    evidence = Evidence(data=DataFacts(path))
    checks = [check for check in OF_DATA if not check.id.startswith(("answers-", "identifiers-"))]
    return {check.id: check.look(evidence).verdict for check in checks}


def verdict_of(facts: DataFacts, check: str) -> Verdict:
    return BY_ID[check].look(Evidence(data=facts)).verdict


def test_detail_that_was_filled_in(tmp_path: Path) -> None:
    assert DataFacts(write(tmp_path / "a.h5", "filled in")).filler == pytest.approx(0.95, abs=0.03)
    assert DataFacts(write(tmp_path / "b.h5")).filler == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("noise", [0.01, 1.0, 3.0])
def test_healthy_data_raise_nothing(tmp_path: Path, noise: float) -> None:
    """The first is a task so easy that single coordinates may tell classes apart; none of them is a leak."""
    for seed in range(3):
        found = verdicts(write(tmp_path / f"{seed}.h5", seed=seed, noise=noise))
        assert set(found.values()) == {Verdict.OK}, found


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("constant", "labels-constant"),
        ("shuffled", "labels-shuffled"),
        ("leaked", "labels-leaked"),
        ("equal", "children-equal-sketch"),
        ("twins", "duplicate-across-splits"),
        ("nearly twins", "duplicate-across-splits"),
        ("revised", "duplicate-across-splits"),
        ("told", "children-equal-sketch"),
        ("one capsule late", "children-misplaced"),
        ("one row late", "children-misplaced"),
        ("other scale", "splits-differ"),
        ("other offset", "splits-differ"),
        ("other classes", "splits-differ"),
        ("rows in another order", "children-misplaced"),
        ("rows in another order in a part", "children-misplaced"),
        ("other encoder", "splits-differ"),
        ("counted from one", "splits-differ"),
    ],
)
def test_the_fault_is_named_and_nothing_before_it(tmp_path: Path, change: str, name: str) -> None:
    for seed in range(3):
        found = verdicts(write(tmp_path / f"{seed}.h5", change, seed))
        assert found[name] is Verdict.FAIL
        first = next(check for check, verdict in found.items() if verdict is Verdict.FAIL)
        assert first == name, found


def table(path: Path, rows: int = 1500, seed: int = 0, top: float = 0.0, signal: float = 1.0) -> Path:
    """Columns of a few values each, as tables of people have: rows lie dense, and many are nearly alike. One class has
    the share `top`; `signal`: how much columns say of the class.
    """
    random = np.random.default_rng(seed)
    with CapsuleWriter(path, num_capsules=6, num_children=1, dim=2, dtype="float32") as writer:
        for split, count in (("train", rows), ("validation", rows // 5)):
            labels = (random.random(count) > max(top, 0.5)).astype(np.int64)
            chosen = np.minimum(random.geometric(0.6, (count, 6)) - 1 + (random.random((count, 6)) < 0.1), 3)
            shifted = random.random((count, 6)) < 0.25 * signal * labels[:, None]
            values = np.stack([chosen == 0, np.minimum(chosen + shifted, 3) / 2], axis=-1).astype(np.float32)
            sketches = (0.3 * values + 0.1 * random.standard_normal(values.shape)).astype(np.float32)
            writer.append(split, {"sketches": sketches, "children": values[:, :, None], "labels": labels})
        writer.close({"task": "classes", "num_classes": 2, "kind": "arrays"})
    return path


@pytest.mark.parametrize("top", [0.0, 0.87])
def test_a_table_of_categories_raises_nothing(tmp_path: Path, top: float) -> None:
    """Neither rows that lie dense, nor values that are frequent, nor a class that most rows have is a fault."""
    for seed in range(4):
        found = verdicts(table(tmp_path / f"{seed}.h5", seed=seed, top=top))
        assert set(found.values()) == {Verdict.OK}, found


def test_children_of_few_kinds_are_not_told_by_any_sketch() -> None:
    """Sketches are blank, as those of a table may be: the most frequent kind is named as well by heeding none."""
    random = np.random.default_rng(0)
    kinds = random.choice([-0.9, 0.1, 1.1], (900, 3, 1, 1), p=[0.2, 0.6, 0.2])
    assert told_by_sketches(np.zeros((900, 3, 1)), kinds) == 0
    sketches = random.standard_normal((900, 3, 2))
    assert told_by_sketches(sketches, 2 * sketches[:, :, None]) > 0.95


@pytest.mark.parametrize("classes", [2, 4])
def test_features_that_say_nothing_tell_no_class_apart(classes: int) -> None:
    """Also where all scores are equal, in a file that is sorted by class."""
    labels = np.sort(np.random.default_rng(0).integers(0, classes, 400))
    assert told_apart([np.ones((400, 3))], labels) == pytest.approx(0.5)
    assert told_apart([np.eye(classes)[labels]], labels) == pytest.approx(1.0)


def test_a_frequent_category_is_no_filler(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    with CapsuleWriter(tmp_path / "a.h5", num_capsules=2, num_children=1, dim=1, dtype="float32") as writer:
        kinds = np.where(random.random((600, 2, 1, 1)) < 0.85, 0, random.integers(1, 4, (600, 2, 1, 1))).astype(float)
        kinds[:, 1] = np.where(random.random((600, 1, 1)) < 0.85, 0.5, random.standard_normal((600, 1, 1)))
        arrays = {"sketches": random.standard_normal((600, 2, 1)), "children": kinds}
        writer.append("train", {n: v.astype(np.float32) for n, v in arrays.items()} | {"labels": np.arange(600) % 2})
        writer.close({"task": "classes", "num_classes": 2, "kind": "arrays"})
    filler = DataFacts(tmp_path / "a.h5").filler  # of the second column, half of the capsules
    assert filler == pytest.approx(0.85 / 2, abs=0.03)


@pytest.mark.parametrize(("loss", "told"), [(0.08, Verdict.OK), (0.14, Verdict.WARN)])
def test_accuracy_says_little_where_one_class_is_nearly_all(tmp_path: Path, loss: float, told: Verdict) -> None:
    """To name it always is right for most samples; how sure the model is of it tells whether it knows more."""
    facts = DataFacts(table(tmp_path / "a.h5", rows=3000, top=0.97))
    at, noise = np.arange(5, 501, 5), 0.005 * np.random.default_rng(0).standard_normal(100)
    values = {"accuracy": facts.top_share or 0.0, "lm_loss": loss}
    metrics = Metrics({f"train/{name}": Series(at, value + noise) for name, value in values.items()})
    config = tiny.make_config(training={"total_steps": 500, "lr_warmup_steps": 20})
    finding = BY_ID["accuracy-at-chance"].look(Evidence(config, metrics, facts))
    assert finding.verdict is told, finding


@pytest.mark.parametrize(("top", "told"), [(0.34, Verdict.OK), (0.98, Verdict.FAIL)])
def test_classes_that_do_not_occur_are_not_counted(tmp_path: Path, top: float, told: Verdict) -> None:
    """Three classes of a long list may be all that a file is about."""
    random = np.random.default_rng(0)
    with CapsuleWriter(tmp_path / "a.h5", num_capsules=2, num_children=1, dim=4, dtype="float32") as writer:
        for split, count in (("train", 600), ("validation", 200)):
            labels = random.choice([3, 700, 2051], count, p=[top, (1 - top) / 2, (1 - top) / 2])
            sketches = random.standard_normal((count, 2, 4)).astype(np.float32)
            writer.append(split, {"sketches": sketches, "children": sketches[:, :, None] + 1, "labels": labels})
        writer.close({"task": "classes", "num_classes": 2052, "kind": "arrays"})
    found = BY_ID["labels-constant"].look(Evidence(data=DataFacts(tmp_path / "a.h5")))
    assert found.verdict is told, found
    assert "one class of 3 that occur (2052 are known)" in found.evidence


def test_labels_that_no_column_tells_are_told_of(tmp_path: Path) -> None:
    found = verdicts(table(tmp_path / "a.h5", top=0.87, signal=0.0))
    assert found["labels-shuffled"] is Verdict.WARN


def test_a_part_with_other_classes_is_no_broken_one() -> None:
    """A file that is ordered by place: in the first part nearly all samples are of one class, later the classes mix."""
    random = np.random.default_rng(0)
    labels = np.r_[(random.random(400) < 0.02).astype(int), random.integers(0, 2, 800)]
    features = random.standard_normal((1200, 8)) + 0.3 * labels[:, None]
    features[:400] -= 2.0
    assert broken_stretch(right_in_folds([features], labels), labels, float(np.bincount(labels).max() / 1200)) is None


def test_means_over_capsules_tell_what_no_place_does(tmp_path: Path) -> None:
    """As words do: in which capsule one stands says nothing."""
    random = np.random.default_rng(0)
    with CapsuleWriter(tmp_path / "a.h5", num_capsules=8, num_children=2, dim=16, dtype="float32") as writer:
        for split, count in (("train", 800), ("validation", 200)):
            labels = random.integers(0, 2, count)
            children = 0.2 * random.standard_normal((count, 8, 2, 16))
            children[np.arange(count), random.integers(0, 8, count), 0, labels] += 3.0
            sketches = 0.1 * random.standard_normal((count, 8, 16))
            arrays = {"sketches": sketches, "children": children}
            writer.append(split, {n: v.astype(np.float32) for n, v in arrays.items()} | {"labels": labels})
        writer.close({"task": "classes", "num_classes": 2, "kind": "arrays"})
    probe = DataFacts(tmp_path / "a.h5").probe
    assert probe is not None
    assert (probe.detail or 0) > 0.95 > 0.6 > probe.sketches


def test_copies_of_the_builder_are_left_out(tmp_path: Path) -> None:
    """Warped beyond recognition they would look like labels that belong to other samples."""
    random = np.random.default_rng(0)
    with CapsuleWriter(tmp_path / "a.h5", num_capsules=2, num_children=1, dim=4, dtype="float32") as writer:
        for split, originals, copies in (("train", 300, 2700), ("validation", 200, 0)):
            labels = random.integers(0, 2, originals + copies)
            sketches = random.standard_normal((originals + copies, 2, 4))
            sketches[:originals] += 2 * labels[:originals, None, None]
            arrays = {"sketches": sketches, "children": sketches[:, :, None] + 1.0}
            writer.append(split, {n: v.astype(np.float32) for n, v in arrays.items()} | {"labels": labels})
        writer.close({"task": "classes", "num_classes": 2, "kind": "arrays", "augmented_rows": 2700})
    probe = DataFacts(tmp_path / "a.h5").probe
    assert probe is not None
    assert probe.cases == 300
    assert probe.sketches > 0.95


@pytest.mark.parametrize("labels", ["as they are", "one in ten is wrong", "half of them are unknown"])
def test_copies_are_found_whatever_labels_are_like(tmp_path: Path, labels: str) -> None:
    whole, random = DataFacts(write(tmp_path / "whole.h5")), np.random.default_rng(0)
    with CapsuleWriter(tmp_path / "a.h5", num_capsules=K, num_children=M, dim=D, dtype="float32") as writer:
        train = read(whole, "train", np.arange(900))
        copies = {name: values[:300].copy() for name, values in train.items()}
        for name in ("sketches", "children"):
            copies[name] += (0.01 * random.standard_normal(copies[name].shape)).astype(np.float32)
        for arrays in (train, copies):
            known = arrays["labels"]
            if labels == "one in ten is wrong":
                known[:] = np.where(random.random(len(known)) < 0.1, random.integers(0, CLASSES, len(known)), known)
            if labels == "half of them are unknown":
                known[random.random(len(known)) < 0.5] = IGNORE_LABEL
        writer.append("train", train)
        writer.append("validation", copies)
        writer.close({"task": "classes", "num_classes": CLASSES, "kind": "arrays"})
    assert verdicts(tmp_path / "a.h5")["duplicate-across-splits"] is Verdict.FAIL


@pytest.mark.parametrize("originals", [40, 150])
def test_noisy_copies_of_a_few_originals_are_found_although_training_is_full_of_them(originals: int) -> None:
    """Digits that were multiplied with noise before they were split at random: held-out rows are no nearer to training
    rows than these are to each other, and a class is a few clusters.
    """
    records = list(DigitsReader().records(digests=False))
    pictures = np.stack([record.content.ravel() for record in records])
    classes = np.array([int(record.label or 0) for record in records])
    random = np.random.default_rng(0)
    drawn = random.choice(random.permutation(len(pictures))[:originals], 1600)
    noisy = pictures[drawn] + 0.1 * pictures.std() * random.standard_normal((len(drawn), pictures.shape[1]))

    def copies(rows: np.ndarray, labels: np.ndarray) -> Copies:
        return near_copies(rows[:1400], rows[1400:], Labelled(labels[:1400], labels[1400:]))

    found = copies(noisy.astype(np.float32), classes[drawn])
    assert found.within > 0.5 * found.near, "training rows lie no further apart, so that tells nothing"
    assert found.are_copies
    assert not copies(pictures, classes).are_copies


def test_short_texts_are_spread_over_the_splits_as_chance_has_it(tmp_path: Path) -> None:
    """Late capsules are zeros in nearly all rows, so no two small splits of them spread alike."""
    for seed in range(8):
        write_capsules(messages(seed), tmp_path / "a.h5")
        assert verdict_of(DataFacts(tmp_path / "a.h5"), "splits-differ") is Verdict.OK, f"seed {seed}"


@pytest.mark.parametrize("kinds", [60, 200, 1000])
def test_rare_categories_are_spread_over_the_splits_as_chance_has_it(kinds: int) -> None:
    """No coordinate varies in more than a few rows, so all that is left is what random deals give."""
    random = np.random.default_rng(kinds)
    for _ in range(20):
        train, other = (np.eye(kinds)[random.integers(0, kinds, count)] for count in (480, 60))
        assert shift_between(train, other).apart <= max(1.1 * shift_by_chance(train, other), 0.7)
        assert shift_between(train, other + 1).apart > max(1.1 * shift_by_chance(train, other + 1), 1)


@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_short_texts_in_another_scale_are_told(tmp_path: Path, factor: float) -> None:
    for seed in range(5):
        capsules = messages(seed)
        for name in ("sketches", "children"):
            capsules.splits["validation"][name] *= np.float32(factor)
        write_capsules(capsules, tmp_path / "a.h5")
        assert verdict_of(DataFacts(tmp_path / "a.h5"), "splits-differ") is Verdict.FAIL, f"seed {seed}"


def test_samples_that_are_all_the_same_are_seen_as_they_are(tmp_path: Path) -> None:
    """Probes see each once; what there is to open, and how splits differ, is asked of all."""
    whole = DataFacts(write(tmp_path / "whole.h5"))
    with CapsuleWriter(tmp_path / "a.h5", num_capsules=K, num_children=M, dim=D, dtype="float32") as writer:
        arrays = read(whole, "train", np.arange(900))
        for name in ("sketches", "children"):
            arrays[name][:855] = 0.0  # an encoder that has failed
        writer.append("train", arrays)
        writer.append("validation", read(whole, "validation", np.arange(300)))
        writer.close({"task": "classes", "num_classes": CLASSES, "kind": "arrays"})
    assert DataFacts(tmp_path / "a.h5").blank == pytest.approx(0.95)
    found = verdicts(tmp_path / "a.h5")
    assert found["splits-differ"] is Verdict.FAIL


def test_a_broken_part_is_named_by_where_it_lies_in_the_file(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, 2000)
    sketches = np.eye(CLASSES)[labels][:, None] + 0.1 * random.standard_normal((2000, K, CLASSES))
    labels[500:1000] = random.permutation(labels[500:1000])
    with CapsuleWriter(tmp_path / "a.h5", num_capsules=K, num_children=1, dim=CLASSES, dtype="float32") as writer:
        arrays = {"sketches": sketches, "children": sketches[:, :, None] + 1.0}
        for part in (slice(None), slice(None)):  # the second time as copies of a builder
            writer.append("train", {n: v[part].astype(np.float32) for n, v in arrays.items()} | {"labels": labels})
        writer.close({"task": "classes", "num_classes": CLASSES, "kind": "arrays", "augmented_rows": 2000})
    probe = DataFacts(tmp_path / "a.h5").probe
    assert probe is not None
    assert probe.broken is not None
    assert (probe.broken.begin, probe.broken.end) == (pytest.approx(0.125, abs=0.02), pytest.approx(0.25, abs=0.02))
    assert probe.broken.share == pytest.approx(0.25, abs=0.05)


def test_a_part_that_was_read_again_and_again(tmp_path: Path) -> None:
    whole = DataFacts(write(tmp_path / "whole.h5"))
    with CapsuleWriter(tmp_path / "again.h5", num_capsules=K, num_children=M, dim=D, dtype="float32") as writer:
        for split, rows in (("train", np.arange(900) % 90), ("validation", np.arange(300))):
            writer.append(split, read(whole, split, rows))
        writer.close({"task": "classes", "num_classes": CLASSES, "kind": "arrays"})
    again = DataFacts(tmp_path / "again.h5")
    assert whole.repeated == 0
    assert again.repeated == pytest.approx(0.9)
    assert again.probe is not None
    assert again.probe.cases == 90, "no sample is judged by its own copies"
    at = np.arange(1, 20)
    series = {"train/final_accuracy": Series(at, np.ones(19)), "eval/accuracy": Series(at[-1:], np.array([0.5]))}
    finding = BY_ID["overfitting"].look(Evidence(Config(), Metrics(series), again))
    assert finding.verdict is Verdict.FAIL
    assert "90 % of the training samples are exact repeats" in finding.evidence


def read(facts: DataFacts, split: str, rows: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    fields = ["sketches", "children", "labels"]
    arrays = facts.capsules.read(split, slice(0, int(rows.max()) + 1), fields)
    return {name: values[rows] for name, values in arrays.items()}


def test_the_leak_is_located(tmp_path: Path) -> None:
    leak = DataFacts(write(tmp_path / "leaked.h5", "leaked")).leak
    assert leak is not None
    assert set(leak.coordinates) == {(0, dim) for dim in range(CLASSES)}


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 9), st.sampled_from(["float16", "float32", "uint8"]), st.integers(0, 2**32 - 1)
)
def test_rows_hash_alike_only_if_they_are(rows: int, width: int, dtype: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    arrays: list[np.ndarray[Any, Any]] = [random.integers(0, 3, (rows, width)).astype(dtype) for _ in range(2)]
    hashes = row_hashes(arrays)
    whole = np.concatenate(arrays, axis=1)
    equal = (whole[:, None] == whole[None]).all(2)
    assert ((hashes[:, None] == hashes[None]) == equal).all()


def test_the_probe_reaches_what_there_is_to_reach() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 600)
    features = np.eye(3)[labels] + 0.1 * random.standard_normal((600, 3))
    assert right_in_folds([features], labels).mean() > 0.99
    assert abs(right_in_folds([features], random.permutation(labels)).mean() - 1 / 3) < 0.08
    wide = np.concatenate([features, 0.01 * random.standard_normal((600, 500))], axis=1)
    assert 0.34 < right_in_folds([wide], labels).mean() < 1


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8])
def test_a_part_with_other_samples_labels_is_found(share: float, by_class: bool) -> None:
    images, labels = load_digits(return_X_y=True)
    if by_class:
        order = np.argsort(labels, kind="stable")
        images, labels = images[order], labels[order]
    moved = labels[len(labels) - round(share * len(labels)) :]
    moved[:] = np.random.default_rng(0).permutation(moved)
    found = broken_stretch(right_in_folds([images], labels), labels, 0.1)
    if share == 0.0 or (by_class and share == 0.3):  # in a sorted file the last three classes may just be hard
        assert found is None
    else:
        assert found is not None
        assert (found.begin, found.end) == (pytest.approx(1 - share, abs=0.05), 1.0)
        assert found.inside < 0.2 < 0.75 < found.outside


@pytest.mark.parametrize(("detail", "expected"), [(0.9, Verdict.OK), (0.52, Verdict.FAIL)])
def test_children_by_which_a_probe_gains_are_none_that_sketches_tell(
    tmp_path: Path, detail: float, expected: Verdict
) -> None:
    """Of a few stock sentences a linear map tells which one a sketch is of, though not what it says."""
    facts = DataFacts(write(tmp_path / "stock.h5"))
    assert facts.probe is not None
    facts.__dict__ |= {"told": 0.7, "probe": replace(facts.probe, sketches=0.5, detail=detail)}
    check = next(check for check in CHECKS if check.id == "children-equal-sketch")
    assert check.look(Evidence(tiny.make_config(), data=facts)).verdict is expected
