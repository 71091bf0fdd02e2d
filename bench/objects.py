"""How the config service holds many objects: what one change of one costs, with what follows of it.

    python bench/objects.py [--objects 10000]

VirtualServices that name what is not there, so that each has a status: the most that config does
for an object. Over HTTPS, the bus in memory. Prints one JSON object, milliseconds of CPU.
"""

import argparse
import asyncio
import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import structlog

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "unit" / "config")]

from config_harness import Api, client_of, make_context, running

from meshbus.bus.memory import MemoryBus, MemoryServer

BATCH = 500
CHANGES = 20
FOLLOWS_S = 0.6
"""Statuses are written at most twice a second."""


def virtual_service(number: int, weight: int = 50) -> dict[str, Any]:
    host = f"host-{number}.example.com"
    route = [
        {"destination": {"host": host, "subset": "a"}, "weight": weight},
        {"destination": {"host": host, "subset": "b"}, "weight": 100 - weight},
    ]
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": f"v-{number}", "namespace": "default"},
        "spec": {"hosts": [host], "http": [{"route": route}]},
    }


async def statuses_written(api: Api, objects: int) -> None:
    """Until each object has its status."""
    path = "/apis/networking.istio.io/v1/namespaces/default/virtualservices"
    last = f"{path}/v-{objects - 1}"
    names = sorted(f"v-{number}" for number in range(objects))
    for place in (f"{path}/{names[-1]}", last):
        while "status" not in (await api.client.get(place)).json():
            await asyncio.sleep(FOLLOWS_S)


async def measure(objects: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        server = MemoryServer()
        context = make_context(MemoryBus(server, "config"), Path(folder))
        async with running(context) as task, client_of(context) as client:
            api = Api(client, context, server, task)
            began = time.process_time()
            for start in range(0, objects, BATCH):
                batch = range(start, min(start + BATCH, objects))
                (await api.apply(*map(virtual_service, batch))).raise_for_status()
            await statuses_written(api, objects)
            loaded = time.process_time() - began
            requests, began = [], time.process_time()
            for change in range(CHANGES):
                asked = time.process_time()
                (await api.apply(virtual_service(7, change + 1))).raise_for_status()
                requests.append(time.process_time() - asked)
                await asyncio.sleep(FOLLOWS_S)
            whole = (time.process_time() - began) / CHANGES
    return {
        "objects": objects,
        "load_each": round(loaded / objects * 1000, 2),
        "request": round(statistics.median(requests) * 1000, 1),
        "request_and_what_follows": round(whole * 1000, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=10_000)
    quiet = structlog.make_filtering_bound_logger(logging.ERROR)
    structlog.configure(wrapper_class=quiet)
    print(json.dumps(asyncio.run(measure(parser.parse_args().objects))))


if __name__ == "__main__":
    main()
