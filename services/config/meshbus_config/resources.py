"""The verbs of `/api` and `/apis`: list, watch, get, create, update, patch, apply, delete."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial as bind
from typing import Any
from uuid import uuid4

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from meshbus_config import operations, patches
from meshbus_config.answers import Presenter, decode_body, media_type_of, read_body, read_document
from meshbus_config.documents import Document, Space, Stored
from meshbus_config.errors import (
    ApiError,
    bad_request,
    gone,
    invalid,
    method_not_allowed,
    not_found,
    success,
    timed_out,
    too_many,
    unsupported_media_type,
)
from meshbus_config.errors import Cause as ErrorCause
from meshbus_config.history import History
from meshbus_config.negotiation import (
    APPLY_PATCH,
    JSON_PATCH,
    MERGE_PATCH,
    PATCH_TYPES,
    STRATEGIC_PATCH,
    decode,
    encode,
)
from meshbus_config.outcomes import CREATED, DELETED, Intent, Plan
from meshbus_config.selectors import Match, parse_selectors
from meshbus_config.store import Store
from meshbus_config.strategic_merge import strategic_merge
from meshbus_config.targets import (
    MAX_PAGE,
    Page,
    Target,
    continue_token,
    dry_run,
    field_manager,
    field_validation,
    flag,
    number,
    parse_continue,
    parse_path,
)
from meshbus_config.watching import WatchOptions, pick_timeout, watch

MAX_WATCHES = 500
WAIT_FOR_VERSION_S = 3.0


class Resources:
    """Handlers of the paths of objects."""

    def __init__(
        self,
        store: Store,
        history: History,
        *,
        now: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._store = store
        self._history = history
        self._now = now
        self._monotonic = monotonic
        self.watches = 0
        """Open watches."""

    async def handle(self, request: Request) -> Response:
        """Any request below `/api/v1/` or `/apis/<group>/<version>/`.

        Raises:
            ApiError: It is refused.
        """
        path = request.path_params
        target = parse_path(path.get("group", ""), path["version"], path["rest"])
        match request.method:
            case "GET" if target.name:
                return await self._get(request, target)
            case "GET" if flag(request.query_params, "watch"):
                return await self._watch(request, target)
            case "GET":
                return await self._list(request, target)
            case "POST" if not target.name:
                return await self._create(request, target)
            case "PUT" if target.name:
                return await self._replace(request, target)
            case "PATCH" if target.name:
                return await self._patch(request, target)
            case "DELETE" if target.name and not target.subresource:
                return await self._delete(request, target)
            case "DELETE" if not target.name:
                return await self._delete_many(request, target)
        raise method_not_allowed(request.method)

    def _presenter(self, request: Request, target: Target) -> Presenter:
        return Presenter(request, target, self._now)

    # ------------------------------------------------------------------ reads

    async def _get(self, request: Request, target: Target) -> Response:
        presenter = self._presenter(request, target)
        await self._at_version(request, target)
        space = self._store.space
        stored = space.get(target.info, target.namespace, target.name)
        if stored is None:
            raise not_found(target.info, target.name)
        document = presenter.one(presenter.document(stored, space))
        return presenter.respond(document, change=stored.entry.sequence)

    async def _list(self, request: Request, target: Target) -> Response:
        query = request.query_params
        presenter = self._presenter(request, target)
        matches = _selected(target, _match_of(request))
        page = parse_continue(query.get("continue", ""))
        limit = min(number(query, "limit") or MAX_PAGE, MAX_PAGE)
        if page is None:
            await self._at_version(request, target)
        elif page.version < self._history.floor:
            raise gone("the continue parameter is too old: list again")
        space = self._store.space
        found = [
            stored
            for stored in space.all(target.info)
            if matches(stored)
            and (page is None or (stored.row.namespace, stored.row.name) > page[1:])
        ]
        # Later pages show the world as it is now under the version of the first one: who watches
        # from there sees what changed in between once more, and misses nothing.
        version = page.version if page is not None else space.world.sequence
        metadata: dict[str, Any] = {"resourceVersion": str(version)}
        if len(found) > limit:
            last = found[limit - 1].row
            metadata["continue"] = continue_token(Page(version, last.namespace, last.name))
            if "labelSelector" not in query and "fieldSelector" not in query:
                metadata["remainingItemCount"] = len(found) - limit
        documents = [presenter.document(stored, space) for stored in found[:limit]]
        for document in documents if not presenter.form.kind else ():
            del document["apiVersion"], document["kind"]
        return presenter.respond(presenter.many(documents, metadata))

    async def _at_version(self, request: Request, target: Target) -> None:
        """Wait until this replica is as new as the request wants: without a version, as new as
        what was written last, by whichever replica.

        Raises:
            ApiError: 400; 410, exactly an older version is wanted; 504, a newer one than there is.
        Source: Kubernetes, "API concepts", semantics of resourceVersion for get and list.
        """
        wanted = number(request.query_params, "resourceVersion")
        if not request.query_params.get("resourceVersion"):
            wanted = await self._store.newest(target.info, target.namespace, target.name)
        exact = request.query_params.get("resourceVersionMatch") == "Exact"
        if exact and wanted and wanted < self._store.space.world.sequence:
            raise gone(f"resource version {wanted} is no longer kept: list without it")
        if not await self._store.mirror.reached(wanted, WAIT_FOR_VERSION_S):
            error = timed_out(
                f"Too large resource version: {wanted}, current: {self._store.space.world.sequence}"
            )
            error.causes = (ErrorCause("ResourceVersionTooLarge", "Too large resource version"),)
            error.retry_after_s = 1
            raise error

    async def _watch(self, request: Request, target: Target) -> Response:
        if self.watches >= MAX_WATCHES:
            raise too_many(f"{MAX_WATCHES} watches are open already")
        query = request.query_params
        presenter = self._presenter(request, target)
        selected = _selected(target, _match_of(request))
        initial = flag(query, "sendInitialEvents")
        start = number(query, "resourceVersion")
        if start and not initial:
            await self._at_version(request, target)
        options = WatchOptions(
            start=None if initial or not start else start,
            bookmarks=flag(query, "allowWatchBookmarks"),
            initial_end=initial and flag(query, "allowWatchBookmarks"),
            timeout_s=pick_timeout(number(query, "timeoutSeconds")),
        )
        events = watch(
            self._history,
            lambda: self._store.space.all(target.info),
            selected,
            lambda stored, version: presenter.document(stored, self._store.space, version),
            presenter.bookmark,
            options,
            self._monotonic,
        )

        async def body() -> AsyncIterator[bytes]:
            self.watches += 1
            try:
                async for event in events:
                    kind = event["type"]
                    # Bookmarks of tables are tables too; an error is a Status in any form.
                    event["object"] = presenter.event(event["object"])
                    yield encode({"type": kind, "object": event["object"]})
                    await asyncio.sleep(0)
            finally:
                self.watches -= 1

        return StreamingResponse(body(), media_type="application/json")

    # ------------------------------------------------------------------ writes

    def _intent(self, request: Request) -> Intent:
        query = request.query_params
        return Intent(
            manager=field_manager(query, request.headers.get("user-agent", "")),
            now=self._now(),
            new_uid=lambda: str(uuid4()),
            field_validation=field_validation(query),
            force=flag(query, "force"),
        )

    async def _write(
        self,
        request: Request,
        target: Target,
        plan: Callable[[Space], Plan],
        created: int = 201,
    ) -> Response:
        presenter = self._presenter(request, target)
        written = await self._store.write(
            lambda space: [plan(space)],
            user=request.state.user.name,
            dry_run=dry_run(request.query_params),
        )
        done = written.plans[0]
        document = presenter.one(presenter.document(done.stored, self._store.space))
        status = created if done.action == CREATED else 200
        return presenter.respond(document, status, warnings=done.warnings, change=written.change)

    async def _create(self, request: Request, target: Target) -> Response:
        document = await read_document(request)
        if target.info.namespaced and not target.namespace:
            raise bad_request(f"{target.info.kind} is created in a namespace: /namespaces/NAME/...")
        intent = self._intent(request)

        def plan(space: Space) -> Plan:
            return operations.create(space, target.info, target.namespace, document, intent)

        return await self._write(request, target, plan)

    async def _replace(self, request: Request, target: Target) -> Response:
        document = await read_document(request)
        if target.subresource:
            return await self._edit(request, target, lambda _: document)
        intent = self._intent(request)

        def plan(space: Space) -> Plan:
            return operations.replace(
                space, target.info, target.namespace, target.name, document, intent
            )

        return await self._write(request, target, plan)

    async def _patch(self, request: Request, target: Target) -> Response:
        media_type = media_type_of(request)
        if media_type not in PATCH_TYPES:
            raise unsupported_media_type(media_type, PATCH_TYPES)
        value = await decode_body(await read_body(request), media_type)
        if media_type == APPLY_PATCH and not target.subresource:
            if "fieldManager" not in request.query_params:
                raise bad_request("fieldManager is required for apply patch")
            intent = self._intent(request)

            def plan(space: Space) -> Plan:
                return operations.apply(
                    space, target.info, target.namespace, target.name, value, intent
                )

            return await self._write(request, target, plan)
        if media_type == STRATEGIC_PATCH and target.info.group not in ("", "discovery.k8s.io"):
            # As Kubernetes answers for custom resources: clients fall back to a merge patch.
            raise unsupported_media_type(media_type, [JSON_PATCH, MERGE_PATCH, APPLY_PATCH])
        return await self._edit(request, target, bind(_edited, target, media_type, value))

    async def _edit(
        self, request: Request, target: Target, edit: Callable[[Document], Document]
    ) -> Response:
        intent = self._intent(request)

        def plan(space: Space) -> Plan:
            if target.subresource:
                return operations.set_status(
                    space, target.info, target.namespace, target.name, edit, target.version
                )
            return operations.patch(
                space, target.info, target.namespace, target.name, edit, target.version, intent
            )

        return await self._write(request, target, plan)

    async def _delete(self, request: Request, target: Target) -> Response:
        expected, dry = await _delete_options(request)
        presenter = self._presenter(request, target)

        def plan(space: Space) -> list[Plan]:
            return [
                operations.delete(
                    space, target.info, target.namespace, target.name, expected, self._now()
                )
            ]

        written = await self._store.write(plan, user=request.state.user.name, dry_run=dry)
        done = written.plans[0]
        if done.action == DELETED:
            answer = success(target.info, target.name, done.stored.row.uid)
        else:
            answer = presenter.one(presenter.document(done.stored, self._store.space))
        return presenter.respond(answer, warnings=done.warnings, change=written.change)

    async def _delete_many(self, request: Request, target: Target) -> Response:
        expected, dry = await _delete_options(request)
        presenter = self._presenter(request, target)
        matches = _selected(target, _match_of(request))

        def plan(space: Space) -> list[Plan]:
            return [
                operations.delete(
                    space, target.info, one.row.namespace, one.row.name, expected, self._now()
                )
                for one in space.all(target.info)
                if matches(one)
            ]

        written = await self._store.write(plan, user=request.state.user.name, dry_run=dry)
        space = self._store.space
        documents = [presenter.document(done.stored, space) for done in written.plans]
        metadata = {"resourceVersion": str(space.world.sequence)}
        warnings = [text for done in written.plans for text in done.warnings]
        return presenter.respond(
            presenter.many(documents, metadata), warnings=warnings, change=written.change
        )


def _match_of(request: Request) -> Match:
    query = request.query_params
    return parse_selectors(query.get("labelSelector", ""), query.get("fieldSelector", ""))


def _selected(target: Target, match: Match) -> Callable[[Stored], bool]:
    table, namespace = target.info.table, target.namespace

    def selected(stored: Stored) -> bool:
        return (
            stored.entry.key.kind == table
            and (not namespace or stored.row.namespace == namespace)
            and match(stored.row)
        )

    return selected


def _edited(target: Target, media_type: str, value: Any, document: Document) -> Document:
    """The document after a patch.

    Raises:
        ApiError: 400 for a malformed patch, 422 for one that does not fit.
    """
    try:
        if media_type == JSON_PATCH:
            result: Document = patches.json_patch(document, value)
        elif media_type == STRATEGIC_PATCH:
            result = strategic_merge(document, value, target.info.kind)
        elif isinstance(value, dict):
            result = patches.merge_patch(document, value)
        else:
            raise bad_request("a merge patch is a map")
    except patches.PatchTestError as error:
        raise ApiError(422, "Invalid", str(error)) from error
    except patches.PatchError as error:
        if media_type == JSON_PATCH:
            raise invalid(
                target.info, target.name, [ErrorCause("FieldValueInvalid", str(error))]
            ) from error
        raise bad_request(str(error)) from error
    return result


class _Expected(msgspec.Struct):
    uid: str | None = None
    resourceVersion: str | None = None  # noqa: N815 - Kubernetes' name


class _DeleteOptions(msgspec.Struct):
    preconditions: _Expected | None = None
    propagationPolicy: str | None = None  # noqa: N815
    dryRun: list[str] | None = None  # noqa: N815


async def _delete_options(request: Request) -> tuple[operations.Preconditions, bool]:
    """What a deletion expects, and whether it is a dry run.

    Raises:
        ApiError: 400.
    """
    dry = dry_run(request.query_params)
    body = await read_body(request)
    if not body.strip():
        return operations.Preconditions(), dry
    try:
        options = msgspec.convert(decode(body, media_type_of(request)), _DeleteOptions)
    except msgspec.ValidationError as error:
        raise bad_request(f"DeleteOptions: {error}") from error
    for value in options.dryRun or ():
        dry = dry_run({"dryRun": value}) or dry
    expected = options.preconditions or _Expected()
    return operations.Preconditions(expected.uid or "", expected.resourceVersion or ""), dry
