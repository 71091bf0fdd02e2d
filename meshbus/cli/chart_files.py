"""Files of the chart, and references of what it grants and what injection reads, that are made
from code: `python -m meshbus.cli.chart_files [--check]`."""

import sys
from pathlib import Path
from typing import Any

from meshbus.cli.dashboards import DASHBOARDS, dashboard_json
from meshbus.inject.annotations import KNOWN
from meshbus.inject.yaml_output import to_yaml
from meshbus.kube.permissions import (
    ALWAYS_CLUSTER,
    CLUSTER,
    MACHINES,
    PERMISSIONS,
    ROOT,
    SIGNER_CERT_MANAGER,
    SIGNER_KUBERNETES,
    rules_of,
    services_with_access,
)

_TOP = Path(__file__).parents[2]
FOLDER = _TOP / "deploy" / "helm" / "meshbus" / "files"
REFERENCE = _TOP / "docs" / "reference"
_BY = "Made by `python -m meshbus.cli.chart_files`."
_MADE = "# Made by `python -m meshbus.cli.chart_files`.\n"


def files() -> dict[Path, str]:
    """Content by path."""
    return {
        FOLDER / "rbac.yaml": _MADE + to_yaml(rules()),
        **{FOLDER / "dashboards" / f"{one.name}.json": dashboard_json(one) for one in DASHBOARDS},
        REFERENCE / "annotations.md": annotations_page(),
        REFERENCE / "rbac.md": rbac_page(),
    }


def annotations_page() -> str:
    """What each annotation of a pod does."""
    lines = [
        "# Annotations that injection reads",
        "",
        f"{_BY} On pods (the template of a Deployment, not the Deployment).",
        "A value that an annotation does not take refuses the pod.",
        "",
        "| annotation | does |",
        "|---|---|",
    ]
    for name, known in KNOWN.items():
        does = known.does
        if known.refused:
            does += f" **Refused**: {known.refused}."
        if known.without_effect:
            does += f" **No effect**, with a warning: {known.without_effect}."
        lines.append(f"| `{name}` | {does} |")
    return "\n".join(lines) + "\n"


def rbac_page() -> str:
    """What each service may do in a cluster, and why."""
    lines = [
        "# What services may do in a cluster",
        "",
        f"{_BY} The chart's roles are made of the same list.",
        "",
        "- `cluster`: in every namespace, or in those of `global.namespaces` (Roles then)",
        "- `always-cluster`: kinds without a namespace",
        "- `root`: in the namespace of the control plane",
        "- `machines`: as `cluster`, where `machines.gateway` of the chart says so",
        "- `signer-kubernetes`: everywhere, where `ca.signer` of the chart says so",
        "- `signer-cert-manager`: the same, in the namespace of the control plane",
        "",
        "xds-gateway, policy and telemetry have no access, and no token mounted. Gateways read",
        "Secrets of their own namespace. The agent of nodes (`nodeCapture`) gets pods.",
        "",
        "| service | where | verbs | on | why |",
        "|---|---|---|---|---|",
    ]
    for rule in PERMISSIONS:
        groups = " ".join(sorted({group or "core" for group in rule.groups}))
        on = ", ".join(rule.paths or rule.resources) + (f" ({groups})" if groups else "")
        if rule.names:
            on += f" named {', '.join(rule.names)}"
        verbs = ", ".join(rule.verbs)
        lines.append(f"| {rule.service} | {rule.scope} | {verbs} | {on} | {rule.why} |")
    return "\n".join(lines) + "\n"


def rules() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Rules of RBAC by service and scope; `{revision}` in names is the suffix of the revision."""
    scopes = {
        "cluster": CLUSTER,
        "always-cluster": ALWAYS_CLUSTER,
        "root": ROOT,
        "machines": MACHINES,
        "signer-kubernetes": SIGNER_KUBERNETES,
        "signer-cert-manager": SIGNER_CERT_MANAGER,
    }
    return {
        service: {
            name: held
            for name, scope in scopes.items()
            if (held := rules_of(service, scope, keep_placeholder=True))
        }
        for service in services_with_access()
    }


def main() -> int:
    """Write the files, or with `--check` say which differ."""
    check = "--check" in sys.argv[1:]
    stale = []
    for path, text in files().items():
        if not path.exists() or path.read_text() != text:
            stale.append(str(path.relative_to(_TOP)))
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    if check and stale:
        print(f"chart files differ: {', '.join(stale)}", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
