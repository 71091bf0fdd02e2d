"""`meshbus serve NAME...`, and `meshbus-NAME` for one."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer


def settings_help(names: Sequence[str]) -> str:
    """The settings of services, as text."""
    from meshbus.runtime.service import load_service
    from meshbus.runtime.settings import ProcessSettings, explain

    lines = ["Settings, from the environment or from the YAML file of --settings:", ""]
    rows = explain(ProcessSettings, "MESHBUS")
    for name in names:
        prefix = "MESHBUS_" + name.upper().replace("-", "_")
        rows += explain(load_service(name).settings_type, prefix)
    width = max(len(row[0]) for row in rows)
    lines += [
        f"  {variable:<{width}}  {about}{f' (default {default})' if default else ''}"
        for variable, default, about in rows
    ]
    return "\n".join(lines)


def serve(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Services to run.")],
    settings: Annotated[str, typer.Option("--settings", help="YAML file of settings.")] = "",
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            min=0,
            max=256,
            help="Processes that share the ports of the xds-gateway; 0: as its settings say.",
        ),
    ] = 0,
    explain: Annotated[
        bool, typer.Option("--explain", help="List the settings of these services, and stop.")
    ] = False,
) -> None:
    """Run services (config, discovery, ca, policy, telemetry, xds-gateway) in this process.

    Their settings come from the environment (MESHBUS_...) or from a file; `--explain` lists them.
    """
    _run(names, settings, explain, workers)


def _run(names: Sequence[str], settings: str, explain: bool, workers: int = 0) -> None:
    from meshbus.runtime.process import main
    from meshbus.runtime.service import UnknownServiceError

    if explain:
        try:
            print(settings_help(names))
        except UnknownServiceError as error:
            print(f"meshbus serve: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        return
    raise SystemExit(main(names, os.environ, settings, workers=workers))


def _one(name: str) -> None:
    """`meshbus-NAME`."""

    def command(
        settings: Annotated[str, typer.Option("--settings", help="YAML file of settings.")] = "",
        explain: Annotated[
            bool, typer.Option("--explain", help="List the settings, and stop.")
        ] = False,
    ) -> None:
        _run([name], settings, explain)

    command.__doc__ = f"Run the {name} service. `--explain` lists its settings."
    typer.run(command)


def config() -> None:
    """`meshbus-config`."""
    _one("config")


def discovery() -> None:
    """`meshbus-discovery`."""
    _one("discovery")


def ca() -> None:
    """`meshbus-ca`."""
    _one("ca")


def policy() -> None:
    """`meshbus-policy`."""
    _one("policy")


def telemetry() -> None:
    """`meshbus-telemetry`."""
    _one("telemetry")


def xds_gateway() -> None:
    """`meshbus-xds-gateway`."""
    _one("xds-gateway")
