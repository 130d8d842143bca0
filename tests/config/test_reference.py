"""The generated page of config keys: complete, of the present schema, and without a key that nobody describes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trm_core.config import load_config
from trm_core.config.aliases import aliases
from trm_core.config.reference import MAPPINGS, default, meaning, other_spellings, page
from trm_core.config.schema_keys import expectation, leaves

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date() -> None:
    again = "run: python -m trm_core.config.reference > docs/configuration.md"
    assert (ROOT / "docs/configuration.md").read_text() == page(), again


def test_the_command_prints_it_without_torch() -> None:
    code = (
        "import runpy, sys\n"
        "runpy.run_module('trm_core.config.reference', run_name='__main__')\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, page()), done.stderr


@pytest.mark.parametrize("key", leaves())
def test_every_key_is_described_in_one_row(key: str) -> None:
    [row] = [line for line in page().splitlines() if line.startswith(f"| `{key}` |")]
    assert meaning(key).endswith("."), f"{key} needs a description in the schema: one sentence or more"
    assert expectation(key) in row.replace("\\|", "|")


def test_mappings_are_described() -> None:
    for _, mapping in MAPPINGS:
        assert all(field.description for field in mapping.model_fields.values())


@pytest.mark.parametrize("key", leaves())
def test_the_default_that_is_shown_is_one(key: str) -> None:
    """Given as an override it is accepted, and changes nothing."""
    if default(key) == "null":
        return  # where null is no value to give, it says that nothing is given
    assert load_config(None, [f"{key}={default(key)}"]).config == load_config(None).config


def test_every_alias_is_shown() -> None:
    shown = {spelling for key in leaves() for spelling in other_spellings(key)}
    assert shown == aliases().keys() - {"model"}
