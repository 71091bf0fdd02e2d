"""Bookinfo: its answers, over real HTTP."""

import contextlib
import json
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from bookinfo import details, productpage, ratings, reviews
from bookinfo.server import listen
from bookinfo.upstream import forwarded

from meshbus.local.traffic import fetch, version_of

pytestmark = pytest.mark.real


@contextlib.contextmanager
def serving(routes: Any) -> Iterator[int]:
    server = listen(routes, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def page_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        for name, module in (("DETAILS", details), ("REVIEWS", reviews), ("RATINGS", ratings)):
            monkeypatch.setenv(f"{name}_HOSTNAME", "127.0.0.1")
            port = stack.enter_context(serving(module.ROUTES))
            monkeypatch.setenv(f"{name}_SERVICE_PORT", str(port))
        yield stack.enter_context(serving(productpage.ROUTES))


@pytest.mark.parametrize(
    ("version", "stars"), [("v1", ""), ("v2", "stars black"), ("v3", "stars red")]
)
def test_each_version_has_its_stars(
    page_port: int, monkeypatch: pytest.MonkeyPatch, version: str, stars: str
) -> None:
    monkeypatch.setenv("SERVICE_VERSION", version)
    answer = fetch("127.0.0.1", page_port)
    assert answer.status == 200
    assert version_of(answer.body) == version
    assert "PublisherA" in answer.body
    assert ('class="stars' in answer.body) == bool(stars)
    assert stars in answer.body


def test_what_is_away_is_said_in_its_place(page_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETAILS_SERVICE_PORT", "1")
    answer = fetch("127.0.0.1", page_port)
    assert answer.status == 200
    assert "Error fetching product details!" in answer.body
    assert version_of(answer.body) == "v1"
    monkeypatch.setenv("SERVICE_VERSION", "v3")
    monkeypatch.setenv("RATINGS_SERVICE_PORT", "1")
    assert "Ratings service is currently unavailable" in fetch("127.0.0.1", page_port).body


def test_the_end_user_is_who_signed_in(page_port: int) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{page_port}/login", data=b"username=jason%20b"
    )
    with urllib.request.build_opener(urllib.request.HTTPCookieProcessor()).open(request) as page:
        assert '<span id="user">jason b</span>' in page.read().decode()
    headers = {"end-user": "somebody", "traceparent": "00-1-2-01", "x-other": "1"}
    assert forwarded(headers) == {"end-user": "somebody", "traceparent": "00-1-2-01"}


def test_the_api_and_its_errors(page_port: int) -> None:
    assert json.loads(fetch("127.0.0.1", page_port, "/api/v1/products").body)[0]["id"] == 0
    answer = fetch("127.0.0.1", page_port, "/api/v1/products/0/ratings")
    assert json.loads(answer.body)["ratings"] == {"Reviewer1": 5, "Reviewer2": 4}
    assert fetch("127.0.0.1", page_port, "/nothing").status == 404
    assert fetch("127.0.0.1", page_port, "/login").status == 405
    assert fetch("127.0.0.1", page_port, "/health").status == 200
