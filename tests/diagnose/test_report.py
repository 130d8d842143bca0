from __future__ import annotations

import math
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_core.diagnose.check import Check, Diagnosis, Finding, Verdict
from trm_core.diagnose.report_html import html_report, override_text
from trm_core.diagnose.report_svg import MOST_POINTS, Chart, Line, draw, escape, thinned, tick_text
from trm_core.diagnose.series import Metrics, Series
from trm_core.training.metric_list import ALL

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;\u202e\ud800\0"


def diagnosis(verdict: Verdict, name: str = "a", groups: tuple[str, ...] = ("dqn",), **finding: object) -> Diagnosis:
    found = Finding(verdict, **finding)  # type: ignore[arg-type]
    return Diagnosis(Check(name, groups, f"symptom of {name}", "ours", (), lambda evidence: found), found)


def series(values: list[float] | np.ndarray) -> Series:
    return Series(np.arange(1, len(values) + 1) * 10, np.array(values, float))


class Tags(HTMLParser):
    """Counts tags, and checks that each is closed in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    return tags


def test_nothing_of_a_hostile_run_gets_through() -> None:
    found = Diagnosis(
        Check(HOSTILE, ("dqn",), HOSTILE, HOSTILE, (), lambda evidence: Finding(Verdict.FAIL)),
        Finding(
            Verdict.FAIL, HOSTILE, HOSTILE, {HOSTILE: math.nan}, HOSTILE, {HOSTILE: HOSTILE, "b": [HOSTILE]}, HOSTILE
        ),
    )
    names = [
        HOSTILE,
        f"train/{HOSTILE}",
        f"train/grad/layer_{HOSTILE}",
        f"train/grad/layer_2{HOSTILE}",
        "train/dqn_loss",
    ]
    metrics = Metrics({name: series([1.0, math.nan, 3.0]) for name in names}, [HOSTILE])
    page = html_report(HOSTILE, {HOSTILE: HOSTILE}, [found], metrics, bounds={"train/dqn_loss": (0.0, 1.0)})
    tags = parsed(page)
    assert not tags.seen & {"script", "img", "iframe", "link", "object"}
    assert not [name for name in tags.attributes if name.startswith("on") or name in ("src", "style")]
    assert "\u202e" not in page
    assert "\0" not in page
    page.encode()
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|url\(|@import", page)


@settings(deadline=None)
@given(st.text())
def test_escaped_text_holds_no_markup(text: str) -> None:
    assert not set(escape(text)) & set("<>\"'")
    ElementTree.fromstring(f'<a b="{escape(text)}">{escape(text)}</a>')


def test_faults_come_first_with_their_mend() -> None:
    found = [
        diagnosis(Verdict.OK, "fine", evidence="all well"),
        diagnosis(
            Verdict.WARN, "slow", ("speed",), evidence="12 % slower", sure="possible", advice="Buy a faster disk."
        ),
        diagnosis(Verdict.UNKNOWN, "unknown"),
        diagnosis(
            Verdict.FAIL,
            "empty",
            evidence="240 of 1000",
            sure="likely",
            numbers={"size": 240.0},
            why="Too few.",
            fix={"dqn.buffer_min_size": 200, "dqn.name": "it's", "dqn.on": True},
        ),
    ]
    page = html_report(
        "My run", {"steps": "5,000"}, found, Metrics({"train/dqn_epsilon": series([1.0, 0.5])}, ["thinned"])
    )
    parsed(page)
    order = [
        "My run",
        "5,000",
        "<b>1</b> fail",
        "thinned",
        "symptom of empty",
        "240 of 1000",
        "Too few.",
        "slow",
        "faster disk",
    ]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    mend = page[page.index("What to fix") : page.index("<h2>Q-learning")]
    assert "symptom of fine" not in mend
    assert "likely" in mend
    panel = page[page.index("<h2>Q-learning") : page.index("<h2>All checks")]
    assert "empty" in panel
    assert ">slow<" not in panel
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert page.count(f'id="{anchor}"') == 1
    assert shlex.split(override_text(found[3].finding)) == ["dqn.buffer_min_size=200", "dqn.name=it's", "dqn.on=true"]


def test_an_empty_run_has_a_page() -> None:
    parsed(html_report("nothing", {}, [], Metrics({}, ["metrics.jsonl does not exist"])))
    parsed(html_report("empty", {}, [], Metrics({"train/loss": series([])})))


def test_the_page_of_a_long_run_is_small() -> None:
    random = np.random.default_rng(0)
    names = [metric.name for metric in ALL if "<" not in metric.name][:100]
    metrics = Metrics({name: Series(np.arange(100_000) * 10, random.normal(size=100_000)) for name in names})
    assert len(html_report("long", {}, [], metrics).encode()) < 1.5e6


def test_accuracy_has_its_chance_line_and_the_healthy_values_are_shaded() -> None:
    metrics = Metrics({"train/accuracy": series([0.3, 0.8]), "train/cos_sim_mean": series([0.2, 0.7])})
    page = html_report("run", {}, [], metrics, chance=0.31)
    assert ">chance</text>" in page
    assert page.count('<rect class="b"') == 1  # cos_sim_mean; the bound of accuracy is a multiple of chance
    assert "chance</text>" not in html_report("run", {}, [], metrics)
    wider = html_report("run", {}, [], metrics, bounds={"train/accuracy": (0.5, None)})
    assert wider.count('<rect class="b"') == 2
    assert "healthy: at least 0.5" in wider


def path_of(svg: str) -> str:
    [path] = re.findall(r'<path class="p c0[^"]*" d="([^"]*)"', svg)
    return path


def test_a_spike_survives_thinning_and_a_gap_stays_open() -> None:
    values = np.ones(100_000)
    values[54_321] = 1000.0
    values[70_000] = math.nan
    svg = draw(Chart("x", [Line("", series(values))]))
    ElementTree.fromstring(svg)
    path = path_of(svg)
    assert path.count("M") == 2
    assert path.count("M") + path.count("L") <= MOST_POINTS
    heights = [float(pair.split()[1]) for pair in re.split("[ML]", path)[1:]]
    assert min(heights) < 30 < 150 < sorted(heights)[1]
    assert '<path class="n"' in svg


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([0.0, 1.0, -5.0, 1e308, -1e308, 5e-324, math.nan]), min_size=0, max_size=30), st.booleans()
)
def test_any_values_make_a_drawing(values: list[float], log: bool) -> None:
    svg = draw(Chart("x", [Line("a", series(values)), Line("b", series(values[:3]))], log=log, band=(0.0, 1.0)))
    ElementTree.fromstring(svg)
    assert not re.search(r'[" MLH](nan|-?inf)\b', svg)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5000), st.integers(0, 2**32))
def test_thinning_keeps_extremes_ends_and_what_is_not_finite(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(size=count)
    values[random.random(count) < 0.01] = math.nan
    places = np.sort(random.random(count) ** 3)
    kept = thinned(places, values, 100)
    assert len(kept) <= 100
    assert (np.diff(kept) > 0).all()
    assert {0, count - 1} <= set(kept.tolist())
    assert np.isnan(values[kept]).any() == np.isnan(values).any()
    if not np.isnan(values).all():
        assert np.nanmin(values) in values[kept]
        assert np.nanmax(values) in values[kept]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (2000, "2k"),
        (12_500, "12.5k"),
        (1_500_000, "1.5M"),
        (1e-5, "1e-5"),
        (-0.5, "-0.5"),
        (2e-7, "2e-7"),
    ],
)
def test_ticks_read_well(value: float, text: str) -> None:
    assert tick_text(value) == text


def test_the_report_needs_no_torch() -> None:
    script = "import sys, trm_core.diagnose.report_html; print({'torch', 'matplotlib', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
