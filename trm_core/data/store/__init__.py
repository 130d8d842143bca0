"""The capsule file: one HDF5 file with splits, a manifest, and nothing half-written.

`CapsuleWriter` streams rows in; `open_capsules` refuses what it cannot trust and gives a `CapsuleFile` to read from.
Names are imported on first use: the child process that examines an untrusted file needs few of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trm_core.data.store.encoder_arrays import EncoderRecord as EncoderRecord
    from trm_core.data.store.layout import Layout as Layout
    from trm_core.data.store.reader import CapsuleFile as CapsuleFile
    from trm_core.data.store.reader import open_capsules as open_capsules
    from trm_core.data.store.verify import Problem as Problem
    from trm_core.data.store.writer import CapsuleWriter as CapsuleWriter

_HOME = {
    "CapsuleFile": "reader",
    "CapsuleWriter": "writer",
    "EncoderRecord": "encoder_arrays",
    "Layout": "layout",
    "Problem": "verify",
    "open_capsules": "reader",
}

__all__ = ["CapsuleFile", "CapsuleWriter", "EncoderRecord", "Layout", "Problem", "open_capsules"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
