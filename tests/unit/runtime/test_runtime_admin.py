"""The admin port: metrics for everybody, the inside for who is on the machine."""

import httpx
import pytest
from prometheus_client import CollectorRegistry

from meshbus.runtime.admin import Admin, admin_app


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("127.0.0.1", 200),
        ("127.8.8.8", 200),
        ("::1", 200),
        ("::ffff:127.0.0.1", 200),
        ("10.0.0.7", 403),
        ("203.0.113.7", 403),
        ("::ffff:10.0.0.7", 403),
        ("somewhere", 403),
    ],
)
async def test_debug_pages_are_for_who_is_on_the_machine(address, status):
    admin = Admin()
    admin.add_debug("store", lambda: {"rows": 1})
    app = admin_app({"config": admin}, {"process": CollectorRegistry()}, version="1")
    transport = httpx.ASGITransport(app, client=(address, 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        for path in ("/debug", "/debug/config/store"):
            assert (await client.get(path)).status_code == status, path
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await client.get(path)).status_code == 200, path
