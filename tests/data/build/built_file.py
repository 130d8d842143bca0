"""A file that a test built, read whole."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trm_core.data.build.report import BuildReport
from trm_core.data.store.reader import open_capsules

Build = Callable[..., "Built"]


class Built:
    """A built file, read whole."""

    def __init__(self, report: BuildReport, messages: list[str]) -> None:
        self.report = report
        self.messages = messages
        with open_capsules(report.path) as file:
            self.manifest = file.manifest
            self.prices = file.prices
            self.splits = {split: file.read(split, slice(None)) for split in file.rows}

    def all(self, field: str) -> np.ndarray:
        return np.concatenate([fields[field] for fields in self.splits.values()])

    def by_id(self, field: str) -> np.ndarray:
        """A field in the order of the source."""
        return self.all(field)[np.argsort(self.all("ids"), kind="stable")]
