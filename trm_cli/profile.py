"""`trm profile`: where a training step spends time and memory, and what would make it faster on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trm_cli.config_options import ConfigOption, JsonOption, OverridesArgument, load_from_cli
from trm_cli.console import log, out, print_json, table
from trm_cli.processes import start_processes
from trm_cli.progress import progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from trm_core.prepare import Prepared
    from trm_core.profiling.changes import Gain
    from trm_core.profiling.profile import Profile

TOP = 15  # operators in the table
POINTS = 12  # in the printed memory timeline
# Silences the messages of torch's profiler on stderr; read when torch is imported.
QUIET = {"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def command(
    overrides: OverridesArgument = None,
    config: ConfigOption = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time, at least.")] = 20,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a trace for Perfetto, Chrome or TensorBoard into this folder."),
    ] = None,
    try_: Annotated[
        bool, typer.Option("--try/--no-try", help="Try changes that may make training faster, and measure them.")
    ] = True,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds to spend on comparing each change.")] = 5.0,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only estimate the memory that training needs; nothing is trained.")
    ] = False,
    nproc: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Profile N processes that train together; no changes are tried then."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Take some training steps without writing a run, and show where their time and memory go.

    Example: trm profile --config configs/quickstart.yaml --trace traces training.threads=2
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    loaded = load_from_cli(config, overrides)

    if nproc is not None:
        start_processes(nproc, json)
        return

    from trm_core.distributed.collectives import on_every_rank
    from trm_core.distributed.place import find_place
    from trm_core.distributed.processes import joined
    from trm_core.prepare import RunHooks, prepare

    place = find_place()
    if trace is not None:
        trace.mkdir(parents=True, exist_ok=True)
    with joined(place, log=log):
        with progress("building", total=None) as bar:
            hooks = RunHooks(log=log, on_build=lambda stage, done, total: bar.update(done, total=total, label=stage))
            prepared = on_every_rank(lambda: prepare(loaded.config, hooks if place.rank == 0 else RunHooks(), place))
        if estimate:
            if place.rank == 0:
                show_estimate(prepared, json)
            return
        # Measured times decide which changes are tried and for how long, and they differ between processes.
        tried = seconds if try_ and place.world_size == 1 else None
        found, gains = measure(prepared, steps, trace, tried, log if place.rank == 0 else lambda message: None)
    if place.rank:
        return
    if json:
        print_json(as_json(found, gains))
    else:
        show(found, gains)


def measure(
    prepared: Prepared, steps: int, trace: Path | None, seconds: float | None, log: Callable[[str], None]
) -> tuple[Profile, list[Gain] | None]:
    """The profile, and the gains of the changes that were tried (None if none were to be). seconds: spent per change;
    None: try none.
    """
    from contextlib import closing

    from trm_core.profiling.changes import changes, possible, try_change
    from trm_core.profiling.profile import profile_steps
    from trm_core.profiling.steps import Stepper
    from trm_core.training.out_of_memory import memory_explained

    config, features, files = prepared.config, prepared.features, prepared.files
    with (
        memory_explained(config, features, prepared.device),
        closing(Stepper(config, features, files, prepared.device)) as stepper,
    ):
        stepper.warm()
        found = profile_steps(stepper, steps, trace, log)
        if seconds is None:
            return found, None
        gains = []
        for change in changes(config, found, prepared.device):
            if possible(change, files[0][0]):
                log(f"trying {change.override}{f': {change.why}' if change.why else ''}")
                gains.append(try_change(stepper, change, found, features, files, seconds))
    return found, gains


def show_estimate(prepared: Prepared, json: bool) -> None:
    """Print the memory that training will need."""
    from trm_core.training.estimate import estimate_memory

    found = estimate_memory(prepared.config, prepared.features, prepared.device.type)
    sizes = {name: getattr(found, name) for name in found.__dataclass_fields__}
    if json:
        print_json({"bytes": sizes, "step_peak": found.step_peak, "total": found.total})
        return
    rows = [(name.replace("_", " "), megabytes(size)) for name, size in sizes.items() if name != "snapshot"]
    rows += [("peak of a step", megabytes(found.step_peak)), ("copy of a save", megabytes(found.snapshot))]
    table("memory estimate, MB of tensors", ["owner", "MB"], rows)


def as_json(found: Profile, gains: list[Gain] | None) -> dict[str, Any]:
    """The whole profile as JSON values."""
    from dataclasses import asdict

    record = asdict(found) | {"utilisation": found.utilisation}
    if gains is not None:
        record["tried"] = [
            {
                "override": gain.change.override,
                "why": gain.change.why,
                "price": gain.change.price,
                "steps_per_sec": dict(zip(("ratio", "low", "high"), gain.steps, strict=True)),
                "samples_per_sec": dict(zip(("ratio", "low", "high"), gain.samples, strict=True)),
                "blocks": gain.blocks,
                "recommended": gain.recommended,
            }
            for gain in gains
        ]
    return record


def show(found: Profile, gains: list[Gain] | None) -> None:
    """Print the profile as tables."""
    out(
        f"step: {found.step_ms:.2f} ms ({1e3 / found.step_ms:.1f} steps/s, {1e3 * found.batch / found.step_ms:.0f} "
        f"samples/s), over {found.steps} steps with {found.threads} threads"
        f"{f' in each of {found.processes} processes' if found.processes > 1 else ''}; with its stages timed "
        f"{found.watched_ms:.2f} ms, {100 * found.accounted:.1f} % of them in a named stage"
    )
    table(
        "time by stage",
        ["stage", "ms", "%"],
        [(one.name, f"{one.milliseconds:.3f}", f"{100 * one.share:.1f}") for one in found.stages],
    )
    out("")
    table(
        "operators by self time",
        ["operator", "ms", "%", "calls"],
        [(o.name, f"{o.milliseconds:.3f}", f"{100 * o.share:.1f}", f"{o.calls:.0f}") for o in found.operators[:TOP]],
    )
    out("")
    owners = sorted(found.memory.owners.items(), key=lambda item: -item[1])
    rows = [(owner, megabytes(size)) for owner, size in [*owners, ("all", found.memory.peak)]]
    table("tensors at the peak, MB", ["owner", "MB"], rows)
    out("")
    every = -(-len(found.memory.timeline) // POINTS)
    points = [
        max(found.memory.timeline[at : at + every], key=lambda point: point[1])
        for at in range(0, len(found.memory.timeline), every)
    ]
    table("tensors over time (maxima), MB", ["ms", "MB"], [(f"{when:.1f}", megabytes(size)) for when, size in points])
    out("")
    out(
        f"matrix products: {found.flops / 1e9:.3f} GFLOP a step, {found.flops / 1e6 / found.step_ms:.1f} GFLOP/s, "
        f"{100 * found.utilisation:.1f} % of the {found.rate / 1e9:.0f} GFLOP/s of a large product in "
        f"{found.precision} here"
    )
    for path in found.traces:
        out(f"trace: {path}")
    if gains is not None:
        show_gains(gains)


def show_gains(gains: list[Gain]) -> None:
    """Print what was tried, and recommend the overrides that were faster beyond doubt."""
    out("")
    table(
        "tried, as multiples of the current speed (99 % interval)",
        ["override", "steps/s", "", "samples/s", "", "why", "also"],
        [
            (
                gain.change.override,
                *(
                    cell
                    for ratio, low, high in (gain.steps, gain.samples)
                    for cell in (f"{ratio:.3f}", f"{low:.3f}-{high:.3f}")
                ),
                gain.change.why or None,
                gain.change.price or None,
            )
            for gain in gains
        ],
    )
    faster = [gain for gain in gains if gain.recommended]
    if not faster:
        out("recommended: nothing that was tried is reliably faster")
    for gain in sorted(faster, key=lambda gain: -gain.samples[0]):
        price = f"; {gain.change.price}" if gain.change.price else ""
        out(f"recommended: {gain.change.override} ({gain.samples[0]:.2f} times the samples per second{price})")


def megabytes(size: int) -> str:
    return f"{size / 1e6:.3f}"
