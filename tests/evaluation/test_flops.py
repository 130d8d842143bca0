"""The counter of floating-point operations against torch's, and what it does without."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

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


class Halves(nn.Module):
    """Two products."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


def test_compiled_networks_are_counted_as_they_are_written() -> None:
    """The compiler would take the counter's method for a function to compile, once per operator and shape."""
    graphs: list[Any] = []

    def remember(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    layer, x = Halves(), torch.randn(5, 4)
    layer.compile(backend=remember)
    layer(x)
    assert len(graphs) == 1
    with flops_counted() as counter:
        layer(x)
        layer(x[:3])
    assert counter.total == 2 * (5 + 3) * (4 * 3 + 3 * 2)
    layer(x)
    assert len(graphs) == 1


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
