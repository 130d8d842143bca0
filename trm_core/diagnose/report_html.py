"""The diagnosis of a run as a single HTML page: first the faults and their fixes, then the curves beside the checks
that concern them. The page needs no network, no other file and no script. All text from the run is escaped.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from trm_core.diagnose.check import Diagnosis, Finding, Verdict
from trm_core.diagnose.report_svg import COLOURS, Chart, Line, draw, escape, number_text
from trm_core.diagnose.series import Metrics
from trm_core.training.metric_list import Metric
from trm_core.training.metric_registry import describe, healthy_text

Bounds = tuple[float | None, float | None]

MOST_CURVES = 110  # of metrics that are in no panel

_STRANGE = "Names that are not ours"
_CLASSES = {Verdict.FAIL: "fail", Verdict.WARN: "warn", Verdict.OK: "ok", Verdict.UNKNOWN: "unknown"}


@dataclass(frozen=True)
class _Plan:
    """A chart to draw if any of `names` was logged; a name that ends in * matches every name with that prefix."""

    title: str
    names: tuple[str, ...]
    log: bool = False
    chance: bool = False


@dataclass(frozen=True)
class _Panel:
    """Charts under one heading, and the groups of checks to show beside them."""

    title: str
    checks: tuple[str, ...]
    plans: tuple[_Plan, ...] = field(default_factory=tuple)


_PANELS = (
    _Panel(
        "Losses and accuracy",
        ("accuracy", "data", "config"),
        (
            _Plan("Loss of the answers", ("train/lm_loss", "eval/loss")),
            _Plan("Accuracy", ("train/accuracy", "train/final_accuracy", "eval/accuracy"), chance=True),
            _Plan("Rows with every answer right", ("train/exact_accuracy", "eval/exact_accuracy")),
            _Plan("Sum of all losses", ("train/loss",)),
            _Plan("Loss of the Q-values", ("train/dqn_loss",)),
            _Plan(
                "Other losses",
                ("train/q_halt_loss", "train/reconstruction_loss", "train/checksum_loss", "train/cmi_loss",
                 "train/cycle_loss", "train/vq_loss", "train/mtp_loss", "train/rnd_loss"),
                log=True,
            ),
            _Plan("Halting knows when the answer is right", ("train/halt_accuracy",)),
        ),
    ),
    _Panel(
        "Actions and capsules",
        ("expansion", "capsule-state"),
        (
            _Plan("Shares of the actions", ("train/action_0_continue", "train/action_1_halt", "train/action_2_expand")),
            _Plan("Opened capsules", ("train/num_expansions", "eval/opened")),
            _Plan("Reasoning steps", ("train/ponder_cost", "eval/steps")),
            _Plan("Sketches predicted from the state (cosine)", ("train/cos_sim_mean",)),
        ),
    ),
    _Panel(
        "Q-learning",
        ("dqn",),
        (
            _Plan("Exploration (epsilon)", ("train/dqn_epsilon",)),
            _Plan("Transitions in the replay buffer", ("train/dqn_buffer_size",)),
            _Plan("Q-values", ("train/q_continue_mean", "train/q_halt_mean", "train/q_expand_mean", "train/q_abs_max")),
            _Plan("Entropy over the actions", ("train/q_entropy",)),
            _Plan("Reward", ("train/dqn_reward_mean", "train/dqn_reward_std", "train/terminal_reward")),
            _Plan("TD error", ("train/dqn_td_error_mean",)),
        ),
    ),
    _Panel(
        "Gradients",
        ("gradients",),
        (
            _Plan("Gradient norms before clipping", ("train/grad_norm", "train/policy_grad_norm"), log=True),
            _Plan("Gradient norms by part", ("train/grad/layer_*",), log=True),
            _Plan("Steps that were clipped", ("train/grad_clip_ratio", "train/policy_grad_clip_ratio")),
            _Plan("Change of the weights per step", ("train/update_ratio",), log=True),
            _Plan("Not finite, or zero", ("train/grad/num_nan", "train/grad/num_inf", "train/grad/num_zero")),
            _Plan("Learning rate", ("train/lr",)),
        ),
    ),
    _Panel(
        "Memory bank",
        ("memory-bank",),
        (
            _Plan("Slots in use", ("train/memory_filled",)),
            _Plan("Gate on what is read", ("train/memory_gate",)),
            _Plan("Concepts in use", ("train/concept_perplexity",)),
        ),
    ),
    _Panel(
        "Speed and memory",
        ("speed", "memory"),
        (
            _Plan("Steps per second", ("train/steps_per_sec",)),
            _Plan("Samples per second", ("train/samples_per_sec",)),
            _Plan("Waiting for data", ("train/data_time_share",)),
            _Plan("Memory", ("train/rss_gb", "train/gpu_memory_gb", "train/gpu_reserved_gb")),
        ),
    ),
)  # fmt: skip


def html_report(
    title: str,
    facts: Mapping[str, str],
    diagnoses: Sequence[Diagnosis],
    metrics: Metrics,
    *,
    chance: float | None = None,
    bounds: Mapping[str, Bounds] | None = None,
) -> str:
    """The whole page. `chance`: accuracy of always giving the most frequent label. `bounds`: healthy values (low, high)
    by metric name, where the registry has only relative ones or none.
    """
    found = sorted(diagnoses, key=lambda diagnosis: list(_CLASSES).index(diagnosis.finding.verdict))
    anchors = {id(diagnosis): f"check-{number}" for number, diagnosis in enumerate(found)}
    bad = [diagnosis for diagnosis in found if diagnosis.finding.verdict in (Verdict.FAIL, Verdict.WARN)]
    known = dict(bounds or {})
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        # Even if something were not escaped, a browser would run and load nothing.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<style>{_STYLE}</style></head><body><header><h1>{escape(title)}</h1>",
        _facts(facts),
        _summary(found),
        "".join(f'<p class="note">{escape(note)}</p>' for note in metrics.notes),
        "</header>",
    ]
    if bad:
        parts.append("<section><h2>What to fix</h2>")
        parts += [_card(diagnosis, anchors[id(diagnosis)]) for diagnosis in bad]
        parts.append("</section>")
    drawn: set[str] = set()
    for panel in _PANELS:
        parts.append(_panel(panel, found, anchors, metrics, chance, known, drawn))
    parts.append(_others(metrics, known, drawn))
    parts.append(_table(found, anchors))
    return "".join([*parts, "</body></html>\n"])


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"<dl>{rows}</dl>" if rows else ""


def _summary(found: Sequence[Diagnosis]) -> str:
    counts = {verdict: sum(diagnosis.finding.verdict is verdict for diagnosis in found) for verdict in _CLASSES}
    chips = [
        f'<li class="chip {_CLASSES[verdict]}"><b>{count}</b> {escape(verdict)}</li>'
        for verdict, count in counts.items()
        if count
    ]
    if not found:
        return "<p>No check was run.</p>"
    faults = counts[Verdict.FAIL] + counts[Verdict.WARN]
    if faults:
        words = "The first of these is the likeliest cause; fix it before the ones below."
    elif counts[Verdict.UNKNOWN]:
        words = "No fault found, but some checks lacked the evidence to tell."
    else:
        words = "No fault found."
    return f'<ul class="chips">{"".join(chips)}</ul><p>{words}</p>'


def _badge(verdict: Verdict) -> str:
    return f'<span class="badge {_CLASSES[verdict]}">{escape(verdict)}</span>'


def _card(diagnosis: Diagnosis, anchor: str) -> str:
    check, finding = diagnosis.check, diagnosis.finding
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{number_text(value)}</td></tr>" for name, value in finding.numbers.items()
    )
    parts = [
        f'<article id="{anchor}" class="card {_CLASSES[finding.verdict]}">',
        f"<h3>{_badge(finding.verdict)} {escape(check.symptom)}</h3>",
        f'<p class="evidence">{escape(finding.evidence)}</p>',
        f"<p><b>Why.</b> {escape(finding.why)}</p>" if finding.why else "",
        f"<p><b>Mend.</b> {escape(finding.advice)}</p>" if finding.advice else "",
        f"<p><b>Overrides</b> (a tap selects all)</p><pre>{escape(override_text(finding))}</pre>"
        if finding.fix
        else "",
        f"<details><summary>Numbers</summary><table>{rows}</table></details>" if rows else "",
        f'<p class="small">{escape(check.id)} · {escape(finding.sure)} · {escape(check.source)}</p>',
        "</article>",
    ]
    return "".join(parts)


def override_text(finding: Finding) -> str:
    """The fix as command-line arguments, safe to paste into a shell."""
    texts = (
        (key, value if isinstance(value, str) else json.dumps(value, default=str)) for key, value in finding.fix.items()
    )
    return " ".join(shlex.quote(f"{key}={text}") for key, text in texts)


def _panel(
    panel: _Panel,
    found: Sequence[Diagnosis],
    anchors: Mapping[int, str],
    metrics: Metrics,
    chance: float | None,
    bounds: Mapping[str, Bounds],
    drawn: set[str],
) -> str:
    """A panel's section; empty if there is nothing to draw, since the table of all checks shows its checks as well."""
    figures = []
    for plan in panel.plans:
        names = [name for pattern in plan.names for name in _matching(pattern, metrics)]
        if names:
            level = chance if plan.chance else None
            figures.append(_figure(plan.title, names, metrics, bounds, log=plan.log, chance=level))
            drawn.update(names)
    if not figures:
        return ""
    checks = [diagnosis for diagnosis in found if set(diagnosis.check.groups) & set(panel.checks)]
    return (
        f'<section><h2>{panel.title}</h2><div class="panel"><div class="grid">{"".join(figures)}</div>'
        f"{_beside(checks, anchors)}</div></section>"
    )


