"""The documents against the code: what they mention exists, generated pages are up to date, links resolve."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny
from written_commands import blocks, group, inline, options, prompts, require_parses, trm_calls

from trm_core.config.aliases import all_spellings
from trm_core.config.reference import page as configuration
from trm_core.config.schema_keys import leaves, sections
from trm_core.diagnose.guide import page as diagnose
from trm_core.training.metric_registry import docs_page as metrics

ROOT = tiny.ROOT
GENERATED = {"configuration.md": configuration, "diagnose.md": diagnose, "metrics.md": metrics}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# The engineering log also mentions what no longer exists.
PRESENT = [page for page in PAGES if page.name != "notes.md"]

SECTION = "|".join(sorted({key.partition(".")[0] for key in all_spellings() if "." in key}))
KEY = re.compile(rf"(?<![\w./-])(?:{SECTION})(?:\.\w+)+(?![\w/*<-])")
PATH = re.compile(r"(?<![\w./-])(?:trm_core|trm_cli|tests|benchmarks|configs|docs|\.ci)/[\w./{}*,-]*[\w}*]/?")
MODULE = re.compile(r"python -m (\w+(?:\.\w+)*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
LINK = re.compile(r"\]\(([^)\s]+)\)|<img[^>]+src=\"([^\"]+)\"")
# Dotted names that are not config keys.
NO_KEYS = {"data.h5", "model.safetensors"}
FOREIGN_MODULES = {"venv"}
FOREIGN_OPTIONS = {"--signal"}  # of sbatch


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def codes(page: Path) -> list[str]:
    """All code of a page: inline, and the lines of its blocks that are not output of a command."""
    text = text_of(page)
    lines = [
        line for language in ("bash", "yaml", "python") for body in blocks(text, language) for line in body.split("\n")
    ]
    return [*inline(text), *lines, *prompts(text)]


@pytest.mark.parametrize("name", GENERATED)
def test_generated_pages_are_what_their_generators_print(name: str) -> None:
    command = re.search(r"Generated: (python -m \S+.*?) -->", text_of(ROOT / "docs" / name))
    assert command, f"docs/{name} does not say what generates it"
    assert text_of(ROOT / "docs" / name) == GENERATED[name](), f"run: {command[1]}"


def test_every_key_is_in_the_reference() -> None:
    page = text_of(ROOT / "docs/configuration.md")
    assert [key for key in leaves() if f"| `{key}` |" not in page] == []


@pytest.mark.parametrize("page", PRESENT, ids=ids)
def test_every_config_key_exists(page: Path) -> None:
    known = {*all_spellings(), *sections(), *NO_KEYS}
    found = {key for code in codes(page) for key in KEY.findall(code)}
    assert {key for key in found if key not in known} == set()


@pytest.mark.parametrize("page", PRESENT, ids=ids)
def test_every_path_and_module_exists(page: Path) -> None:
    names = {name.rstrip("/") for code in codes(page) for name in PATH.findall(code)}
    gone = {name for name in names if not any(any(ROOT.glob(one)) for one in braces(name))}
    modules = {name for code in codes(page) for name in MODULE.findall(code)} - FOREIGN_MODULES
    assert (gone, {name for name in modules if not module_exists(name)}) == (set(), set())


@pytest.mark.parametrize("page", PRESENT, ids=ids)
def test_every_option_of_trm_exists(page: Path) -> None:
    """In `trm COMMAND --x`, options of that command; an option on its own may belong to any command or benchmark."""
    everywhere = {*FOREIGN_OPTIONS, *options(None), *(option for name in group().commands for option in options(name))}
    everywhere |= {option for path in (ROOT / "benchmarks").rglob("*.py") for option in OPTION.findall(text_of(path))}
    for code in codes(page):
        if not (called := re.match(r"trm ([a-z-]+)\b", code)):
            if code.startswith("--"):
                assert set(OPTION.findall(code)) <= everywhere, f"{code}: no command has it"
            continue
        assert called[1] in group().commands or called[1].startswith("-"), f"{code}: no such command"
        if called[1] in group().commands:
            assert set(OPTION.findall(code)) <= set(options(called[1])), f"{code}: no such option"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_each_command_has_a_line_of_its_own(page: Path) -> None:
    """A block that was wrapped like prose has prompts within its lines, and still parses up to the first comment."""
    lines = [line for body in blocks(text_of(page), "console") for line in body.split("\n")]
    assert [line for line in lines if " $ " in line] == []


@pytest.mark.parametrize("page", PRESENT, ids=ids)
def test_every_command_can_be_parsed(page: Path) -> None:
    for command in prompts(text_of(page)):
        for words in trm_calls(command):
            require_parses(words)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_link_and_picture_resolves(page: Path) -> None:
    targets = [link or picture for link, picture in LINK.findall(text_of(page))]
    near = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in near if target and not (page.parent / target).exists()] == []


def test_every_page_and_picture_is_linked() -> None:
    index = text_of(ROOT / "docs/README.md")
    pages = {page.name for page in PAGES if page.parent == ROOT / "docs"} - {"README.md"}
    assert {name for name in pages if f"({name})" not in index} == set()
    everything = "".join(text_of(page) for page in PAGES)
    assert [path.name for path in (ROOT / "docs/images").iterdir() if f"images/{path.name})" not in everything] == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_a_page_speaks_of_the_project_alone(page: Path) -> None:
    """It contains no paths of somebody's machine."""
    assert re.findall(r"(?<![\w.])/(?:work|tmp|root|home)/\S*", text_of(page)) == []


def braces(name: str) -> list[str]:
    """a{b,c}d -> abd, acd."""
    found = re.search(r"\{([^}]*)\}", name)
    if not found:
        return [name]
    return [one for part in found[1].split(",") for one in braces(name.replace(found[0], part, 1))]


def module_exists(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False
