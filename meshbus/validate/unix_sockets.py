"""Addresses of Unix domain sockets: `unix:///path` and `unix://@abstract`."""

UNIX_PREFIX = "unix://"


def unix_socket_problem(address: str) -> str | None:
    """Why it is not the address of a socket; it begins with `unix://`."""
    path = address.removeprefix(UNIX_PREFIX)
    if path.startswith("@"):
        return None
    if not path.startswith("/"):
        return f"{address}: UDS must be an absolute path or abstract socket"
    return f"{address}: UDS may not be a dir" if path.endswith("/") else None
