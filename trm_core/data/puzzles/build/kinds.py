"""The entry point for all kinds of puzzles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from trm_core.config.schema import PuzzleBuildConfig
from trm_core.data.puzzles.build.parallel import Log, Progress
from trm_core.data.puzzles.build.report import BuiltPuzzles
from trm_core.data.puzzles.build.write import replacing
from trm_core.errors import UsageError

KINDS = ("sudoku", "maze", "arc")
# Settings for some kinds only, and those for generated puzzles.
_FOR = {
    "test_source": ("sudoku", "maze"),
    "min_rating": ("sudoku", "maze"),
    "clues": ("sudoku",),
    "min_path": ("maze",),
    "count": ("sudoku", "maze"),
    "size": ("sudoku", "maze"),
    "test_subset": ("arc",),
}
_GENERATED = ("count", "size", "clues", "min_path")


def build_puzzles(
    kind: str,
    sources: Sequence[str | Path],
    out: Path,
    settings: PuzzleBuildConfig,
    *,
    progress: Progress,
    log: Log,
    overwrite: bool = False,
) -> BuiltPuzzles:
    """Build the puzzle folder `out`. `progress(stage, done, total)` may raise to stop; then nothing is left behind."""
    if kind not in KINDS:
        raise UsageError(f"{kind}: not a kind of puzzle", hint=f"expected {', '.join(KINDS)}")
    _check(kind, bool(sources), settings)
    paths = [Path(source) for source in sources]
    with replacing(out, overwrite=overwrite) as place:
        built = _builder(kind)(paths, place, settings, progress, log)
    return replace(built, path=out)


def _builder(kind: str) -> Callable[[list[Path], Path, PuzzleBuildConfig, Progress, Log], BuiltPuzzles]:
    if kind == "sudoku":
        from trm_core.data.puzzles.build.sudoku.build import build_sudoku

        return build_sudoku
    if kind == "maze":
        from trm_core.data.puzzles.build.maze.build import build_maze

        return build_maze
    from trm_core.data.puzzles.build.arc import build_arc

    return build_arc


def _check(kind: str, has_sources: bool, settings: PuzzleBuildConfig) -> None:
    if kind == "arc" and not has_sources:
        raise UsageError("no source given", hint="ARC tasks are not generated: name JSON files or a folder of them")
    for name, kinds in _FOR.items():
        if getattr(settings, name) is not None and kind not in kinds:
            raise UsageError(f"data.puzzles.{name} is for {' and '.join(kinds)}", hint=f"leave it out for {kind}")
    if has_sources:
        for name in _GENERATED:
            if getattr(settings, name) is not None:
                raise UsageError(
                    f"data.puzzles.{name} is for generated puzzles, and there is a source",
                    hint="leave it out, or leave the source out",
                )
