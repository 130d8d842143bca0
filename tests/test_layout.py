"""Guard the layout: imports go one way, heavy imports stay out of the command line, `torch.load` is used once."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "trm_core").rglob("*.py"))
CLI = sorted((ROOT / "trm_cli").rglob("*.py"))

# A part of trm_core may import itself, the parts above it, and those on the same line.
ORDER = [
    {"errors", "config", "child_process", "keyed_random", "distributed", "devices", "markdown"},
    {"data"},
    {"model"},
    {"dqn"},
    {"losses"},
    {"optim"},
    {"training"},
    {"evaluation", "diagnose", "profiling", "inference"},
    {"export", "serving"},
    {"prepare"},
    {"runs", "probe", "about", "overview"},
    {"convert"},
    {"render"},
]
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}
HEAVY = {"torch", "h5py", "sklearn", "wandb", "matplotlib", "pydantic"}


def imports(path: Path, *, module_level_only: bool = False) -> list[tuple[int, str]]:
    """(line, dotted module) of every import; those under `if TYPE_CHECKING:` do not run and do not count."""
    tree = ast.parse(path.read_text())
    package = path.relative_to(ROOT).with_suffix("").parts
    found: list[tuple[int, str]] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            found.extend((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            children: list[ast.AST] = list(node.orelse)
        elif module_level_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            children = []
        else:
            children = list(ast.iter_child_nodes(node))
        for child in children:
            visit(child)

    visit(tree)
    return found


def part_of(module: str) -> str:
    """The part of trm_core that a dotted name belongs to."""
    return [*module.split("."), ""][1]


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(ROOT / "trm_core").with_suffix("").parts[0]
    if own == "__init__":
        assert not imports(path)
        return
    assert own in RANK, f"trm_core/{own} has no place in ORDER"
    for line, module in imports(path):
        assert not module.startswith("trm_cli"), f"{path}:{line} imports the command line"
        if module.startswith("trm_core."):
            assert RANK[part_of(module)] <= RANK[own], f"{path}:{line} imports {module}, which comes later"


def test_config_and_data_need_no_torch_but_for_these_files() -> None:
    # The last two import it only when a pretrained encoder is requested.
    allowed = {
        "data/batch.py",
        "data/dataset.py",
        "data/legacy.py",
        "data/puzzles/stream.py",
        "data/torch_file.py",
        "data/stream.py",
        "data/build/pretrained.py",
        "data/build/pretrained_vision.py",
    }
    users = {
        str(path.relative_to(ROOT / "trm_core"))
        for path in CORE
        if path.relative_to(ROOT / "trm_core").parts[0] in ("config", "data")
        and any(module.split(".")[0] == "torch" for _, module in imports(path))
    }
    assert users <= allowed


@pytest.mark.parametrize("path", CLI, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_command_line_starts_fast(path: Path) -> None:
    for line, module in imports(path, module_level_only=True):
        assert module.split(".")[0] not in HEAVY, f"{path}:{line} imports {module} at module level"
        if module.startswith("trm_core"):
            assert module.startswith("trm_core.errors."), f"{path}:{line} imports {module} at module level"


def test_torch_load_is_used_once() -> None:
    uses = []
    for path in [*CORE, *CLI, *sorted((ROOT / "benchmarks").rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.serialization.load"):
                keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                uses.append((str(path.relative_to(ROOT)), keywords.get("weights_only")))
            if isinstance(node, ast.ImportFrom) and node.module == "torch":
                assert "load" not in {alias.name for alias in node.names}, f"{path} imports load from torch"
    assert uses == [("trm_core/data/torch_file.py", "True")]
