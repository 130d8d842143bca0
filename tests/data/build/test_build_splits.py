"""Splits: stratified, deterministic, duplicates together, and scikit-learn's own folds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_core.config.schema import BuildConfig
from trm_core.data.build.records import silent
from trm_core.data.build.splits import TEST, TRAIN, VALIDATION, assign_splits, duplicate_groups
from trm_core.data.build.twins import separate_twins
from trm_core.errors import DataError


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=4, max_size=200),
    st.integers(0, 5),
    st.sampled_from([0.0, 0.1, 0.3]),
    st.sampled_from([0.0, 0.1, 0.4]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_duplicates_never_cross_and_everything_is_assigned(
    rows: list[tuple[int, int]], seed: int, validation: float, test: float, shuffle: bool
) -> None:
    digests = np.asarray([digest for digest, _ in rows], dtype=np.uint64)
    labels = np.asarray([label for _, label in rows])
    config = BuildConfig(seed=seed, validation=validation, test=test, shuffle=shuffle)
    split = assign_splits(labels, duplicate_groups(digests), config, silent)
    assert set(split) <= {TRAIN, VALIDATION, TEST}
    assert (split == TRAIN).any()
    for digest in set(digests.tolist()):
        assert len(set(split[digests == digest])) == 1
    again = assign_splits(labels, duplicate_groups(digests), config, silent)
    assert np.array_equal(split, again)


def test_shares_are_kept_in_every_class() -> None:
    labels = np.repeat([0, 1, 2], [500, 100, 20])
    split = assign_splits(labels, np.arange(620), BuildConfig(validation=0.1, test=0.2), silent)
    for label, count in ((0, 500), (1, 100), (2, 20)):
        assert np.bincount(split[labels == label], minlength=3).tolist() == [0.7 * count, 0.1 * count, 0.2 * count]


def test_many_small_classes_still_add_up() -> None:
    labels = np.repeat(np.arange(100), 4)
    split = assign_splits(labels, np.arange(400), BuildConfig(validation=0.0, test=0.1), silent)
    assert abs(int((split == TEST).sum()) - 40) <= 1
    assert all((split[labels == label] == TRAIN).any() for label in range(100))


def test_seeds_differ_and_unshuffled_is_the_end_of_the_source() -> None:
    labels, groups = np.zeros(100, dtype=int), np.arange(100)
    one, two = (assign_splits(labels, groups, BuildConfig(seed=seed), silent) for seed in (0, 1))
    assert not np.array_equal(one, two)
    plain = assign_splits(labels, groups, BuildConfig(shuffle=False), silent)
    assert np.array_equal(plain, np.repeat([TRAIN, VALIDATION, TEST], [80, 10, 10]))


@pytest.mark.parametrize("shuffle", [True, False])
def test_folds_are_those_of_scikit_learn(shuffle: bool) -> None:
    from sklearn.model_selection import StratifiedKFold

    labels = np.random.default_rng(0).integers(0, 5, 203)
    expected = list(StratifiedKFold(4, shuffle=shuffle, random_state=7 if shuffle else None).split(labels, labels))
    for fold in range(4):
        config = BuildConfig(folds=4, fold=fold, shuffle=shuffle, seed=7)
        split = assign_splits(labels, np.arange(203), config, silent)
        assert np.array_equal(np.flatnonzero(split == TEST), expected[fold][1])
        assert 15 <= (split == VALIDATION).sum() <= 25


def test_a_duplicate_joins_its_earliest_fold() -> None:
    labels = np.zeros(20, dtype=int)
    groups = np.arange(20)
    groups[19] = 0  # row 0 is in fold 0, row 19 in fold 3
    tests = [
        np.flatnonzero(
            assign_splits(labels, groups, BuildConfig(folds=4, fold=fold, shuffle=False, validation=0.0), silent)
            == TEST
        ).tolist()
        for fold in range(4)
    ]
    assert tests == [[0, 1, 2, 3, 4, 19], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14], [15, 16, 17, 18]]


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_folds_of_groups_are_about_as_large(shuffle: bool, labelled: bool) -> None:
    """Tasks of ARC have two to ten pairs."""
    groups = np.repeat(np.arange(400), np.random.default_rng(0).integers(2, 11, 400))
    labels = groups % 3 if labelled else None
    said: list[str] = []
    tests = []
    for fold in range(5):
        config = BuildConfig(folds=5, fold=fold, validation=0.0, shuffle=shuffle)
        tests.append(assign_splits(labels, groups, config, said.append) == TEST)
    assert (np.sum(tests, axis=0) == 1).all()  # every row once
    for test in tests:
        assert abs(test.sum() - len(groups) / 5) < len(groups) / 25
        assert not set(groups[test]) & set(groups[~test])
    assert said[0].startswith("the folds divide 400 groups: ")


def test_too_few_groups_for_the_folds() -> None:
    with pytest.raises(DataError, match="4 folds of 2 groups of samples"):
        assign_splits(None, np.arange(10) // 5, BuildConfig(folds=4), silent)


def test_a_twin_that_moves_takes_its_group_along() -> None:
    split = np.asarray([TRAIN, TEST, TEST, VALIDATION, TEST, TRAIN], dtype=np.int8)
    digests = np.asarray([1, 1, 2, 2, 3, 4], dtype=np.uint64)
    groups = np.asarray([0, 1, 1, 2, 3, 4])
    alone = np.zeros(6, dtype=bool)
    assert separate_twins(split, digests, alone, silent).tolist() == [TRAIN, TRAIN, VALIDATION, VALIDATION, TEST, TRAIN]
    # Row 1 joins row 0; row 2 is of its group, and row 3 the twin of row 2.
    said: list[str] = []
    assert separate_twins(split, digests, alone, said.append, groups).tolist() == [TRAIN] * 4 + [TEST, TRAIN]
    assert said[0].startswith("3 held-out samples look the same")


def test_named_groups_and_duplicates_are_joined_transitively() -> None:
    digests = np.asarray([1, 2, 2, 3, 4], dtype=np.uint64)
    groups = duplicate_groups(digests, ["a", "a", None, "b", "b"])
    assert groups[0] == groups[1] == groups[2]
    assert groups[3] == groups[4] != groups[0]


def test_too_few_samples_for_the_folds() -> None:
    with pytest.raises(DataError, match="4 folds of 3 samples"):
        assign_splits(np.zeros(3, dtype=int), np.arange(3), BuildConfig(folds=4), silent)


def test_a_split_that_stays_empty_is_said() -> None:
    said: list[str] = []
    assign_splits(None, np.arange(4), BuildConfig(validation=0.1, test=0.0), said.append)
    assert "no validation split" in said[0]
