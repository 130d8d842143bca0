"""The page about the checks is that of the registry, and every item of the guide has its checks or a reason."""

from __future__ import annotations

import tiny

from trm_core.diagnose.guide import GUIDE, page
from trm_core.diagnose.registry import CHECKS


def test_the_page_is_up_to_date() -> None:
    assert (tiny.ROOT / "docs/diagnose.md").read_text() == page()


def test_items_name_checks_or_say_why_not() -> None:
    names = {check.id for check in CHECKS}
    for _, items in GUIDE:
        for item in items:
            assert set(item.checks) <= names, item
            assert item.checks or item.note, item
    titles = [title for title, _ in GUIDE]
    assert [title.split(":")[0] for title in titles[1:8]] == [f"Workflow {number}" for number in range(1, 8)]
    assert len(GUIDE[0][1]) == 8
