"""`trm diagnose`: what is wrong with a run or a config, the evidence for it, and how to fix it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trm_cli.config_options import ConfigOption, IgnoreOption, JsonOption, is_override
from trm_cli.findings import as_json, failed, show_findings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trm_core.diagnose.check import Diagnosis
    from trm_core.diagnose.evidence import Evidence


def command(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="GROUP RUN KEY=VALUE",
            help="Which checks (data, dqn, expansion, gradients, speed, ..., all), a run directory (default: the newest"
            " under runs/), and overrides of --config.",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="With --config: also take a few real training steps and check them.")
    ] = False,
    fix: Annotated[
        Path | None, typer.Option("--fix", metavar="FILE", help="Write the config with the fixes applied.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one page with the checks beside the curves.")
    ] = None,
    ignore: IgnoreOption = None,
    json: JsonOption = False,
) -> None:
    """Find what is wrong with a run, say why, and how to fix it.

    Ends with code 1 if a check fails. Example: trm diagnose dqn runs/quickstart-20260101-120000
    """
    from trm_cli.console import log, print_json
    from trm_core.diagnose.ahead import look_ahead
    from trm_core.errors import CheckFailed, UsageError

    group, run, overrides = sort_arguments(what or [])
    if run is not None:
        look_ahead(run)  # in the background, while the imports below take longer
    from trm_core.diagnose.diagnose import diagnose
    from trm_core.diagnose.registry import of_group, without

    checks = without(of_group(group), ignore or [])
    if config is None and (overrides or probe):
        raise UsageError("overrides and --probe need --config", hint="trm diagnose --config FILE KEY=VALUE ...")
    if run is not None and probe:
        raise UsageError("--probe takes the first steps of a config: do not name a run as well")
    if run is not None and not is_run(run):
        evidence = of_other_log(run, config, overrides)
    elif config is None:
        evidence = of_run(run)
    elif run is None:
        evidence = of_config(config, overrides, probe)
    else:
        raise UsageError("name a run or --config, not both: a run has its own config")
    found = diagnose(checks, evidence)
    if json:
        print_json({"group": group, "notes": evidence.notes, "checks": [as_json(one) for one in found]})
    else:
        show(found, evidence)
    if html is not None:
        write_html(html, found, evidence)
        log(f"wrote {html}")
    if fix is not None and evidence.config is None:
        raise UsageError("--fix has no config to start from", hint="name it: trm diagnose LOG --config FILE --fix FILE")
    if fix is not None:
        write_fix(fix, found, evidence)
    if failures := failed(found):
        raise CheckFailed(failures)


def sort_arguments(words: list[str]) -> tuple[str, Path | None, list[str]]:
    """(group, run, overrides) from words in any order. Raises UsageError for a word that is none of them."""
    from trm_core.diagnose.check import GROUPS
    from trm_core.errors import UsageError

    group, run, overrides = "all", None, []
    for word in words:
        if word in (*GROUPS, "all") and not is_run(Path(word)):  # a mere folder named `data` does not count
            group = word
        elif is_override(word):
            overrides.append(word)
        elif run is None and Path(word).exists():
            run = Path(word)
        else:
            meant = difflib.get_close_matches(word, (*GROUPS, "all"), n=1)
            guess = f"; did you mean {meant[0]}?" if meant else ""
            raise UsageError(
                f"{word} is neither a group of checks nor a run directory{guess}",
                hint=f"groups: {', '.join(GROUPS)}, all",
            )
    return group, run, overrides


def of_run(path: Path | None) -> Evidence:
    from trm_core.diagnose import evidence
    from trm_core.training.run_dir import newest_run, require_run

    return evidence.of_run(newest_run() if path is None else require_run(path))


def is_run(path: Path) -> bool:
    from trm_core.training.run_dir import CONFIG

    return (path / CONFIG).is_file()


def of_other_log(path: Path, config: Path | None, overrides: list[str]) -> Evidence:
    """Evidence from the log of another logger or program; `--config` gives the config of that training."""
    from trm_cli.config_options import load_from_cli
    from trm_core.diagnose import evidence
    from trm_core.diagnose.foreign_metrics import read_foreign

    metrics = read_foreign(path)
    if config is None:
        return evidence.Evidence(metrics=metrics, notes=list(metrics.notes))
    found = evidence.of_config(load_from_cli(config, overrides).config)
    found.metrics = metrics
    found.notes += metrics.notes
    return found


def of_config(path: Path, overrides: list[str], probe: bool) -> Evidence:
    from trm_cli.config_options import load_from_cli
    from trm_core.diagnose import evidence

    loaded = load_from_cli(path, overrides)
    if not probe:
        return evidence.of_config(loaded.config)
    from trm_cli.console import log
    from trm_cli.progress import progress
    from trm_core.prepare import RunHooks
    from trm_core.probe import probed

    with progress("probing", total=None) as bar:
        hooks = RunHooks(log=log, on_step=lambda step, values: bar.update(step, label="probing"))
        return probed(loaded, hooks)


def show(found: Sequence[Diagnosis], evidence: Evidence) -> None:
    """Print what was examined and what was found."""
    from trm_cli.console import out

    if evidence.run is None and evidence.has("metrics"):
        out(f"{len(evidence.metrics.series)} metrics to step {evidence.metrics.last_step}")
    if evidence.run is not None:
        out(f"run: {evidence.run.path} (step {evidence.metrics.last_step})")
    for note in evidence.notes:
        out(f"note: {note}")
    show_findings(found)


def write_fix(path: Path, found: list[Diagnosis], evidence: Evidence) -> None:
    from trm_cli.console import log
    from trm_core.config import dump_config
    from trm_core.diagnose.fix import fixed, overrides
    from trm_core.training.run_dir import write_atomic

    config, fix = fixed(evidence, found)
    write_atomic(path, dump_config(config))
    log(f"wrote {path}: {' '.join(overrides(fix))}")


def write_html(path: Path, found: Sequence[Diagnosis], evidence: Evidence) -> None:
    from trm_core.diagnose.report_html import html_report
    from trm_core.training.run_dir import write_atomic

    run = evidence.run
    title = run.path.name if run is not None else "trm diagnose" if evidence.config is None else evidence.config.name
    facts = {} if run is None else {str(key): str(value) for key, value in run.status.items()}
    chance = evidence.data.chance if evidence.data is not None else None
    write_atomic(path, html_report(title, facts, found, evidence.metrics, chance=chance))
