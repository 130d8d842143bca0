"""`python -m trm_cli`: the command `trm`, where its script is not on the path."""

from __future__ import annotations

from trm_cli.main import main

main()
