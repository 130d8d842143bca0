"""Encodes raw samples as fields of a capsule file, with exactly the preprocessing that the file was built with.

    encoder = RecordedEncoder.of_file(Path("reviews.h5"))
    fields = encoder.encode(["Not bad, but far too long.", "I laughed all evening!"])

The file's manifest and its group `encoders` hold what is needed (docs/data-format.md). Built-in encoders need no torch
and reproduce the builder's bits exactly, whatever else is encoded with a sample; pretrained ones load their model, and
the rest of a batch may change their last bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trm_core.data.build.encoders import Encoder, Layout
from trm_core.data.build.recorded import Spec
from trm_core.data.build.registry import PRETRAINED, remake_encoder
from trm_core.data.fields import ENCODERS, FIELDS
from trm_core.data.preprocessing_folder import read_preprocessing, write_preprocessing
from trm_core.data.raw_samples import SampleSettings, content_of, sample_settings
from trm_core.data.store.encoder_arrays import HASHES, EncoderRecord, check_hashes
from trm_core.data.store.reader import CapsuleFile, open_capsules
from trm_core.data.threads import one_thread
from trm_core.errors import DataError

_HINT = "build the file again from its source with `trm build-capsules`"
_PIECE_BYTES, _PIECE_ROWS = 16 << 20, 256


@dataclass(frozen=True)
class RecordedModality:
    """One kind of samples: how they are read, encoded and laid out. `record` is what all of this was made from."""

    kind: str
    encoder: Encoder
    settings: SampleSettings
    layout: Layout
    record: EncoderRecord


class RecordedEncoder:
    """The encoders of one capsule file, one for each kind of samples in it.

    `modalities` and their `kinds` are in the order of the file's `modality` numbers.
    """

    def __init__(self, modalities: Sequence[RecordedModality]) -> None:
        self.modalities = tuple(modalities)
        self.kinds = tuple(modality.kind for modality in modalities)

    @classmethod
    def of_file(cls, path: str | Path, *, encoder_model: str | None = None) -> RecordedEncoder:
        """The encoders that a capsule file was built with.

        `encoder_model` says where the model of a pretrained encoder is now; its weights must be those of the build.
        Raises `DataError` if the file cannot be opened, holds no encoder (it was built by an earlier version), or holds
        one that is damaged or not known.
        """
        with open_capsules(path) as file:
            entries = file.manifest.get(ENCODERS)
            if entries is None:
                raise DataError(f"{path}: does not hold the encoder that it was built with", hint=_HINT)
            arrays = {name: file.read_encoder_array(name) for name in file.encoder_arrays}
            for message in check_hashes(f"{path}: {ENCODERS}/", file.manifest.get(HASHES), arrays):
                raise DataError(message, hint=_HINT)
            modalities = _modalities(str(path), entries, arrays, encoder_model)
            for modality in modalities:
                _require_fit(f"{path}: the recorded encoder of {modality.kind}", modality.layout, file)
        return cls(modalities)

    @classmethod
    def of_folder(cls, folder: str | Path, *, encoder_model: str | None = None) -> RecordedEncoder:
        """What `save` wrote. Raises `DataError` as `of_file` does."""
        entries, arrays = read_preprocessing(Path(folder))
        return cls(_modalities(str(folder), entries, arrays, encoder_model))

    def save(self, folder: str | Path) -> None:
        """Write `preprocessing.json` and `preprocessing.safetensors` into `folder`, which is created if necessary.

        Each file is written whole or not at all. Raises `DataError` or `ResourceError` if it cannot be written.
        """
        write_preprocessing(Path(folder), [modality.record for modality in self.modalities])

    def layout(self, kind: str | None = None) -> Layout:
        """Sizes and dtypes of what `encode` gives: k, m, D, R and how sketches are made."""
        return self.choose(kind).layout

    def takes_whole_pixels(self, kind: str | None = None) -> bool:
        """Whether the file was built from pictures with integer pixels, not from numbers between 0 and 1."""
        settings = self.choose(kind).settings
        return settings.whole or settings.scale is None

    def encode(
        self, samples: Sequence[Any], kind: str | None = None, names: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """The stored fields of n raw samples.

        `sketches` [n, k, D] and, where the file has them, `children` [n, k, m, D], `checksums` [n, k, R], `mask` [n, k]
        bool, `parents` [n, k] int64; embeddings in the file's dtype.

        `kind` is needed where the file mixes kinds. A sample is, by kind:

        - text: a str
        - images: an array [H, W] or [H, W, C], uint8 or float from 0 to 1 (where the source's arrays held other whole
          numbers, whole numbers are divided as those were), or the path of a picture file, which is resized if the
          builder resized
        - digits: an array [8, 8] of numbers from 0 to 16
        - arc: {"input": grid, "output": grid}; a grid is a list of rows of colours or an array [h, w]; without an
          output, its capsules are padding
        - table: a mapping of column names to texts or numbers (None: missing; other keys are not looked at), or all
          feature columns' values in their order
        - arrays: a mapping with the arrays that the source had (`sketches`, `children`, `checksums`, `parents`,
          `mask`)

        Raises `DataError` for the first sample of another form, named by its index or as in `names`.
        """
        modality = self.choose(kind)
        if not len(samples):
            raise DataError("there are no samples to encode", hint="give at least one")
        layout = modality.layout
        row_bytes = 4 * layout.num_capsules * layout.dim * (layout.num_children + 1)
        step = max(1, min(_PIECE_ROWS, _PIECE_BYTES // row_bytes))
        names = names or [f"sample {number}" for number in range(len(samples))]
        parts = [
            _encode_piece(modality, samples[begin : begin + step], names[begin : begin + step])
            for begin in range(0, len(samples), step)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def choose(self, kind: str | None) -> RecordedModality:
        """The modality of a kind, or the only one. Raises `DataError`."""
        there = ", ".join(self.kinds)
        if kind is None:
            if len(self.modalities) > 1:
                raise DataError(
                    f"samples of which kind? There are {there}",
                    hint="name it: kind=... in Python, --kind on the command line",
                )
            return self.modalities[0]
        for modality in self.modalities:
            if modality.kind == kind:
                return modality
        raise DataError(f"there is no encoder of {kind!r}; there are {there}")


def _encode_piece(modality: RecordedModality, samples: Sequence[Any], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Stored fields of a few samples; `names`: what they are called in messages."""
    contents = []
    for sample, name in zip(samples, names, strict=True):
        try:
            contents.append(content_of(modality.kind, modality.encoder, modality.settings, sample))
        except DataError as error:
            raise _of_sample(name, error) from error
    try:
        return _fields(modality, contents)
    except DataError as error:
        if len(contents) > 1:  # one by one, to find the bad one
            for sample, name in zip(samples, names, strict=True):
                _encode_piece(modality, [sample], [name])
        raise _of_sample(names[0], error) from error


