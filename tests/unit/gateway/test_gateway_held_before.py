"""What is made of the versions that a client uploads when it comes back."""

from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import given
from hypothesis import strategies as st
from meshbus_xds_gateway.content import Content, content_of, names_of
from meshbus_xds_gateway.held_before import KnownVersions, covered_by, held_by
from meshbus_xds_gateway.wire import decode_delta, forget_uploads

from meshbus.compile.layers import Layer, layer_of
from meshbus.compile.resources import CDS, EDS, resource_of

SHARED = tuple(f"shared-{n}" for n in range(5))
OWN = tuple(f"own-{n}" for n in range(2))
OTHERS = ("unknown", "")


def layer(names: tuple[str, ...], body: bytes = b"now") -> Layer:
    return layer_of({name: resource_of(CDS, name, body) for name in names})


WANTED = content_of((layer(SHARED), layer(OWN)))
NOW = {name: WANTED.get(name).version for name in WANTED}
VERSIONS = st.sampled_from([*set(NOW.values()), resource_of(CDS, "x", b"before").version])


def uploaded(known: dict[str, str], order: list[str]) -> KnownVersions:
    message = discovery_pb2.DeltaDiscoveryRequest(type_url=CDS)
    for name in order:
        message.initial_resource_versions[name] = known[name]
    found = decode_delta(message.SerializeToString()).known
    assert isinstance(found, KnownVersions) or not known
    return found


@given(st.data())
def test_what_is_held_is_what_was_uploaded(data: st.DataObject) -> None:
    known = dict(NOW)
    changes = st.dictionaries(
        st.sampled_from([*SHARED, *OWN, *OTHERS]), st.one_of(st.none(), VERSIONS), max_size=3
    )
    for name, version in data.draw(changes).items():
        known.pop(name, None)
        if version is not None:
            known[name] = version
    upload = uploaded(known, data.draw(st.permutations(list(known))))
    held = held_by(CDS, WANTED, upload)
    assert (held is WANTED) == (known == NOW)
    assert {name: held.get(name).version for name in held} == known
    # Asking leaves the upload as it was.
    assert dict(upload) == known
    assert len(upload) == len(known)
    for names in (names_of(NOW), names_of(SHARED), names_of((*SHARED, "unknown"))):
        assert covered_by(WANTED, upload, names) == {
            name for name in names if known.get(name) == NOW.get(name) and name in NOW
        }


def test_who_comes_back_is_not_told_again_that_there_is_nobody_of_its_kind() -> None:
    names = names_of((*NOW, "local_cluster"))
    assert covered_by(WANTED, uploaded(NOW, list(NOW)), names) is names
    fewer = {name: NOW[name] for name in SHARED}
    assert covered_by(WANTED, uploaded(fewer, list(fewer)), names) == {*SHARED, "local_cluster"}


def test_nothing_is_held_of_nothing() -> None:
    nothing = Content(())
    assert held_by(CDS, nothing, {}) is nothing
    assert len(held_by(CDS, nothing, {"a": "1"})) == 1


def test_a_request_says_the_same_whatever_is_done_with_its_versions() -> None:
    message = discovery_pb2.DeltaDiscoveryRequest(
        type_url=EDS,
        response_nonce="7",
        resource_names_subscribe=["a", "b"],
        resource_names_unsubscribe=["c"],
        initial_resource_versions={"a": "1"},
    )
    message.node.id = "sidecar~1~a.b~c"
    message.error_detail.message = "no"
    for size in (0, 5000):
        message.node.cluster = "x" * size
        request = decode_delta(message.SerializeToString())
        assert request.type_url == EDS
        assert request.response_nonce == "7"
        assert request.names == {"a", "b"}
        assert request.unsubscribed == ("c",)
        assert request.node.id == "sidecar~1~a.b~c"
        assert request.error_detail.message == "no"
        assert dict(request.known) == {"a": "1"}


def test_uploads_that_nobody_sends_any_more_are_let_go() -> None:
    while forget_uploads():
        pass
    message = discovery_pb2.DeltaDiscoveryRequest(type_url=CDS)
    for number in range(300):
        message.initial_resource_versions[f"cluster-{number}"] = "version"
    data = message.SerializeToString()

    def known() -> object:
        return decode_delta(data).known

    first, second, third = known(), known(), known()
    assert first is not second
    assert second is third
    assert not forget_uploads()
    assert known() is third
    assert not forget_uploads()
    assert forget_uploads()
    assert known() is not third
