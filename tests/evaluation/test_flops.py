"""The counter of floating-point operations against torch's, and what it does without."""

from __future__ import annotations

import subprocess
import sys

import pytest
import tiny
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trm_core.evaluation.flops import flops_counted


@pytest.mark.parametrize("learns", [False, True], ids=["forward", "forward and backward"])
def test_counts_what_torch_counts(learns: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    convolution, x = nn.Conv1d(4, 3, 3), torch.randn(2, 4, 8)

    def work() -> None:
        loss = layer(x).sum() + convolution(x).sum() + (x @ x.mT).sum()
        if learns:
            loss.backward()

    with flops_counted() as counter, torch.set_grad_enabled(learns):
        work()
    with FlopCounterMode(display=False) as oracle, torch.set_grad_enabled(learns):
        work()
    assert counter.total == oracle.get_total_flops() > 10_000


def test_evaluation_does_not_import_the_compiler() -> None:
    """It would take as long as everything else of a small evaluation."""
    program = (
        "import sys, torch, tiny; from trm_core.evaluation.report import count_flops;"
        "model = tiny.make_model(tiny.make_config()); assert count_flops(model, torch.ones(tiny.K)).cycle > 0;"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tiny.ROOT / "tests"
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
