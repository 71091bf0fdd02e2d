"""Files of the chart that are made from code: `python -m meshbus.cli.chart_files [--check]`."""

import sys
from pathlib import Path
from typing import Any

from meshbus.inject.yaml_output import to_yaml
from meshbus.kube.permissions import (
    ALWAYS_CLUSTER,
    CLUSTER,
    ROOT,
    rules_of,
    services_with_access,
)

FOLDER = Path(__file__).parents[2] / "deploy" / "helm" / "meshbus" / "files"
_MADE = "# Made by `python -m meshbus.cli.chart_files`.\n"


def files() -> dict[str, str]:
    """Content by name below `FOLDER`."""
    return {"rbac.yaml": _MADE + to_yaml(rules())}


def rules() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Rules of RBAC by service and scope; `{revision}` in names is the suffix of the revision."""
    scopes = {"cluster": CLUSTER, "always-cluster": ALWAYS_CLUSTER, "root": ROOT}
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
