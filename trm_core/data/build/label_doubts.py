"""What looks odd about the labels of a source but may be intended: logged while the source is scanned."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from trm_core.data.build.delimited import is_number
from trm_core.data.build.records import Log

_MANY_NUMBERS = 20
_FEW_SAMPLES = 10  # per class


def say_doubts(names: Sequence[str], codes: np.ndarray, digests: np.ndarray, log: Log) -> None:
    """Logs names that look alike, names that look like amounts, and samples that have a duplicate with another label.

    codes, digests [N]: each sample's index into `names`, or -1, and its content.
    """
    _say_alike(names, log)
    labelled = codes >= 0
    _say_amounts(names, int(labelled.sum()), log)
    clashing = contradicted(codes[labelled], digests[labelled])
    if clashing:
        log(f"{clashing} samples are identical to one with another label: no model can tell these apart")


def _say_alike(names: Sequence[str], log: Log) -> None:
    alike: dict[str, list[str]] = {}
    for name in sorted(names):
        alike.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    if groups := [same for same in alike.values() if len(same) > 1]:
        others = f", and {len(groups) - 1} more" if len(groups) > 1 else ""
        # Names that differ only in their bytes look the same unless escaped.
        shown = " and ".join(map(ascii if len({*map(str.casefold, groups[0])}) > 1 else repr, groups[0][:3]))
        log(f"labels that differ only in case, spaces or encoding of letters are different classes: {shown}{others}")


def _say_amounts(names: Sequence[str], labelled: int, log: Log) -> None:
    if len(names) > _MANY_NUMBERS and all(is_number(name) for name in names):
        fractions = any(not float(name).is_integer() for name in names)
        if fractions or labelled < _FEW_SAMPLES * len(names):
            log(
                f"the label holds {len(names)} different numbers in {labelled} samples: if these are amounts and not "
                f"classes, bin them first"
            )


def contradicted(codes: np.ndarray, digests: np.ndarray) -> int:
    """How many of the samples [N] have the same content as another one but a different label."""
    contents, twins = np.unique(digests, return_inverse=True)
    least, most = (np.full(len(contents), fill, np.int64) for fill in (np.iinfo(np.int64).max, -1))
    np.minimum.at(least, twins, codes)
    np.maximum.at(most, twins, codes)
    return int((least < most)[twins].sum())
