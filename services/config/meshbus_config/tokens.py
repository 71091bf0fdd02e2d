"""Who may use the API: bearer tokens of a file, `token,user,group|group` a line."""

import hashlib
import hmac
from pathlib import Path
from typing import NamedTuple


class TokenFileError(Exception):
    """The file of tokens cannot be used; the message names file and line, never a token."""


class User(NamedTuple):
    """Who asks."""

    name: str
    groups: tuple[str, ...] = ()
    caller: object = None
    """Who it is to a cluster, on Kubernetes."""


MIN_TOKEN = 16


def parse_tokens(text: str, where: str) -> dict[bytes, User]:
    """Users by the SHA-256 of their token.

    Raises:
        TokenFileError: A line is not `token,user[,group|group]`, or no token is there at all.
    """
    users: dict[bytes, User] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        token, user, groups = (part.strip() for part in f"{line},,".split(",", 3)[:3])
        if len(token) < MIN_TOKEN or not user:
            raise TokenFileError(
                f"{where}:{number}: expected token,user,group|group with a token of at least "
                f"{MIN_TOKEN} characters"
            )
        names = tuple(name for name in groups.split("|") if name)
        users[hashlib.sha256(token.encode()).digest()] = User(user, names)
    if not users:
        raise TokenFileError(f"{where}: holds no token; expected lines token,user,group|group")
    return users


class Tokens:
    """The file, read again when it changes. A file that has become unreadable keeps the users that
    were known."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._users: dict[bytes, User] = {}
        self.problem = ""
        """Why the file that is there now is not in force; empty when it is."""

    def load(self) -> None:
        """Read the file if it has changed.

        Raises:
            TokenFileError: It cannot be used, and none was before.
        """
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp == self._stamp:
                return
            if found.st_mode & 0o077:
                raise TokenFileError(f"{self._path} may be read by others: chmod 600 {self._path}")
            users = parse_tokens(self._path.read_text(), str(self._path))
        except OSError as error:
            self._fail(TokenFileError(f"{self._path}: {error.strerror}"))
        except TokenFileError as error:
            self._fail(error)
        else:
            self._users, self._stamp, self.problem = users, stamp, ""

    def _fail(self, error: TokenFileError) -> None:
        self.problem = str(error)
        if not self._users:
            raise error

    async def user_of(self, authorization: str) -> User | None:
        """The user of an `Authorization` header; None: nobody we know."""
        return self.find(authorization)

    async def may(self, user: User, method: str, path: str) -> bool:
        """Who has a token may do everything."""
        return True

    def find(self, authorization: str) -> User | None:
        """The user of an `Authorization` header; None: nobody we know."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        self.load()
        asked = hashlib.sha256(token.strip().encode()).digest()
        found = None
        for known, user in self._users.items():
            # No early exit: the time taken says nothing about which token came close.
            if hmac.compare_digest(known, asked):
                found = user
        return found
