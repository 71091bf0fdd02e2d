"""Questions to the API server about people and workloads: whose token is this, and may they?"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from meshbus.kube.client import KubeClient

CACHED_S = 30.0
_CACHED = 4096
_DENIED_S = 5.0
_ACCOUNT = "system:serviceaccount:"
_POD_NAME, _POD_UID, _NODE = (
    f"authentication.kubernetes.io/{name}" for name in ("pod-name", "pod-uid", "node-name")
)


class Caller(NamedTuple):
    """Who a token belongs to."""

    username: str
    uid: str
    groups: tuple[str, ...]
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def account(self) -> tuple[str, str] | None:
        """(namespace, name) of the ServiceAccount that it is; None for anybody else."""
        parts = self.username.split(":")
        if not self.username.startswith(_ACCOUNT) or len(parts) != 4:
            return None
        return parts[2], parts[3]

    def _extra(self, name: str) -> str:
        return next((values[0] for key, values in self.extra if key == name and values), "")

    @property
    def pod(self) -> str:
        """Name of the pod that the token is bound to; empty if to none."""
        return self._extra(_POD_NAME)

    @property
    def pod_uid(self) -> str:
        """Its uid."""
        return self._extra(_POD_UID)

    @property
    def node(self) -> str:
        """The node that it runs on, where the cluster says so."""
        return self._extra(_NODE)


class Access(NamedTuple):
    """What somebody wants to do: to a resource, or with `path` set to what is none."""

    verb: str
    group: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    path: str = ""


class _User(msgspec.Struct):
    username: str = ""
    uid: str = ""
    groups: list[str] = []
    extra: dict[str, list[str]] = {}


class _TokenStatus(msgspec.Struct):
    authenticated: bool = False
    user: _User | None = None
    audiences: list[str] = []
    error: str = ""


class _TokenReview(msgspec.Struct):
    status: _TokenStatus


class _AccessStatus(msgspec.Struct):
    allowed: bool = False
    reason: str = ""


class _AccessReview(msgspec.Struct):
    status: _AccessStatus


class _Memory:
    """Answers of a short while. Bounded: what was asked for longest ago is forgotten first."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._answers: OrderedDict[object, tuple[float, object]] = OrderedDict()

    def get(self, key: object) -> object | None:
        found = self._answers.get(key)
        if found is None or self._monotonic() > found[0]:
            return None
        return found[1]

    def put(self, key: object, answer: object, for_s: float) -> None:
        self._answers[key] = (self._monotonic() + for_s, answer)
        self._answers.move_to_end(key)
        while len(self._answers) > _CACHED:
            self._answers.popitem(last=False)


class Reviews:
    """Asks an API server, and remembers for a short while."""

    def __init__(self, client: KubeClient, monotonic: Callable[[], float]) -> None:
        self._client = client
        self._tokens = _Memory(monotonic)
        self._accesses = _Memory(monotonic)

    async def caller(self, token: str, audiences: Sequence[str] = ()) -> Caller | None:
        """Who a token belongs to; None if it is not good, or not for one of these audiences.

        Raises:
            KubeError: The server could not be asked.
        """
        key = (hashlib.sha256(token.encode()).digest(), tuple(audiences))
        known = self._tokens.get(key)
        if known is not None:
            return known if isinstance(known, Caller) else None
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, **({"audiences": list(audiences)} if audiences else {})},
        }
        answer = await self._client.send(
            "POST", "/apis/authentication.k8s.io/v1/tokenreviews", body
        )
        status = msgspec.json.decode(answer, type=_TokenReview).status
        user = status.user
        good = status.authenticated and user is not None
        # A server that knows no audiences would accept a token made for somebody else.
        if good and audiences and not set(audiences) & set(status.audiences):
            good = False
        if not good or user is None:
            self._tokens.put(key, "", _DENIED_S)
            return None
        extra = tuple(sorted((name, tuple(values)) for name, values in user.extra.items()))
        caller = Caller(user.username, user.uid, tuple(user.groups), extra)
        self._tokens.put(key, caller, CACHED_S)
        return caller

    async def allowed(self, caller: Caller, access: Access) -> bool:
        """Whether somebody may do something.

        Raises:
            KubeError: The server could not be asked.
        """
        known = self._accesses.get((caller, access))
        if known is not None:
            return known is True
        spec: dict[str, object] = {
            "user": caller.username,
            "uid": caller.uid,
            "groups": list(caller.groups),
            "extra": {name: list(values) for name, values in caller.extra},
        }
        if access.path:
            spec["nonResourceAttributes"] = {"path": access.path, "verb": access.verb}
        else:
            spec["resourceAttributes"] = {
                "verb": access.verb,
                "group": access.group,
                "resource": access.resource,
                "subresource": access.subresource,
                "namespace": access.namespace,
                "name": access.name,
            }
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": spec,
        }
        answer = await self._client.send(
            "POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body
        )
        allowed = msgspec.json.decode(answer, type=_AccessReview).status.allowed
        self._accesses.put((caller, access), allowed, CACHED_S if allowed else _DENIED_S)
        return allowed
