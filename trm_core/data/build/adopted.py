"""`data.build.encoders_of`: builds a file that a model of another file can answer, with that file's encoders, layout,
classes and prices. Nothing is fitted, and all rows are held out as the split `test`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from trm_core.config.schema import BuildConfig
from trm_core.data.build.arrays import ArraysEncoder, ArraysReader
from trm_core.data.build.encode_table import TableEncoder
from trm_core.data.build.encoders import Layout
from trm_core.data.build.images import NpzImagesReader
from trm_core.data.build.modality import Modality
from trm_core.data.build.plan import Classes
from trm_core.data.build.tables import TableReader
from trm_core.data.recorded_encoder import RecordedEncoder
from trm_core.data.store.reader import open_capsules
from trm_core.errors import ConfigError, DataError


@dataclass(frozen=True)
class Adopted:
    """What is taken from the other file."""

    path: Path
    encoder: RecordedEncoder
    classes: Classes
    label_rank: int
    prices: np.ndarray

    @classmethod
    def of(cls, path: Path) -> Self:
        """Raises DataError for a file without encoders, or with concepts as targets, whose centres no file keeps."""
        encoder = RecordedEncoder.of_file(path)
        with open_capsules(path) as file:
            if file.task != "classes" or file.num_classes is None:
                raise DataError(
                    f"{path}: its targets are concepts, which cannot be found in other samples", hint="build it again"
                )
            names = file.manifest.get("class_names")
            return cls(path, encoder, Classes(file.num_classes, names), file.label_rank, file.prices)

    def settings(self, config: BuildConfig) -> BuildConfig:
        """The config with which sources are read as those of the other file were."""
        sizes = [one.settings.image_size for one in self.encoder.modalities if one.settings.image_size is not None]
        if config.image_size is not None or not sizes:
            return config
        return config.model_copy(update={"image_size": sizes[0]})

    def take(self, modalities: Sequence[Modality]) -> list[Layout]:
        """Give the sources the encoders; returns their layouts. Raises ConfigError or DataError where they do not
        fit.
        """
        kinds = tuple(modality.kind for modality in modalities)
        if kinds != self.encoder.kinds:
            raise ConfigError(
                f"data.build.encoders_of={self.path} encodes {' and '.join(self.encoder.kinds)}, the sources are "
                f"{' and '.join(kinds)}",
                hint="name sources of the same kinds in the same order, or say with data.build.kind what they are",
            )
        for modality, own in zip(modalities, self.encoder.modalities, strict=True):
            for reader in modality.readers:
                if isinstance(reader, TableReader) and isinstance(own.encoder, TableEncoder):
                    _require_columns(reader, own.encoder, self.path)
                if isinstance(reader, NpzImagesReader):
                    _take_scale(reader, own.settings.scale, self.path)
                if isinstance(reader, ArraysReader) and isinstance(own.encoder, ArraysEncoder):
                    self._require_arrays(reader, own.encoder.shapes)
            if modality.prices is not None and not np.array_equal(modality.prices, self.prices):
                raise DataError(
                    f"{modality.paths[0]}: its prices differ from those of {self.path}",
                    hint="leave them out, or give the same ones",
                )
            theirs, ours = modality.encoder.spec().get("height"), own.encoder.spec().get("height")
            if theirs != ours or modality.encoder.spec().get("width") != own.encoder.spec().get("width"):
                raise DataError(
                    f"{modality.paths[0]}: its pictures do not have the size of those of {self.path}",
                    hint="resize them to that size",
                )
            modality.encoder = own.encoder
            if isinstance(own.encoder, ArraysEncoder):  # labels per capsule come with the arrays
                modality.encoder = ArraysEncoder(own.encoder.shapes, self.label_rank)
        return [own.layout for own in self.encoder.modalities]

    def _require_arrays(self, reader: ArraysReader, shapes: Mapping[str, tuple[int, ...]]) -> None:
        here, there = (
            ", ".join(f"{name} {list(sizes[name])}" for name in sorted(sizes)) for sizes in (reader.shapes, shapes)
        )
        if here != there:
            raise DataError(
                f"{reader.path}: a row of its arrays is {here}; in {self.path} it is {there}",
                hint="bring them to those shapes",
            )
        if reader.label_rank != self.label_rank:
            kinds = ("no labels", "one label per sample", "one label per capsule")
            raise DataError(
                f"{reader.path}: has {kinds[reader.label_rank]}, but {self.path} has {kinds[self.label_rank]}",
                hint="name the labels with data.build.label; samples without any are for trm predict",
            )


def _require_columns(reader: TableReader, encoder: TableEncoder, path: Path) -> None:
    here, there = ([column.name for column in columns] for columns in (reader.columns, encoder.columns))
    if here != there:
        raise DataError(
            f"{reader.path}: its columns are {', '.join(here)}; those of {path} are {', '.join(there)}",
            hint="put them in that order, and name the label with data.build.label",
        )
    numeric = {column.name for column in encoder.columns if column.numeric}
    words = [
        column.name for column in reader.columns if column.distinct and not column.numeric and column.name in numeric
    ]
    if words:
        raise DataError(f"{reader.path}: column {words[0]!r} holds text here, but numbers in {path}")


def _take_scale(reader: NpzImagesReader, scale: float | None, path: Path) -> None:
    if (reader.scale is None) != (scale is None) or (scale is not None and (reader.scale or 0.0) > scale):
        here, there = ("uint8" if one is None else f"numbers up to {one:g}" for one in (reader.scale, scale))
        raise DataError(
            f"{reader.path}: its pixels are {here}, those of {path} {there}", hint="use the same scale for both"
        )
    reader.scale = scale
