"""The `trm` command line: parses, calls `trm_core`, prints. One file per command."""
