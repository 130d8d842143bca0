"""One kind of source, opened: its readers, its encoder, its prices. Only this module maps kinds to code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trm_core.config.schema import BuildConfig
from trm_core.data.build.arc import ArcReader
from trm_core.data.build.arrays import ArraysEncoder, ArraysReader, array_reader, legacy_reader
from trm_core.data.build.digits import SIZE, DigitsReader
from trm_core.data.build.encode_arc import FEATURES, ArcEncoder
from trm_core.data.build.encode_images import MAX_PIXEL_DIM, PatchPCAEncoder, PixelEncoder
from trm_core.data.build.encode_pretrained_images import PretrainedPictureEncoder
from trm_core.data.build.encode_pretrained_text import SentenceEncoder
from trm_core.data.build.encode_table import group_prices, make_groups, table_encoder
from trm_core.data.build.encode_text import HashingSvdEncoder, TfidfSvdEncoder
from trm_core.data.build.encoders import Encoder, Layout
from trm_core.data.build.extras import PICTURE_ENCODERS, TEXT_ENCODERS, is_pretrained, model_spec
from trm_core.data.build.folders import visible
from trm_core.data.build.images import FolderReader, NpzImagesReader
from trm_core.data.build.lattice import make_lattice
from trm_core.data.build.records import NO_LABELS, Log, Reader
from trm_core.data.build.tables import TableReader, united_columns
from trm_core.data.build.text import ParagraphReader, RowTextReader, TextFolderReader, labelled_lines
from trm_core.data.store.encoder_arrays import EncoderRecord
from trm_core.errors import ConfigError, DataError

_TEXT_CAPSULES, _TEXT_CHILDREN, _TEXT_DIM = 8, 4, 64
_ARC_CAPSULES, _CHILDREN = 18, 4
_IMAGE_CAPSULES = 16
_LARGE_TEXT_BYTES = 200 << 20


@dataclass
class Modality:
    """All sources of one kind, in the order they were given. `paths[i]` was opened as `readers[i]`."""

    kind: str
    reason: str
    paths: list[str]
    readers: Sequence[Reader]
    encoder: Encoder
    prices: np.ndarray | None = None


def open_modality(kind: str, reason: str, paths: list[str], config: BuildConfig, log: Log) -> Modality:
    """Open every source of a kind and choose its encoder. Raises `DataError` or `ConfigError`."""
    if config.encoder_model is not None and not is_pretrained(config):
        raise ConfigError(
            f"data.build.encoder_model={config.encoder_model} is for pretrained encoders, not for {config.encoder}",
            hint=f"set data.build.encoder to {', '.join((*TEXT_ENCODERS, *PICTURE_ENCODERS))}, or leave it out",
        )
    readers, encoder, prices = _OPENERS[kind](paths, config, log)
    return Modality(kind, reason, paths, readers, encoder, prices)


def record_encoder(modality: Modality, layout: Layout) -> EncoderRecord:
    """Everything from which `trm_core.data.recorded_encoder` makes stored fields of this kind's raw samples again."""
    entry = {
        "kind": modality.kind,
        "name": modality.encoder.name,
        "spec": modality.encoder.spec(),
        "samples": _sample_settings(modality),
        "layout": layout.spec(),
    }
    return EncoderRecord(entry, modality.encoder.state())


def _sample_settings(modality: Modality) -> dict[str, Any]:
    """What the readers did before the encoder. `image_size`: what picture files were resized to; `scale`: what the
    pixels of npz arrays other than uint8 were divided by, null where sources differ; `whole`: whether those are
    integers.
    """
    if modality.kind != "images":
        return {}
    sizes = {reader.size for reader in modality.readers if isinstance(reader, FolderReader)}
    scales = {reader.scale if isinstance(reader, NpzImagesReader) else None for reader in modality.readers}
    scale = scales.pop() if len(scales) == 1 else None
    whole = [isinstance(reader, NpzImagesReader) and reader.whole for reader in modality.readers]
    return {
        "image_size": sizes.pop() if len(sizes) == 1 else None,
        "scale": scale,
        "whole": scale is not None and all(whole),
    }


