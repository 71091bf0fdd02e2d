"""A machine that joins a mesh by a WorkloadGroup: its folder, and what runs on it.

`write_folder` makes the folder from what the API gave; `OutsideMachine` runs Envoy with it, probes
the application and says both to the API until it is ended. Killed at any time its entry goes a
moment later.
"""

import asyncio
import contextlib
import json
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import structlog

from meshbus.inject.reports import Reporter
from meshbus.local import bootstrap
from meshbus.local.drain import drain
from meshbus.local.health import Health, Probed, pauses_s, run_probe
from meshbus.local.home import write_private
from meshbus.local.probe import ask_envoy
from meshbus.local.processes import LOGS_S, limit_logs
from meshbus.local.proxy_start import start_of
from meshbus.runtime.sealed import Recipient, SealError, recipient

MACHINE_FILE = "machine.json"
EXPIRY_FILE = "token-expires"
LOGS_FOLDER = "logs"
"""Of a machine's folder, and not that itself: Envoy watches that for new tokens, and at level debug
it logs each change that it sees there, also that of its log."""
TOKEN_RETRY_S = 30.0
END_S = 5.0

log = structlog.get_logger("workload")


class MachineError(Exception):
    """The machine cannot run; the message says why."""


class Place(msgspec.Struct, frozen=True):
    """Where the machine is, and how its application reaches the mesh."""

    addresses: tuple[str, ...]
    """At most one of each family, the preferred one first."""
    capture: str = "redirect"
    application: str = ""
    """Where the application listens, with `proxy`."""
    http_proxy_port: int = 0


