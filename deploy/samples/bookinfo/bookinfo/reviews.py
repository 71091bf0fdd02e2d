"""The reviews service. v1 shows no stars, v2 black ones, v3 red ones (asked of ratings)."""

import os
from typing import Any

from bookinfo.server import Request, Response, json_response, serve, service_version
from bookinfo.upstream import UpstreamError, forwarded, get_json, service_url

TEXTS = {
    "Reviewer1": "An extremely entertaining play by Shakespeare. "
    "The slapstick humour is refreshing!",
    "Reviewer2": "Absolutely fun and entertaining. The play lacks thematic depth when compared to "
    "other plays by Shakespeare.",
}
STAR_COLOUR = {"v1": None, "v2": "black", "v3": "red"}
RATINGS_TIMEOUT_S = {"v2": 10.0, "v3": 2.5}
"""As Istio's: v2 waits longer than productpage does, the bug that its fault injection task finds.
Source: https://istio.io/latest/docs/tasks/traffic-management/fault-injection/"""


def reviews(request: Request) -> Response:
    """`GET /reviews/ID`."""
    version = service_version()
    colour = STAR_COLOUR.get(version)
    product = int(request.arguments[0])
    items: list[dict[str, Any]] = [{"reviewer": name, "text": text} for name, text in TEXTS.items()]
    if colour is not None:
        url = f"{service_url('ratings')}/ratings/{product}"
        try:
            answer = get_json(url, forwarded(request.headers), RATINGS_TIMEOUT_S.get(version, 2.5))
            stars = answer["ratings"]
            for item in items:
                item["rating"] = {"stars": stars[item["reviewer"]], "color": colour}
        except (UpstreamError, LookupError, TypeError):
            for item in items:
                item["rating"] = {"error": "Ratings service is currently unavailable"}
    return json_response(
        {
            "id": str(product),
            "podname": os.environ.get("POD_NAME", f"reviews-{version}"),
            "clustername": "null",
            "version": version,
            "reviews": items,
        }
    )


ROUTES = (
    ("GET", "/health", lambda _: json_response({"status": "Reviews is healthy"})),
    ("GET", r"/reviews/(\d{1,9})", reviews),
)

if __name__ == "__main__":
    serve("reviews", ROUTES)
