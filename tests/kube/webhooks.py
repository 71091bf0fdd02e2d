"""The chart's webhooks with the address of a process in place of a Service."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml
from test_kube_chart import CHART, sets


def rendered_file(binary: str, root: str, template: str, *flags: str) -> list[dict[str, Any]]:
    """Documents of one file of the chart."""
    done = subprocess.run(
        [binary, "template", "mesh", str(CHART), "-n", root, "--kube-version", "1.34",
         "-s", f"templates/{template}.yaml", *flags],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [d for d in yaml.safe_load_all(done.stdout) if d]


def injector_webhooks(
    binary: str, root: str, webhook: dict[str, str], *flags: str
) -> list[dict[str, Any]]:
    """The mutating webhooks.

    Args:
        webhook: What config has written: `url` and `ca`.
    """
    bundle = base64.b64encode(webhook["ca"].encode()).decode()
    own = sets(
        f"sidecarInjectorWebhook.injectionURL={webhook['url']}/inject",
        f"sidecarInjectorWebhook.caBundle={bundle}",
    )
    found = rendered_file(binary, root, "webhooks", *own, *flags)
    return [d for d in found if d["kind"] == "MutatingWebhookConfiguration"]


def injection_values(binary: str, root: str, *flags: str) -> str:
    """What the chart gives injection."""
    found = rendered_file(binary, root, "configmaps", *flags)
    held = next(d for d in found if d["metadata"]["name"].startswith("meshbus-injection"))
    return str(held["data"]["values.yaml"])


def webhook_of(folder: Path) -> dict[str, str]:
    """Where the config process of a folder serves its webhooks."""
    found: dict[str, str] = json.loads((folder / "config" / "webhooks.json").read_text())
    return found
