"""Raw data to capsule files: `pipeline.build_capsules` detects, reads, splits, encodes and writes."""
