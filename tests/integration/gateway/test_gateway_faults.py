"""What goes wrong: refused configuration, tokens that do not hold, parts that are away."""

import asyncio
import base64
import contextlib
import json
from collections.abc import Callable
from typing import Any

import grpc
import msgspec
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.service.discovery.v3 import discovery_pb2
from gateway_mesh import CLUSTER, Mesh, config, endpoints, envoy_binary, mesh_on, service, workload
from grpc import aio

from meshbus.bus.interface import EVENTS, STATUS
from meshbus.bus.mirror import WorldMirror
from meshbus.compile.resources import CDS, LDS, SDS
from meshbus.model.keys import Key
from meshbus.model.requests import CREDENTIAL, CredentialReply, CredentialRequest
from meshbus.model.rows import ConfigObject, WorkloadInstance, edition
from meshbus.model.status import ConfigLoss, GatewayReport, status_subject
from meshbus.runtime.calls import answer
from meshbus.runtime.http import AddressInUseError
from meshbus.runtime.sealed import seal
from meshbus.runtime.settings import SettingsError

pytestmark = pytest.mark.real
SIDECAR = "sidecar~10.0.0.1~server-0.default~default.svc.cluster.local"
ROUTER = "router~127.0.0.9~edge-0.default~default.svc.cluster.local"
METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"


@pytest_asyncio.fixture
async def mesh(bus_for, tmp_path):
    async with mesh_on(bus_for, tmp_path) as running:
        await running.start()
        yield running


class Ads:
    """A client that speaks delta ADS by hand."""

    def __init__(self, mesh: Mesh, token: str = "", plaintext: bool = False) -> None:
        gateway = mesh.gateway
        if plaintext:
            self.channel = aio.insecure_channel(f"127.0.0.1:{gateway.plaintext_port}")
        else:
            credentials = grpc.ssl_channel_credentials(mesh.trust.roots_pem.encode())
            options = [("grpc.ssl_target_name_override", "xds-gateway.istio-system.svc")]
            host = getattr(mesh, "host", "127.0.0.1")
            port = gateway.tls_without_tokens_port or gateway.port
            self.channel = aio.secure_channel(f"{host}:{port}", credentials, options)
        metadata = [("authorization", f"Bearer {token}")] if token else []
        self.call = self.channel.stream_stream(METHOD)(metadata=metadata)

    async def ask(self, type_url: str, *names: str, node: str = SIDECAR, **fields) -> None:
        request = discovery_pb2.DeltaDiscoveryRequest(
            type_url=type_url, resource_names_subscribe=names, **fields
        )
        request.node.id = node
        with contextlib.suppress(
            aio.AioRpcError, asyncio.InvalidStateError
        ):  # ended: see `refusal`
            await self.call.write(request.SerializeToString())

    async def next(self, type_url: str = ""):
        async with asyncio.timeout(10):
            while True:
                data = await self.call.read()
                if data is aio.EOF:
                    code, details = await self.call.code(), await self.call.details()
                    raise AssertionError(f"ended: {code} {details}")
                response = discovery_pb2.DeltaDiscoveryResponse.FromString(data)
                if not type_url or response.type_url == type_url:
                    return response

    async def refusal(self) -> tuple[grpc.StatusCode, str]:
        async with asyncio.timeout(10):
            with contextlib.suppress(aio.AioRpcError):
                while await self.call.read() is not aio.EOF:
                    pass
            return await self.call.code(), await self.call.details()


def server_rows():
    return (
        service("server", 9080),
        endpoints("server", {"server-0": "127.0.0.9"}, 9080),
        workload("server", "127.0.0.9", app="127.0.0.10", port=9080),
    )


async def test_streams_without_a_valid_token_are_refused(mesh):
    await mesh.start_gateway()
    await mesh.write(*server_rows())
    token = await mesh.token("server")
    for bad in ("", "nonsense", token[:-8] + "AAAAAAAA"):
        ads = Ads(mesh, bad)
        code, details = await ads.refusal()
        assert code is grpc.StatusCode.UNAUTHENTICATED, details
        assert token not in details
    ads = Ads(mesh, token)
    await ads.ask(CDS, node=SIDECAR.replace("server", "client"))
    code, details = await ads.refusal()
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "server-0.default" in details


async def test_token_of_another_service_account_is_refused(mesh):
    await mesh.start_gateway()
    rows = workload("server", "127.0.0.9")
    key, row = next(iter(rows.items()))
    assert isinstance(row, WorkloadInstance)
    await mesh.write({key: msgspec.structs.replace(row, service_account="admin")})
    ads = Ads(mesh, await mesh.token("server"))
    await ads.ask(CDS)
    code, details = await ads.refusal()
    assert code is grpc.StatusCode.PERMISSION_DENIED, details