def _beside(checks: Sequence[Diagnosis], anchors: Mapping[int, str]) -> str:
    if not checks:
        return ""
    items = "".join(
        f'<li>{_badge(diagnosis.finding.verdict)} <a href="#{anchors[id(diagnosis)]}">'
        f"{escape(diagnosis.check.id)}</a></li>"
        for diagnosis in checks
    )
    return f'<aside><h3>Checks</h3><ul class="checks">{items}</ul></aside>'


def _matching(pattern: str, metrics: Metrics) -> list[str]:
    if not pattern.endswith("*"):
        return [pattern] if pattern in metrics else []
    return [name for name in metrics if name.startswith(pattern[:-1])]


def _figure(
    title: str, names: Sequence[str], metrics: Metrics, bounds: Mapping[str, Bounds], *, log: bool, chance: float | None
) -> str:
    shown, left_out = list(names), 0
    if len(names) > COLOURS:
        shown = sorted(names, key=lambda name: _size(metrics, name), reverse=True)[:COLOURS]
        left_out = len(names) - COLOURS
    known = [describe(name) for name in shown]
    units = {metric.unit for metric in known if metric is not None}
    unit = units.pop() if len(units) == 1 and None not in known else ""
    bands = {bounds.get(name) or _absolute(metric) for name, metric in zip(shown, known, strict=True)}
    chart = Chart(
        f"{title} ({unit})" if unit else title,
        [Line(_label(name, shown), metrics[name], dashed=name.startswith("eval/")) for name in shown],
        log=log,
        band=bands.pop() if len(bands) == 1 else None,
        levels=[("chance", chance)] if chance is not None else (),
        floor=0.0 if unit == "share" else None,
        ceiling=1.0 if unit == "share" and _within_one(shown, metrics) else None,
    )
    words = _healthy_words({name: _healthy(name, metric, bounds) for name, metric in zip(shown, known, strict=True)})
    if left_out:
        words.append(f"the largest {COLOURS} of {len(names)}")
    gaps = sum(int(np.isnan(metrics[name].values).sum()) for name in shown)
    if gaps:
        words.append(f"▲ not finite: {gaps:,} values")
    caption = f"<b>{escape(title)}</b>" + (f' <span class="small">{escape(unit)}</span>' if unit else "")
    below = f'<p class="small">{"; ".join(map(escape, words))}</p>' if words else ""
    return f"<figure><figcaption>{caption}</figcaption>{draw(chart)}{below}</figure>"


