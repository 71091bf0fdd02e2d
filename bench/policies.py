"""How long AuthorizationPolicies take to compile: cold, and after one of them has changed.

    python bench/policies.py [--policies 100] [--rules 10]

In one process, for one workload that follows them all. Printed as JSON: milliseconds of CPU, the
median of a few rounds.
"""

import argparse
import gc
import json
import statistics
import time
from typing import Any

from meshbus.compile.engine import Engine
from meshbus.compile.shared_parts import workload_extensions
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject
from meshbus.model.world import Put, world_of

ROUNDS = 7


def policy(number: int, rules: int, version: int) -> tuple[Key, ConfigObject]:
    """A policy whose rules have callers, methods, paths and a header, no two the same."""
    spec: dict[str, Any] = {
        "action": ("ALLOW", "DENY")[number % 2],
        "rules": [
            {
                "from": [
                    {"source": {"principals": [f"cluster.local/ns/n-{number}/sa/{i}-{k}"]}}
                    for k in range(2)
                ],
                "to": [
                    {
                        "operation": {
                            "methods": ["GET", "POST"],
                            "paths": [f"/{number}/{i}/*", f"/{version}/{i}"],
                        }
                    }
                ],
                "when": [{"key": "request.headers[x-team]", "values": ["red", "blue"]}],
            }
            for i in range(rules)
        ],
    }
    name = f"p-{number}"
    row = ConfigObject(
        "security.istio.io/v1", "AuthorizationPolicy", "default", name, name, 1, 0.0, spec=spec
    )
    return Key("c", "cfg", "authorizationpolicies", "default", name), row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policies", type=int, default=100)
    parser.add_argument("--rules", type=int, default=10)
    given = parser.parse_args()
    cold, changed = [], []
    gc.disable()
    for version in range(ROUNDS):
        rows = dict(policy(n, given.rules, version) for n in range(given.policies))
        engine = Engine(world_of(rows))
        began = time.process_time()
        engine.get(workload_extensions, "default", ())
        cold.append(time.process_time() - began)
        key, row = policy(0, given.rules, version + ROUNDS)
        world, touched = engine.world.apply([Put(key, 2, 0.0, row)])
        began = time.process_time()
        engine.update(world, touched)
        engine.get(workload_extensions, "default", ())
        changed.append(time.process_time() - began)
        gc.collect()
    found = {
        "policies": given.policies,
        "rules": given.policies * given.rules,
        "cold_ms": round(statistics.median(cold) * 1e3, 1),
        "one_changed_ms": round(statistics.median(changed) * 1e3, 1),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
