"""`trm --version`: what is installed and which devices are available; with `--json` as one document."""

from __future__ import annotations

from trm_cli.console import out, print_json


def print_version(json: bool) -> None:
    """Print versions, devices and extras on stdout."""
    from trm_core.about import about

    found = about()
    if json:
        print_json(found)
        return
    absent = "not installed"
    rows = [
        ("trm", found.version or absent),
        ("Python", found.python),
        ("platform", found.platform),
        *((name, version or absent) for name, version in found.packages.items()),
        *(("device", device) for device in found.devices),
        *((f"extra {name}", f"needs {', '.join(lacks)}" if lacks else "yes") for name, lacks in found.extras.items()),
    ]
    if found.devices_problem is not None:
        rows.append(("device", found.devices_problem))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        out(f"{name:<{width}}  {value}")
