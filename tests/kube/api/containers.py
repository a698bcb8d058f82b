"""Containers as local processes: in comes a container's spec, out go its output, its end and its termination message.

A command is run in a folder of its own, in a session of its own, which is killed whole when its first process ends. The
path of the termination message is put in its place wherever command, arguments and environment name it. Memory is what the
processes have resident, looked at often; who has more than the limit is killed, as a kernel would. Local processes die of
TERM where the first process of a real container, without a handler, would not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.kube.api import quantities
from tests.kube.api.storage import Storage, now
from tests.kube.api.streams import Log
from tests.kube.api.telling import container_id, terminated

Object = dict[str, Any]
MESSAGE_BYTES = 4096
LOOK_SECONDS = 0.05


class ConfigError(Exception):
    """A container cannot be made as it is described."""


class Container:
    """One run of one container, in a folder."""

    def __init__(self, spec: Object, folder: Path, env: Mapping[str, str]) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.folder = folder
        self.log = Log(folder)
        self.began = ""
        self.which = container_id()
        self.process: asyncio.subprocess.Process | None = None
        self.over_storage = False
        self._message = folder / f"{self.name}.message"
        self._oom = False
        self._stopped = False
        self._path = str(spec.get("terminationMessagePath") or "/dev/termination-log")
        self.env = {key: self._placed(value) for key, value in env.items()}
        limits = (spec.get("resources") or {}).get("limits") or {}
        self.memory = int(quantities.parse(limits["memory"])) if limits.get("memory") else 0
        self.storage = (
            int(quantities.parse(limits["ephemeral-storage"])) if limits.get("ephemeral-storage") else 0
        )

    def _placed(self, text: str) -> str:
        return text.replace(self._path, str(self._message))

    def command(self) -> list[str]:
        """Return what is run; an image of its own has a shell that finds nothing to read."""
        said = [*(self.spec.get("command") or ()), *(self.spec.get("args") or ())]
        return [self._placed(expanded(word, self.env)) for word in said] or ["sh"]

    async def start(self) -> Object | None:
        """Start it; return the state of one that cannot be started."""
        command = self.command()
        self.began = now()
        wanted = self.spec.get("workingDir")
        where = wanted if wanted and Path(wanted).is_dir() else str(self.folder)
        if shutil.which(command[0], path=self.env.get("PATH")) is None:
            return self._start_error(command[0])
        self.process = await asyncio.create_subprocess_exec(
            *command,
            cwd=where,
            env=self.env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        return None

    def _start_error(self, program: str) -> Object:
        why = f'exec: "{program}": executable file not found in $PATH'
        if "/" in program:
            why = f'exec: "{program}": stat {program}: no such file or directory'
        message = (
            "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
            f"unable to start container process: {why}: unknown"
        )
        self.log.end()
        return terminated(128, "StartError", began="1970-01-01T00:00:00Z", message=message, which=self.which)

    async def finished(self) -> Object:
        """Read its output to its end, and return its last state."""
        process = self.process
        assert process is not None
        assert process.stdout is not None
        reading = asyncio.create_task(self._read(process.stdout))
        watching = asyncio.create_task(self._look(process.pid)) if self.memory or self.storage else None
        try:
            code = await process.wait()
            self._kill(process.pid)
            await reading
        finally:
            self._kill(process.pid)
            reading.cancel()
            if watching is not None:
                watching.cancel()
            await asyncio.gather(reading, *([watching] if watching else []), return_exceptions=True)
            await process.wait()
            self.log.end()
        exit_code = code if code >= 0 else 128 - code
        reason = "OOMKilled" if self._oom else ""
        message = self._said(exit_code)
        return terminated(exit_code, reason, began=self.began, message=message, which=self.which)

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(1 << 16):
            self.log.write(data)

    def _said(self, code: int) -> str:
        """Return the termination message: what was written for it, or the log's end after a failure where that is wanted."""
        with contextlib.suppress(OSError):
            if data := self._message.read_bytes()[:MESSAGE_BYTES]:
                return data.decode(errors="replace")
        if code and self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            return self.log.tail(2048).decode(errors="replace")
        return ""

    async def _look(self, pid: int) -> None:
        """Kill what takes more memory than it may, and notice too much on disk."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self.memory:
                sizes = {one: _resident(one) for one in _family(pid)}
                if sum(sizes.values()) > self.memory:
                    self._oom = True
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(max(sizes, key=lambda one: sizes[one]), signal.SIGKILL)
            if (
                self.storage
                and sum(one.stat().st_size for one in self.folder.rglob("*") if one.is_file()) > self.storage
            ):
                self.over_storage = True
                self._kill(pid)

    async def stop(self, grace: float) -> None:
        """Send TERM, and KILL when the grace is over."""
        if self.process is None or self.process.returncode is not None:
            return
        if not self._stopped and grace > 0:
            self._stopped = True
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()
            await asyncio.sleep(grace)
        self._kill(self.process.pid)

    def kill(self) -> None:
        """Kill it at once."""
        if self.process is not None:
            self._kill(self.process.pid)

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _family(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def environment(storage: Storage, pod: Object, spec: Object, base: Mapping[str, str]) -> dict[str, str]:
    """Return a container's environment; ConfigError for what it names and nobody has."""
    from tests.kube.api.kinds import BY_PATH

    namespace, env = pod["metadata"]["namespace"], dict(base)
    wanted = {**(pod["spec"].get("securityContext") or {}), **(spec.get("securityContext") or {})}
    if wanted.get("runAsNonRoot") and not wanted.get("runAsUser") and "nonroot" not in spec["image"]:
        which = f"{pod['metadata']['name']}_{namespace}({pod['metadata']['uid']})"
        why = "container has runAsNonRoot and image will run as root"
        raise ConfigError(f'{why} (pod: "{which}", container: {spec["name"]})')
    kinds = {"configMap": ("configmaps", "ConfigMap"), "secret": ("secrets", "Secret")}

    def values(which: str, ref: Object) -> dict[str, str] | None:
        plural, name = kinds[which]
        found = storage.find(BY_PATH["", "v1", plural], namespace, ref["name"])
        if found is None and not ref.get("optional"):
            raise ConfigError(f'{name.lower()} "{ref["name"]}" not found')
        return (
            None
            if found is None
            else {str(key): str(value) for key, value in (found.get("data") or {}).items()}
        )

    for one in spec.get("envFrom") or ():
        for which in kinds:
            if ref := one.get(f"{which}Ref"):
                env |= {
                    one.get("prefix", "") + key: value for key, value in (values(which, ref) or {}).items()
                }
    for one in spec.get("env") or ():
        source = one.get("valueFrom") or {}
        if "fieldRef" in source:
            env[one["name"]] = _field(pod, source["fieldRef"]["fieldPath"])
            continue
        for which, (_, name) in kinds.items():
            if ref := source.get(f"{which}KeyRef"):
                found = values(which, ref)
                if found is not None and ref["key"] not in found and not ref.get("optional"):
                    raise ConfigError(f"couldn't find key {ref['key']} in {name} {namespace}/{ref['name']}")
                if found and ref["key"] in found:
                    env[one["name"]] = found[ref["key"]]
        if not source:
            env[one["name"]] = expanded(str(one.get("value") or ""), env)
    return env


def expanded(text: str, env: Mapping[str, str]) -> str:
    """Return a text with `$(NAME)` replaced where there is such a variable, and `$$` by a dollar."""

    def known(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else env.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]+)\)", known, text)


def _field(pod: Object, path: str) -> str:
    head, bracket, key = path.partition("['")
    found: Any = {**pod, "status": {"hostIP": "127.0.0.1", "podIP": "127.0.0.1", **(pod.get("status") or {})}}
    for part in head.split("."):
        found = (found or {}).get(part)
    if bracket:
        found = (found or {}).get(key.removesuffix("']"))
    return "" if found is None else str(found)
