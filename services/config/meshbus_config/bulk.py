"""`/v1/apply` and `/v1/delete`: many objects in one request, all of them or as many as can be.

The fields of each document are applied as server-side apply does, for the manager `meshbus`, taking
over what others manage; what the last apply of the same object set and this one does not is gone.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from meshbus.api.kinds import KindInfo, by_plural, kind_of
from meshbus.model.world import Put
from meshbus.validate import validate_object
from meshbus_config import operations
from meshbus_config.answers import read_document, respond
from meshbus_config.documents import Document, Space
from meshbus_config.errors import ApiError, bad_request, too_large
from meshbus_config.operations import Preconditions
from meshbus_config.outcomes import Intent, Plan, metadata_of
from meshbus_config.store import Store, Written
from meshbus_config.targets import dry_run, field_validation, flag

MAX_DOCUMENTS = 10_000
_MANY = 50
"""Objects whose planning would be felt by others in the process."""
_GROUP = 250
"""Objects of one change, where many are applied that need not be one."""
MANAGER = "meshbus"
_NAMED_FIRST = {
    kind: rank
    for rank, kind in enumerate(
        (
            "Namespace",
            "MeshConfig",
            "Secret",
            "ServiceAccount",
            "Service",
            "EndpointSlice",
            "Pod",
            "ServiceEntry",
            "WorkloadEntry",
            "Workload",
            "Gateway",
            "DestinationRule",
            "handler",
            "instance",
            "QuotaSpec",
        )
    )
}
"""A namespace before what is in it, a service before the routes to it."""
_SERVERS_OWN = ("resourceVersion", "uid", "generation", "managedFields", "selfLink")


class Item(NamedTuple):
    """One document of a request, told apart from the others by its place."""

    position: int
    kind: str
    namespace: str
    name: str
    info: KindInfo | None
    document: Document


def read_items(body: Any) -> list[Item]:
    """The documents of a body: a list of objects, or an object of a List kind.

    Raises:
        ApiError: 400, it is neither; 413, too many.
    """
    if isinstance(body, dict) and isinstance(body.get("items"), list):
        body = body["items"]
    if not isinstance(body, list):
        raise bad_request("expected a list of objects")
    if len(body) > MAX_DOCUMENTS:
        raise too_large(f"{len(body)} objects; at most {MAX_DOCUMENTS} are taken at once")
    items = [_item(index, document) for index, document in enumerate(body)]
    # What others name comes first: the order of documents in files says nothing about it.
    return sorted(items, key=lambda item: _NAMED_FIRST.get(item.kind, len(_NAMED_FIRST)))


def _item(index: int, document: Any) -> Item:
    if not isinstance(document, dict):
        raise bad_request(f"[{index}]: expected an object")
    metadata = document.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    api_version, kind = str(document.get("apiVersion", "")), str(document.get("kind", ""))
    info = kind_of(api_version, kind)
    namespace = str(metadata.get("namespace") or "default")
    if info is not None and not info.namespaced:
        namespace = ""
    return Item(index, kind, namespace, str(metadata.get("name") or ""), info, document)


def _kind_of(item: Item) -> KindInfo:
    info = item.info
    if info is not None and by_plural(info.group, info.version, info.plural) is not None:
        return info
    if info is not None:
        raise bad_request(
            f"nothing here reads a {info.kind}: a process is described as a Workload "
            "(standalone.meshbus.io/v1alpha1)"
        )
    errors = validate_object(item.document).errors
    raise bad_request("; ".join(f"{v.path}: {v.message}" for v in errors))


Step = Callable[[Space, Item], Plan]
"""What happens to one item."""


def apply_step(now: float, validation: str) -> Step:
    """Apply an item."""
    intent = Intent(
        manager=MANAGER,
        now=now,
        new_uid=lambda: str(uuid4()),
        field_validation=validation,
        force=True,
        restore=True,
    )

    def step(space: Space, item: Item) -> Plan:
        info = _kind_of(item)
        if not metadata_of(info, item.document).name:
            raise bad_request("metadata.name is required")
        document = dict(item.document)
        # A document may come from `get -o yaml`: what the server wrote there is not the user's.
        document["metadata"] = {
            name: value
            for name, value in item.document["metadata"].items()
            if name not in _SERVERS_OWN
        }
        return operations.apply(space, info, item.namespace, item.name, document, intent)

    return step


def delete_step(now: float) -> Step:
    """Delete an item."""

    def step(space: Space, item: Item) -> Plan:
        info = _kind_of(item)
        return operations.delete(space, info, item.namespace, item.name, Preconditions(), now)

    return step


class Bulk:
    """Handlers of `/v1/apply` and `/v1/delete`."""

    def __init__(self, store: Store, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now

    async def apply(self, request: Request) -> Response:
        """POST: a list of objects. Query: `atomic` (default true), `dryRun`, `fieldValidation`.

        Raises:
            ApiError: The request as a whole is refused; what is wrong with single objects stands
                in the results.
        """
        validation = field_validation({"fieldValidation": "Strict", **request.query_params})
        return await self._run(request, apply_step(self._now(), validation))

    async def delete(self, request: Request) -> Response:
        """POST: a list of objects, of which kind, namespace and name count. Query as `apply`, and
        `keepReferenced`: refuse to take away what other objects name."""
        return await self._run(request, delete_step(self._now()))

    async def _run(self, request: Request, step: Step) -> Response:
        items = read_items(await read_document(request))
        query = request.query_params
        atomic = "atomic" not in query or flag(query, "atomic")
        user = request.state.user.name
        dry = dry_run(query)
        keep = "keepReferenced" in query and flag(query, "keepReferenced")
        results: list[dict[str, Any]] = [{} for _ in items]
        if atomic:
            change = await self._at_once(items, step, results, user=user, dry=dry, keep=keep)
        else:
            change = await self._in_groups(items, step, results, user=user, dry=dry, keep=keep)
        failed = any("error" in result for result in results)
        return respond(
            request,
            {"change": change, "results": results},
            422 if failed and atomic else 200,
            change=change or 0,
        )

    async def _at_once(
        self,
        items: list[Item],
        step: Step,
        results: list[dict[str, Any]],
        *,
        user: str,
        dry: bool,
        keep: bool,
    ) -> int | None:
        """All of them as one change, or none. The id of the change; None when refused."""

        def plan(space: Space) -> Sequence[Plan]:
            plans = [one for _, one in self._plan_each(space, items, step, results)]
            if any("error" in result for result in results):
                for result in results:
                    if "error" not in result:
                        result["action"] = "none"
                return []
            return _merged(plans)

        written = await self._store.write(
            plan,
            user=user,
            dry_run=dry,
            keep_referenced=keep,
            atomic=True,
            in_thread=len(items) >= _MANY,
        )
        if any("error" in result for result in results):
            return None
        for item, one in zip(items, written.plans, strict=True):
            results[item.position] = _done(item, one)
        return _change_of([written])

    def _plan_each(
        self, space: Space, items: list[Item], step: Step, results: list[dict[str, Any]]
    ) -> list[tuple[Item, Plan]]:
        """The plan of each item that is not refused, each on the world as those before leave it: a
        namespace, and then what is in it."""
        plans = []
        for item in items:
            try:
                one = step(space, item)
            except ApiError as error:
                results[item.position] = _refused(item, error)
                continue
            plans.append((item, one))
            results[item.position] = _done(item, one)
            world, _ = space.world.apply(
                Put(key, space.world.sequence, self._now(), row) for key, row in one.writes
            )
            space = space._replace(world=world)
        return plans

    async def _in_groups(
        self,
        items: list[Item],
        step: Step,
        results: list[dict[str, Any]],
        *,
        user: str,
        dry: bool,
        keep: bool,
    ) -> int | None:
        """As many as can be. Many are written in changes of `_GROUP` objects, few one by one, as
        kubectl does; the id of the last change."""
        if len(items) < _MANY:
            return _change_of(
                await self._one_by_one(items, step, results, user=user, dry=dry, keep=keep)
            )
        done = []
        for start in range(0, len(items), _GROUP):
            group = items[start : start + _GROUP]
            planned: list[tuple[Item, Plan]] = []

            def plan(
                space: Space,
                group: list[Item] = group,
                planned: list[tuple[Item, Plan]] = planned,
            ) -> Sequence[Plan]:
                planned[:] = self._plan_each(space, group, step, results)
                return _merged([one for _, one in planned])

            try:
                written = await self._store.write(
                    plan, user=user, dry_run=dry, keep_referenced=keep, in_thread=True
                )
            except ApiError:
                # One that is too large for the bus, say, must not take its group with it.
                done += await self._one_by_one(group, step, results, user=user, dry=dry, keep=keep)
                continue
            done.append(written)
            for (item, _), one in zip(planned, written.plans, strict=True):
                results[item.position] = _done(item, one)
        return _change_of(done)

    async def _one_by_one(
        self,
        items: list[Item],
        step: Step,
        results: list[dict[str, Any]],
        *,
        user: str,
        dry: bool,
        keep: bool,
    ) -> list[Written]:
        """Each as a change of its own."""
        done = []
        for item in items:
            try:
                written = await self._store.write(
                    lambda space, item=item: [step(space, item)],  # type: ignore[misc]
                    user=user,
                    dry_run=dry,
                    keep_referenced=keep,
                )
            except ApiError as error:
                results[item.position] = _refused(item, error)
                continue
            done.append(written)
            results[item.position] = _done(item, written.plans[0])
        return done


def _merged(plans: list[Plan]) -> list[Plan]:
    """Plans whose writes hold each key once: of two writes of one row the later one counts."""
    last: dict[Any, int] = {}
    for index, plan in enumerate(plans):
        for key, _ in plan.writes:
            last[key] = index
    return [
        plan._replace(writes=tuple(w for w in plan.writes if last[w[0]] == index))
        for index, plan in enumerate(plans)
    ]


def _change_of(done: list[Written]) -> int | None:
    """The id to wait for: of the last change, or, when nothing had to be written, the latest
    version of what was asked for."""
    changes = [written.change for written in done if written.change]
    versions = [plan.stored.version for written in done for plan in written.plans]
    return max(changes or versions, default=None)


def _done(item: Item, plan: Plan) -> dict[str, Any]:
    result: dict[str, Any] = _place(item) | {"action": plan.action}
    if plan.warnings:
        result["warnings"] = list(plan.warnings)
    return result


def _refused(item: Item, error: ApiError) -> dict[str, Any]:
    status = error.document()
    return _place(item) | {
        "action": "failed",
        "error": {
            "code": error.code,
            "reason": error.reason,
            "message": error.message,
            "causes": status.get("details", {}).get("causes", []),
        },
    }


def _place(item: Item) -> dict[str, Any]:
    return {
        "index": item.position,
        "kind": item.kind,
        "namespace": item.namespace,
        "name": item.name,
    }
