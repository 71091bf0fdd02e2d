"""Admissions of pods by the injecting webhook: an open loop of requests over HTTPS, the server on
one core.

    python bench/admissions.py [--rate 200] [--seconds 20]
"""

import argparse
import asyncio
import gc
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry

from meshbus.runtime.http import bind, bound_address, serve_http


def pod(number: int) -> dict[str, Any]:
    """One as a controller makes it: two containers, probes, volumes, 7 kB of fields of others."""
    probe = {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 5}
    containers = [
        {
            "name": name,
            "image": f"registry.example.com/shop/{name}:v1.{number}",
            "ports": [{"name": "http", "containerPort": 8080 + index}],
            "env": [{"name": f"SETTING_{n}", "value": f"value of {n}"} for n in range(20)],
            "livenessProbe": probe,
            "readinessProbe": probe,
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        }
        for index, name in enumerate(("web", "helper"))
    ]
    managed = [
        {"manager": "kube-controller-manager", "fieldsV1": {f"f:{n}": {}}} for n in range(90)
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "web-7d4b9c-",
            "labels": {"app": "web", "version": "v1", "pod-template-hash": "7d4b9c"},
            "annotations": {"prometheus.io/port": "8080", "prometheus.io/scrape": "true"},
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d4b9c",
                 "controller": True, "uid": "u"}
            ],
            "managedFields": managed,
        },
        "spec": {"containers": containers, "volumes": [{"name": "data", "emptyDir": {}}]},
    }  # fmt: skip


def review(number: int) -> bytes:
    request = {
        "uid": f"uid-{number}",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "namespace": "shop",
        "operation": "CREATE",
        "object": pod(number),
    }
    body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    return json.dumps(body).encode()


async def serve(folder: Path) -> None:
    from meshbus_config.kubernetes.injecting import Injecting
    from meshbus_config.kubernetes.webhooks import webhook_app

    (folder / "values.yaml").write_text("{}")
    mesh: dict[str, Any] = {}
    injecting = Injecting(
        str(folder / "values.yaml"),
        root_namespace="istio-system",
        mesh=lambda: mesh,
        proxy_configs=list,
        bootstrap_filters=list,
        notes_of=lambda namespace: {},
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    sock = bind("127.0.0.1:0", "bench")
    (folder / "address").write_text(bound_address(sock))
    gc.collect()
    gc.freeze()
    await serve_http(
        webhook_app({"/inject": injecting.answer}, CollectorRegistry()), sock, tls=context
    )


async def measure(url: str, folder: Path, rate: int, seconds: int) -> list[float]:
    bodies = [review(n) for n in range(50)]
    took: list[float] = []
    tls = ssl.create_default_context(cafile=str(folder / "root.pem"))
    pool = aiohttp.TCPConnector(limit=32, ssl=tls)
    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession(connector=pool, headers=headers) as client:

        async def ask(number: int, due: float) -> None:
            async with client.post(url, data=bodies[number % len(bodies)]) as reply:
                content = await reply.read()
            took.append(time.perf_counter() - due)
            assert b'"patch"' in content

        await asyncio.gather(*(ask(n, time.perf_counter()) for n in range(64)))
        took.clear()
        begin = time.perf_counter() + 0.1
        tasks = []
        for number in range(rate * seconds):
            due = begin + number / rate
            if (left := due - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            tasks.append(asyncio.create_task(ask(number, due)))
        await asyncio.gather(*tasks)
    return sorted(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--serve", type=Path)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if arguments.serve:
        os.sched_setaffinity(0, {cores[0]})
        asyncio.run(serve(arguments.serve))
        return
    from meshbus.cli.cluster_keys import authority, leaf

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root, key = authority()
        certificate, own = leaf(root, key, ["127.0.0.1"])
        for file, text in (("root.pem", root), ("cert.pem", certificate), ("key.pem", own)):
            (folder / file).write_text(text)
        server = subprocess.Popen([sys.executable, __file__, "--serve", name])
        try:
            while not (folder / "address").exists():
                assert server.poll() is None
                time.sleep(0.05)
            url = f"https://{(folder / 'address').read_text()}/inject"
            before = Path(f"/proc/{server.pid}/stat").read_text().split()
            took = asyncio.run(measure(url, folder, arguments.rate, arguments.seconds))
            after = Path(f"/proc/{server.pid}/stat").read_text().split()
        finally:
            server.kill()
            server.wait()
    ticks = sum(int(after[i]) - int(before[i]) for i in (13, 14))
    cpu = ticks / os.sysconf("SC_CLK_TCK") / len(took) * 1000
    at = {p: took[min(len(took) - 1, int(len(took) * p / 100))] * 1000 for p in (50, 99)}
    print(
        f"{len(took)} admissions at {arguments.rate}/s: p50 {at[50]:.1f} ms, p99 {at[99]:.1f} ms, "
        f"longest {took[-1] * 1000:.1f} ms; {cpu:.2f} ms of CPU each"
    )


if __name__ == "__main__":
    main()
