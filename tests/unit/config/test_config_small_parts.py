"""Selectors, durations, tokens, sealed Secrets, the API's certificate."""

import ssl

import pytest
from meshbus_config.errors import ApiError
from meshbus_config.events_feed import parse_since
from meshbus_config.negotiation import APPLY_PATCH, JSON, YAML, choose_form, decode
from meshbus_config.secret_box import SecretKeyError, load_box
from meshbus_config.selectors import parse_fields, parse_labels
from meshbus_config.serving_certificate import ensure_certificate
from meshbus_config.tables import human_duration
from meshbus_config.tokens import TokenFileError, Tokens, User

from meshbus.model.rows import ConfigObject

LABELS = {"app": "reviews", "version": "v1", "istio.io/rev": "x"}


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("", True),
        ("app=reviews", True),
        ("app==reviews,version!=v2", True),
        ("app!=reviews", False),
        ("none!=x", True),
        ("version in (v1, v2)", True),
        ("version notin (v1)", False),
        ("none notin (v1)", True),
        ("app", True),
        ("!app", False),
        ("!none,istio.io/rev", True),
        ("app=", False),
    ],
)
def test_label_selectors(selector, expected):
    assert parse_labels(selector)(LABELS) is expected


@pytest.mark.parametrize("selector", ["app in v1", "=x", "a b", "app=a=b", "(x)"])
def test_malformed_label_selectors_are_refused(selector):
    with pytest.raises(ApiError) as refused:
        parse_labels(selector)
    assert refused.value.code == 400


def test_field_selectors():
    row = ConfigObject("v1", "Secret", "ns", "one", "uid", 1, 0.0, spec={"type": "Opaque"})
    assert parse_fields("metadata.name=one,metadata.namespace!=other,type=Opaque")(row)
    assert not parse_fields("metadata.name=two")(row)
    with pytest.raises(ApiError, match=r"not supported: spec\.x"):
        parse_fields("spec.x=1")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5s"), (119, "119s"), (125, "2m5s"), (3600, "60m"), (3 * 3600, "3h"),
     (4 * 3600 + 60, "4h1m"), (86400, "24h"), (3 * 86400 + 7200, "3d2h"), (800 * 86400, "2y70d")],
)  # fmt: skip
def test_ages_read_as_kubectl_writes_them(seconds, text):
    assert human_duration(seconds) == text


def test_since():
    assert parse_since("5m", 1000.0) == 700.0
    assert parse_since("1970-01-01T00:00:10Z", 1000.0) == 10.0
    with pytest.raises(ApiError):
        parse_since("yesterday", 1000.0)


def test_tokens_are_read_again_when_the_file_changes(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# people\n0123456789abcdef,ann,admins|dev\n\n")
    path.chmod(0o600)
    tokens = Tokens(path)
    user = tokens.find("Bearer 0123456789abcdef")
    assert user is not None
    assert user == User("ann", ("admins", "dev"))
    assert tokens.find("Bearer 0123456789abcdeF") is None
    assert tokens.find("Basic 0123456789abcdef") is None
    path.write_text("fedcba9876543210,bob\n")
    assert tokens.find("Bearer 0123456789abcdef") is None
    assert tokens.find("bearer fedcba9876543210") == User("bob")
    path.write_text("broken\n")
    assert tokens.find("Bearer fedcba9876543210") == User("bob")
    assert "tokens:1" in tokens.problem
    assert "broken" not in tokens.problem


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [("short,ann", 0o600, "16"), ("", 0o600, "no token"), ("0123456789abcdef,ann", 0o644, "chmod")],
)
def test_a_file_of_tokens_that_cannot_be_used_says_why(tmp_path, text, mode, message):
    path = tmp_path / "tokens"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(TokenFileError, match=message):
        Tokens(path).load()


def test_secrets_open_with_their_key_at_their_place_only(tmp_path):
    box = load_box(tmp_path / "secrets.key")
    assert (tmp_path / "secrets.key").stat().st_mode & 0o777 == 0o600
    sealed = box.seal({"data": {"a": "aGk="}}, "ns/one")
    assert "aGk" not in sealed
    assert load_box(tmp_path / "secrets.key").open(sealed, "ns/one") == {"data": {"a": "aGk="}}
    with pytest.raises(SecretKeyError, match=r"restore secrets\.key"):
        box.open(sealed, "ns/two")
    with pytest.raises(SecretKeyError, match=r"restore secrets\.key"):
        load_box(tmp_path / "other.key").open(sealed, "ns/one")
    (tmp_path / "secrets.key").chmod(0o644)
    with pytest.raises(SecretKeyError, match="chmod"):
        load_box(tmp_path / "secrets.key")


def test_the_certificate_is_kept_while_it_does(tmp_path):
    now = 1_800_000_000.0
    files = ensure_certificate(tmp_path, [], now)
    first = files.certificate.read_bytes()
    assert ensure_certificate(tmp_path, [], now + 86400).certificate.read_bytes() == first
    assert ensure_certificate(tmp_path, ["mesh.example"], now).certificate.read_bytes() != first
    second = files.certificate.read_bytes()
    ensure_certificate(tmp_path, ["mesh.example"], now + 800 * 86400)
    assert files.certificate.read_bytes() != second
    assert files.key.stat().st_mode & 0o777 == 0o600
    ssl.create_default_context(cafile=files.ca)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.certificate, files.key)


def test_media_types():
    table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
    assert choose_form(table) == (JSON, "Table", "v1")
    assert choose_form("application/vnd.kubernetes.protobuf, application/json").kind == ""
    assert choose_form("application/yaml").media_type == YAML
    assert choose_form("application/json;as=Unknown;v=v1;g=meta.k8s.io,*/*") == (JSON, "", "")
    with pytest.raises(ApiError) as refused:
        choose_form("text/html")
    assert refused.value.code == 406


@pytest.mark.parametrize(
    ("body", "media_type", "message"),
    [
        (b'{"a": 1, "a": 2}', JSON, 'duplicate field "a"'),
        (b"{", JSON, "not JSON"),
        (b'{"a": NaN}', JSON, "NaN"),
        (b'{"a": 123456789012345678901234567890}', JSON, "JSON"),
        (b"[" * 100000, JSON, "deep"),
        (b"a: 1\na: 2\n", YAML, 'duplicate field "a"'),
        (b"a: &x [1]\nb: *x\n", YAML, "aliases"),
        (b"1: x\n", APPLY_PATCH, "quotes"),
        (b"a: [", YAML, "not YAML"),
    ],
)
def test_bodies_that_cannot_be_read_say_why(body, media_type, message):
    with pytest.raises(ApiError, match=message) as refused:
        decode(body, media_type)
    assert refused.value.code == 400


def test_yaml_keeps_times_as_text():
    assert decode(b"t: 2026-01-01T00:00:00Z\nn: 1\nb: true\n", YAML) == {
        "t": "2026-01-01T00:00:00Z",
        "n": 1,
        "b": True,
    }