def _size(metrics: Metrics, name: str) -> float:
    """Mean magnitude of the newest values; infinite if none is finite, so that such a curve is always drawn."""
    finite = metrics[name].finite()
    return float(np.abs(finite.values[-20:]).mean()) if len(finite) else float("inf")


def _within_one(names: Sequence[str], metrics: Metrics) -> bool:
    return all((metrics[name].finite().values <= 1).all() for name in names)


def _absolute(metric: Metric | None) -> Bounds | None:
    """The healthy values, unless they are relative to something else."""
    if metric is None or metric.healthy is None or metric.healthy.of:
        return None
    healthy = metric.healthy
    return (healthy.above if healthy.low is None else healthy.low), healthy.high


def _healthy(name: str, metric: Metric | None, bounds: Mapping[str, Bounds]) -> str:
    if name in bounds:
        low, high = bounds[name]
        ends = [f"{word} {number_text(end)}" for word, end in (("at least", low), ("at most", high)) if end is not None]
        return " and ".join(ends)
    return healthy_text(metric.healthy).replace("`", "") if metric is not None else ""


def _healthy_words(texts: Mapping[str, str]) -> list[str]:
    """The healthy ranges below a chart: one text if it holds for all lines, otherwise one per line with its name."""
    if len(set(texts.values())) == 1:
        return [f"healthy: {text}" for text in set(texts.values()) if text]
    return [f"healthy: {_short(name)} {text}" for name, text in texts.items() if text]


