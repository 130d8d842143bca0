"""`trm serve`: answer requests to a trained model over HTTP."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from trm_cli.config_options import JsonOption
from trm_cli.console import log, out, print_json

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def command(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="Run directory or exported folder; default: the newest under runs/."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0: all addresses of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free port.")] = 8000,
    policy: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="learned, threshold, act, never, all; default: as it was trained."),
    ] = None,
    price: Annotated[
        float | None, typer.Option(metavar="P", help="Reward per price unit: higher buys less; default: the run's.")
    ] = None,
    confidence: Annotated[float, typer.Option(min=0.0, max=1.0, help="At which 'threshold' halts.")] = 0.95,
    max_steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Most reasoning steps per sample; default: as trained.")
    ] = None,
    restarts: Annotated[
        int,
        typer.Option(
            min=1, metavar="K", help="Think K times about each sample, as K rows; the most confident answer counts."
        ),
    ] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Rows processed at once.")] = 64,
    max_queue: Annotated[int, typer.Option(min=1, help="Rows that may wait; more are refused with 503.")] = 4096,
    max_request_mb: Annotated[float, typer.Option(min=0.001, help="Largest request body, in MB.")] = 16.0,
    max_samples: Annotated[int, typer.Option(min=1, help="Most samples in one request.")] = 1024,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that torch computes with.")] = None,
    checkpoint: Annotated[
        str, typer.Option(metavar="latest|best", help="Which checkpoint of a run to use.")
    ] = "latest",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    json: JsonOption = False,
) -> None:
    """Answer HTTP requests (POST /predict, GET /health, GET /metrics) until SIGTERM or Ctrl-C; requests accepted before
    that are still answered.

    Example: trm serve exported/digits --port 8000
    """
    from trm_core.errors import UsageError

    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"trm serve needs {', '.join(missing)}", hint="pip install 'trm[serve]'")

    import torch

    from trm_core.inference.predictor import Predictor
    from trm_core.serving.app import Limits
    from trm_core.serving.server import ServerSettings, serve
    from trm_core.training.run_dir import newest_run

    if model is None:
        model = newest_run()
        log(f"model: {model} (the newest run)")
    if threads is not None:
        torch.set_num_threads(threads)
    predictor = Predictor.load(model, device, checkpoint, max_steps=max_steps, restarts=restarts)
    for note in predictor.trained.notes:
        log(note)
    limits = Limits(round(max_request_mb * 1e6), max_samples)

    def ready(address: str) -> None:
        if json:
            print_json({"model": str(model), "address": address})
        else:
            out(f"serving {model} at {address}")

    serve(
        predictor,
        policy,
        price,
        confidence,
        ServerSettings(host, port, batch, max_queue, limits),
        ready,
    )
    log("stopped: all accepted requests were answered")
