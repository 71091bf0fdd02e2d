"""`meshbus wait`: until a change is live on every proxy."""

import time
from typing import Annotated, Any

import typer

from meshbus.cli.api_client import (
    NO,
    OK,
    WRONG_USE,
    ApiClient,
    ApiError,
    HomeOption,
    end,
    print_json,
)

_ASK_S = 10.0


def wait(
    target: Annotated[
        str | None, typer.Argument(metavar="[KIND/NAME]", help="The last change of an object.")
    ] = None,
    change: Annotated[
        int | None, typer.Option("--change", min=1, help="Id that `apply` printed.")
    ] = None,
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Of KIND/NAME.")] = "default",
    timeout: Annotated[
        str, typer.Option("--timeout", help="How long at most: 30s, 2m, or seconds.")
    ] = "60s",
    output: Annotated[str, typer.Option("--output", "-o", help="text or json.")] = "text",
    home: HomeOption = None,
) -> None:
    """Wait until every connected proxy has taken a change; print how many and how fast.

    Exit 1: a proxy refused it, or the time is over; says which proxy and why.
    """
    if (target is None) == (change is None):
        end("wait", "name one: --change N, or KIND/NAME", WRONG_USE)
    limit_s = seconds_of(timeout)
    if limit_s is None:
        end("wait", f"--timeout: 30s, 2m or a number of seconds, not {timeout!r}", WRONG_USE)
    try:
        with ApiClient(home) as api:
            number = change if change is not None else _change_of(api, str(target), namespace)
            raise typer.Exit(wait_for(api, number, limit_s, output))
    except ApiError as error:
        end("wait", error.message, NO)


def seconds_of(text: str) -> float | None:
    """Seconds of `30`, `30s`, `500ms`, `2m` or `1h`; None: not a duration."""
    for suffix, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("", 1.0)):
        if text.endswith(suffix):
            try:
                value = float(text.removesuffix(suffix)) * factor
            except ValueError:
                continue
            return value if 0 <= value < float("inf") else None
    return None


def _change_of(api: ApiClient, target: str, namespace: str) -> int:
    from meshbus.cli.objects import _info, path_of

    kind, slash, name = target.partition("/")
    if not slash or not name:
        end("wait", f"{target!r} is not KIND/NAME", WRONG_USE)
    found = api.ask("GET", path_of(_info("wait", kind), namespace, name))
    # Its resourceVersion moves with its status too, which is later than what it tells of.
    return api.change or int(found["metadata"]["resourceVersion"])


def wait_for(api: ApiClient, change: int, limit_s: float, output: str, *, err: bool = False) -> int:
    """Wait, print the receipt, and give the exit code."""
    end_at = time.monotonic() + limit_s
    while True:
        left = max(0.0, end_at - time.monotonic())
        receipt = api.ask(
            "GET", f"/v1/changes/{change}", query={"wait": f"{min(left, _ASK_S):.3f}"}
        )
        if receipt["state"] != "pending" or time.monotonic() >= end_at:
            break
    if output == "json":
        print_json(receipt)
    else:
        for line in describe(receipt, limit_s):
            typer.echo(line, err=err or receipt["state"] != "converged")
    return OK if receipt["state"] == "converged" else NO


def describe(receipt: dict[str, Any], limit_s: float) -> list[str]:
    """The receipt in words."""
    change, proxies = receipt["change"], receipt["proxies"]
    total, converged = proxies["total"], proxies["converged"]
    if receipt["state"] == "converged":
        latency = receipt.get("latency_ms")
        took = f" in {latency:.0f} ms" if latency is not None else ""
        lines = [f"change {change} live on {converged} of {total} proxies{took}"]
        lines += [
            f"  without effect at {lost['proxies']} of them: {lost['object']}: {lost['path']}: "
            f"{lost['message']}"
            for lost in receipt.get("without_effect", ())
        ]
        return lines
    if receipt["state"] == "rejected":
        refusing = len({problem.get("proxy") for problem in receipt["rejected"]})
        lines = [f"change {change} was refused by {refusing} of {total} proxies:"]
        lines += [
            f"  {problem.get('proxy')}: {problem.get('object') or problem.get('resource')}: "
            f"{problem.get('message')}"
            for problem in receipt["rejected"]
        ]
        return lines
    waiting = ", ".join(receipt["waiting"]) or "no one by name"
    reached = f"change {change} live on {converged} of {total} proxies after {limit_s:g} s"
    if not total:
        reached = f"change {change} is not live after {limit_s:g} s"
    return [f"{reached}; still waiting for {waiting}"]
