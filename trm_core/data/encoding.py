"""What the numbers of a capsule file mean: the encoders that made them, and the classes that labels are the numbers of.

Sizes alone do not tell: an encoder that was fitted on other samples gives other numbers of the same shape, and a model
that reads them answers at chance.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from trm_core.data.build.extras import PICTURE_ENCODERS, TEXT_ENCODERS
from trm_core.data.fields import ENCODERS
from trm_core.data.store.encoder_arrays import HASHES

_PRETRAINED = (*TEXT_ENCODERS, *PICTURE_ENCODERS)
_SKETCH = ("sketch", "sketch_dims")
HINT = (
    "build it with the encoders of the training file: trm build-capsules SOURCE --encoders-of TRAINING.h5 --out FILE; "
    "raw samples without labels are for trm predict"
)


@dataclass(frozen=True)
class Encoding:
    """`encoders`: a hash of what encodes samples, None where the file does not say; `class_names`: None where classes
    have no names.
    """

    encoders: str | None
    class_names: list[str] | None

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Self:
        """Of a capsule file."""
        names = manifest.get("class_names")
        return cls(_hash_of(manifest), names if isinstance(names, list) else None)

    @classmethod
    def of_run(cls, data: Mapping[str, Any]) -> Self:
        """Of the first file that a run was trained on, by what it says of its data (`dataset.json`)."""
        files = data.get("train")
        return cls.of_record(files[0] if isinstance(files, list) and files else None)

    @classmethod
    def of_record(cls, record: Any) -> Self:
        """Of something that holds what `as_record` gave; of anything else, one that says nothing."""
        known = record if isinstance(record, dict) else {}
        encoders, names = known.get("encoders"), known.get("class_names")
        named = isinstance(names, list) and all(isinstance(name, str) for name in names)
        return cls(encoders if isinstance(encoders, str) else None, names if named else None)

    def as_record(self) -> dict[str, Any]:
        return asdict(self)

    def contradiction(self, other: Encoding) -> str | None:
        """Why rows of `other` are not what a model that was trained on rows of this one reads; None where nothing
        says so.
        """
        if self.encoders is not None and other.encoders is not None and self.encoders != other.encoders:
            return "its encoders were fitted or set differently, so its numbers mean something else"
        ours, theirs = self.class_names, other.class_names
        if ours is not None and theirs is not None and ours != theirs:
            number = next(n for n, (a, b) in enumerate(zip([*ours, None], [*theirs, None], strict=False)) if a != b)
            names = [repr(some[number])[:60] if number < len(some) else "missing" for some in (theirs, ours)]
            return f"its class {number} is {names[0]}, not {names[1]}"
        return None


def _hash_of(manifest: Mapping[str, Any]) -> str | None:
    entries = manifest.get(ENCODERS)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return None
    parts = [manifest.get(HASHES)]
    for entry in entries:
        # Where a pretrained model lies does not matter: its weights are among the hashes.
        spec = None if entry.get("name") in _PRETRAINED else entry.get("spec")
        layout = entry.get("layout")
        sketch = [layout.get(name) for name in _SKETCH] if isinstance(layout, dict) else None
        parts.append([entry.get("name"), spec, sketch])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
