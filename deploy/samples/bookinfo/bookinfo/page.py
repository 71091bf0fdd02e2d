"""The HTML of the product page."""

from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882 }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 }
header { display: flex; gap: 1rem; align-items: center; padding: .8rem 1.5rem;
  border-bottom: 1px solid var(--line) }
header strong { flex: 1 } main { max-width: 60rem; margin: auto; padding: 1.5rem }
.columns { display: grid; grid-template-columns: 1fr 1fr; gap: 2rem }
h1 { margin: .2rem 0 } h2 { font-size: 1.1rem } dt { font-weight: 600 } dd { margin: 0 0 .3rem }
blockquote { margin: 0 0 1rem; padding: .8rem 1rem; background: var(--soft); border-radius: .5rem }
footer { font-size: .85rem } .error { color: #c33 }
.stars { font-size: 1.3rem; letter-spacing: .1em }
.black { color: CanvasText } .red { color: #d22 }
form { display: inline } input, button { font: inherit }
@media (max-width: 40rem) { .columns { grid-template-columns: 1fr } }
"""


def render_page(
    product: Mapping[str, Any], details: tuple[int, Any], reviews: tuple[int, Any], user: str
) -> str:
    """The page of one product. `details` and `reviews` are (status, document): a status but 200
    shows the error in place of that part."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Bookinfo: {escape(product["title"])}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>
<body><header><strong>Bookinfo</strong>{_session(user)}</header>
<main><h1>{escape(product["title"])}</h1><p>{escape(product["descriptionHtml"])}</p>
<div class="columns"><section id="details">{_details(*details)}</section>
<section id="reviews">{_reviews(*reviews)}</section></div></main></body></html>
"""


def _session(user: str) -> str:
    if user:
        return f'<span id="user">{escape(user)}</span> <a href="/logout">Sign out</a>'
    return (
        '<form method="post" action="/login"><label>User <input name="username" size="12" '
        'maxlength="64" required></label> <button>Sign in</button></form>'
    )


def _error(what: str, document: Any) -> str:
    message = document.get("error", "") if isinstance(document, dict) else ""
    title = f'<h2 class="error">Error fetching product {what}!</h2>'
    return f'{title}<p class="error">{escape(message)}</p>'


def _details(status: int, details: Any) -> str:
    if status != 200:
        return _error("details", details)
    shown = (
        ("type", "Type"),
        ("pages", "Pages"),
        ("publisher", "Publisher"),
        ("language", "Language"),
        ("ISBN-10", "ISBN-10"),
        ("ISBN-13", "ISBN-13"),
    )
    rows = "".join(
        f"<dt>{label}</dt><dd>{escape(str(details.get(name, '')))}</dd>" for name, label in shown
    )
    return f"<h2>Book Details</h2><dl>{rows}</dl>"


def _reviews(status: int, reviews: Any) -> str:
    if status != 200:
        return _error("reviews", reviews)
    items = "".join(_review(review) for review in reviews["reviews"])
    return (
        f"<h2>Book Reviews</h2>{items}<footer>Reviews served by: "
        f"<code>{escape(str(reviews.get('podname', '')))}</code></footer>"
    )


def _review(review: Mapping[str, Any]) -> str:
    rating = review.get("rating")
    stars = ""
    if rating and "error" in rating:
        stars = f'<p class="error">{escape(rating["error"])}</p>'
    elif rating:
        given = int(rating["stars"])
        colour = escape(rating["color"])
        stars = (
            f'<div class="stars {colour}" title="{given} of 5 stars, {colour}">'
            f"{'★' * given}{'☆' * (5 - given)}</div>"
        )
    return (
        f"<blockquote><p>{escape(review['text'])}</p><small>{escape(review['reviewer'])}</small>"
        f"{stars}</blockquote>"
    )
