"""State of the world over the same session, with a client that holds what it was last sent."""

from envoy.service.discovery.v3 import discovery_pb2
from meshbus_xds_gateway.session import Session
from meshbus_xds_gateway.sotw import SotwProtocol
from meshbus_xds_gateway.verdicts import Verdicts
from xds_client import mesh

from meshbus.compile.resources import CDS, EDS, LDS, RDS


class Sotw:
    def __init__(self, wanted) -> None:
        self.session = Session("p", Verdicts())
        self.protocol = SotwProtocol(self.session)
        self.held: dict[str, list[bytes]] = {}
        self.names: dict[str, list[str]] = {}
        self.order: list[str] = []
        self.refusals = []
        self.now = 100.0
        self.session.update(wanted, 1, self.now)

    def ask(self, type_url: str, *names: str, **fields) -> None:
        self.names[type_url] = list(names)
        request = discovery_pb2.DiscoveryRequest(type_url=type_url, resource_names=names, **fields)
        data = self.protocol.decode(request.SerializeToString())
        refusal = self.protocol.receive(data, self.now)
        if refusal is not None:
            self.refusals.append(refusal)

    def settle(self) -> None:
        for _ in range(100):
            push = self.session.poll(self.now)
            if push is None:
                wake = self.session.wake_at(self.now)
                if wake is None:
                    return
                self.now = wake
                continue
            data = self.protocol.encode(push)
            if data is None:
                continue
            response = discovery_pb2.DiscoveryResponse.FromString(data)
            self.order.append(response.type_url)
            bodies = [r.value for r in response.resources]
            bad = any(b.endswith(b"bad") for b in bodies)
            if not bad:
                self.held[response.type_url] = bodies
            fields = {"response_nonce": response.nonce}
            if bad:
                fields["error_detail"] = {"message": "no"}
            else:
                fields["version_info"] = response.version_info
            self.ask(response.type_url, *self.names[response.type_url], **fields)
        raise AssertionError("they never stop talking")

    def versions(self, type_url: str) -> list[str]:
        return sorted(body.decode().removeprefix(type_url) for body in self.held[type_url])


def connected(wanted) -> Sotw:
    stream = Sotw(wanted)
    for type_url, names in ((CDS, ()), (EDS, ("a", "b")), (LDS, ()), (RDS, ("a",))):
        stream.ask(type_url, *names)
    stream.settle()
    return stream


def test_clusters_come_whole_and_endpoints_as_they_change():
    stream = connected(mesh(cds_a="1", cds_b="1", eds_a="1", eds_b="1", lds_l="1", rds_a="1"))
    assert stream.versions(CDS) == ["a=1", "b=1"]
    assert stream.versions(EDS) == ["a=1", "b=1"]
    wanted = mesh(cds_a="1", cds_b="2", eds_a="1", eds_b="1", lds_l="1", rds_a="1")
    stream.session.update(wanted, 2, stream.now)
    stream.settle()
    assert stream.versions(CDS) == ["a=1", "b=2"]
    assert stream.versions(EDS) == ["b=1"], "endpoints of the changed cluster, to warm it"
    assert stream.session.converged(2, stream.now) == 2


def test_removed_cluster_goes_last():
    stream = connected(mesh(cds_a="1", cds_b="1", eds_a="1", eds_b="1", lds_l="1", rds_a="1"))
    stream.order.clear()
    stream.session.update(mesh(cds_a="1", eds_a="1", lds_l="1", rds_a="2"), 2, stream.now)
    stream.settle()
    assert stream.order == [RDS, CDS]
    assert stream.versions(CDS) == ["a=1"]


def test_refused_cluster_keeps_its_last_good_version():
    stream = connected(mesh(cds_a="1", cds_b="1", cds_c="1"))
    stream.session.update(mesh(cds_a="2", cds_b="bad", cds_c="2"), 2, stream.now)
    stream.settle()
    assert stream.versions(CDS) == ["a=2", "b=1", "c=2"]
    assert [r.resource.name for r in stream.refusals] == ["b"]


def test_names_left_out_are_no_longer_wanted():
    stream = connected(mesh(eds_a="1", eds_b="1"))
    stream.ask(EDS, "a", response_nonce=stream.protocol._types[EDS].nonce)
    stream.session.update(mesh(eds_a="1", eds_b="2"), 2, stream.now)
    assert stream.session.poll(stream.now) is None