async def test_proxy_that_is_quicker_than_discovery_waits_for_its_row(mesh):
    await mesh.start_gateway()
    ads = Ads(mesh, await mesh.token("server"))
    await ads.ask(CDS)
    waiting = asyncio.create_task(ads.next(CDS))
    await mesh.write(service("other", 80))
    assert not waiting.done()
    await mesh.write(*server_rows())
    names = {resource.name for resource in (await waiting).resources}
    assert "outbound|9080||server.default.svc.cluster.local" in names


async def test_proxy_follows_what_its_row_says_it_is(mesh):
    await mesh.start_gateway()
    await mesh.write(*server_rows())
    ads = Ads(mesh, await mesh.token("server"))
    for type_url in (CDS, LDS):
        await ads.ask(type_url)
        response = await ads.next(type_url)
        await ads.ask(type_url, response_nonce=response.nonce)
    assert {r.name for r in response.resources} == {"127.0.0.9_9080"}
    await mesh.write(workload("server", "127.0.0.19", app="127.0.0.10", port=9080))
    response = await ads.next(LDS)
    assert {r.name for r in response.resources} == {"127.0.0.19_9080"}
    assert list(response.removed_resources) == ["127.0.0.9_9080"]


async def test_a_stream_gets_the_certificate_of_its_own_identity_and_no_other(mesh):
    await mesh.start_gateway()
    await mesh.write(*server_rows())
    ads = Ads(mesh, await mesh.token("server"))
    await ads.ask(CDS)
    await ads.next(CDS)
    await ads.ask(SDS, "default", "ROOTCA", "kubernetes://somebody-elses")
    got, refused = {}, set()
    while len(got) + len(refused) < 3:
        response = await ads.next(SDS)
        got |= {r.name: secret_pb2.Secret.FromString(r.resource.value) for r in response.resources}
        refused |= set(response.removed_resources)
        await ads.ask(SDS, response_nonce=response.nonce)
    assert refused == {"kubernetes://somebody-elses"}
    roots = got["ROOTCA"].validation_context.trusted_ca.inline_bytes.decode()
    assert roots == mesh.trust.roots_pem
    chain = x509.load_pem_x509_certificates(
        got["default"].tls_certificate.certificate_chain.inline_bytes
    )
    sans = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in sans] == ["spiffe://cluster.local/ns/default/sa/server"]


@pytest.mark.parametrize("listener", ["plaintext", "tls_without_tokens"])
async def test_a_listener_without_tokens_gives_configuration_but_no_identity(mesh, listener):
    await mesh.start_gateway(**{listener: "127.0.0.1:0"})
    await mesh.write(*server_rows())
    await mesh.converged(mesh.mirror.world.sequence)
    ads = Ads(mesh, plaintext=listener == "plaintext")
    await ads.ask(CDS)
    names = {resource.name for resource in (await ads.next(CDS)).resources}
    assert "outbound|9080||server.default.svc.cluster.local" in names
    await ads.ask(SDS, "default")
    assert list((await ads.next(SDS)).removed_resources) == ["default"]


@pytest.mark.parametrize("listener", ["plaintext", "tls_without_tokens"])
async def test_without_tokens_on_another_address_than_loopback_is_refused(mesh, listener):
    name = f"MESHBUS_XDS_GATEWAY_{listener.upper()}"
    with pytest.raises(SettingsError, match=f"{name}: only a loopback"):
        await mesh.start_gateway(**{listener: "0.0.0.0:0"})


async def test_port_in_use_is_told_with_its_setting(mesh):
    taken = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    async with taken:
        port = taken.sockets[0].getsockname()[1]
        with pytest.raises(AddressInUseError, match=f"LISTEN: 127.0.0.1:{port}"):
            await mesh.start_gateway(listen=f"127.0.0.1:{port}")


