"""One way to build a file in the tests of the builders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from built_file import Build, Built
from forked import forked_workers

from trm_core.config.schema import BuildConfig
from trm_core.data.build.pipeline import build_capsules


@pytest.fixture(autouse=True, scope="session")
def _forked_workers() -> Iterator[None]:
    """A worker's start takes longer than its work; that of a spawned one is for tests/data/test_workers.py."""
    with forked_workers():
        yield


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def run(*sources: str | Path, name: str = "out.h5", **settings: Any) -> Built:
        messages: list[str] = []
        report = build_capsules(
            [str(source) for source in sources], tmp_path / name, BuildConfig(**settings), log=messages.append
        )
        return Built(report, messages)

    return run
