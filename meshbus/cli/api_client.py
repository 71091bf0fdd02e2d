"""The API of a running mesh, as the commands use it."""

import json
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer

if TYPE_CHECKING:
    import httpx

OK, NO, WRONG_USE = 0, 1, 2
HOMES = (Path("~/.meshbus"), Path("~/.meshbus/demo"))
"""Where a mesh is looked for when nobody says: that of `up`, that of `demo`."""

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="Directory of the mesh. Default: $MESHBUS_HOME, else ~/.meshbus or ~/.meshbus/demo.",
    ),
]

OwnHomeOption = Annotated[
    Path,
    typer.Option(
        "--home",
        envvar="MESHBUS_HOME",
        show_default=False,
        show_envvar=False,
        help="Directory of the mesh. Default: $MESHBUS_HOME, else ~/.meshbus.",
    ),
]
"""Of commands that start and end the mesh."""


def end(command: str, message: str, code: int) -> NoReturn:
    """Say why on stderr, and stop."""
    typer.echo(f"meshbus {command}: {message}", err=True)
    raise typer.Exit(code)


class ApiError(Exception):
    """The API refused, or is away. `status`: HTTP status, 0 when there was no answer."""

    def __init__(self, status: int, message: str, document: Any = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.document = document

    @property
    def code(self) -> int:
        """How a command ends that passes on what a person typed."""
        return WRONG_USE if self.status == 400 else NO


def find_api(home: Path | None) -> Path:
    """The `api.json` of the mesh that is meant.

    Raises:
        ApiError: There is none; says where it was looked for.
    """
    return find_of_home(home, "api.json")


def find_of_home(home: Path | None, name: str) -> Path:
    """A file that is in the home of a mesh while it runs.

    Args:
        home: What `--home` says.
        name: The file, from the home on.
    Raises:
        ApiError: There is none; says where it was looked for.
    """
    named = home or (Path(os.environ["MESHBUS_HOME"]) if os.environ.get("MESHBUS_HOME") else None)
    places = [named] if named is not None else list(HOMES)
    for place in places:
        file = place.expanduser() / name
        if file.is_file():
            return file
    looked = ", ".join(str(place) for place in places)
    raise ApiError(0, f"no mesh runs in {looked}: start one with `meshbus up`, or name its --home")


class Access(NamedTuple):
    """Where an API is, and by what."""

    url: str
    token: str
    ca: str
    """What its certificate is checked with, PEM."""
    name: str = ""
    """What the certificate proves; empty: the host of the URL."""


def read_access(home: Path | None) -> Access:
    """That of the mesh of a home.

    Raises:
        ApiError: There is none, or it cannot be read.
    """
    file = find_api(home)
    try:
        access = json.loads(file.read_text())
        return Access(str(access["url"]), str(access["token"]), str(access["ca"]))
    except (OSError, ValueError, KeyError) as error:
        raise ApiError(0, f"{file} cannot be used: {error}") from None


class ApiClient:
    """Requests with the token of a home. Use as a context manager."""

    def __init__(self, home: Path | None, access: Access | None = None) -> None:
        """Args:
        access: Instead of that of the home.
        """
        import httpx

        known = access or read_access(home)
        self.url = known.url
        try:
            context = ssl.create_default_context(cadata=known.ca)
        except (ValueError, ssl.SSLError) as error:
            raise ApiError(0, f"the certificates for {known.url} cannot be used: {error}") from None

        def named(request: httpx.Request) -> None:
            request.extensions["sni_hostname"] = known.name

        self.change = 0
        """Id of the change that the last answer named; 0: none."""
        self._errors = httpx.HTTPError
        self._client = httpx.Client(
            base_url=self.url,
            verify=context,
            headers={"authorization": f"Bearer {known.token}"},
            event_hooks={"request": [named] if known.name else []},
            timeout=httpx.Timeout(150, connect=5),
            trust_env=False,
        )

    def __enter__(self) -> "ApiClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: dict[str, str] | None = None,
        accept: str = "application/json",
    ) -> Any:
        """The JSON answer.

        Raises:
            ApiError: An answer of 400 or more, or none.
        """
        try:
            answer = self._client.request(
                method, path, json=body, params=query, headers={"accept": accept}
            )
        except self._errors as error:
            raise ApiError(0, f"{self.url} does not answer: {error}") from error
        self.change = int(answer.headers.get("Meshbus-Change", "0"))
        if answer.status_code >= 400:
            raise _refusal(answer, f"{method} {path}")
        try:
            return answer.json()
        except ValueError:
            return None

    def stream(self, path: str, query: dict[str, str]) -> Iterator[str]:
        """Lines of an answer that does not end.

        Raises:
            ApiError: As `ask`.
        """
        try:
            with self._client.stream("GET", path, params=query, timeout=None) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise _refusal(answer, f"GET {path}")
                yield from answer.iter_lines()
        except self._errors as error:
            raise ApiError(0, f"{self.url} does not answer: {error}") from error


def _refusal(answer: "httpx.Response", request: str) -> ApiError:
    """What an answer of 400 or more says."""
    try:
        document = answer.json()
    except ValueError:
        document = None
    message = document.get("message") if isinstance(document, dict) else None
    code = answer.status_code
    return ApiError(code, str(message or f"{request} answered {code}"), document)


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(document, indent=2))
