"""Which sample goes to train, validation or test: stratified by label, duplicates together, a function of the seed.

Works on what the scan of the sources left: one label code and one duplicate-group number per row. Used by
`trm_core.data.build.plan`.
"""

from __future__ import annotations

import warnings

import numpy as np

from trm_core.config.schema import BuildConfig
from trm_core.data.build.records import Log
from trm_core.errors import DataError

TRAIN, VALIDATION, TEST = 0, 1, 2

_TEST_STREAM = 0x7E57
_VALIDATION_STREAM = 0x5A11


def duplicate_groups(digests: np.ndarray, named: list[str | None] | None = None) -> np.ndarray:
    """Number the sets of rows that must share a split.

    `digests` [N] uint64: equal means duplicate. `named` (optional, N entries): rows with the same name also stay
    together; both relations are closed transitively. Returns int64 [N], numbers from 0.
    """
    _, groups = np.unique(digests, return_inverse=True)
    if named is None or all(name is None for name in named):
        return groups.astype(np.int64)
    numbers: dict[str, int] = {}
    # A row without a name is alone.
    own = [
        len(named) + row if name is None else numbers.setdefault(name, len(numbers)) for row, name in enumerate(named)
    ]
    return joined(groups, np.asarray(own))


def joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Number the connected sets of rows: rows with the same number in either of two numberings, closed transitively.
    int64 [N] each, and so is the result.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    (ones, first), (others, second) = (np.unique(each, return_inverse=True) for each in (first, second))
    size = len(ones) + len(others)
    edges = coo_matrix((np.ones(len(first)), (first, len(ones) + second)), (size, size))
    _, component = connected_components(edges, directed=False)
    return np.unique(component[first], return_inverse=True)[1].astype(np.int64)


def assign_splits(labels: np.ndarray | None, groups: np.ndarray, config: BuildConfig, log: Log) -> np.ndarray:
    """Split code of every row, int8 [N] of TRAIN, VALIDATION, TEST.

    `labels` int64 [N] (any codes) or None where there are none; `groups` int64 [N] from `duplicate_groups`. Raises
    `DataError` if there are fewer samples than folds or nothing is left to train on.
    """
    count = len(groups)
    strata = np.zeros(count, dtype=np.int64) if labels is None else labels.astype(np.int64)
    split = np.full(count, TRAIN, dtype=np.int8)
    if config.folds is not None:
        folds = _fold_numbers(labels, groups, config, log)
        split[folds == config.fold] = TEST
    else:
        _take(split, strata, groups, config.test, TEST, config, _TEST_STREAM)
    # Shares are of all samples, as the user wrote them, but are taken from what the test split left.
    _take(split, strata, groups, config.validation, VALIDATION, config, _VALIDATION_STREAM)
    if not (split == TRAIN).any():
        raise DataError(
            f"{count} sample(s) leave nothing to train on", hint="lower data.build.validation and data.build.test"
        )
    for code, share, name in ((VALIDATION, config.validation, "validation"), (TEST, config.test, "test")):
        wanted = share > 0 if code == VALIDATION or config.folds is None else True
        if wanted and not (split == code).any():
            log(f"{count} samples are too few for a {name} share of {share:g}: the file has no {name} split")
    return split


def _fold_numbers(labels: np.ndarray | None, groups: np.ndarray, config: BuildConfig, log: Log) -> np.ndarray:
    """Fold of every row: scikit-learn's own folds of whole groups, each group with the label of its first row."""
    from sklearn.model_selection import KFold, StratifiedKFold

    assert config.folds is not None
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    firsts = np.sort(first)  # in source order, as rows that belong to no group are
    kind = KFold if labels is None else StratifiedKFold
    maker = kind(n_splits=config.folds, shuffle=config.shuffle, random_state=config.seed if config.shuffle else None)
    numbers = np.zeros(len(groups), dtype=np.int64)
    try:
        with warnings.catch_warnings():
            # A class rarer than the number of folds is legitimate here; it is simply missing from some folds.
            warnings.simplefilter("ignore", UserWarning)
            for number, (_, held_out) in enumerate(
                maker.split(np.zeros(len(firsts)), None if labels is None else labels[firsts])
            ):
                numbers[firsts[held_out]] = number
    except ValueError as error:
        what = "samples" if len(firsts) == len(groups) else "groups of samples"
        raise DataError(
            f"cannot make {config.folds} folds of {len(firsts)} {what}: {error}", hint="lower data.build.folds"
        ) from None
    if len(firsts) < len(groups):
        log(f"the folds divide {len(firsts)} groups: repeated samples, and pairs of one task, stay together")
    return np.asarray(numbers[first[group]])


def _take(
    split: np.ndarray,
    strata: np.ndarray,
    groups: np.ndarray,
    share: float,
    code: int,
    config: BuildConfig,
    stream: int,
) -> None:
    """Give `share` of all rows of every stratum, from those still in TRAIN, to split `code`, whole groups at a time.

    What rounding leaves over in one stratum is carried to the next, so that many small classes still add up.
    """
    if share <= 0.0:
        return
    rng = np.random.default_rng([config.seed % 2**63, stream])
    free = np.flatnonzero(split == TRAIN)
    # A group lies wholly in one stratum: that of its first row.
    members, first = np.unique(groups[free], return_index=True)
    sizes = np.bincount(np.searchsorted(members, groups[free]), minlength=len(members))
    group_stratum = strata[free[first]]
    chosen = np.zeros(len(members), dtype=bool)
    carried = 0.0
    for stratum in np.unique(group_stratum):
        own = np.flatnonzero(group_stratum == stratum)
        own = own[np.argsort(first[own], kind="stable")]
        # Shuffled: any groups; otherwise those at the source's end, so that splits are contiguous blocks in its order.
        order = rng.permutation(own) if config.shuffle else own[::-1]
        wanted = share * float((strata == stratum).sum()) + carried
        after = np.cumsum(sizes[order])
        before = after - sizes[order]
        # A group is taken when that brings the total nearer to the target; one is always left for training.
        taken = order[(before + after) / 2 < wanted]
        taken = taken[: len(own) - 1]
        chosen[taken] = True
        carried = wanted - float(sizes[taken].sum())
    split[free[chosen[np.searchsorted(members, groups[free])]]] = code
