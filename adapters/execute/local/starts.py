"""How runs begin: once per identity, first their intent on the disk, then their process, then the fact of it.

In: an engine's question. Out, to that engine: started, refused (for good or for the moment), unfit; of a run that was
started before, how it is by now. Imports the standard library only.
"""

from __future__ import annotations

import errno
import os
import time
import zlib
from typing import Any

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.local import cgroups, outputs
from datatask.adapters.execute.local.ends import Ends
from datatask.adapters.execute.local.engine_connections import Engine
from datatask.adapters.execute.local.folders import Owners
from datatask.adapters.execute.local.journal import Facts, LaunchedRuns
from datatask.adapters.execute.local.process_tree import MARK
from datatask.adapters.execute.local.spawning import Confinement, explained, spawn

TEMPORARY = (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EDQUOT)


class Starts:
    """Starts runs for engines whose logs may have runs in the directory."""

    def __init__(self, runs: LaunchedRuns, ends: Ends, owners: Owners) -> None:
        self._runs = runs
        self._ends = ends
        self._owners = owners
        self._groups = cgroups.Groups()

    def start(self, engine: Engine, identity: str, wanted: dict[str, Any], *, alone: bool) -> None:
        """Start `{directory}/{log}/{identity}/exe`, once; `alone`: no other run is there."""
        facts = self._runs.facts.get(identity)
        if refusal := self._occupied(engine, identity):
            engine.tell(refusal)
        elif facts is not None and not facts.get("refused", {}).get(
            "temporary"
        ):  # as earlier versions wrote it down
            self.tell_state(engine, identity)
        elif engine.unfit:
            engine.tell({"unfit": identity, "message": engine.unfit})
        elif not alone and (short := self._ends.headroom.short()):
            engine.tell(_refusal(identity, short, temporary=True))
        else:
            self._spawn(engine, identity, **wanted)

    def _occupied(self, engine: Engine, identity: str) -> Facts | None:
        """Return why the log of an engine may start nothing here; None where it may."""
        log, epoch = identity.split(".")[:2]
        claim = {"epoch": int(epoch), "home": engine.home, "engine": [engine.pid, engine.start]}
        try:
            if not (other := self._owners.other(log, claim)):
                return None
        except OSError as error:
            text = explained(error, self._runs.named(self._owners.path(log)))
            return _refusal(identity, text, temporary=True)
        path = self._runs.named(self._owners.path(log))
        text = (
            f"{other} has used {self._runs.named(self._runs.directory)}: go on with that one, give this pipeline's manager"
            f" another app name, or remove {path} if nothing that it did matters any more"
        )
        return _refusal(identity, text, temporary=True) | {"occupied": True}

    def _spawn(
        self,
        engine: Engine,
        identity: str,
        task: str,
        env: str,
        stdin: bool,
        stdout: bool,
        stderr: str,
        limits: dict[str, Any] | None = None,
    ) -> None:
        folder = self._runs.named(self._runs.folder(identity))
        facts = self._runs.facts[identity] = {"id": identity}
        self._runs.note(identity, task=task, intended=proctable.now(), folder=folder)
        variables, umask = engine.environments[env]
        merged = stderr == "stdout"
        names = [*(["stdout"] if stdout else []), *(["stderr"] if stderr and not merged else [])]
        files: dict[str, int] = {}
        try:
            if not self._runs.journal.write_out():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._runs.journal.path)
            confinement = None if limits is None else self._confinement(identity, **limits)
            files = outputs.make(folder, names, umask)
            pid = spawn(folder, {**variables, MARK: folder}, umask, stdin, files, merged, confinement)
        except OSError as error:
            outputs.close(files)
            cgroups.remove(facts.pop("groups", []))
            temporary = error.errno in TEMPORARY  # it may be asked for again
            refusal = _refusal(identity, explained(error, folder), temporary=temporary)
            if temporary:
                self._runs.forget(identity)
            else:
                self._runs.note(identity, refused=refusal)
            engine.tell(refusal)
            return
        facts |= {"pid": pid, "start": proctable.start_time(pid) or 0, "began": time.time_ns()}
        facts["files"] = outputs.identities(files)
        self._runs.outputs.begin(identity, files)
        self._runs.journal.add(facts)
        self._ends.began(identity, pid)
        self.tell_state(engine, identity)

    def _confinement(self, identity: str, how: str, cpu: float, memory: int) -> Confinement:
        """Return what has the kernel enforce a run's limits; `OSError` where it cannot."""
        if how == "ulimit":
            return Confinement(address_space=memory)
        name = f"{identity}.{zlib.crc32(os.fsencode(self._runs.named(self._runs.directory))):08x}"
        groups = self._groups.make(name, cpu, memory)
        self._runs.note(identity, groups=groups, memory=memory)
        return Confinement(groups)

    def tell_state(self, engine: Engine, identity: str) -> None:
        """Tell an engine how a run is by now."""
        facts = self._runs.facts[identity]
        if "refused" in facts:
            engine.tell(facts["refused"])
        elif "barred" in facts:
            engine.tell({"absent": identity, "why": facts.get("why", "")})
        elif "ended" in facts:
            self._ends.tell(engine, identity)
        else:
            known = {key: facts[key] for key in ("pid", "start", "began")}
            engine.tell({"started": identity, "boot": self._runs.boot} | known)


def _refusal(identity: str, text: str, *, temporary: bool) -> Facts:
    return {"refused": identity, "temporary": temporary, "message": text}
