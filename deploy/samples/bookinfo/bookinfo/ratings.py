"""The ratings service: stars by reviewer. `POST` changes them, in memory."""

import json
import threading

from bookinfo.server import Request, Response, json_response, serve

REVIEWERS = ("Reviewer1", "Reviewer2")
_given: dict[int, dict[str, int]] = {}
_lock = threading.Lock()
MAX_PRODUCTS = 1000


def get_ratings(request: Request) -> Response:
    """`GET /ratings/ID`: `{"id", "ratings": {reviewer: stars}}`."""
    product = int(request.arguments[0])
    with _lock:
        stars = dict(_given.get(product, dict(zip(REVIEWERS, (5, 4), strict=True))))
    return json_response({"id": product, "ratings": stars})


def post_ratings(request: Request) -> Response:
    """`POST /ratings/ID` with `{reviewer: stars}`; 400 unless stars are 1 to 5."""
    product = int(request.arguments[0])
    try:
        stars = json.loads(request.body)
    except ValueError:
        return json_response({"error": "please provide valid ratings JSON"}, 400)
    good = isinstance(stars, dict) and all(
        name in REVIEWERS and isinstance(value, int) and 1 <= value <= 5
        for name, value in stars.items()
    )
    if not good:
        return json_response({"error": f"ratings are 1 to 5 stars of {', '.join(REVIEWERS)}"}, 400)
    with _lock:
        if product not in _given and len(_given) >= MAX_PRODUCTS:
            return json_response({"error": "too many products"}, 507)
        _given[product] = stars
    return json_response({"id": product, "ratings": stars})


ROUTES = (
    ("GET", "/health", lambda _: json_response({"status": "Ratings is healthy"})),
    ("GET", r"/ratings/(\d{1,9})", get_ratings),
    ("POST", r"/ratings/(\d{1,9})", post_ratings),
)

if __name__ == "__main__":
    serve("ratings", ROUTES)