def write_folder(
    folder: Path, joined: Mapping[str, Any], own: Recipient, api: Mapping[str, str]
) -> None:
    """Write what a machine needs: its token and everything else that it is.

    Args:
        joined: What the API answered.
        api: `url` and `ca` (PEM) of the API; without `ca` it is proved by the roots of the mesh,
            as `name`.
    Raises:
        MachineError: The token cannot be opened.
        OSError: The folder cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        token = own.open(joined["token"]["sealed"])
    except SealError as error:
        raise MachineError(f"the token cannot be opened: {error}") from error
    about = {k: v for k, v in joined.items() if k not in ("token", "roots")} | {"api": dict(api)}
    write_private(folder / bootstrap.TOKEN_FILE, token)
    write_private(folder / EXPIRY_FILE, msgspec.json.encode(joined["token"]["expires"]))
    write_private(folder / bootstrap.ROOTS_FILE, str(joined["roots"]).encode())
    write_private(folder / MACHINE_FILE, json.dumps(about, indent=1).encode())


class OutsideMachine:
    """`run` it until cancelled."""

    def __init__(self, folder: Path, place: Place, envoy: str) -> None:
        """Raises:
        MachineError: The folder was not made by `write_folder`.
        """
        self._folder = folder.absolute()
        self._place = place
        self._envoy = envoy
        try:
            self._about = json.loads((folder / MACHINE_FILE).read_text())
        except (OSError, ValueError) as error:
            raise MachineError(f"{folder}: `meshbus workload configure` first: {error}") from error
        self._client = self._open()
        self._path = f"/v1/workloads/{self._about['namespace']}/{self._about['name']}"
        self._probe: Mapping[str, Any] | None = self._about.get("probe")
        reporter = Reporter(place.addresses[0], self._about["namespace"], in_pod=False)
        self._start = start_of(self._about.get("proxyConfig") or {}, reporter)
        self._health = Health(self._probe or {})
        self._beat_now = asyncio.Event()
        self._logs = self._folder / LOGS_FOLDER
        self._left = False
        self._refusal = ""
        """Why the API does not take this machine, as was said last; empty: it does."""

    def _open(self) -> httpx.AsyncClient:
        """A client of the API. What its certificate is checked with may change with the token."""
        api = self._about["api"]
        roots = api.get("ca") or (self._folder / bootstrap.ROOTS_FILE).read_text()
        name = api.get("name") or ""

        async def named(request: httpx.Request) -> None:
            request.extensions["sni_hostname"] = name

        return httpx.AsyncClient(
            base_url=api["url"],
            verify=ssl.create_default_context(cadata=roots),
            event_hooks={"request": [named] if name else []},
            timeout=10,
            trust_env=False,
        )

    async def run(self) -> None:
        """Until cancelled; then the machine leaves.

        Raises:
            MachineError: Envoy cannot run.
        """
        for problem in self._start.reports.problems:
            log.warning("of ProxyConfig", has_no_effect=problem)
        self._write_bootstrap()
        self._logs.mkdir(mode=0o700, exist_ok=True)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._run_envoy())
                group.create_task(self._look())
                group.create_task(self._renew_token())
                group.create_task(self._beat())
                group.create_task(self._limit_log())
        except* MachineError as errors:
            raise errors.exceptions[0] from None
        finally:
            await self._leave()
            await self._client.aclose()

    async def _leave(self) -> None:
        """Say that it goes, once."""
        if self._left:
            return
        self._left = True
        with contextlib.suppress(httpx.HTTPError, TimeoutError):
            async with asyncio.timeout(END_S):
                await self._client.delete(self._path, headers=self._credential())

    def _write_bootstrap(self) -> None:
        about, gateway = self._about, self._about["gateway"]
        identity = bootstrap.ProxyIdentity(
            type="sidecar",
            name=about["name"],
            namespace=about["namespace"],
            workload=about["group"],
            service_account=about["serviceAccount"],
            addresses=self._place.addresses,
            labels=about["labels"],
            cluster=about["cluster"],
            locality=about["locality"],
        )
        folder, name = str(self._folder), gateway["name"]
        where = (gateway["host"], int(gateway["port"]))
        files = {
            bootstrap.BOOTSTRAP_FILE: bootstrap.envoy_bootstrap(
                identity, where, name, folder, self._start
            ),
            bootstrap.TOKEN_SDS_FILE: bootstrap.token_sds(folder),
            bootstrap.ROOTS_SDS_FILE: bootstrap.roots_sds(folder, name),
        }
        for file, document in files.items():
            write_private(self._folder / file, bootstrap.render(document))

    def _credential(self) -> dict[str, str]:
        token = (self._folder / bootstrap.TOKEN_FILE).read_text().strip()
        return {"authorization": f"Bearer {token}"}

    # ------------------------------------------------------------------ parts

    async def _run_envoy(self) -> None:
        """Envoy, again after each end; three that end at once are a fault."""
        quick = 0
        while True:
            began = time.monotonic()
            with (self._logs / "envoy.log").open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *bootstrap.envoy_argv(
                        self._envoy,
                        concurrency=self._start.concurrency,
                        file_flush=self._start.file_flush,
                        config_file=self._start.config_file or bootstrap.BOOTSTRAP_FILE,
                    ),
                    cwd=self._folder,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={"PATH": os.environ.get("PATH", ""), **self._start.environment},
                )
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                await self._leave()  # first nobody new comes
                await drain(self._folder, self._start)
                process.terminate()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(END_S):
                        await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
                raise
            quick = quick + 1 if time.monotonic() - began < 2 else 0
            if quick >= 3:
                raise MachineError(f"Envoy ends with {code}: see {self._logs}")
            log.warning("Envoy ended", code=code)
            await asyncio.sleep(0.5)

    async def _limit_log(self) -> None:
        while True:
            limit_logs(self._logs)
            await asyncio.sleep(LOGS_S)

    async def _look(self) -> None:
        """Probe the application, and Envoy."""
        probe = self._probe or {}
        pauses = pauses_s(probe)
        await asyncio.sleep(next(pauses))
        hosts = [self._place.application]
        if self._place.capture == "redirect":  # past the capture
            hosts = ["::1" if ":" in one else "127.0.0.1" for one in self._place.addresses]
        while True:
            status, _ = await ask_envoy(self._folder, bootstrap.ADMIN_SOCKET, "/ready")
            if status != 200:
                found = Probed(False, "Envoy is not ready")
            else:
                found = await self._probed(hosts)
            if self._health.take(found):
                log.info("health", healthy=self._health.healthy, message=self._health.message)
                self._beat_now.set()
            starting = not self._health.healthy and status != 200
            await asyncio.sleep(0.2 if starting else next(pauses))

    async def _probed(self, hosts: Sequence[str]) -> Probed:
        """What the first host that does well finds; else what the preferred one does."""
        first, *others = hosts
        found = await run_probe(self._probe or {}, first)
        for host in others:
            if found.good:
                break
            other = await run_probe(self._probe or {}, host)
            found = other if other.good else found
        return found

    async def _beat(self) -> None:
        """Say where the machine is and how it is, again and again."""
        wait_s = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._beat_now.wait()
            self._beat_now.clear()
            body: dict[str, Any] = {
                "group": self._about["group"],
                "address": self._place.addresses[0],
                "healthy": self._health.healthy,
                "message": self._health.message,
                "capture": self._place.capture,
                "applicationAddress": self._place.application,
                "httpProxyPort": self._place.http_proxy_port,
            }
            if others := list(self._place.addresses[1:]):
                body["furtherAddresses"] = others
            try:
                answer = await self._client.put(self._path, json=body, headers=self._credential())
                wait_s = 1.0
                if answer.status_code == 200:
                    wait_s = float(answer.json()["periodSeconds"])
                    self._heard()
                elif answer.status_code < 500:
                    self._refused(answer)
            except (httpx.HTTPError, ValueError, KeyError) as error:
                log.warning("the API does not answer", error=str(error) or type(error).__name__)
                wait_s = 1.0

    def _heard(self) -> None:
        if self._refusal:
            log.info("the mesh takes this machine again")
        self._refusal = ""

    def _refused(self, answer: httpx.Response) -> None:
        """Say that the mesh does not take this machine, once for each reason."""
        reason = _reason_of(answer)
        if reason == self._refusal:
            return
        self._refusal = reason
        group = f"{self._about['namespace']}/{self._about['group']}"
        if answer.status_code == 404:
            log.error(
                "the WorkloadGroup is gone: nobody is sent here any more, and there are no fresh "
                "tokens; when the group is there again, so is this machine",
                group=group,
                token_ends=_shown(self._expires()),
            )
        elif answer.status_code == 401:
            log.error("the token does not hold any more: `meshbus workload configure` again")
        else:
            log.error("refused", status=answer.status_code, answer=reason)

    def _expires(self) -> float:
        return float((self._folder / EXPIRY_FILE).read_text())

    async def _renew_token(self) -> None:
        while True:
            expires = self._expires()
            await asyncio.sleep(max(TOKEN_RETRY_S, (expires - time.time()) / 2))
            own = recipient()
            try:
                answer = await self._client.post(
                    f"{self._path}/token",
                    json={"publicKey": own.public_key},
                    headers=self._credential(),
                )
                if answer.status_code != 200:
                    log.error(
                        "no fresh token", answer=_reason_of(answer), token_ends=_shown(expires)
                    )
                    continue
                fresh = answer.json()
                token = own.open(fresh["sealed"])
            except (httpx.HTTPError, SealError, ValueError, KeyError) as error:
                log.warning("no fresh token", error=str(error) or type(error).__name__)
                continue
            write_private(self._folder / bootstrap.TOKEN_FILE, token)
            write_private(self._folder / EXPIRY_FILE, msgspec.json.encode(fresh["expires"]))
            if roots := str(fresh.get("roots") or ""):
                write_private(self._folder / bootstrap.ROOTS_FILE, roots.encode())
                before, self._client = self._client, self._open()
                await before.aclose()


def _reason_of(answer: httpx.Response) -> str:
    """What the API says of a refusal."""
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:500] or f"status {answer.status_code}"


def _shown(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
