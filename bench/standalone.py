"""Figures of a mesh on this machine, with Bookinfo: `python bench/standalone.py [--rounds N]`.

Prints one JSON document: seconds from `up` to the first page, milliseconds from a route change to
the last proxy's ACK, from the death of a process to its endpoint leaving every proxy, wall time of
`meshbus compile`, resident memory of the six services in one process.
"""

import argparse
import json
import os
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.resources import files
from pathlib import Path
from typing import Any

MESHBUS = str(Path(sys.executable).parent / "meshbus")
MANIFESTS = Path(str(files("bookinfo") / "manifests"))


class Mesh:
    """A running home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        access = json.loads((home / "api.json").read_text())
        self.url, self.token = access["url"], access["token"]
        self.context = ssl.create_default_context(cadata=access["ca"])

    def ask(self, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"authorization": f"Bearer {self.token}", "content-type": "application/json"},
        )
        with urllib.request.urlopen(request, context=self.context, timeout=60) as answer:
            return json.load(answer)

    @property
    def page(self) -> str:
        status = json.loads((self.home / "run" / "status.json").read_text())
        port = next(iter(status["forwards"].values()))
        return f"http://127.0.0.1:{port}/productpage"


def fetch(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except OSError:
        return 0


def route(version: str) -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": "reviews", "namespace": "default"},
            "spec": {
                "hosts": ["reviews"],
                "http": [{"route": [{"destination": {"host": "reviews", "subset": version}}]}],
            },
        }
    ]


def route_changes(mesh: Mesh, rounds: int) -> list[float]:
    """Milliseconds from each change to its last ACK, by the mesh's own receipt."""
    taken = []
    for number in range(rounds):
        change = mesh.ask("/v1/apply", route("v1" if number % 2 else "v3"))["change"]
        receipt = mesh.ask(f"/v1/changes/{change}?wait=20")
        assert receipt["state"] == "converged", receipt
        taken.append(receipt["latency_ms"])
    return taken


def round_trips(mesh: Mesh, rounds: int) -> list[float]:
    """The same as its author sees it: from sending the change to holding the receipt."""
    taken = []
    for number in range(rounds):
        begin = time.perf_counter()
        change = mesh.ask("/v1/apply", route("v1" if number % 2 else "v3"))["change"]
        mesh.ask(f"/v1/changes/{change}?wait=20")
        taken.append((time.perf_counter() - begin) * 1000)
    return taken


def endpoints(mesh: Mesh, proxy: str, cluster: str) -> int:
    found = mesh.ask(f"/v1/proxies/{proxy}/config?type=endpoints")["endpoints"]
    for item in found:
        if item["clusterName"] == cluster:
            return sum(len(group.get("lbEndpoints", [])) for group in item.get("endpoints", []))
    return 0


def endpoint_death(mesh: Mesh, rounds: int) -> list[float]:
    """Milliseconds from SIGKILL of an application to every proxy being without it. One that cannot
    come back while a file is there: else it may be back before all proxies have been asked."""
    cluster = "outbound|9080||ratings.default.svc.cluster.local"
    barred = mesh.home / "barred"
    program = f'test ! -e "{barred}" && exec "{sys.executable}" -m bookinfo.ratings'
    workload = {
        "apiVersion": "standalone.meshbus.io/v1alpha1",
        "kind": "Workload",
        "metadata": {
            "name": "ratings-victim",
            "namespace": "default",
            "labels": {"app": "ratings", "version": "v1"},
        },
        "spec": {
            "serviceAccount": "bookinfo-ratings",
            "command": ["sh", "-c", program],
            "ports": [{"name": "http", "port": 9080}],
        },
    }
    mesh.ask("/v1/apply", [workload])
    record = mesh.home / "run" / "records"
    taken = []
    for _ in range(rounds):
        barred.unlink(missing_ok=True)
        proxies = [p["id"] for p in mesh.ask("/v1/proxies")["proxies"]]
        while any(endpoints(mesh, p, cluster) != 2 for p in proxies):
            time.sleep(0.05)
            proxies = [p["id"] for p in mesh.ask("/v1/proxies")["proxies"]]
        barred.touch()
        pid = next(
            json.loads(file.read_text())["pid"]
            for file in record.iterdir()
            if "app" in file.name and "ratings-victim" in file.name
        )
        begin = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        while any(endpoints(mesh, p, cluster) != 1 for p in proxies):
            pass
        taken.append((time.perf_counter() - begin) * 1000)
    return taken


def memory_mb(home: Path) -> float:
    """Resident memory of the process of the six services."""
    pid = json.loads((home / "services" / "admin-config.json").read_text())["pid"]
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def compile_seconds(rounds: int) -> list[float]:
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        subprocess.run(
            [MESHBUS, "compile", "-f", str(MANIFESTS), "--workload", "default/productpage-v1"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        taken.append(time.perf_counter() - begin)
    return taken


def main() -> None:
    """Run a mesh, measure, end it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="meshbus-bench-") as folder:
        home = Path(folder) / "home"
        home.mkdir(mode=0o700)
        (home / "settings.yaml").write_text("services: {processes: one}\n")
        begin = time.perf_counter()
        subprocess.run(
            [MESHBUS, "up", "-f", str(MANIFESTS), "--home", str(home), "--detach"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            mesh = Mesh(home)
            while fetch(mesh.page) != 200:
                time.sleep(0.02)
            first_page = time.perf_counter() - begin
            changes = route_changes(mesh, rounds)
            trips = round_trips(mesh, rounds)
            deaths = endpoint_death(mesh, min(rounds, 5))
            figures = {
                "cores": os.cpu_count(),
                "first_page_s": round(first_page, 2),
                "route_change_to_last_ack_ms": _spread(changes),
                "apply_to_receipt_ms": _spread(trips),
                "process_death_to_gone_everywhere_ms": _spread(deaths),
                "compile_bookinfo_wall_s": round(statistics.median(compile_seconds(5)), 3),
                "six_services_resident_mb": round(memory_mb(home), 1),
            }
            print(json.dumps(figures, indent=2))
        finally:
            subprocess.run([MESHBUS, "down", "--home", str(home)], check=False)


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 1),
        "max": round(max(values), 1),
        "n": len(values),
    }


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