def _of_sample(name: str, error: DataError) -> DataError:
    """The error with the sample's name in front, unless its message begins with that already, as a file's does."""
    message = error.message if error.message.startswith(f"{name}:") else f"{name}: {error.message}"
    return DataError(message, hint=error.hint)


def _fields(modality: RecordedModality, contents: list[Any]) -> dict[str, np.ndarray]:
    # Values of untrusted arrays may overflow; the result is refused below.
    with one_thread(), np.errstate(over="ignore", invalid="ignore"):
        fields = modality.layout.finish(modality.encoder.encode(contents))
    for name, values in fields.items():
        if FIELDS[name].is_embedding and not np.isfinite(values).all():
            raise DataError(f"its {name} hold NaN or infinity")
    return fields


def _modalities(
    where: str, entries: Any, arrays: Mapping[str, np.ndarray], encoder_model: str | None
) -> list[RecordedModality]:
    """The recorded modalities. Raises `DataError` that names the file."""
    try:
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise DataError("it has no proper list of encoders")
        if encoder_model is not None:
            entries = _with_model(entries, encoder_model)
        state: list[dict[str, np.ndarray]] = [{} for _ in entries]
        for key, array in arrays.items():
            number, _, name = key.partition("/")
            if not number.isdecimal() or len(number) > 2 or int(number) >= len(entries):
                raise DataError(f"the array {key!r:.80} belongs to no encoder")
            state[int(number)][name] = array
        found = [_modality(entry, own) for entry, own in zip(entries, state, strict=True)]
        if len({modality.kind for modality in found}) < len(found):
            raise DataError("two of its encoders are of one kind")
    except DataError as error:
        raise DataError(f"{where}: {error.message}", hint=error.hint or _HINT) from error
    return found


