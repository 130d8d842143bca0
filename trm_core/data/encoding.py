"""What the numbers in a capsule file mean: which encoders made them, and which classes the labels stand for.

Sizes alone do not tell: an encoder fitted on other samples gives different numbers of the same shape, and a model that
reads them performs at chance.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

from trm_core.data.build.extras import PICTURE_ENCODERS, TEXT_ENCODERS
from trm_core.data.fields import CONCEPTS_SHA256, ENCODERS
from trm_core.data.store.encoder_arrays import HASHES

_PRETRAINED = (*TEXT_ENCODERS, *PICTURE_ENCODERS)
_SKETCH = ("sketch", "sketch_dims")
_NEW_FILE = (
    "build it with the encoders of the training file: trm build-capsules SOURCE --encoders-of TRAINING.h5 --out FILE; "
    "raw samples without labels are for trm predict"
)
_ONE_FILE = (
    "build both sources into one file, whose splits share their concepts: trm build-capsules SOURCE SOURCE --out FILE"
)


class Contradiction(NamedTuple):
    """Why the numbers of two files do not mean the same, and what to do about it."""

    why: str
    hint: str


@dataclass(frozen=True)
class Encoding:
    """What a file says about itself; None where it says nothing.

    encoders: a hash of everything that encodes samples. class_names: also None where classes have no names.
    checksum_seed: seed of the checksums' projection. concepts_sha256: hash of the k-means centres that concept ids
    refer to.
    """

    encoders: str | None
    class_names: list[str] | None
    checksum_seed: int | None = None
    task: str | None = None
    concepts_sha256: str | None = None
    content_hash: str | None = None

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Self:
        """From the manifest of a capsule file."""
        return cls.of_record({**manifest, "encoders": _hash_of(manifest)})

    @classmethod
    def of_run(cls, data: Mapping[str, Any]) -> Self:
        """For the first file that a run was trained on, from the run's `dataset.json`."""
        files = data.get("train")
        return cls.of_record(files[0] if isinstance(files, list) and files else None)

    @classmethod
    def of_record(cls, record: Any) -> Self:
        """From a record with the fields of `as_record`; anything else gives an encoding that says nothing."""
        known = record if isinstance(record, dict) else {}
        names, seed = known.get("class_names"), known.get("checksum_seed")
        named = isinstance(names, list) and all(isinstance(name, str) for name in names)
        texts = {name: known.get(name) for name in ("encoders", "task", CONCEPTS_SHA256, "content_hash")}
        return cls(
            class_names=names if named else None,
            checksum_seed=seed if type(seed) is int else None,
            **{name: text if isinstance(text, str) else None for name, text in texts.items()},
        )

    def as_record(self) -> dict[str, Any]:
        return asdict(self)

    def contradiction(self, other: Encoding) -> Contradiction | None:
        """Why a model trained on rows of this file cannot read rows of `other`; None where nothing speaks against
        it.
        """
        if self.task == other.task == "concepts" and not self._same_concepts(other):
            return Contradiction(
                "its labels are concepts that were found in it, those of the other file are others", _ONE_FILE
            )
        if _differ(self.encoders, other.encoders):
            return Contradiction(
                "its encoders were fitted or set differently, so its numbers mean something else", _NEW_FILE
            )
        if _differ(self.checksum_seed, other.checksum_seed):
            return Contradiction(
                f"its checksums have the seed {other.checksum_seed}, not {self.checksum_seed}", _NEW_FILE
            )
        ours, theirs = self.class_names, other.class_names
        if ours is not None and theirs is not None and ours != theirs:
            number = next(n for n, (a, b) in enumerate(zip([*ours, None], [*theirs, None], strict=False)) if a != b)
            names = [repr(some[number])[:60] if number < len(some) else "missing" for some in (theirs, ours)]
            return Contradiction(f"its class {number} is {names[0]}, not {names[1]}", _NEW_FILE)
        return None

    def _same_concepts(self, other: Encoding) -> bool:
        """Files of earlier builds lack the hash of the centres; then only equal content guarantees equal concepts."""
        if self.concepts_sha256 is not None and other.concepts_sha256 is not None:
            return self.concepts_sha256 == other.concepts_sha256
        return self.content_hash is not None and self.content_hash == other.content_hash


def _differ(ours: str | int | None, theirs: str | int | None) -> bool:
    return ours is not None and theirs is not None and ours != theirs


def _hash_of(manifest: Mapping[str, Any]) -> str | None:
    entries = manifest.get(ENCODERS)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return None
    parts = [manifest.get(HASHES)]
    for entry in entries:
        # The location of a pretrained model does not matter: its weights are among the hashes.
        spec = None if entry.get("name") in _PRETRAINED else entry.get("spec")
        layout = entry.get("layout")
        sketch = [layout.get(name) for name in _SKETCH] if isinstance(layout, dict) else None
        parts.append([entry.get("name"), spec, sketch])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