async def test_secret_of_a_gateway_is_fetched_sealed_and_follows_its_row(mesh):
    contents = {"one": certificate("one.example")}
    asked: list[CredentialRequest] = []

    async def credential(request: CredentialRequest) -> CredentialReply:
        asked.append(request)
        data = {name: base64.b64encode(pem).decode() for name, pem in contents["one"].items()}
        return CredentialReply(seal(request.public_key, json.dumps(data).encode()))

    await answer(mesh.buses["config"], CREDENTIAL, CredentialRequest, credential)
    await mesh.start_gateway()
    rows, gateway = router_rows()
    await mesh.write(rows, gateway, secret_row(1))
    ads = Ads(mesh, await mesh.token("edge"))
    await ads.ask(CDS, node=ROUTER)
    await ads.next(CDS)
    await ads.ask(SDS, "kubernetes://web")
    response = await ads.next(SDS)
    secret = secret_pb2.Secret.FromString(response.resources[0].resource.value)
    assert secret.tls_certificate.private_key.inline_bytes == contents["one"]["tls.key"]
    await ads.ask(SDS, response_nonce=response.nonce)
    contents["one"] = certificate("two.example")
    await mesh.write(secret_row(2))
    response = await ads.next(SDS)
    secret = secret_pb2.Secret.FromString(response.resources[0].resource.value)
    assert secret.tls_certificate.private_key.inline_bytes == contents["one"]["tls.key"]
    assert {(r.namespace, r.name) for r in asked} == {("default", "web")}


class Replica:
    """A config replica that holds an edition of the Secret, whatever its row says by now."""

    def __init__(self, mesh: Any, held: Callable[[], int]) -> None:
        self._mesh = mesh
        self._held = held
        self._pairs = {number: certificate(f"{number}.example") for number in (1, 2)}
        self.asked: list[int] = []

    async def serve(self, generation: int) -> Ads:
        """Start a gateway where the row is of that generation; the client has asked for it."""
        await answer(self._mesh.buses["config"], CREDENTIAL, CredentialRequest, self._answer)
        await self._mesh.start_gateway()
        rows, gateway = router_rows()
        await self._mesh.write(rows, gateway, secret_row(generation))
        ads = Ads(self._mesh, await self._mesh.token("edge"))
        await ads.ask(CDS, node=ROUTER)
        await ads.next(CDS)
        await ads.ask(SDS, "kubernetes://web")
        return ads

    async def _answer(self, request: CredentialRequest) -> CredentialReply:
        held = self._held()
        self.asked.append(held)
        data = {name: base64.b64encode(pem).decode() for name, pem in self._pairs[held].items()}
        sealed = seal(request.public_key, json.dumps(data).encode())
        return CredentialReply(sealed, edition(next(iter(secret_row(held).values()))))

    async def is_next(self, ads: Ads, generation: int) -> None:
        """The client is given that edition."""
        response = await ads.next(SDS)
        await ads.ask(SDS, response_nonce=response.nonce)
        secret = secret_pb2.Secret.FromString(response.resources[0].resource.value)
        key = secret.tls_certificate.private_key.inline_bytes
        assert key == self._pairs[generation]["tls.key"]


async def test_who_answers_with_an_older_secret_is_asked_again(mesh):
    """A config replica may see the row of a Secret later than the gateway."""
    held = iter([1, 1, 2])
    replica = Replica(mesh, lambda: next(held))
    ads = await replica.serve(1)
    await replica.is_next(ads, 1)
    await mesh.write(secret_row(2))
    await replica.is_next(ads, 2)
    assert replica.asked == [1, 1, 2]


async def test_a_gateway_that_has_no_secret_yet_takes_another_edition(mesh):
    current = asyncio.Event()
    replica = Replica(mesh, lambda: 2 if current.is_set() else 1)
    ads = await replica.serve(2)
    await replica.is_next(ads, 1)
    current.set()
    await replica.is_next(ads, 2)


def router_rows():
    tls = {"mode": "SIMPLE", "credentialName": "web"}
    port = {"number": 443, "name": "https", "protocol": "HTTPS"}
    servers = [{"port": port, "hosts": ["*"], "tls": tls}]
    rows = workload("edge", "127.0.0.9")
    key, row = next(iter(rows.items()))
    assert isinstance(row, WorkloadInstance)
    rows[key] = msgspec.structs.replace(row, gateway=True)
    spec = {"selector": {"app": "edge"}, "servers": servers}
    return rows, config("Gateway", "gateways", "edge", spec)


def secret_row(generation: int):
    row = ConfigObject("v1", "Secret", "default", "web", "u", generation, 0.0)
    row = msgspec.structs.replace(row, spec={"data": {"tls.key": f"sealed {generation}"}})
    return {Key(CLUSTER, "cfg", "secrets", "default", "web"): row}