def _short(name: str) -> str:
    return name.removeprefix("train/")


def _label(name: str, shown: Sequence[str]) -> str:
    """What distinguishes a line from the others in its chart; empty if it is the only one."""
    if len(shown) == 1:
        return ""
    if len({other.partition("/")[2] for other in shown}) == 1:
        return name.partition("/")[0]
    for prefix in ("train/grad/layer_", "train/action_", "train/grad/", "train/"):
        if all(other.startswith((prefix, "eval/")) for other in shown):
            return name.removeprefix(prefix)
    return name


def _group(name: str) -> str:
    metric = describe(name)
    return _STRANGE if metric is None else metric.group


def _others(metrics: Metrics, bounds: Mapping[str, Bounds], drawn: set[str]) -> str:
    """All other curves, by the registry's groups; those that the registry does not know come last."""
    names = [name for name in metrics if name not in drawn and len(metrics[name]) and name != "train/step"]
    if not names:
        return ""
    order = {title: number for number, title in enumerate(dict.fromkeys(map(_group, names)))}
    order[_STRANGE] = len(order)
    names.sort(key=lambda name: order[_group(name)])
    parts = ["<section><h2>All other curves</h2>"]
    for title, members in groupby(names[:MOST_CURVES], key=_group):
        figures = "".join(_figure(_short(name), [name], metrics, bounds, log=False, chance=None) for name in members)
        parts.append(f'<details><summary>{escape(title)}</summary><div class="grid">{figures}</div></details>')
    if len(names) > MOST_CURVES:
        parts.append(f'<p class="note">{len(names) - MOST_CURVES:,} more names are not drawn.</p>')
    return "".join([*parts, "</section>"])


def _table(found: Sequence[Diagnosis], anchors: Mapping[int, str]) -> str:
    rows = []
    for diagnosis in found:
        check, finding = diagnosis.check, diagnosis.finding
        faulty = finding.verdict in (Verdict.FAIL, Verdict.WARN)  # its anchor is the card above
        row = "" if faulty else f' id="{anchors[id(diagnosis)]}"'
        rows.append(
            f"<tr{row}><td>{_badge(finding.verdict)}</td><td>{escape(check.symptom)}"
            f'<br><span class="small">{escape(check.id)}</span></td><td>{escape(finding.evidence)}</td></tr>'
        )
    if not rows:
        return ""
    return f'<section><h2>All checks</h2><table class="all">{"".join(rows)}</table></section>'


