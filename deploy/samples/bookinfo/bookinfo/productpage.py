"""The product page: HTML for people, `/api/v1/products...` for programs.

Logging in (any name) sets a cookie; calls to the other services then carry it as `end-user`.
"""

from collections.abc import Mapping
from html import escape
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from bookinfo.page import render_page
from bookinfo.server import Request, Response, html_response, json_response, redirect, serve
from bookinfo.upstream import UpstreamError, forwarded, get_json, service_url

PRODUCT_ID = 0
PRODUCT = {
    "id": PRODUCT_ID,
    "title": "The Comedy of Errors",
    "descriptionHtml": "The Comedy of Errors is one of William Shakespeare's early plays. It is "
    "his shortest and one of his most farcical comedies, with a major part of the humour coming "
    "from slapstick and mistaken identity, in addition to puns and word play.",
}
TIMEOUT_S = 3.0
REVIEW_ATTEMPTS = 2
"""Hard-coded, as in Istio's sample: 6 s in all, less than reviews v2 waits for ratings."""
COOKIE = "meshbus-bookinfo-user"


def signed_in_user(headers: Mapping[str, str]) -> str:
    """Name from the cookie, empty when nobody is signed in."""
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return unquote(morsel.value) if morsel else ""


def upstream_headers(request: Request) -> dict[str, str]:
    """Headers of the calls made for a request; the end user is who signed in, nobody else."""
    headers = forwarded(request.headers)
    headers.pop("end-user", None)
    user = signed_in_user(request.headers)
    if user:
        headers["end-user"] = quote(user, safe=" @._-+")
    return headers


def fetch_details(product: int, headers: Mapping[str, str]) -> tuple[int, Any]:
    """(status, document) of the details service."""
    return _fetch(f"{service_url('details')}/details/{product}", headers, 1, "details")


def fetch_reviews(product: int, headers: Mapping[str, str]) -> tuple[int, Any]:
    """(status, document) of the reviews service; asked twice before it counts as broken."""
    return _fetch(
        f"{service_url('reviews')}/reviews/{product}", headers, REVIEW_ATTEMPTS, "reviews"
    )


def fetch_ratings(product: int, headers: Mapping[str, str]) -> tuple[int, Any]:
    """(status, document) of the ratings service."""
    return _fetch(f"{service_url('ratings')}/ratings/{product}", headers, 1, "ratings")


def _fetch(url: str, headers: Mapping[str, str], attempts: int, what: str) -> tuple[int, Any]:
    status = 500
    for _ in range(attempts):
        try:
            return 200, get_json(url, headers, TIMEOUT_S)
        except UpstreamError as error:
            status = error.status or 500
    message = f"Sorry, product {what} are currently unavailable for this book."
    return status, {"error": message}


def page(request: Request) -> Response:
    """`GET /productpage`."""
    headers = upstream_headers(request)
    details = fetch_details(PRODUCT_ID, headers)
    reviews = fetch_reviews(PRODUCT_ID, headers)
    return html_response(render_page(PRODUCT, details, reviews, signed_in_user(request.headers)))


def login(request: Request) -> Response:
    """`POST /login` with a form field `username`."""
    user = parse_qs(request.body.decode(errors="replace")).get("username", [""])[0].strip()[:64]
    cookie = f"{COOKIE}={quote(user, safe='')}; Path=/; HttpOnly; SameSite=Lax"
    return redirect("/productpage", {"set-cookie": cookie} if user else {})


def logout(request: Request) -> Response:
    """`GET /logout`."""
    return redirect("/productpage", {"set-cookie": f"{COOKIE}=; Path=/; Max-Age=0"})


def product_part(fetch: Any) -> Any:
    """A route that answers with what another service says about one product."""

    def route(request: Request) -> Response:
        status, document = fetch(int(request.arguments[0]), upstream_headers(request))
        return json_response(document, status)

    return route


def front(request: Request) -> Response:
    """`GET /`."""
    title = escape(str(PRODUCT["title"]))
    return html_response(
        f'<!doctype html><title>Bookinfo</title><p><a href="/productpage">{title}</a></p>'
    )


ROUTES = (
    ("GET", "/(?:index.html)?", front),
    ("GET", "/health", lambda _: json_response({"status": "Product page is healthy"})),
    ("GET", "/productpage", page),
    ("POST", "/login", login),
    ("GET", "/logout", logout),
    ("GET", "/api/v1/products", lambda _: json_response([PRODUCT])),
    ("GET", r"/api/v1/products/(\d{1,9})", product_part(fetch_details)),
    ("GET", r"/api/v1/products/(\d{1,9})/reviews", product_part(fetch_reviews)),
    ("GET", r"/api/v1/products/(\d{1,9})/ratings", product_part(fetch_ratings)),
)

if __name__ == "__main__":
    serve("productpage", ROUTES)