def certificate(name: str) -> dict[str, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    chain = csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return {"tls.crt": chain + name.encode(), "tls.key": pem}


async def test_secret_without_content_is_said_to_be_absent(mesh):
    await mesh.start_gateway()
    rows, gateway = router_rows()
    await mesh.write(rows, gateway, secret_row(1))
    ads = Ads(mesh, await mesh.token("edge"))
    await ads.ask(CDS, node=ROUTER)
    response = await ads.next(CDS)
    await ads.ask(CDS, response_nonce=response.nonce, node=ROUTER)
    await ads.ask(SDS, "kubernetes://web", node=ROUTER)
    assert list((await ads.next(SDS)).removed_resources) == ["kubernetes://web"]


async def test_streams_of_one_identity_are_limited(mesh):
    await mesh.start_gateway()
    await mesh.write(*server_rows())
    token = await mesh.token("server")
    open_streams = [Ads(mesh, token) for _ in range(4)]
    for ads in open_streams:
        await ads.ask(CDS)
        await ads.next(CDS)
    fifth = Ads(mesh, token)
    await fifth.ask(CDS)
    code, _ = await fifth.refusal()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_refused_resource_is_reported_with_the_object_it_came_from(mesh):
    await mesh.start_gateway()
    await mesh.write(*server_rows())
    events = Recorder()
    following = asyncio.create_task(
        mesh.buses["config"].follower(EVENTS, ["events.>"], events).run()
    )
    ads = Ads(mesh, await mesh.token("server"))
    for type_url in (CDS, LDS):
        await ads.ask(type_url)
        response = await ads.next(type_url)
        await ads.ask(type_url, response_nonce=response.nonce)
    policy = {
        "host": "server",
        "trafficPolicy": {"outlierDetection": {"consecutive5xxErrors": 1}},
    }
    await mesh.write(config("Service", "services", "server", {}))
    change = await mesh.write(config("DestinationRule", "destinationrules", "server", policy))
    response = await ads.next(CDS)
    refusal = discovery_pb2.DeltaDiscoveryRequest(type_url=CDS, response_nonce=response.nonce)
    refusal.error_detail.message = "I do not like it"
    await ads.call.write(refusal.SerializeToString())
    reply = await mesh.converged(change)
    assert reply.converged == 0
    assert reply.rejected == [
        {
            "proxy": "server-0.default",
            "resource": "cds outbound|9080||server.default.svc.cluster.local",
            "object": "DestinationRule default/server, Service default/server",
            "message": "I do not like it",
        }
    ]
    proxies = await mesh.proxies()
    assert proxies["server-0.default"].types["cds"]["status"] == "REJECTED"

    async def reported() -> bool:
        subject = status_subject(CLUSTER, "xds-gateway", "xds-gateway-0", "report")
        last = await mesh.buses["config"].last(STATUS, subject)
        report = msgspec.json.decode(last.data, type=GatewayReport) if last else None
        return bool(
            report
            and report.problems
            and report.problems[0].object_keys
            == ["cfg.destinationrules/default/server", "cfg.services/default/server"]
        )

    await mesh.until(reported, "the report has the problem")
    await mesh.until(lambda: len(events.types()) == 2, "there are events")
    assert events.types() == ["io.meshbus.destinationrule.nacked", "io.meshbus.service.nacked"]
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)

    # Another change goes on although this one is stuck, and mending the object mends all.
    reply = await mesh.converged(await mesh.write(service("unrelated", 80)), 0.2)
    assert not reply.rejected
    response = await ads.next(CDS)
    await ads.ask(CDS, response_nonce=response.nonce)
    policy["trafficPolicy"]["outlierDetection"]["consecutive5xxErrors"] = 2
    change = await mesh.write(config("DestinationRule", "destinationrules", "server", policy))
    response = await ads.next(CDS)
    await ads.ask(CDS, response_nonce=response.nonce)
    reply = await mesh.converged(change)
    assert (reply.converged, reply.rejected) == (1, [])


class Recorder(WorldMirror):
    """Keeps events."""

    def __init__(self) -> None:
        super().__init__()
        self.events = []

    def begin(self) -> None: ...

    def apply(self, messages) -> None:
        self.events.extend(msgspec.json.decode(message.data) for message in messages)

    def end(self, sequence) -> None: ...

    def types(self) -> list[str]:
        return [event["type"] for event in self.events]


@pytest.mark.slow
async def test_real_envoy_refuses_a_listener_and_the_others_go_on(mesh):
    envoy_binary()
    await mesh.start_gateway()
    await mesh.write(*server_rows())
    taken = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.9", 9080)
    async with mesh.envoy("server", "127.0.0.9"):

        async def refused() -> bool:
            proxy = (await mesh.proxies()).get("server-0.default")
            return proxy is not None and proxy.types["lds"]["status"] == "REJECTED"

        await mesh.until(refused, "Envoy refuses the listener")
        proxy = (await mesh.proxies())["server-0.default"]
        assert "127.0.0.9" in proxy.problems[0].message
        assert proxy.types["cds"]["status"] == "SYNCED"
        reply = await mesh.converged(await mesh.write(service("other", 80)), 5)
        assert reply.converged == 1, "what is refused does not hold up other changes"
        taken.close()
        await taken.wait_closed()

        async def healed() -> bool:
            proxy = (await mesh.proxies())["server-0.default"]
            return proxy.types["lds"]["status"] == "SYNCED" and not proxy.problems

        await mesh.until(healed, "the address is free and the listener taken")


