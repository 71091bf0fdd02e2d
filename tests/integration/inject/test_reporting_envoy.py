"""What ProxyConfig says of reports, in real Envoys: those of a pod, and what reaches a receiver."""

import contextlib
import datetime
import socket
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from started_envoy import STATS, StartedEnvoy

from meshbus.local.network import host_port

pytestmark = [pytest.mark.real, pytest.mark.slow]

STREAM = "/envoy.service.metrics.v3.MetricsService/StreamMetrics"
METRICS = "/stats/prometheus"


@contextlib.contextmanager
def datagrams(address: str) -> Iterator[socket.socket]:
    """A receiver of them."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as receiver:
        receiver.bind((address, 0))
        receiver.settimeout(60)
        yield receiver


def authority(folder: Path, name: str) -> dict[str, str]:
    """Files of a certificate that proves a name and is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = {"cert": folder / f"{name}.pem", "key": folder / f"{name}.key"}
    files["cert"].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files["key"].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return {what: str(path) for what, path in files.items()}


class MetricsService:
    """Envoy's MetricsService; it keeps who called, and the first message that came."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.came = threading.Event()
        self.message = b""
        self.caller: list[bytes] = []
        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        handler = grpc.stream_unary_rpc_method_handler(self._stream)
        service, method = STREAM[1:].split("/")
        self.server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, {method: handler})]
        )
        if credentials is None:
            self.port = self.server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self.server.add_secure_port("127.0.0.1:0", credentials)

    def _stream(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        for message in messages:
            self.message = self.message + message
            self.caller = list(context.auth_context().get("x509_common_name", []))
            if b"server.uptime" in self.message:
                self.came.set()
        return b""

    def __enter__(self) -> "MetricsService":
        self.server.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.stop(None).wait()


# Not 127.0.0.1: that text stands for the pod's own here.
@pytest.mark.parametrize("host", ["127.0.0.2", "::1", "localhost"])
def test_statistics_reach_statsd_by_address_and_by_name(tmp_path: Path, host: str) -> None:
    with datagrams("127.0.0.1" if host == "localhost" else host) as statsd:
        target = host_port(host, statsd.getsockname()[1])
        with StartedEnvoy(tmp_path, {"statsdUdpAddress": target}):
            assert b"envoy." in statsd.recv(4096)


@pytest.mark.parametrize("field", ["envoyMetricsService", "envoyMetricsServiceAddress"])
def test_statistics_reach_a_metrics_service(tmp_path: Path, field: str) -> None:
    with MetricsService() as service:
        address = f"localhost:{service.port}"
        keepalive = {"probes": 3, "time": "30s", "interval": "10s"}
        wish: Any = {"address": address, "tcpKeepalive": keepalive}
        config = {field: wish if field == "envoyMetricsService" else address}
        with StartedEnvoy(tmp_path, config) as envoy:
            assert service.came.wait(60)
            if field == "envoyMetricsService":
                assert '"keepalive_probes": 3' in envoy.get("/config_dump").text


def test_statistics_reach_a_metrics_service_by_mutual_tls(tmp_path: Path) -> None:
    server, client = authority(tmp_path, "metrics.example"), authority(tmp_path, "proxy.example")
    pair = (Path(server["key"]).read_bytes(), Path(server["cert"]).read_bytes())
    credentials = grpc.ssl_server_credentials(
        [pair], Path(client["cert"]).read_bytes(), require_client_auth=True
    )
    with MetricsService(credentials) as service:
        tls = {
            "mode": "MUTUAL",
            "clientCertificate": client["cert"],
            "privateKey": client["key"],
            "caCertificates": server["cert"],
            "subjectAltNames": ["metrics.example"],
            "sni": "metrics.example",
        }
        wish = {"address": f"localhost:{service.port}", "tlsSettings": tls}
        with StartedEnvoy(tmp_path, {"envoyMetricsService": wish}):
            assert service.came.wait(60)
            assert service.caller == [b"proxy.example"]


def test_statistics_reach_a_service_of_the_mesh_by_its_cluster(tmp_path: Path) -> None:
    """Certificates of the mesh are those of its cluster, which comes when Envoy has started."""
    with MetricsService() as service:
        where = {"socket_address": {"address": "127.0.0.1", "port_value": service.port}}
        name = "outbound|15000||metrics.shop.svc.cluster.local"
        cluster = {
            "name": name,
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": where}}]}],
            },
        }
        wish = {"address": "metrics:15000", "tlsSettings": {"mode": "ISTIO_MUTUAL"}}
        with StartedEnvoy(tmp_path, {"envoyMetricsService": wish}, clusters=[cluster]):
            assert service.came.wait(60)


def test_tags_are_taken_out_of_names(tmp_path: Path) -> None:
    cluster = {"name": "any", "type": "STATIC", "alt_stat_name": "one.color=.=red;.;shape=.=o;.;"}
    notes = {"sidecar.istio.io/extraStatTags": "shape"}
    config = {"extraStatTags": ["color"]}
    with StartedEnvoy(tmp_path, config, notes, [cluster]) as envoy:
        text = envoy.get(METRICS, STATS).text
        assert 'color="red"' in text
        assert 'shape="o"' in text


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip", "identity"])
def test_metrics_are_compressed_as_the_scraper_takes_them(tmp_path: Path, encoding: str) -> None:
    with StartedEnvoy(tmp_path, {}) as envoy:
        found = [envoy.get(METRICS, port, accept_encoding=encoding) for port in (STATS, 15020)]
    expected = None if encoding == "identity" else encoding
    assert [answer.headers.get("content-encoding") for answer in found] == [expected] * 2


def test_metrics_are_not_compressed_where_that_is_off(tmp_path: Path) -> None:
    with StartedEnvoy(tmp_path, {"statsCompression": False}) as envoy:
        answer = envoy.get(METRICS, STATS, accept_encoding="gzip")
    assert "content-encoding" not in answer.headers


def test_unused_statistics_go_and_reports_come_as_often_as_is_said(tmp_path: Path) -> None:
    notes = {"sidecar.istio.io/statsFlushInterval": "2s"}
    with StartedEnvoy(tmp_path, {"statsEvictionInterval": "30s"}, notes) as envoy:
        held = envoy.get("/config_dump").json()["configs"][0]["bootstrap"]
    assert (held["stats_flush_interval"], held["stats_eviction_interval"]) == ("2s", "30s")


@pytest.mark.parametrize(
    ("config", "interval", "size"),
    [
        ({}, "1s", []),
        ({"fileFlushInterval": "250ms", "fileFlushMinSizeKb": 8}, "0.250s", ["8"]),
        ({"fileFlushInterval": "0s"}, "10s", []),
    ],
)
def test_when_lines_of_logs_are_written(
    tmp_path: Path, config: dict[str, Any], interval: str, size: list[str]
) -> None:
    with StartedEnvoy(tmp_path, config) as envoy:
        options = envoy.get("/server_info").json()["command_line_options"]
        given = zip(envoy.command, envoy.command[1:], strict=False)
    assert options["file_flush_interval"] == interval
    # Envoy shows no more of it than that it takes it.
    assert [value for name, value in given if name == "--file-flush-min-size-kb"] == size
