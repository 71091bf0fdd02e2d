"""Capture: what brings a pod's traffic to its proxy.

An init container sets it up, in the arguments of Istio's, or a plugin of the node does, which reads
annotations; then an init container looks whether it has.
"""

import json
from typing import Any

from meshbus.inject import annotations as a
from meshbus.inject.context import INBOUND_PORT, OUTBOUND_PORT, PROXY_ID, PodContext
from meshbus.inject.status_listener import READY_PORT, STATS_PORT
from meshbus.inject.values import lookup, text

INIT, VALIDATION = "istio-init", "istio-validation"
CNI_NETWORK = "istio-cni"
_CNI_NAMESPACE = "default"


def seccomp(context: PodContext) -> dict[str, Any]:
    """The seccomp profile of what is injected."""
    profile = context.value("proxy", "seccompProfile")
    return {"seccompProfile": profile or {"type": "RuntimeDefault"}}


def excluded_inbound(context: PodContext) -> str:
    """Inbound ports that are not captured: those asked for, and the status port."""
    excluded = context.setting(a.EXCLUDE_IN, "proxy", "excludeInboundPorts")
    port = context.setting(a.STATUS_PORT, "proxy", "statusPort").strip()
    parts = [part.strip() for part in excluded.split(",") if part.strip()]
    if port not in ("", "0") and port not in parts:
        parts.append(port)
    return ",".join(parts)


def capture_args(context: PodContext) -> list[str]:
    """What is captured, in the arguments of Istio's init container, which ours takes too."""
    outbound = int(lookup(context.mesh, "proxyListenPort") or OUTBOUND_PORT)
    inbound = int(lookup(context.mesh, "proxyInboundListenPort") or INBOUND_PORT)
    excluded = ",".join(filter(None, (f"{STATS_PORT},{READY_PORT}", excluded_inbound(context))))
    args: list[str] = [
        "istio-iptables",
        *("-p", str(outbound)),
        *("-z", str(inbound)),
        *("-u", str(PROXY_ID if context.transparent else context.user)),
        *("-m", context.interception),
        *("-i", context.setting(a.INCLUDE_RANGES, "proxy", "includeIPRanges")),
        *("-x", context.setting(a.EXCLUDE_RANGES, "proxy", "excludeIPRanges")),
        *("-b", context.setting(a.INCLUDE_IN, "proxy", "includeInboundPorts")),
        *("-d", excluded),
    ]
    for flag, name, value in (
        ("-q", a.INCLUDE_OUT, "includeOutboundPorts"),
        ("-o", a.EXCLUDE_OUT, "excludeOutboundPorts"),
    ):
        if name in context.annotations or text(context.value("proxy", value)):
            args += [flag, context.setting(name, "proxy", value)]
    interfaces = context.annotations.get(a.REROUTE) or context.annotations.get(a.KUBEVIRT)
    if interfaces:
        args += ["-k", interfaces]
    if a.EXCLUDE_INTERFACES in context.annotations:
        args += ["-c", context.annotations[a.EXCLUDE_INTERFACES]]
    args.append(f"--log_output_level={context.setting(a.AGENT_LOG_LEVEL, 'logging', 'level')}")
    if context.value("logAsJson"):
        args.append("--log_as_json")
    if context.value("proxy_init", "forceApplyIptables"):
        args.append("--force-apply")
    if context.node_captures:
        args += ["--run-validation", "--skip-rule-apply"]
    return args


def capture_container(context: PodContext, resources: dict[str, Any]) -> dict[str, Any]:
    """The init container that sets capture up, or looks whether the node has done it."""
    init_image = text(context.value("proxy_init", "image"))
    own = context.annotations.get(a.PROXY_IMAGE, "")
    privileged = bool(context.value("proxy", "privileged"))
    security: dict[str, Any] = {
        "allowPrivilegeEscalation": privileged,
        "privileged": privileged,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        **seccomp(context),
    }
    if context.node_captures:
        security |= {
            "runAsGroup": PROXY_ID if context.transparent else context.group,
            "runAsNonRoot": True,
            "runAsUser": PROXY_ID if context.transparent else context.user,
        }
    else:
        security["capabilities"]["add"] = ["NET_ADMIN"]
        security |= {"runAsGroup": 0, "runAsNonRoot": False, "runAsUser": 0}
    container: dict[str, Any] = {
        "name": VALIDATION if context.node_captures else INIT,
        # An image of one's own for the proxy holds both, as Istio's does.
        "image": context.image(own if "/" in own else "", init_image),
        **context.image_pull,
        "args": capture_args(context),
        "resources": resources,
        "securityContext": security,
    }
    metadata = context.proxy.proxy_metadata
    if metadata:
        variables: list[dict[str, Any]] = [{"name": k, "value": v} for k, v in metadata.items()]
        container["env"] = variables
    return container