async def test_without_its_bus_the_gateway_keeps_its_proxies(mesh, nats_server):
    await mesh.start_gateway()
    await mesh.write(*server_rows())
    ads = Ads(mesh, await mesh.token("server"))
    await ads.ask(CDS)
    response = await ads.next(CDS)
    await ads.ask(CDS, response_nonce=response.nonce)
    nats_server.kill()
    await ads.ask(CDS, "*", "outbound|9080||server.default.svc.cluster.local")
    again = await ads.next(CDS)
    assert [r.name for r in again.resources] == ["outbound|9080||server.default.svc.cluster.local"]
    await ads.ask(CDS, response_nonce=again.nonce)
    nats_server.start()
    for writer in mesh.writers.values():
        await writer.wait_leading()

    async def written() -> bool:
        await mesh.write(service("new", 80))
        return True

    await mesh.until(written, "the bus is back", 20)
    response = await ads.next(CDS)
    names = [r.name for r in response.resources]
    assert names == ["outbound|80||new.default.svc.cluster.local"], "only what is new"


async def test_what_has_no_effect_is_reported_with_the_proxies_concerned(mesh):
    await mesh.start_gateway()
    await mesh.write(*server_rows())
    ads = Ads(mesh, await mesh.token("server"))
    for type_url in (CDS, LDS):
        await ads.ask(type_url)
        response = await ads.next(type_url)
        await ads.ask(type_url, response_nonce=response.nonce)

    def patch(cluster: str, context: str = "ANY") -> dict[str, object]:
        match = {"context": context, "cluster": {"name": cluster}}
        value = {"connectTimeout": "1s"}
        return {
            "applyTo": "CLUSTER",
            "match": match,
            "patch": {"operation": "MERGE", "value": value},
        }

    held = "outbound|9080||server.default.svc.cluster.local"
    patches = [patch(held), patch("nobody"), patch("nobody", "GATEWAY")]
    spec = {"configPatches": patches}
    change = await mesh.write(config("EnvoyFilter", "envoyfilters", "lost", spec))

    async def losses() -> list[ConfigLoss] | None:
        subject = status_subject(CLUSTER, "xds-gateway", "xds-gateway-0", "report")
        last = await mesh.buses["config"].last(STATUS, subject)
        report = msgspec.json.decode(last.data, type=GatewayReport) if last else None
        return report.losses if report and report.sequence >= change else None

    async def told() -> bool:
        return bool(await losses())

    await mesh.until(told, "the report says what has no effect")
    told_of = await losses() or []
    # Nobody has the one's cluster, and no gateway follows the other.
    paths = {"spec.configPatches[1].match", "spec.configPatches[2].match"}
    assert {loss.path for loss in told_of} == paths
    assert {loss.object_key for loss in told_of} == {"cfg.envoyfilters/default/lost"}
    assert {(loss.proxies, loss.example) for loss in told_of} == {(1, "server-0.default")}
    await mesh.write(config("EnvoyFilter", "envoyfilters", "lost", {"configPatches": patches[:1]}))

    async def mended() -> bool:
        return await losses() == []

    await mesh.until(mended, "the report has no losses any more")


@pytest.mark.slow
async def test_what_real_envoy_says_is_told_without_the_content_it_repeats(mesh):
    envoy_binary()
    await mesh.start_gateway()
    await mesh.write(*server_rows())
    value = {"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": 9000000}}
    # A short one: of a long one Envoy's message ends before the reason.
    patch = {
        "applyTo": "CLUSTER",
        "match": {"cluster": {"name": "BlackHoleCluster"}},
        "patch": {"operation": "MERGE", "value": value},
    }
    await mesh.write(config("EnvoyFilter", "envoyfilters", "rings", {"configPatches": [patch]}))
    async with mesh.envoy("server", "127.0.0.9"):

        async def refused() -> bool:
            proxy = (await mesh.proxies()).get("server-0.default")
            return proxy is not None and bool(proxy.problems)

        await mesh.until(refused, "Envoy refuses the cluster")
        (message,) = [p.message for p in (await mesh.proxies())["server-0.default"].problems]
        assert "goo.gle/debug" not in message
        assert "connect_timeout" not in message
        assert "MinimumRingSize" in message