_Opened = tuple[Sequence[Reader], Encoder, np.ndarray | None]


def _digits(paths: list[str], config: BuildConfig, log: Log) -> _Opened:
    if config.image_size not in (None, SIZE):
        raise ConfigError(f"data.build.image_size={config.image_size}: the digits are {SIZE} x {SIZE}, not resized")
    if config.label not in (None, NO_LABELS):
        raise ConfigError(
            f"data.build.label={config.label}: the digits have no columns", hint=f"leave it out, or say {NO_LABELS}"
        )
    return [DigitsReader(config.label is None) for _ in paths], _picture_encoder(DigitsReader.shape, config, log), None


def _images(paths: list[str], config: BuildConfig, log: Log) -> _Opened:
    readers: list[FolderReader | NpzImagesReader] = []
    for path in paths:
        if Path(path).is_dir():
            readers.append(FolderReader(path, config.image_size, log, config.label != NO_LABELS))
        else:
            arrays = NpzImagesReader(path, config.label, log)
            if config.image_size is not None and arrays.shape[:2] != (config.image_size, config.image_size):
                raise ConfigError(f"{path}: images in an npz file are not resized", hint="drop data.build.image_size")
            readers.append(arrays)
    for reader in readers[1:]:
        if reader.shape != readers[0].shape:
            raise DataError(
                f"{reader.path}: pictures of {reader.shape}, but {readers[0].path} has {readers[0].shape}",
                hint="give data.build.image_size, or build them separately",
            )
    return readers, _picture_encoder(readers[0].shape, config, log), None


def _picture_encoder(shape: tuple[int, int, int], config: BuildConfig, log: Log) -> Encoder:
    """`pixels` where a sub-cell has few values, else `patch-pca`; a pretrained model where one is asked for."""
    height, width, channels = shape
    lattice = make_lattice(
        height, width, _or(config.num_capsules, _IMAGE_CAPSULES), _or(config.num_children, _CHILDREN)
    )
    rows, columns = lattice.subcell_shape
    values = rows * columns * channels
    limit = _or(config.dim, MAX_PIXEL_DIM)
    name = config.encoder
    if name == "auto":
        name = "pixels" if values <= limit else "patch-pca"
        log(f"encoder {name}: a sub-cell has {values} values (up to {limit} are kept as they are)")
    _check_encoder("pictures", name, ("pixels", "patch-pca", *PICTURE_ENCODERS))
    if name in PICTURE_ENCODERS:
        return PretrainedPictureEncoder(
            lattice, channels, None if config.dim == "auto" else config.dim, model_spec(config)
        )
    if name == "patch-pca":
        return PatchPCAEncoder(lattice, channels, min(limit, values) if config.dim == "auto" else limit)
    if config.dim != "auto" and values > config.dim:
        raise ConfigError(
            f"encoder pixels needs data.build.dim of at least {values} (a sub-cell is {rows} x {columns} x {channels})",
            hint="leave data.build.dim at auto, or use encoder patch-pca",
        )
    return PixelEncoder(lattice, channels, _or(config.dim, values))


def _text(paths: list[str], config: BuildConfig, log: Log) -> _Opened:
    readers = [_text_reader(path, config, log) for path in paths]
    k, m = _or(config.num_capsules, _TEXT_CAPSULES), _or(config.num_children, _TEXT_CHILDREN)
    name = config.encoder
    if name == "auto":
        size = sum(file.stat().st_size for path in paths for file in _files_of(Path(path)))
        name = "hashing-svd" if size > _LARGE_TEXT_BYTES else "tfidf-svd"
        log(f"encoder {name}: {size / 1e6:.1f} MB of text")
    _check_encoder("text", name, ("tfidf-svd", "hashing-svd", *TEXT_ENCODERS))
    if name in TEXT_ENCODERS:
        return readers, SentenceEncoder(k, m, None if config.dim == "auto" else config.dim, model_spec(config)), None
    dim = _or(config.dim, _TEXT_DIM)
    return readers, (TfidfSvdEncoder if name == "tfidf-svd" else HashingSvdEncoder)(k, m, dim), None


