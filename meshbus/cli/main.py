"""The `meshbus` command. Commands import what they need when they run: `--help` is quick."""

import sys

import typer

from meshbus.cli.analyze import analyze
from meshbus.cli.authz import authz
from meshbus.cli.certs import certs
from meshbus.cli.cluster_keys import cluster_keys
from meshbus.cli.compile import compile_command
from meshbus.cli.demo import demo
from meshbus.cli.down import down
from meshbus.cli.egress import egress
from meshbus.cli.events import events
from meshbus.cli.install import install, precheck, uninstall, upgrade
from meshbus.cli.kube_inject import kube_inject
from meshbus.cli.node_capture import node_capture
from meshbus.cli.objects import apply, delete, get
from meshbus.cli.proxies import proxy_config, proxy_status
from meshbus.cli.serve import serve
from meshbus.cli.status import status
from meshbus.cli.up import up
from meshbus.cli.validate import validate
from meshbus.cli.version import version
from meshbus.cli.wait import wait
from meshbus.cli.workload import workload

app = typer.Typer(
    name="meshbus",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A service mesh that speaks the Istio API, on NATS, with unmodified Envoys.",
)

_KUBERNETES = "On Kubernetes"
_RUN, _CONFIG, _LOOK, _OFFLINE, _SERVER = (
    "Run a mesh on this machine",
    "Configure it",
    "Look into it",
    "Without a mesh",
    "Run services",
)
app.command("demo", rich_help_panel=_RUN)(demo)
app.command("up", rich_help_panel=_RUN)(up)
app.command("down", rich_help_panel=_RUN)(down)
app.command("status", rich_help_panel=_RUN)(status)
app.command("precheck", rich_help_panel=_KUBERNETES)(precheck)
app.command("install", rich_help_panel=_KUBERNETES)(install)
app.command("upgrade", rich_help_panel=_KUBERNETES)(upgrade)
app.command("uninstall", rich_help_panel=_KUBERNETES)(uninstall)
app.command("apply", rich_help_panel=_CONFIG)(apply)
app.command("delete", rich_help_panel=_CONFIG)(delete)
app.command("get", rich_help_panel=_CONFIG)(get)
app.command("wait", rich_help_panel=_CONFIG)(wait)
app.add_typer(workload, name="workload", rich_help_panel=_CONFIG)
app.command("proxy-status", rich_help_panel=_LOOK)(proxy_status)
app.command("proxy-config", rich_help_panel=_LOOK)(proxy_config)
app.command("egress", rich_help_panel=_LOOK)(egress)
app.command("events", rich_help_panel=_LOOK)(events)
app.add_typer(certs, name="certs", rich_help_panel=_LOOK)
app.add_typer(authz, name="authz", rich_help_panel=_LOOK)
app.command("version", rich_help_panel=_LOOK)(version)
app.command("analyze", rich_help_panel=_OFFLINE)(analyze)
app.command("validate", rich_help_panel=_OFFLINE)(validate)
app.command("compile", rich_help_panel=_OFFLINE)(compile_command)
app.command("kube-inject", rich_help_panel=_KUBERNETES)(kube_inject)
app.command("cluster-keys", rich_help_panel=_SERVER)(cluster_keys)
app.command("node-capture", rich_help_panel=_SERVER)(node_capture)
app.command("serve", rich_help_panel=_SERVER)(serve)


def main() -> None:
    """Entry point of the console script."""
    if sys.argv[1:2] == ["mixer"]:
        # Its functions load RE2 and more; no other command should wait for them.
        from meshbus.cli.mixer import app as mixer

        app.add_typer(mixer, name="mixer", rich_help_panel=_OFFLINE)
    else:
        app.command("mixer", rich_help_panel=_OFFLINE)(_mixer_help)
    app()


def _mixer_help() -> None:
    """Try expressions of Mixer's attribute language: `meshbus mixer eval --batch FILE`."""


if __name__ == "__main__":
    main()
