"""One target: questions about runs survive broken connections.

In: questions of runners about runs by identity. Out: the agent's answers, to the runner that asked. When the link breaks
it is made anew, for ever, and everything that is not settled is asked again: starts are idempotent by identity, so
nothing runs twice. A link that answers no ping counts as broken. The agent pushes ends; now and then it is asked for
those that it could not push.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import Iterable, Mapping
from typing import Protocol

import asyncssh

from datatask.adapters.execute.base.runner import Questions
from datatask.adapters.execute.ssh import agent_messages
from datatask.adapters.execute.ssh.connections import SSHHost
from datatask.adapters.execute.ssh.contact import Contact
from datatask.adapters.execute.ssh.ground import (
    Ground,
    Identity,
    LaterStateError,
    OccupiedError,
    check_owner,
    find_ground,
    home_of,
    is_ours,
    new_token,
    prepare,
)
from datatask.adapters.execute.ssh.link import Link
from datatask.adapters.execute.ssh.sessions import let_go
from datatask.engine.runtime.services import Service, current
from datatask.schema.errors import DatataskError, InvalidValueError, TemporaryError
from datatask.schema.units import SECOND

logger = logging.getLogger("datatask.proc_manager")
_at_work: weakref.WeakValueDictionary[tuple[object, ...], Target] = weakref.WeakValueDictionary()

OPEN_SECONDS = 15.0
RETRY_SECONDS = 0.1
RETRY_SECONDS_MAX = 5.0
PING_SECONDS = 5.0
PINGS_MISSED_MAX = 3
CHECK_EVERY = 6
LOST_SECONDS = 3.0
"""So far apart, a link's end and a run's are told apart: clocks are compared when a link is made, and a broken link is noticed late."""
FORGET_SECONDS = 0.25
CHECKED_AT_ONCE = 50
UPLOADS_MAX = 48
DOWNLOADS_MAX = 32


class LinkLostError(Exception):
    """The link broke in the midst of a transfer: begin again with the next one."""


class TargetListener(Protocol):
    """A runner, of whose runs a target tells."""

    def on_answer(self, target: Target, words: list[str]) -> None:
        """Take an answer of the agent; `words[1]` is the run's identity."""

    def on_silence(self, target: Target, identity: str, message: str) -> None:
        """The target does not answer."""

    def on_contact(self, target: Target, identity: str) -> None:
        """The target answers again."""


