"""What stands in the place of a value of the wrong shape, so that rules run on the rest.

A rule may ask whether such a value is there (`is None`, `is UNSET`): it is. Whatever else it asks
cannot be known, so asking ends the rule without an error of its own. Nothing is ever said because
of a value that nobody could read.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, NoReturn, ParamSpec

P = ParamSpec("P")


class NotKnownError(Exception):
    """A rule asked for a value that is malformed."""


def independent(check: Callable[P, None]) -> Callable[P, None]:
    """A rule, or several that stand together: it ends where it asks for a malformed value, and
    its caller goes on with the next."""

    @wraps(check)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        with suppress(NotKnownError):
            check(*args, **kwargs)

    return checked


def _ask(*_: Any) -> NoReturn:
    raise NotKnownError


class Malformed:
    """A value that is there and that nobody can read; one for each place: no two are equal."""

    __slots__ = ()

    __bool__ = __len__ = __iter__ = __contains__ = __getitem__ = __reversed__ = _ask
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = _ask
    __str__ = __repr__ = __format__ = __bytes__ = __fspath__ = _ask
    __int__ = __float__ = __index__ = __round__ = __neg__ = __abs__ = _ask
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __rmod__ = _ask
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __and__ = __rand__ = _ask
    __or__ = __ror__ = __call__ = __getattr__ = _ask
    # `isinstance` asks for it.
    __class__ = property(_ask)
