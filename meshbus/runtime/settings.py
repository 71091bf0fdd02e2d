"""Settings: structs, filled from a YAML file and the environment, explained by `--help`.

A field's description is its `msgspec.Meta(description=...)`. The environment wins over the file.
"""

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import yaml

S = TypeVar("S", bound=msgspec.Struct)


class SettingsError(Exception):
    """A setting that cannot be used; the message names it."""


def _about(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


class ProcessSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of every process, whatever services it runs."""

    bus_url: Annotated[str, _about("nats-server, nats://HOST:PORT or tls://HOST:PORT")] = (
        "nats://127.0.0.1:4222"
    )
    bus_seeds: Annotated[str, _about("directory of <identity>.seed files; empty: no keys")] = ""
    bus_roots: Annotated[
        str, _about("file of the certificates that prove a nats-server at tls://HOST:PORT")
    ] = ""
    bus_replicas: Annotated[
        int, msgspec.Meta(description="nats-servers that keep each stream", ge=1, le=5)
    ] = 1
    cluster: Annotated[str, _about("name of the cluster in the model")] = "Kubernetes"
    pod: Annotated[str, _about("name of this replica; default: <service>-0")] = ""
    state: Annotated[str, _about("directory of the process; services have one each below")] = (
        "meshbus-state"
    )
    admin: Annotated[str, _about("address of /livez /readyz /metrics /debug; port 0: any")] = (
        "127.0.0.1:15014"
    )
    root_namespace: Annotated[str, _about("namespace of mesh-wide objects")] = "istio-system"
    trust_domain: Annotated[str, _about("trust domain of all identities")] = "cluster.local"
    kubernetes: Annotated[
        str, _about("`in-cluster`, or the path of a kubeconfig; empty: without Kubernetes")
    ] = ""
    kubernetes_account: Annotated[
        str, _about("folder of the pod's token and CA, if not where the kubelet puts it")
    ] = ""
    revision: Annotated[
        str, _about("revision of the control plane: objects labelled for another are not ours")
    ] = "default"
    namespaces: Annotated[
        str, _about("namespaces of Kubernetes that it is limited to, comma between; empty: all")
    ] = ""
    log_level: Annotated[str, _about("debug, info, warning or error")] = "info"
    log_format: Annotated[str, _about("json or text")] = "text"


def env_name(prefix: str, field: str) -> str:
    """The variable of a field: `MESHBUS_XDS_GATEWAY_LISTEN`."""
    return f"{prefix}_{field}".upper().replace("-", "_")


def load_file(path: str) -> dict[str, Any]:
    """A settings file: process settings at the top, those of services under `services`.

    Raises:
        SettingsError: It cannot be read, or is not a mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise SettingsError(f"--settings {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"--settings {path}: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"--settings {path}: a mapping is needed")
    return content


def load_settings(
    struct: type[S], prefix: str, env: Mapping[str, str], section: Mapping[str, Any] | None = None
) -> S:
    """The settings of a struct.

    Args:
        prefix: Of its variables, `MESHBUS` or `MESHBUS_CONFIG`.
        section: What the file says.
    Raises:
        SettingsError: Names the setting that is unknown or has a wrong value.
    """
    values: dict[str, Any] = dict(section or {})
    fields = {field.name for field in msgspec.structs.fields(struct)}
    unknown = sorted(set(values) - fields)
    if unknown:
        raise SettingsError(
            f"{prefix.lower()}: no setting {unknown[0]!r}; there are {', '.join(sorted(fields))}"
        )
    for field in fields:
        text = env.get(env_name(prefix, field))
        if text is not None:
            values[field] = text
    try:
        return msgspec.convert(values, struct, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"settings of {prefix}: {error}") from None


def explain(struct: type[msgspec.Struct], prefix: str) -> list[tuple[str, str, str]]:
    """(variable, default, description) of each field, for `--help`."""
    hints = typing.get_type_hints(struct, include_extras=True)
    rows = []
    for field in msgspec.structs.fields(struct):
        default = field.default
        if default is msgspec.NODEFAULT:
            factory = field.default_factory
            default = "" if factory is msgspec.NODEFAULT else factory()
        meta = [m for m in getattr(hints[field.name], "__metadata__", ()) if m]
        text = next((m.description for m in meta if isinstance(m, msgspec.Meta)), None)
        rows.append((env_name(prefix, field.name), str(default), text or ""))
    return rows
