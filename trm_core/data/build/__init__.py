"""Raw data to capsule files: `build_capsules` detects, reads, splits, encodes and writes."""

from trm_core.data.build.pipeline import build_capsules
from trm_core.data.build.report import BuildReport

__all__ = ["BuildReport", "build_capsules"]