def _modality(entry: Mapping[str, Any], state: dict[str, np.ndarray]) -> RecordedModality:
    spec = Spec(entry, "the recorded encoder")
    kind, name = spec.text("kind"), spec.text("name")
    layout = Layout.from_spec(spec.part("layout"))
    samples, settings = spec.part("samples"), entry.get("spec")
    spec.part("spec")
    spec.close()
    encoder = remake_encoder(name, settings if isinstance(settings, dict) else {}, state)
    for axis, own, room in (
        ("num_capsules", encoder.num_capsules, layout.num_capsules),
        ("num_children", encoder.num_children, layout.num_children),
        ("dim", encoder.dim, layout.dim),
    ):
        if own > room:
            raise DataError(f"the recorded encoder {name} has {axis}={own}, its layout {room}")
    if bool(encoder.num_children) != bool(layout.num_children):
        raise DataError(f"the recorded encoder {name} and its layout differ in whether there are children")
    if not layout.num_children and layout.checksum_dim != encoder.given_checksums:
        raise DataError(f"the recorded encoder {name} does not give checksums of {layout.checksum_dim}")
    return RecordedModality(
        kind, encoder, sample_settings(kind, encoder, samples), layout, EncoderRecord(dict(entry), encoder.state())
    )


def _with_model(entries: list[Any], model: str) -> list[Any]:
    """The entries with `model` as the location of the one pretrained model."""
    pretrained = [number for number, entry in enumerate(entries) if entry.get("name") in PRETRAINED]
    if len(pretrained) != 1:
        raise DataError(f"encoder_model={model}, but it has {len(pretrained)} pretrained encoders", hint="leave it out")
    entries = list(entries)
    entry = entries[pretrained[0]]
    spec = entry.get("spec")
    if isinstance(spec, dict) and isinstance(spec.get("model"), dict):
        entries[pretrained[0]] = entry | {"spec": spec | {"model": spec["model"] | {"name": model}}}
    return entries


def _require_fit(where: str, layout: Layout, file: CapsuleFile) -> None:
    """The layout must give what the file stores."""
    pairs: tuple[tuple[str, Any, Any], ...] = (
        ("num_capsules", layout.num_capsules, file.num_capsules),
        ("num_children", layout.num_children, file.num_children),
        ("dim", layout.dim, file.dim),
        ("checksum_dim", layout.checksum_dim, file.checksum_dim),
        ("dtype", layout.dtype, file.layout.dtypes["sketches"]),
        ("with_mask", layout.with_mask, file.has("mask")),
        ("with_parents", layout.with_parents, file.has("parents")),
    )
    for name, recorded, stored in pairs:
        if recorded != stored:
            raise DataError(f"{where} has {name}={recorded}, the file {stored}", hint=_HINT)
    seed = file.manifest.get("checksum_seed")
    if seed is not None and seed != layout.checksum_seed:
        raise DataError(f"{where} has checksum_seed={layout.checksum_seed}, the file {seed}", hint=_HINT)
