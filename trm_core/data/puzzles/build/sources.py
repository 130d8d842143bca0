"""Which files hold the training puzzles, and which the held-out ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trm_core.errors import DataError, UsageError


@dataclass(frozen=True)
class Files:
    """`train` is split if `test` is empty."""

    train: list[Path]
    test: list[Path]


def find_files(sources: Sequence[Path], test_source: str | None, log: Callable[[str], None]) -> Files:
    """Files are taken as they are; of folders, train.csv and test.csv. `test_source` takes precedence over test.csv."""
    train: list[Path] = []
    test: list[Path] = []
    for source in sources:
        if not source.is_dir():
            train.append(source)
            continue
        if not (source / "train.csv").is_file():
            raise DataError(
                f"{source}: a folder without train.csv",
                hint="name a file, or a folder with train.csv and, optionally, test.csv",
            )
        train.append(source / "train.csv")
        if (source / "test.csv").is_file():
            test.append(source / "test.csv")
    if test_source is not None:
        if test:
            log(f"held-out puzzles: {test_source}, not {', '.join(map(str, test))}")
        test = [Path(test_source)]
    if test and len(test) < sum(source.is_dir() for source in sources) and test_source is None:
        raise UsageError("some of the folders have a test.csv and others do not", hint="name one with --test-source")
    return Files(train, test)