_STYLE = """
:root{color-scheme:light dark;--back:#fbfbfa;--card:#fff;--text:#1d2126;--soft:#59626d;--line:#dcdfe3;--fail:#b3261e;
--warn:#8a5a00;--ok:#1b7340;--unknown:#5b6470;--band:#1b734018;--c0:#0b62c4;--c1:#c2480a;--c2:#12784a;--c3:#9a2a94;
--c4:#7d6200;--c5:#0d7c8c;--c6:#b02a4c;--c7:#5a55c8}
@media(prefers-color-scheme:dark){:root{--back:#14171a;--card:#1c2024;--text:#e6e8ea;--soft:#a0a8b1;--line:#363c43;
--fail:#ff8a80;--warn:#f0b84a;--ok:#6fd598;--unknown:#a9b2bc;--band:#6fd5981c;--c0:#6fb1ff;--c1:#ff9a5c;--c2:#62d196;
--c3:#e58be0;--c4:#e0c04d;--c5:#55cbdc;--c6:#ff8fa8;--c7:#aaa6ff}}
*{box-sizing:border-box}
body{margin:0 auto;padding:16px;max-width:1400px;background:var(--back);color:var(--text);
font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:.2em 0 .5em}h2{font-size:1.2rem;margin:1.6em 0 .6em}h3{font-size:1rem;margin:0 0 .4em}
p{margin:.4em 0}a{color:inherit}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,150px),1fr));gap:8px 16px;margin:0 0 1em}
dt{color:var(--soft);font-size:.8rem}dd{margin:0}
.chips,.checks{list-style:none;margin:0;padding:0}.chips{display:flex;flex-wrap:wrap;gap:8px}
.chip{border:1px solid;border-radius:99px;padding:2px 12px}
.badge{border:1px solid;border-radius:4px;padding:0 6px;font-size:.75rem;font-weight:600;white-space:nowrap}
.chip.fail,.badge.fail{color:var(--fail)}.chip.warn,.badge.warn{color:var(--warn)}.chip.ok,.badge.ok{color:var(--ok)}
.chip.unknown,.badge.unknown{color:var(--unknown)}
.card,figure,aside{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px;margin:0}
.card{margin-bottom:12px;border-left:5px solid}.card.fail{border-left-color:var(--fail)}
.card.warn{border-left-color:var(--warn)}
.small,.note{color:var(--soft);font-size:.82rem}
pre{background:var(--back);border:1px solid var(--line);border-radius:6px;padding:8px;margin:.3em 0;
white-space:pre-wrap;-webkit-user-select:all;user-select:all;font:13px/1.5 ui-monospace,Menlo,Consolas,monospace}
table{border-collapse:collapse}th{text-align:left;font-weight:400;color:var(--soft);padding-right:16px}
td{vertical-align:top;padding:3px 12px 3px 0}.all{width:100%}.all tr{border-top:1px solid var(--line)}
summary{cursor:pointer;padding:4px 0}
.panel{display:grid;gap:12px}.grid{display:grid;gap:12px;align-items:start;
grid-template-columns:repeat(auto-fill,minmax(min(100%,360px),1fr))}
.checks li{margin:.35em 0}
@media(min-width:1100px){.panel:has(aside){grid-template-columns:1fr 280px;align-items:start}}
svg{display:block;width:100%;height:auto;margin-top:4px}
svg text{font:11px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--soft)}
svg .g{stroke:var(--line);stroke-width:.7;fill:none}svg .a{stroke:var(--soft);stroke-width:1;fill:none}
svg .v{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 3;fill:none}svg .b{fill:var(--band)}
svg .n{fill:var(--fail)}svg .p{fill:none;stroke-width:1.5;stroke-linejoin:round;stroke-linecap:round}
svg .d{stroke-dasharray:5 3}
@media(max-width:500px){body{padding:10px}.card,figure,aside{padding:8px}}
@media print{body{max-width:none;padding:0;font-size:11px}figure,.card,tr{break-inside:avoid}h2{break-after:avoid}
.grid{grid-template-columns:1fr 1fr}.panel:has(aside){grid-template-columns:1fr}}
""" + "".join(
    f"svg .c{index}{{stroke:var(--c{index})}}svg .e{index}{{fill:var(--c{index})}}" for index in range(COLOURS)
)