def capture_annotations(context: PodContext) -> dict[str, str]:
    """What the node's plugin reads."""
    if not context.node_captures:
        return {}
    notes = {
        a.INTERCEPTION: context.interception,
        a.INCLUDE_RANGES: context.setting(a.INCLUDE_RANGES, "proxy", "includeIPRanges"),
        a.EXCLUDE_RANGES: context.setting(a.EXCLUDE_RANGES, "proxy", "excludeIPRanges"),
        a.INCLUDE_IN: context.setting(a.INCLUDE_IN, "proxy", "includeInboundPorts"),
        a.EXCLUDE_IN: excluded_inbound(context),
        a.INCLUDE_OUT: context.setting(a.INCLUDE_OUT, "proxy", "includeOutboundPorts"),
        a.EXCLUDE_OUT: context.setting(a.EXCLUDE_OUT, "proxy", "excludeOutboundPorts"),
    }
    found = {name: value for name, value in notes.items() if value or name in context.annotations}
    if lookup(context.values, "pilot", "cni", "provider") == "multus":
        found[a.NETWORKS] = _with_network(context.annotations.get(a.NETWORKS, ""))
    return found


def _with_network(networks: str) -> str:
    """Multus' list of networks with ours in it. Source: the Network Plumbing WG's CRD, v1 §4.1."""
    ours = f"{_CNI_NAMESPACE}/{CNI_NETWORK}"
    if not networks.strip():
        return ours
    if "[" in networks:
        try:
            held = json.loads(networks)
        except ValueError:
            return networks
        if any(isinstance(item, dict) and item.get("name") == CNI_NETWORK for item in held):
            return networks
        at = networks.rindex("]")
        comma = ", " if held else ""
        entry = json.dumps({"name": CNI_NETWORK, "namespace": _CNI_NAMESPACE})
        return f"{networks[:at]}{comma}{entry}{networks[at:]}"
    if ours in [part.strip() for part in networks.split(",")]:
        return networks
    return f"{networks}, {ours}"


def node_capture_args(pod: dict[str, Any]) -> list[str] | None:
    """Arguments of capture for a pod that is there, by its annotations; None: nothing to set up.

    Pods of the mesh have the record of their injection and a proxy; those that capture by
    themselves have an init container for it.
    """
    metadata, spec = pod.get("metadata") or {}, pod.get("spec") or {}
    notes: dict[str, str] = metadata.get("annotations") or {}
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    held = {container.get("name"): container for container in containers}
    if a.STATUS not in notes or "istio-proxy" not in held or INIT in held:
        return None
    if spec.get("hostNetwork") or VALIDATION not in held:
        return None
    mode = notes.get(a.INTERCEPTION, "REDIRECT")
    if mode == "NONE":
        return None
    security = held["istio-proxy"].get("securityContext") or {}
    args = ["istio-iptables", "-u", str(security.get("runAsUser") or 1337)]
    if mode == "TPROXY":
        args += ["-m", mode]
    flags = (
        ("-i", a.INCLUDE_RANGES, "*"),
        ("-x", a.EXCLUDE_RANGES, ""),
        ("-b", a.INCLUDE_IN, "*"),
        ("-d", a.EXCLUDE_IN, ""),
        ("-q", a.INCLUDE_OUT, ""),
        ("-o", a.EXCLUDE_OUT, ""),
        ("-c", a.EXCLUDE_INTERFACES, ""),
        ("-k", a.REROUTE if a.REROUTE in notes else a.KUBEVIRT, ""),
    )
    for flag, name, default in flags:
        known = a.KNOWN[name]
        value = notes.get(name, default)
        if known.check is not None and value:
            # What a pod says becomes arguments of a program with rights on the node.
            known.check(value)
        if value or name in notes:
            args += [flag, value]
    return args
