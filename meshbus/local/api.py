"""The API of the mesh in a home, as `up` and `demo` use it."""

import ssl
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import msgspec

from meshbus.local.home import Home, HomeError
from meshbus.local.manifests import Document


class ApiAccess(msgspec.Struct, frozen=True):
    """`api.json` of a home."""

    url: str
    token: str
    ca: str


class Receipt(msgspec.Struct, frozen=True):
    """Where a change is: `/v1/changes/<n>`."""

    change: int
    state: str
    """`converged`, `pending` or `rejected`."""
    total: int
    converged: int
    latency_ms: float | None
    problems: list[str]


class MeshApi:
    """A client of the API. Use as a context manager."""

    def __init__(self, home: Home) -> None:
        """Raises:
        HomeError: No mesh runs in the home.
        """
        try:
            access = msgspec.json.decode(home.api_file.read_bytes(), type=ApiAccess)
        except (OSError, msgspec.MsgspecError) as error:
            raise HomeError(f"no mesh runs in {home.path}: {error}") from None
        self._client = httpx.Client(
            base_url=access.url,
            verify=ssl.create_default_context(cadata=access.ca),
            headers={"authorization": f"Bearer {access.token}"},
            timeout=70,
            trust_env=False,
        )
        self.url = access.url

    def __enter__(self) -> "MeshApi":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str) -> Any:
        """The JSON document at a path.

        Raises:
            HomeError: The API refused, or is away.
        """
        return self._ask("GET", path)

    def apply(self, documents: list[dict[str, Any]], *, atomic: bool = True) -> tuple[int, Any]:
        """Apply documents.

        Returns:
            (id of the change, the result of each document).
        Raises:
            HomeError: Refused; the message has a line for each document that is.
        """
        answer = self._ask("POST", f"/v1/apply?atomic={str(atomic).lower()}", documents)
        return int(answer.get("change") or 0), answer.get("results", [])

    def delete(self, documents: list[dict[str, Any]]) -> int:
        """Delete those that are there; the id of the last change, 0 when there was none."""
        return int(self._ask("POST", "/v1/delete?atomic=false", documents).get("change") or 0)

    def newest_workload(self) -> int:
        """Version of the Workload that changed last, 0 when there is none."""
        found = self.get("/apis/standalone.meshbus.io/v1alpha1/workloads")["items"]
        return max((int(item["metadata"]["resourceVersion"]) for item in found), default=0)

    def receipt(self, change: int, *, wait_s: float = 20.0) -> Receipt:
        """Wait until every proxy has taken a change, at most `wait_s`."""
        answer = self._ask("GET", f"/v1/changes/{change}?wait={wait_s:g}")
        proxies = answer.get("proxies", {})
        problems = [
            f"{item.get('proxy')}: {item.get('message')}" for item in answer.get("rejected", [])
        ]
        return Receipt(
            change=change,
            state=str(answer.get("state")),
            total=int(proxies.get("total", 0)),
            converged=int(proxies.get("converged", 0)),
            latency_ms=answer.get("latency_ms"),
            problems=problems,
        )

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        try:
            answer = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise HomeError(f"{method} {self.url}{path}: {error}") from error
        try:
            document = answer.json()
        except ValueError:
            document = {}
        if answer.status_code >= 400:
            raise HomeError("\n".join(_reasons(answer.status_code, document)))
        return document


def _reasons(status: int, document: Any) -> list[str]:
    lines = []
    for result in document.get("results", []) if isinstance(document, dict) else []:
        error = result.get("error")
        if error:
            where = f"{result.get('kind')} {result.get('namespace')}/{result.get('name')}"
            lines.append(f"{where}: {error.get('message')}")
    if lines:
        return lines
    message = document.get("message") if isinstance(document, dict) else None
    return [f"the API answered {status}: {message or 'no reason given'}"]


def notices(documents: Sequence[Document], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each reason why a document of an apply was refused, and for each warning.

    Args:
        documents: What was applied.
        results: What became of each, in the same order.
    """
    lines = []
    for document, result in zip(documents, results, strict=True):
        what = f"{result.get('kind')} {result.get('name')}"
        error = result.get("error")
        told: list[tuple[str, str]] = []
        if error is None:
            # A warning about a field begins with its path.
            warnings = [str(warning) for warning in result.get("warnings", [])]
            told = [(w.partition(": ")[0], f"warning: {w}") for w in warnings]
        else:
            for cause in error.get("causes") or [{"message": error.get("message")}]:
                field = str(cause.get("field") or "")
                message = f"{field}: {cause.get('message')}".removeprefix(": ")
                told.append((field, f"is refused: {message}"))
        for field, words in told:
            joint = " " if error is not None else ": "
            lines.append(f"{document.file}:{document.line_of(field)}: {what}{joint}{words}")
    return lines
