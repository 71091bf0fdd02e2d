"""Files of the chart that are made from code: `python -m meshbus.cli.chart_files [--check]`."""

import sys
from pathlib import Path
from typing import Any

from meshbus.inject.yaml_output import to_yaml
from meshbus.kube.permissions import ALWAYS_CLUSTER, CLUSTER, PERMISSIONS, ROOT
from meshbus.schema.crds import definitions

FOLDER = Path(__file__).parents[2] / "deploy" / "helm" / "meshbus" / "files"
_MADE = "# Made by `python -m meshbus.cli.chart_files`.\n"


def files() -> dict[str, str]:
    """Content by name below `FOLDER`."""
    found = {"rbac.yaml": _MADE + to_yaml(rules())}
    for definition in definitions():
        name = definition["metadata"]["name"]
        found[f"crds/{name}.yaml"] = _MADE + to_yaml(definition)
    return found


def rules() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Rules of RBAC by service and scope; `{revision}` in names is the suffix of the revision."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for rule in PERMISSIONS:
        scope = {CLUSTER: "cluster", ALWAYS_CLUSTER: "always-cluster", ROOT: "root"}[rule.scope]
        entry: dict[str, Any] = {
            "apiGroups": list(rule.groups),
            "resources": list(rule.resources),
            "verbs": list(rule.verbs),
        }
        if rule.names:
            entry["resourceNames"] = list(rule.names)
        found.setdefault(rule.service, {}).setdefault(scope, []).append(entry)
    return found


def main() -> int:
    """Write the files, or with `--check` say which differ."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, text in files().items():
        path = FOLDER / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    if check and stale:
        print(f"chart files differ: {', '.join(stale)}", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
