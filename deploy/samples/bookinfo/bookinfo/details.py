"""The details service: what is known about a book, without the Internet."""

from bookinfo.server import Request, Response, json_response, serve

HEALTH = {"status": "Details is healthy"}


def details(request: Request) -> Response:
    """`GET /details/ID`."""
    return json_response(
        {
            "id": int(request.arguments[0]),
            "author": "William Shakespeare",
            "year": 1595,
            "type": "paperback",
            "pages": 200,
            "publisher": "PublisherA",
            "language": "English",
            "ISBN-10": "1234567890",
            "ISBN-13": "123-1234567890",
        }
    )


ROUTES = (
    ("GET", "/health", lambda _: json_response(HEALTH)),
    ("GET", r"/details/(\d{1,9})", details),
)

if __name__ == "__main__":
    serve("details", ROUTES)
