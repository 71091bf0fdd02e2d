"""The table of "how fast" by `adsload`, against a whole mesh on this machine, in one command.

    python bench/adsload_table.py --adsload PATH [--carrier native|grpc] [--tls] [--policy]
                                  [--scoped | --unscoped] [--services N] [--sidecars N]
                                  [--clients N] [--workers N] [--reps N] [--out FILE]

Makes the mesh, starts `meshbus up` in a fresh home, waits until the gateway has read it, keeps the
gateway on the first core and everything else on the last, lets `adsload` connect its sidecars,
makes each kind of change, lets all reconnect, and prints the rows as Markdown. Each variant
(scoped, unscoped) has a home and a gateway of its own. README.md beside this file says more.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import yaml
from adsload_apply import forwarder_of
from processes import children, cpu_seconds, peak_mb, pin, resident_mb

from meshbus.local.home import Home
from meshbus.local.processes import Records

GATEWAY = "service/xds-gateway"
CHANGES = ("endpoint", "service", "weight", "rewrite")
ASKED = {
    # (variant, row): what the native carrier is asked for with 1,000 services and 2,000 sidecars,
    # with gRPC's in brackets.
    ("unscoped", "endpoint"): "0.2 s, 0.1 CPU s (0.5, 0.35)",
    ("scoped", "endpoint"): "30 ms, 0.015 CPU s (60, 0.05)",
    ("scoped", "service"): "50 ms, 0.02 CPU s (100, 0.05)",
    ("scoped", "weight"): "60 ms, 0.03 CPU s (150, 0.1)",
    ("unscoped", "service"): "of 500: 0.8 s, 0.4 CPU s, 125 MB (1.5, 1)",
    ("unscoped", "weight"): "of 500: 0.8 s, 0.4 CPU s, 125 MB (1.5, 1)",
    ("scoped", "policy"): "0.25 s, 0.12 CPU s (0.7, 0.5, 6 MB)",
    ("unscoped", "policy"): "0.25 s, 0.12 CPU s (0.7, 0.5, 6 MB)",
    ("scoped", "cold start"): "6 s, 4 CPU s, 250 MB (12, 8, 400)",
    ("unscoped", "cold start"): "30 s, 25 CPU s, 600 MB peak (60, 50, 1000)",
    ("scoped", "reconnect"): "3 s, 2 CPU s, 1 % of cold (6, 5)",
    ("unscoped", "reconnect"): "3 s, 2 CPU s, 1 % of cold (6, 5)",
    ("scoped", "idle"): "35 kB a sidecar (60)",
    ("unscoped", "idle"): "35 kB a sidecar (60)",
    ("scoped", "rewrite"): "0 messages",
    ("unscoped", "rewrite"): "0 messages",
}
_READY_S = 300.0
_COLD_S = 300.0
_QUIET_S = 2.0
_SETTLED_S = 15.0
"""After the cold start, until what it left in memory has been given back."""


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def last_core() -> int:
    """Of everything but the gateway."""
    return (os.cpu_count() or 1) - 1


class Mesh:
    """A home with a mesh of `adsload`, up and read."""

    def __init__(self, given: argparse.Namespace, folder: Path, *, scoped: bool) -> None:
        self.given = given
        self.scoped = scoped
        self.topology = folder / "mesh"
        self.home = Home(folder / "home")
        self.port = free_port()
        self.apply_port = 0
        self.control = free_port()
        self.pids: list[int] = []
        """Of the gateway: its workers, with what keeps them."""

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        """Start, and end with everything."""
        given = self.given
        size = ("-services", str(given.services), "-sidecars", str(given.sidecars))
        self._adsload("topology", *size, "-seed", str(given.seed), "-o", str(self.topology))
        self.home.create()
        self.home.settings_file.write_text(yaml.safe_dump(self._settings()))
        files = ["namespaces.yaml", "istio.yaml", "kubernetes.yaml"]
        files += ["sidecars-scoped.yaml"] if self.scoped else []
        paths = [part for name in files for part in ("-f", str(self.topology / name))]
        meshbus = [sys.executable, "-m", "meshbus.cli.main"]
        home = ["--home", str(self.home.path)]
        try:
            subprocess.run([*meshbus, "up", *paths, *home, "--detach"], check=True, stdout=2)
            self._find_processes()
            self._wait_quiet()
            api = json.loads(self.home.api_file.read_text())
            server = ThreadingHTTPServer(("127.0.0.1", 0), forwarder_of(api))
            self.apply_port = server.server_address[1]
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield
            server.shutdown()
        finally:
            subprocess.run([*meshbus, "down", *home], check=False, stdout=2)

    def _settings(self) -> dict[str, Any]:
        address = f"127.0.0.1:{self.port}"
        environment = {"MESHBUS_XDS_GATEWAY_TRANSPORT": self.given.carrier}
        xds: dict[str, Any] = {"workers": self.given.workers}
        if self.given.tls:
            environment["MESHBUS_XDS_GATEWAY_TLS_WITHOUT_TOKENS"] = address
        else:
            xds["plaintext"] = address
        return {
            "xds": xds,
            "services": {"environment": environment, "log_level": "warning"},
        }

    def _find_processes(self) -> None:
        records = Records(self.home.records)
        own = records.get(GATEWAY)
        assert own is not None
        self.pids = [own.pid, *children(own.pid)]
        others = [r.pid for r in records.all() if r.pid != own.pid]
        if self.given.pin:
            if self.given.workers == 1:
                pin(self.pids, 0)
            pin([*others, os.getpid()], last_core())

    def _wait_quiet(self) -> None:
        """Until the services have nothing to do any more: all of the mesh has been read."""
        pids = [record.pid for record in Records(self.home.records).all()]
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline:
            before = cpu_seconds(pids)
            time.sleep(_QUIET_S)
            if cpu_seconds(pids) - before < 0.05 * _QUIET_S:
                return
        raise TimeoutError("the services do not come to rest")

    # ------------------------------------------------------------------ adsload

    def _adsload(self, *arguments: str) -> str:
        done = subprocess.run(
            [self.given.adsload, *arguments], check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout

    @contextlib.contextmanager
    def driver(self) -> Iterator[dict[str, Any]]:
        """`adsload run`, once all sidecars are connected; gives the report of the cold start."""
        given = self.given
        command = [given.adsload, "run", "-server", f"127.0.0.1:{self.port}"]
        command += ["-topology", str(self.topology), "-scenario", "cold,watch"]
        command += ["-clients", str(given.clients), "-listen", f"127.0.0.1:{self.control}"]
        command += ["-server-pid", ",".join(map(str, self.pids)), "-timeout", f"{_COLD_S:.0f}s"]
        if given.tls:
            command += ["-tls-ca", str(self._roots()), "-tls-server-name", "localhost"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            if given.pin and given.workers == 1:
                pin([process.pid], last_core())
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
            self.post("/quit")
        finally:
            process.kill()
            process.wait()

    def _roots(self) -> Path:
        """The mesh's root, without what else is in the ca's file."""
        text = (self.home.services / "ca" / "root.pem").read_text()
        begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
        path = self.home.path / "root-certificate.pem"
        path.write_text(begin + text.split(begin, 1)[1].split(end, 1)[0] + end + "\n")
        return path

    def post(self, path: str) -> Any:
        """The answer of the driver's control port."""
        url = f"http://127.0.0.1:{self.control}{path}"
        with urllib.request.urlopen(urllib.request.Request(url, method="POST")) as answer:
            return json.loads(answer.read())

    def changes(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """(kind, report of each change)."""
        given = self.given
        for kind in CHANGES:
            arguments = ["bench", "-control", f"http://127.0.0.1:{self.control}"]
            arguments += ["-apply", f"http://127.0.0.1:{self.apply_port}/apply"]
            arguments += ["-topology", str(self.topology), "-changes", kind]
            arguments += ["-reps", str(given.reps), "-first", "500"]
            arguments += ["-timeout-ms", str(given.timeout_ms)]
            if self.scoped and not given.clients:
                arguments.append("-scoped")
            yield kind, [json.loads(line) for line in self._adsload(*arguments).splitlines()]


# --------------------------------------------------------------------------- rows


def row(variant: str, name: str, *cells: str, asked: bool) -> str:
    """A line of the table."""
    want = ASKED.get((variant, name), "") if asked else ""
    return "| " + " | ".join((f"{variant}: {name}", *cells, want)) + " |"


def spread(values: list[float], scale: float = 1.0, digits: int = 0) -> str:
    """Median and, where there are several, the least and the most."""
    if not values:
        return ""
    middle = f"{statistics.median(values) * scale:.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values) * scale:.{digits}f}-{max(values) * scale:.{digits}f})"


HEAD = (
    "| row | reached | last ACK, ms | CPU s | MB sent | messages | resident MB (peak) | asked |\n"
    "|---|---|---|---|---|---|---|---|"
)


def memory(report: dict[str, Any]) -> str:
    """Resident and peak."""
    return f"{report['server_rss_mb']:.0f} ({report['server_peak_rss_mb']:.0f})"


def phase(variant: str, name: str, report: dict[str, Any], *, asked: bool) -> str:
    """The row of a cold start or a reconnect."""
    done = report["all_types_acked"]
    reached = f"{report['sidecars'] - report['not_fully_answered']} of {report['sidecars']}"
    last = max(done["last_ms"], report["last_message_ms"])
    errors = f", {report['stream_errors']} stream errors" if report["stream_errors"] else ""
    return row(
        variant,
        name,
        reached + errors + (", timed out" if report["timed_out"] else ""),
        f"{last:.0f}",
        f"{report['server_cpu_s']:.2f}",
        f"{report['bytes_total'] / 1e6:.2f}",
        f"{report['messages_total']}",
        memory(report),
        asked=asked,
    )


def change(variant: str, kind: str, reports: list[dict[str, Any]], *, asked: bool) -> str:
    """The row of some changes of a kind."""
    failed = [r["error"] for r in reports if "error" in r]
    if failed:
        return row(variant, kind, failed[0], *("",) * 5, asked=asked)
    late = sum(r["timed_out"] for r in reports)
    return row(
        variant,
        kind,
        spread([r["reached"] for r in reports]) + (f", {late} timed out" if late else ""),
        spread([r["acked"]["last_ms"] for r in reports if r["reached"]]),
        spread([r["server_cpu_s"] for r in reports], digits=3),
        spread([r["bytes_total"] for r in reports], 1e-6, 2),
        spread([r["messages_total"] for r in reports]),
        memory(reports[-1]),
        asked=asked,
    )


def measure(given: argparse.Namespace, variant: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(line, what it was made of) of each row of a variant."""
    asked = given.services == 1000 and given.sidecars == 2000
    with tempfile.TemporaryDirectory(prefix="meshbus-adsload.") as name:
        mesh = Mesh(given, Path(name), scoped=variant == "scoped")
        with mesh.up():
            before = resident_mb(mesh.pids)
            with mesh.driver() as cold:
                yield phase(variant, "cold start", cold, asked=asked), cold
                time.sleep(_SETTLED_S)
                after = resident_mb(mesh.pids)
                each = (after - before) * 1000 / cold["sidecars"]
                cells = (
                    "",
                    "",
                    "",
                    "",
                    f"{after:.0f} ({peak_mb(mesh.pids):.0f}); before {before:.0f}",
                )
                idle = {"before_mb": before, "after_mb": after, "kb_each": each}
                reached = f"{cold['sidecars']}, {each:.0f} kB each"
                yield row(variant, "idle", reached, *cells, asked=asked), idle
                for kind, reports in mesh.changes():
                    yield change(variant, kind, reports, asked=asked), {"changes": reports}
                again = mesh.post("/reconnect")
                yield phase(variant, "reconnect", again, asked=asked), again


def policies(given: argparse.Namespace, variant: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Policies go by ECDS, which adsload does not subscribe to: the row of `run.py`."""
    with tempfile.TemporaryDirectory(prefix="meshbus-adsload.") as name:
        out = Path(name) / "policy.json"
        command = [sys.executable, str(Path(__file__).parent / "run.py"), "--out", str(out)]
        command += ["--services", str(given.services), "--sidecars", str(given.sidecars)]
        command += ["--transport", given.carrier, "--rounds", str(given.reps)]
        command += ["--only", f"policy-{variant}"]
        subprocess.run(command, check=True, stdout=2)
        found = json.loads(out.read_text())["rows"][-1]
    cells = (
        f"{found['reached']:.0f}",
        f"{found['last_ms']:.0f}",
        f"{found['server_cpu']:.3f}",
        f"{found['bytes'] / 1e6:.2f}",
        f"{found['messages']:.0f}",
        f"{found['rss_mb']:.0f}",
    )
    asked = given.services == 1000 and given.sidecars == 2000
    yield row(variant, "policy", *cells, asked=asked), found


def settings(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adsload", required=True, help="the program")
    parser.add_argument("--carrier", choices=("native", "grpc"), default="native")
    parser.add_argument("--tls", action="store_true", help="TLS, without tokens")
    variants = parser.add_mutually_exclusive_group()
    variants.add_argument("--scoped", action="store_true", help="only that variant")
    variants.add_argument("--unscoped", action="store_true", help="only that variant")
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--sidecars", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=0, help="connect the first of them; 0: all")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--reps", type=int, default=5, help="changes of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout-ms", type=int, default=20_000, help="of a change")
    parser.add_argument("--policy", action="store_true", help="the row of a mesh-wide policy too")
    parser.add_argument("--no-pin", action="store_false", dest="pin")
    parser.add_argument("--out", type=Path, help="write the reports as JSON")
    given = parser.parse_args(argv)
    given.adsload = str(Path(given.adsload).absolute())
    return given


def main() -> int:
    """Measure and print."""
    given = settings(sys.argv[1:])
    variants = ["scoped"] if given.scoped else ["unscoped"] if given.unscoped else []
    connected = given.clients or given.sidecars
    print(
        f"{given.carrier}, {'TLS' if given.tls else 'plaintext'}, {given.services} services, "
        f"{connected} sidecars, {given.workers} worker(s), seed {given.seed}\n\n{HEAD}",
        flush=True,
    )
    reports: list[dict[str, Any]] = []
    for variant in variants or ["scoped", "unscoped"]:
        parts = [measure(given, variant)] + ([policies(given, variant)] if given.policy else [])
        for part in parts:
            for line, report in part:
                print(line, flush=True)
                reports.append({"row": line.split(" | ")[0].removeprefix("| "), **report})
    if given.out is not None:
        given.out.write_text(json.dumps(reports, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