class Target:
    """A host and the application's folder on it; `attach` and `detach` count its users."""

    def __init__(self, host: SSHHost, app: str, path: str) -> None:
        self.host = host
        self.label = host.label
        self._contact = Contact(self.label, self._tell)
        self._app, self._path = app, path
        self._users = 0
        self._mine: Identity | None = None
        self._questions = Questions[str, TargetListener]()
        self._forgotten: list[str] = []
        self._variables: dict[str, str] = {}
        self._sweeps: dict[str, str] = {}
        self._outgoing: list[str] = []
        self._link: Link | None = None
        self._answers = False
        self._spare: tuple[asyncssh.SSHClientConnection, Ground] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._pings = 0
        self._pongs = 0
        self._lost_at = 0

    # --- for runners ------------------------------------------------------------------------------

    async def attach(self) -> None:
        """One more user. The first one connects: `CallerError` when only a person can help."""
        if self._users == 0:
            self._alone()
        self._users += 1
        if self._users > 1:
            return
        self._loop = asyncio.get_running_loop()
        self._services = current()
        self._up = asyncio.Event()
        self.uploads = asyncio.Semaphore(UPLOADS_MAX)
        self.downloads = asyncio.Semaphore(DOWNLOADS_MAX)
        self._answers = False
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                self._spare = await self._connect()
        except (TemporaryError, TimeoutError) as error:
            self._contact.trouble = str(error)
            self._contact.miss()
        except BaseException:
            self._users -= 1
            raise

    def _alone(self) -> None:
        """Refuse where another manager of this process is at work, which counts the host's runs on its own."""
        key = self.host.address, self.label, self._app, self._path
        other = _at_work.get(key)
        if other is not None and other._users > 0:
            raise InvalidValueError(
                f"two managers of the app {self._app!r} use it at once, with {self.host.differs(other.host)}",
                where=self.label,
                remedy="use one manager for both, or give one of them another app name",
            )
        _at_work[key] = self

    async def detach(self) -> None:
        """One user less; with the last one the connection ends, and what runs goes on."""
        self._users -= 1
        if self._users > 0:
            return
        self._forget()
        self._flush()
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
            self._keeping = None
        self._contact.close()
        link, self._link = self._link, None
        if link is not None:
            await link.close(ours=self.host.is_ours, politely=not link.lost.done())
        if self._spare is not None:
            (connection, _), self._spare = self._spare, None
            await let_go(connection, ours=self.host.is_ours)
        self._questions.clear()
        self._sweeps.clear()
        self._variables.clear()
        self._mine = None

    def own(self, identity: str, url: str) -> None:
        """Say by a run's identity, and its log's URL, whose runs these are; the first one begins to keep contact."""
        if self._mine is None:
            log, epoch, _ = identity.split(".")
            self._mine = Identity(log, int(epoch), new_token(), home_of(url))
        if self._keeping is None:
            self._keeping = self._services.keep(f"the link to {self.label}", self._keep)
            self._contact.expect()

    @property
    def is_up(self) -> bool:
        """Whether the target answers, as far as is known."""
        return self._answers

    @property
    def boot(self) -> str:
        """The target's boot id, when it last answered."""
        return self._ground.boot

    def booted_at(self) -> int:
        """Return when the target booted, by our clock."""
        return self._ground.booted_at

    def was_lost_near(self, at: int) -> bool:
        """Whether the link to the agent broke at about this time by our clock, or is broken."""
        return self._link is None or abs(self._lost_at - at) < LOST_SECONDS * SECOND

    def folder(self, identity: str) -> str:
        """Return a run's folder; known once the target has answered."""
        log, _, name = identity.partition(".")
        return f"{self._ground.folder}/{log}/{name}"

    def name(self, identity: str) -> str:
        """Return what the run is called there: its log goes without saying."""
        return identity.partition(".")[2]

    async def up(self) -> Link:
        """Wait until there is a link, and return it."""
        while self._link is None:
            await self._up.wait()
        return self._link

    def watch(self, identity: str, listener: TargetListener, question: str = "") -> None:
        """Ask about a run, `start` or `settle`; its listener gets every answer, silence and contact until `done`."""
        self._questions.ask(identity, question, listener)
        if question:
            self._put(question)

    def settle_later(self, identity: str) -> None:
        """The start is confirmed: over the next link, ask what became of the run."""
        self._questions.change(identity, f"settle {self.name(identity)}")

    def stop(self, identity: str, grace_seconds: float, reason: str) -> None:
        """Stop a run, also over the next link."""
        if (question := self._questions.get(identity)) is not None:
            question.stop = f"stop {self.name(identity)} {grace_seconds:g} {reason}"
            self._put(question.stop)

    def sweep(self, task: str, keep: Iterable[str]) -> None:
        """Have removed what earlier engines left of a task, but for these runs; also over the next link."""
        self._sweeps[task] = " ".join(["sweep", task, *map(self.name, keep)])
        self._put(self._sweeps[task])

    def done(self, identity: str) -> None:
        """The run is over: no more questions about it."""
        self._questions.close(identity)

    def forget(self, identity: str) -> None:
        """The run's end is recorded: remove its folder there, now or when it can be reached."""
        self._questions.close(identity)
        if not self._forgotten:
            self._loop.call_later(FORGET_SECONDS, self._forget)
        self._forgotten.append(self.name(identity))

    def variables(
        self, key: str, environ: Mapping[str, str] | None, memory: int = 0, cpu: float | None = None
    ) -> None:
        """Keep the environment that starts name by `key`; it is never written to the target's disk."""
        self._variables[key] = agent_messages.environment(self.label, key, environ, memory, cpu)
        self._put(self._variables[key])

    # --- sending ----------------------------------------------------------------------------------

    def _put(self, command: str) -> None:
        if self._link is not None:  # without a link: what is asked is asked again anyway
            self._outgoing.append(command)
            self._soon()

    def _soon(self) -> None:
        if len(self._outgoing) == 1:
            self._loop.call_soon(self._flush)

    def _forget(self) -> None:
        """Have folders removed, many by one process there."""
        for first in range(0, len(self._forgotten) if self._link else 0, CHECKED_AT_ONCE):
            self._put("forget " + " ".join(self._forgotten[first : first + CHECKED_AT_ONCE]))
        if self._link is not None:
            self._forgotten.clear()

    def _flush(self) -> None:
        if self._link is None:
            return
        if self._outgoing:
            self._link.send("\n".join(self._outgoing) + "\n")
            self._outgoing.clear()

    # --- keeping contact --------------------------------------------------------------------------

    async def _connect(self) -> tuple[asyncssh.SSHClientConnection, Ground]:
        connection = await self.host.connect()
        ground = await self._find_ground(connection)
        self._answers = True
        return connection, ground

    async def _find_ground(self, connection: asyncssh.SSHClientConnection) -> Ground:
        try:
            if self._mine is None:
                self._ground = await prepare(connection, self._path, self._app, self.label)
            else:
                self._ground = await find_ground(connection, self._path, self._app, self.label, self._mine)
        except BaseException:
            await let_go(connection, ours=self.host.is_ours)
            raise
        return self._ground

    async def _keep(self, service: Service) -> None:
        wait = RETRY_SECONDS
        while True:
            try:
                link = await self._make_link()
            except LaterStateError as error:
                self._contact.trouble = str(error)
            except OccupiedError as error:
                self._turned_away(str(error))
            except DatataskError as error:
                self._contact.trouble = str(error)
            except Exception as error:
                self._contact.trouble = f"{type(error).__name__}: {error}"
                logger.exception("the link to %s cannot be made", self.label)
            else:
                wait = RETRY_SECONDS
                service.works()
                try:
                    await self._serve(link)
                except Exception:
                    link.lose()  # what is open is asked again over the next one
                    raise
                finally:
                    self._up.clear()
                    if link.lost.done() and self._link in (link, None):
                        self._link = None
                        self._lost_at = time.time_ns()  # noqa: TID251 - compared with the times of runs
                        self._contact.expect()
                        await link.close(ours=self.host.is_ours, politely=False)
            self._answers = False
            await asyncio.sleep(wait)
            wait = min(wait * 1.6, RETRY_SECONDS_MAX)

    async def _make_link(self) -> Link:
        assert self._mine is not None
        (connection, ground), spare = self._spare or await self._connect(), self._spare is not None
        self._spare = None
        others = ground.beside if ground.owner is None else not is_ours(ground.owner, self._mine)
        if spare and others:  # it was prepared before it was known for whom
            ground = await self._find_ground(connection)
        link = Link(connection, ground, self._answered)
        try:
            check_owner(ground.owner, self._mine, self.label)
            await link.open(self._mine, self.label)
        except BaseException:
            await link.close(ours=self.host.is_ours, politely=False)
            raise
        return link

    async def _serve(self, link: Link) -> None:
        """Ask everything that is open, then ping until the link is lost."""
        self._link = link
        self._outgoing = [*self._variables.values(), *self._sweeps.values()]
        for _, question in self._questions:
            self._outgoing += [line for line in (question.text, question.stop) if line]
        self._forget()
        self._flush()
        self._contact.regain()
        self._up.set()
        self._pings = self._pongs = 0
        while not link.lost.done():
            await asyncio.wait({link.lost}, timeout=PING_SECONDS)
            if self._pings - self._pongs >= PINGS_MISSED_MAX:
                link.lose()
            self._pings += 1
            self._put(f"ping {self._pings}")
            if self._pings % CHECK_EVERY == 0:
                self._check()

    def _check(self) -> None:
        names = [self.name(name) for name, one in self._questions if one.text.startswith("settle")]
        for first in range(0, len(names), CHECKED_AT_ONCE):
            self._put("check " + " ".join(names[first : first + CHECKED_AT_ONCE]))

    def _answered(self, words: list[str]) -> None:
        self._pongs = self._pings  # whatever it says, it is there; an answer may wait behind many starts
        if words[0] == "pong":
            return
        if words[0] == "fenced":
            if self._link is not None:
                self._link.lose()
        elif len(words) > 1 and self._mine is not None:
            identity = f"{self._mine.log}.{words[1]}"
            if (question := self._questions.get(identity)) is not None:
                question.listener.on_answer(self, [words[0], identity, *words[2:]])

    def _tell(self, silence: str) -> None:
        """Tell the runners of a silence, or of its end by an empty text."""
        for identity, listener in self._questions.silence(bool(silence)):
            if silence:
                listener.on_silence(self, identity, silence)
            else:
                listener.on_contact(self, identity)

    def _turned_away(self, text: str) -> None:
        self._contact.trouble = text
        for identity, question in self._questions:
            if not question.text.startswith("settle"):
                question.listener.on_answer(self, ["refused", identity, "occupied", text])
