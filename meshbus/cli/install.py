"""`meshbus install`, `upgrade`, `uninstall` and `precheck`: the chart, by Helm, with a look at the
cluster before."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import typer

NO, WRONG_USE = 1, 2
OLDEST = (1, 29)

Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Of the control plane.")]
Revision = Annotated[str, typer.Option("--revision", "-r", help="Name of the control plane.")]
Profile = Annotated[str, typer.Option("--profile", help="demo, default, ha, large or remote.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="A value of the chart: KEY=VALUE.")]
Values = Annotated[
    list[str] | None, typer.Option("--values", "-f", help="File with values of the chart.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be applied; no cluster is needed.")
]
Kubeconfig = Annotated[str, typer.Option("--kubeconfig", help="File; default: kubectl's.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Until all pods are ready.")]
Hooks = Annotated[bool, typer.Option("--hooks/--no-hooks", hidden=True)]


class Finding(NamedTuple):
    """Something about a cluster that matters."""

    level: str
    """`error`: it cannot work; `warning`: look at it; `info`."""
    message: str


def chart() -> Path:
    """The chart of this version: beside the package, or in a checkout."""
    inside = Path(str(files("meshbus"))) / "chart"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "deploy" / "helm" / "meshbus"


def install(
    namespace: Namespace = "istio-system",
    revision: Revision = "",
    profile: Profile = "default",
    set_: Set = None,
    values: Values = None,
    dry_run: DryRun = False,
    kubeconfig: Kubeconfig = "",
    wait: Wait = True,
    hooks: Hooks = True,
) -> None:
    """Look at the cluster, then install the control plane.

    Exit 0: done; 1: the cluster is not fit, or Helm failed; 2: wrong use.
    """
    flags = _flags(namespace, revision, profile, set_, values)
    if dry_run:
        _print_manifests(release(revision), flags)
        return
    findings = look(kubeconfig, namespace, revision)
    _tell(findings)
    if any(finding.level == "error" for finding in findings):
        _end("the cluster is not fit: nothing was installed", NO)
    command = ["install", release(revision), str(chart()), *flags, "--create-namespace"]
    _helm([*command, *(["--wait"] if wait else []), *([] if hooks else ["--no-hooks"])], kubeconfig)


def upgrade(
    namespace: Namespace = "istio-system",
    revision: Revision = "",
    profile: Profile = "",
    set_: Set = None,
    values: Values = None,
    dry_run: DryRun = False,
    kubeconfig: Kubeconfig = "",
    wait: Wait = True,
    hooks: Hooks = True,
) -> None:
    """Bring a control plane to this version, keeping what was set when it was installed.

    Exit 0: done; 1: Helm failed; 2: wrong use.
    """
    flags = _flags(namespace, revision, profile, set_, values)
    if dry_run:
        _print_manifests(release(revision), flags)
        return
    command = ["upgrade", release(revision), str(chart()), *flags, "--reset-then-reuse-values"]
    _helm([*command, *(["--wait"] if wait else []), *([] if hooks else ["--no-hooks"])], kubeconfig)


def uninstall(
    namespace: Namespace = "istio-system",
    revision: Revision = "",
    purge: Annotated[
        bool,
        typer.Option(
            "--purge", help="Also the keys, the volumes, the definitions and their objects."
        ),
    ] = False,
    kubeconfig: Kubeconfig = "",
    hooks: Hooks = True,
) -> None:
    """Take a control plane away. Sidecars go on with what they have until their pods end.

    Exit 0: done; 1: Helm failed; 2: wrong use.
    """
    _helm(["uninstall", release(revision), "-n", namespace, *([] if hooks else ["--no-hooks"])],
          kubeconfig)  # fmt: skip
    maps = "configmap/meshbus-proxy" + (f"-{revision}" if revision else "")
    _kubectl_each(kubeconfig, maps.partition("/")[2], also_roots=purge)
    if purge:
        part = "app.kubernetes.io/part-of=meshbus"
        suffix = f"-{revision}" if revision and revision != "default" else ""
        volumes = f"app in (meshbus-nats,meshbus-ca{suffix},meshbus-all{suffix})"
        for kind, label in (("secrets", part), ("persistentvolumeclaims", volumes)):
            _kubectl(kubeconfig, "delete", kind, "-n", namespace, "-l", label, "--ignore-not-found")
        _kubectl(kubeconfig, "delete", "crd", "-l", part, "--ignore-not-found")


def precheck(
    namespace: Namespace = "istio-system",
    revision: Revision = "",
    kubeconfig: Kubeconfig = "",
    output: Annotated[str, typer.Option("--output", "-o", help="text or json.")] = "text",
) -> None:
    """Say whether a cluster is fit for the mesh; nothing is changed.

    Exit 0: it is; 1: it is not; 2: wrong use.
    """
    findings = look(kubeconfig, namespace, revision)
    if output == "json":
        print(json.dumps({"findings": [finding._asdict() for finding in findings]}))
    else:
        _tell(findings)
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(NO)
    if output != "json":
        print("the cluster is fit", file=sys.stderr)


def release(revision: str) -> str:
    """Name of the Helm release of a revision."""
    return f"meshbus-{revision}" if revision and revision != "default" else "meshbus"


def look(kubeconfig: str, namespace: str, revision: str) -> list[Finding]:
    """What matters of a cluster, by kubectl."""
    return list(_look(kubeconfig, namespace, revision))


def _look(kubeconfig: str, namespace: str, revision: str) -> Iterator[Finding]:
    version = _json(kubeconfig, "version")
    server = (version or {}).get("serverVersion")
    if not server:
        yield Finding("error", "the API server does not answer")
        return
    number = tuple(int("".join(filter(str.isdigit, server[part]))) for part in ("major", "minor"))
    if number < OLDEST:
        needed = ".".join(map(str, OLDEST))
        yield Finding("error", f"Kubernetes {server['gitVersion']}: {needed} or newer is needed")
    else:
        yield Finding("info", f"Kubernetes {server['gitVersion']}")
    for verb, resource in (
        ("create", "customresourcedefinitions.apiextensions.k8s.io"),
        ("create", "clusterroles.rbac.authorization.k8s.io"),
        ("create", "mutatingwebhookconfigurations.admissionregistration.k8s.io"),
        ("create", "deployments.apps"),
        ("create", "secrets"),
    ):
        scope = [] if "." in resource and not resource.endswith("apps") else ["-n", namespace]
        if _kubectl(kubeconfig, "auth", "can-i", verb, resource, *scope, check=False) != "yes":
            yield Finding("error", f"you may not {verb} {resource}")
    classes = (_json(kubeconfig, "get", "storageclasses") or {}).get("items", [])
    default = "storageclass.kubernetes.io/is-default-class"
    if not any((c["metadata"].get("annotations") or {}).get(default) == "true" for c in classes):
        yield Finding(
            "warning",
            "no default StorageClass: set nats.storage.storageClassName and "
            "ca.storage.storageClassName, or make the volumes yourself",
        )
    hooks = _json(kubeconfig, "get", "mutatingwebhookconfigurations") or {}
    own = revision or "default"
    for item in hooks.get("items", []):
        labels = item["metadata"].get("labels") or {}
        if (
            labels.get("istio.io/rev") == own
            and labels.get("app.kubernetes.io/part-of") != "meshbus"
        ):
            yield Finding(
                "error",
                f"{item['metadata']['name']} of another mesh serves revision {own!r}: "
                "install with --revision",
            )
    for item in (_json(kubeconfig, "get", "crd") or {}).get("items", []):
        labels = item["metadata"].get("labels") or {}
        ours = labels.get("app.kubernetes.io/part-of") == "meshbus"
        if item["spec"]["group"].endswith(".istio.io") and not ours:
            yield Finding(
                "warning",
                "definitions of Istio's kinds are there already: install with --set "
                "crds.enabled=false, or let Helm adopt them",
            )
            break


def _flags(
    namespace: str,
    revision: str,
    profile: str,
    pairs: list[str] | None,
    values: list[str] | None,
) -> list[str]:
    flags = ["-n", namespace]
    for file in values or ():
        if not Path(file).is_file():
            _end(f"--values {file}: no such file", WRONG_USE)
        flags += ["-f", file]
    if profile:
        flags += ["--set", f"profile={profile}"]
    if revision:
        flags += ["--set", f"revision={revision}"]
    return [*flags, *(part for pair in pairs or () for part in ("--set", pair))]


def _print_manifests(name: str, flags: list[str]) -> None:
    print(_helm(["template", name, str(chart()), *flags, "--kube-version",
                 ".".join(map(str, OLDEST)) + ".0"], "", capture=True), end="")  # fmt: skip


def _tell(findings: list[Finding]) -> None:
    for finding in findings:
        print(f"{finding.level}: {finding.message}", file=sys.stderr)


def _helm(arguments: list[str], kubeconfig: str, *, capture: bool = False) -> str:
    program = os.environ.get("HELM") or shutil.which("helm")
    if program is None:
        _end("helm is needed (version 3 or 4), on the PATH or named by HELM", WRONG_USE)
    config = [f"--kubeconfig={kubeconfig}"] if kubeconfig else []
    done = subprocess.run(  # noqa: S603 - the program the person has
        [program, *arguments, *config],
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    if done.returncode:
        raise typer.Exit(NO)
    return done.stdout or ""


def _kubectl(kubeconfig: str, *arguments: str, check: bool = True) -> str:
    program = shutil.which("kubectl")
    if program is None:
        _end("kubectl is needed, on the PATH", WRONG_USE)
    config = [f"--kubeconfig={kubeconfig}"] if kubeconfig else []
    done = subprocess.run(  # noqa: S603 - the program the person has
        [program, *config, *arguments], capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        _end(done.stderr.strip(), NO)
    return done.stdout.strip()


def _json(kubeconfig: str, *arguments: str) -> dict[str, Any] | None:
    text = _kubectl(kubeconfig, *arguments, "-o", "json", check=False)
    try:
        held = json.loads(text)
    except ValueError:
        return None
    return held if isinstance(held, dict) else None


def _kubectl_each(kubeconfig: str, name: str, *, also_roots: bool) -> None:
    """Delete what the control plane has written into every namespace."""
    names = [name, *(["meshbus-ca-root-cert"] if also_roots else [])]
    listed = _json(kubeconfig, "get", "configmaps", "-A", "-l", "meshbus.io/proxy-files") or {}
    for item in listed.get("items", []):
        metadata = item["metadata"]
        if metadata["name"] in names:
            _kubectl(kubeconfig, "delete", "configmap", "-n", metadata["namespace"],
                     metadata["name"], "--ignore-not-found")  # fmt: skip


def _end(message: str, code: int) -> NoReturn:
    print(f"meshbus: {message}", file=sys.stderr)
    raise typer.Exit(code)
