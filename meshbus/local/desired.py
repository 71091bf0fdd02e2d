"""Which instances should run: from the Workload objects of the model. Pure."""

from collections.abc import Mapping

import msgspec

from meshbus.api.standalone import Strategy, Workload
from meshbus.compile.proxy_keys import PROXY_CONFIG
from meshbus.local.addresses import InstanceAddresses
from meshbus.local.network import host_port
from meshbus.model.rows import ConfigObject
from meshbus.model.status import InstanceReport

HTTP_PROXY_PORT = 15080


class InstanceSpec(msgspec.Struct, frozen=True):
    """One instance that should run."""

    namespace: str
    name: str
    """`<workload>-<number>`."""
    workload: str
    labels: dict[str, str]
    spec: Workload
    proxy_config: str = ""
    """Annotation `proxy.istio.io/config`."""
    surge: bool = False
    """One more than was asked for, while others are replaced."""

    @property
    def id(self) -> str:
        """`NAMESPACE/NAME`."""
        return f"{self.namespace}/{self.name}"

    @property
    def runs_application(self) -> bool:
        """A process of ours is part of it."""
        return bool(self.spec.command) and not self.spec.gateway

    @property
    def has_envoy(self) -> bool:
        """An Envoy is part of it."""
        return self.spec.gateway or self.spec.sidecar


def instances_of(row: ConfigObject, *, capture: str) -> list[InstanceSpec]:
    """The instances that a Workload object asks for; none while it is being deleted.

    Args:
        capture: Mode of the home, `proxy` or `netns`.
    Raises:
        ValueError: The object asks for what cannot be done; the message begins with the field.
    """
    try:
        spec = msgspec.convert(row.spec, Workload)
    except msgspec.ValidationError as error:
        raise ValueError(f"spec: {error}") from None
    if row.deletion is not None:
        return []
    if not spec.command and not spec.gateway and not spec.address:
        raise ValueError("spec.command: a command, an address or gateway: true is needed")
    external = not spec.command and not spec.gateway
    if external and spec.sidecar and capture == "netns":
        raise ValueError(
            "spec.sidecar: the traffic of somebody else's process cannot be captured: set it to "
            "false, or use --capture proxy"
        )
    for index, port in enumerate(spec.ports):
        if port.target_port not in (0, port.port):
            raise ValueError(
                f"spec.ports[{index}].targetPort: the process has to listen on the same port "
                f"({port.port}) on this machine"
            )
    count = min(spec.replicas, 1) if external else spec.replicas
    return [
        InstanceSpec(
            namespace=row.namespace,
            name=f"{row.name}-{number}",
            workload=row.name,
            labels=row.labels,
            spec=spec,
            proxy_config=row.annotations.get(PROXY_CONFIG, ""),
        )
        for number in range(count)
    ]


def same_process(old: InstanceSpec, new: InstanceSpec) -> bool:
    """What runs can go on: only what the registry says of it differs, or what its Envoy is to start
    with the next time, or how many others run and how they are replaced."""

    def essence(instance: InstanceSpec) -> InstanceSpec:
        spec = msgspec.structs.replace(
            instance.spec, replicas=1, strategy=Strategy(), weight=0, network="", locality=""
        )
        return msgspec.structs.replace(instance, labels={}, spec=spec, proxy_config="", surge=False)

    return essence(old) == essence(new)


def report_of(
    instance: InstanceSpec,
    addresses: InstanceAddresses,
    *,
    capture: str,
    ready: bool,
    draining: bool = False,
    gone: bool = False,
) -> InstanceReport:
    """What discovery is told about an instance.

    Args:
        capture: Mode of the home, `proxy` or `netns`.
    """
    spec = instance.spec
    by_proxy = capture == "proxy"
    external = not instance.runs_application and not spec.gateway
    reached = list(addresses.inbound)
    application = addresses.application if by_proxy and instance.runs_application else ""
    if external and instance.has_envoy:
        application = spec.address
    elif external:
        reached = [spec.address]
    uses_proxy = by_proxy and instance.has_envoy and not spec.gateway
    return InstanceReport(
        namespace=instance.namespace,
        name=instance.name,
        workload=instance.workload,
        service_account=spec.service_account,
        labels=dict(instance.labels),
        addresses=reached,
        app_address=application if instance.has_envoy else "",
        ports=[(port.name, port.port) for port in spec.ports],
        sidecar=instance.has_envoy and not spec.gateway,
        gateway=spec.gateway,
        capture="proxy" if by_proxy else "redirect",
        http_proxy_port=HTTP_PROXY_PORT if uses_proxy else 0,
        http_proxy_address=addresses.inbound[0] if uses_proxy else "",
        dual_stack=len(addresses.inbound) > 1,
        locality=spec.locality,
        ready=ready,
        draining=draining,
        gone=gone,
        network=spec.network,
        dns=not by_proxy and instance.has_envoy and not spec.gateway,
    )


def application_env(
    instance: InstanceSpec, addresses: InstanceAddresses, *, capture: str
) -> Mapping[str, str]:
    """The environment of an application, besides what it inherits."""
    env = {
        "POD_NAME": instance.name,
        "POD_NAMESPACE": instance.namespace,
        "INSTANCE_IP": addresses.inbound[0],
    }
    if capture == "netns":
        six = any(":" in address for address in addresses.inbound)
        env["MESHBUS_BIND_ADDRESS"] = "::" if six else "0.0.0.0"  # noqa: S104
    elif instance.has_envoy:
        proxy = f"http://{host_port(addresses.inbound[0], HTTP_PROXY_PORT)}"
        env["MESHBUS_BIND_ADDRESS"] = addresses.application
        env |= {"http_proxy": proxy, "no_proxy": "localhost,127.0.0.1,::1"}
    else:
        env["MESHBUS_BIND_ADDRESS"] = addresses.inbound[0]
    return env | instance.spec.env
