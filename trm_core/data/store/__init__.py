"""The capsule file: one HDF5 file with splits, a manifest, and nothing half-written.

`CapsuleWriter` streams rows in; `open_capsules` refuses what it cannot trust and gives a `CapsuleFile` to read from.
"""

from trm_core.data.store.encoder_arrays import EncoderRecord
from trm_core.data.store.layout import Layout
from trm_core.data.store.reader import CapsuleFile, open_capsules
from trm_core.data.store.verify import Problem
from trm_core.data.store.writer import CapsuleWriter

__all__ = ["CapsuleFile", "CapsuleWriter", "EncoderRecord", "Layout", "Problem", "open_capsules"]