def _text_reader(path: str, config: BuildConfig, log: Log) -> Reader:
    folder = Path(path).is_dir()
    if not folder and (Path(path).suffix.lower() != ".txt" or labelled_lines(Path(path)) is not None):
        return RowTextReader(path, config.label, config.text, log)
    if config.label not in (None, NO_LABELS):
        what = "a folder of texts" if folder else "plain text"
        raise DataError(f"{path}: {what} has no column {config.label!r}", hint="leave data.build.label out")
    return TextFolderReader(path, log, config.label != NO_LABELS) if folder else ParagraphReader(path, log)


def _files_of(path: Path) -> list[Path]:
    return [file for file in visible(path, "**/*") if file.is_file()] if path.is_dir() else [path]


def _arc(paths: list[str], config: BuildConfig, log: Log) -> _Opened:
    _check_encoder("ARC grids", config.encoder, ("auto",))
    readers = [ArcReader(path, config.label, log) for path in paths]
    k, m = _or(config.num_capsules, _ARC_CAPSULES), _or(config.num_children, _CHILDREN)
    return readers, ArcEncoder(k, m, _or(config.dim, FEATURES)), None


def _table(paths: list[str], config: BuildConfig, log: Log) -> _Opened:
    _check_encoder("tables", config.encoder, ("auto", "columns"))
    if config.text is not None:
        raise ConfigError(f"data.build.text={config.text} is for text, not for tables", hint="use --kind text")
    readers = [TableReader(path, config, log) for path in paths]
    columns = united_columns(readers)
    groups = make_groups(columns, config, log)
    return readers, table_encoder(columns, groups, config), group_prices(groups, config.prices)


def _arrays(paths: list[str], config: BuildConfig, log: Log) -> _Opened:
    return _pass_through([array_reader(path, config.label, log) for path in paths], config)


def _legacy(paths: list[str], config: BuildConfig, log: Log) -> _Opened:
    return _pass_through([legacy_reader(path, config.label, log) for path in paths], config)


def _pass_through(readers: list[ArraysReader], config: BuildConfig) -> _Opened:
    _check_encoder("arrays", config.encoder, ("auto", "none"))
    first = readers[0]
    for reader in readers[1:]:
        if reader.shapes != first.shapes or reader.label_rank != first.label_rank:
            raise DataError(f"{reader.path}: its arrays differ in shape from those of {first.path}: {reader.shapes}")
        if not _same(reader.prices, first.prices):
            raise DataError(f"{reader.path} and {first.path} have different prices", hint="give both the same prices")
    encoder = ArraysEncoder(first.shapes, first.label_rank)
    for key, there in (
        ("num_capsules", encoder.num_capsules),
        ("num_children", encoder.num_children),
        ("dim", encoder.dim),
    ):
        asked = getattr(config, key)
        if asked not in ("auto", there):
            raise ConfigError(f"data.build.{key}={asked}, but {first.path} holds {there}", hint="leave it at auto")
    return readers, encoder, first.prices


def _same(some: np.ndarray | None, others: np.ndarray | None) -> bool:
    return others is None if some is None else others is not None and np.array_equal(some, others)


def _or(value: int | str, default: int) -> int:
    return value if isinstance(value, int) else default


def _check_encoder(kind: str, name: str, choices: Sequence[str]) -> None:
    if name not in choices:
        raise ConfigError(f"data.build.encoder={name} does not fit {kind}", hint=f"use {' or '.join(choices)}")


_OPENERS: dict[str, Callable[[list[str], BuildConfig, Log], _Opened]] = {
    "digits": _digits,
    "images": _images,
    "text": _text,
    "arc": _arc,
    "table": _table,
    "arrays": _arrays,
    "legacy": _legacy,
}
