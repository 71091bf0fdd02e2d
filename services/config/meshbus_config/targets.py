"""Which object a path of `/api` and `/apis` means, and the parameters of a request. Pure."""

import base64
import json
from collections.abc import Mapping
from typing import NamedTuple

from meshbus.api.kinds import KindInfo, by_plural
from meshbus_config.admission import IGNORE, STRICT, WARN
from meshbus_config.errors import bad_request, gone, no_such_path

MAX_PAGE = 10_000


class Target(NamedTuple):
    """What a path names: a kind, and as far as the path goes a namespace, object, subresource."""

    info: KindInfo
    version: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""


def parse_path(group: str, version: str, rest: str) -> Target:
    """The target of `/apis/<group>/<version>/<rest>`.

    Raises:
        ApiError: 404, nothing is served there.
    """
    segments = rest.strip("/").split("/")
    namespace = ""
    if segments[0] == "namespaces" and len(segments) >= 3:
        inside = by_plural(group, version, segments[2])
        if inside is not None and inside.namespaced:
            namespace, segments = segments[1], segments[2:]
            if not namespace:
                raise no_such_path()
    info = by_plural(group, version, segments[0])
    if info is None or len(segments) > 3 or (info.namespaced and not namespace and segments[1:]):
        raise no_such_path()
    name = segments[1] if len(segments) > 1 else ""
    subresource = segments[2] if len(segments) > 2 else ""
    if (len(segments) > 1 and not name) or (subresource and subresource not in info.subresources):
        raise no_such_path()
    return Target(info, version, namespace, name, subresource)


def flag(query: Mapping[str, str], name: str) -> bool:
    """A boolean parameter, as Kubernetes reads them.

    Raises:
        ApiError: 400.
    """
    text = query.get(name, "")
    if text.lower() in ("true", "1", "t"):
        return True
    if text.lower() in ("", "false", "0", "f"):
        return False
    raise bad_request(f"{name}: true or false, not {text!r}")


def number(query: Mapping[str, str], name: str, default: int = 0) -> int:
    """A parameter that is a whole number, at least 0.

    Raises:
        ApiError: 400.
    """
    text = query.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or len(text) > 18:
        raise bad_request(f"{name}: a number of at least 0, not {text!r}")
    return int(text)


def dry_run(query: Mapping[str, str]) -> bool:
    """`dryRun=All`.

    Raises:
        ApiError: 400, another value.
    """
    value = query.get("dryRun")
    if value not in (None, "", "All"):
        raise bad_request(f"dryRun: the only value is All, not {value!r}")
    return value == "All"


def field_validation(query: Mapping[str, str]) -> str:
    """How unknown fields are judged.

    Raises:
        ApiError: 400, an unknown value.
    """
    value = query.get("fieldValidation") or WARN
    if value not in (STRICT, WARN, IGNORE):
        raise bad_request(f"fieldValidation: Strict, Warn or Ignore, not {value!r}")
    return value


def field_manager(query: Mapping[str, str], user_agent: str) -> str:
    """Who manages what this request writes; by default the program's name.

    Raises:
        ApiError: 400, longer than 128 characters or not printable.
    """
    manager = query.get("fieldManager") or user_agent.split("/")[0] or "unknown"
    if len(manager) > 128 or not manager.isprintable():
        raise bad_request("fieldManager: at most 128 printable characters")
    return manager


class Page(NamedTuple):
    """Where a list goes on: after this object, at the version of its first page."""

    version: int
    namespace: str
    name: str


def continue_token(page: Page) -> str:
    """The opaque form of a page."""
    return base64.urlsafe_b64encode(json.dumps(list(page)).encode()).decode().rstrip("=")


def parse_continue(token: str) -> Page | None:
    """The page of a token; None for the first one.

    Raises:
        ApiError: 410, it is not a token of ours.
    """
    if not token:
        return None
    try:
        version, namespace, name = json.loads(
            base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        )
        return Page(int(version), str(namespace), str(name))
    except (ValueError, TypeError):
        raise gone("the continue parameter is not one of this server: list again") from None
