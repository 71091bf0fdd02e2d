"""`meshbus proxy-status` and `meshbus proxy-config`: what is connected, and what it was sent."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from meshbus.cli.api_client import NO, ApiClient, ApiError, HomeOption, end, print_json
from meshbus.cli.objects import print_columns

TYPES = ("cds", "lds", "eds", "rds", "sds", "ecds")


class ConfigType(StrEnum):
    """What of a proxy's configuration."""

    CLUSTERS = "clusters"
    LISTENERS = "listeners"
    ROUTES = "routes"
    ENDPOINTS = "endpoints"
    SECRETS = "secrets"
    EXTENSIONS = "extensions"
    ALL = "all"


_ISTIOCTL = {"ecds": ConfigType.EXTENSIONS} | {t.value.removesuffix("s"): t for t in ConfigType}
"""Types as istioctl names them."""


def config_type(text: str) -> ConfigType:
    """The type that a person means: `clusters`, or as istioctl says it, `cluster`.

    Raises:
        typer.BadParameter: There is no such type.
    """
    found = _ISTIOCTL.get(text.lower()) or _ISTIOCTL.get(text.lower().removesuffix("s"))
    if found is None:
        raise typer.BadParameter(f"one of {', '.join(ConfigType)} is needed, not {text!r}")
    return found


def proxy_status(
    output: Annotated[str, typer.Option("--output", "-o", help="table or json.")] = "table",
    home: HomeOption = None,
) -> None:
    """List connected proxies, and for each type of resource whether it is in sync."""
    try:
        with ApiClient(home) as api:
            proxies = api.ask("GET", "/v1/proxies")["proxies"]
    except ApiError as error:
        end("proxy-status", error.message, NO)
    if output == "json":
        print_json({"proxies": proxies})
        return
    lines = [["NAME", "TYPE", *(t.upper() for t in TYPES), "GATEWAY", "VERSION", "CHANGE"]]
    lines += [
        [
            proxy["id"],
            proxy["type"],
            *(proxy["types"].get(t, {}).get("status", "NOT SENT") for t in TYPES),
            proxy["gateway"],
            proxy["version"],
            str(proxy["sequence"]),
        ]
        for proxy in proxies
    ]
    print_columns(lines)
    for proxy in proxies:
        for problem in proxy.get("problems", []):
            typer.echo(
                f"{proxy['id']} refused {problem['resource']} ({problem['object']}): "
                f"{problem['message']}",
                err=True,
            )


def proxy_config(
    type: Annotated[
        ConfigType,
        typer.Argument(parser=config_type, metavar="TYPE", help=f"One of {', '.join(ConfigType)}."),
    ],
    proxy: Annotated[
        str, typer.Argument(help="INSTANCE.NAMESPACE, or INSTANCE, as proxy-status lists it.")
    ],
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Of an INSTANCE without.")
    ] = "default",
    output: Annotated[str, typer.Option("--output", "-o", help="table or json.")] = "table",
    home: HomeOption = None,
) -> None:
    """Show what a proxy was sent; keys are left out."""
    name = proxy if "." in proxy else f"{proxy}.{namespace}"
    try:
        with ApiClient(home) as api:
            document = api.ask("GET", f"/v1/proxies/{name}/config", query={"type": type.value})
    except ApiError as error:
        hint = "; `meshbus proxy-status` lists those that are" if error.status == 404 else ""
        end("proxy-config", error.message + hint, NO)
    if output == "json":
        print_json(document)
        return
    lines = [["TYPE", "NAME", "DETAIL"]]
    for kind, items in document.items():
        if isinstance(items, list):
            lines += [[kind, _name(item), _detail(kind, item)] for item in items]
    print_columns(lines)


def _name(item: dict[str, Any]) -> str:
    return str(item.get("name") or item.get("clusterName") or "")


def _detail(kind: str, item: dict[str, Any]) -> str:
    if kind == "clusters":
        return str(item.get("type") or "STATIC")
    if kind == "listeners":
        address = (item.get("address") or {}).get("socketAddress") or {}
        return f"{address.get('address', '')}:{address.get('portValue', '')}"
    if kind == "routes":
        hosts = [h.get("name", "") for h in item.get("virtualHosts") or []]
        return f"{len(hosts)} virtual hosts"
    if kind == "endpoints":
        count = sum(len(group.get("lbEndpoints") or []) for group in item.get("endpoints") or [])
        return f"{count} endpoints"
    return ""
