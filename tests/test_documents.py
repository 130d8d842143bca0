"""What the documents name exists: files, modules, config keys, targets of links."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from trm_core.config.schema import Config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_BY_KEY = ("notes.md", "configuration.md")  # tells of keys that are gone; is generated, and lists aliases
OURS = ("trm_core", "trm_cli", "configs", "tests", "benchmarks", "docs", ".ci")
pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def keys() -> set[str]:
    found: set[str] = set()

    def visit(model: type, prefix: str) -> None:
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            found.add(f"{prefix}{name}")
            if hasattr(field.annotation, "model_fields"):
                visit(field.annotation, f"{prefix}{name}.")

    visit(Config, "")
    return found


@pages
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


@pages
def test_files_and_modules_exist(page: Path) -> None:
    text = page.read_text()
    paths = re.findall(rf"(?<![\w/.-])((?:{'|'.join(map(re.escape, OURS))})/[\w./-]*[\w/])(?![\w*{{<])", text)
    assert [path for path in paths if not (ROOT / path).exists() and "NAME" not in path] == []
    modules = re.findall(r"python -m ((?:benchmarks|trm_core|trm_cli|tests)[\w.]*\w)", text)
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in NOT_BY_KEY], ids=lambda path: path.name)
def test_config_keys_exist(page: Path) -> None:
    sections = "|".join(Config.model_fields)
    named = re.findall(rf"(?<![\w./-])((?:{sections})(?:\.[a-z_A-Z]\w*)+)(?![\w/(])", page.read_text())
    suffixes = (".yaml", ".json", ".h5", ".npy", ".md", ".py", ".png")
    wrong = {key for key in named if key not in keys() and not key.endswith(suffixes)}
    assert wrong == set()


def test_every_key_is_in_the_reference() -> None:
    reference = (ROOT / "docs/configuration.md").read_text()
    assert [key for key in keys() if "." in key and key.rpartition(".")[2] not in reference] == []
