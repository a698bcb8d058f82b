"""A container as a local process in a group of its own: its command, environment, directory, output and end.

In: a container's spec as the API server stored it. Out: bytes into its log, an exit code, a termination message. There is no
image and no namespace: the path of the termination log, and the paths of volumes, are put in place of their mount paths
wherever the command, its arguments or the environment name them.
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

from tests.kube.fake.logs import ContainerLog
from tests.kube.fake.quantities import amount
from tests.kube.fake.storing import Object, Store

BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MESSAGE_BYTES = 4096
FALLBACK_BYTES = 2048
MEMORY_SECONDS = 0.02
NEVER = "1970-01-01T00:00:00Z"
_VARIABLE = re.compile(r"\$\$|\$\(([-._A-Za-z][-._A-Za-z0-9]*)\)")


class StartError(Exception):
    """The command cannot be executed."""


class ConfigError(Exception):
    """A ConfigMap or Secret that the container needs is not there."""


class Container:
    """One start of one container."""

    def __init__(self, spec: dict[str, Any], log: ContainerLog, directory: Path) -> None:
        self.spec, self.log, self.directory = spec, log, directory
        self.env: dict[str, str] = {}
        self.cwd = directory
        self.out_of_memory = False
        self.ended: asyncio.Task[int] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._doomed = False
        self._message = directory / "termination-log"

    async def start(self, env: Mapping[str, str], paths: Mapping[str, Path], entrypoint: list[str]) -> None:
        """Start the process, or raise StartError."""
        places = {self.spec["terminationMessagePath"]: self._message, **paths}
        self.env = {name: _placed(value, places) for name, value in env.items()}
        words = [*(self.spec.get("command") or entrypoint), *(self.spec.get("args") or ())]
        command = [_placed(_expanded(word, env), places) for word in words]
        self.directory.mkdir(parents=True, exist_ok=True)
        wanted = _placed(self.spec.get("workingDir") or "", places)
        self.cwd = Path(wanted) if wanted and Path(wanted).is_dir() else self.directory
        _check_command(command, self.env)
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.create_task(self._spawned(command, started))
        await started

    async def _spawned(self, command: list[str], started: asyncio.Future[None]) -> int:
        """Start and live, in a task of its own: whoever is cancelled meanwhile leaves no process behind."""
        self._process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.cwd,
            env=self.env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        if self._doomed:
            self.kill()
        if not started.done():
            started.set_result(None)
        return await self._live(self._process)

    async def _live(self, process: asyncio.subprocess.Process) -> int:
        """Collect what it says until it is over; what it leaves behind is killed, as with the first of a container."""
        assert process.stdout is not None
        listening = asyncio.create_task(self._listen(process.stdout))
        bound = (self.spec["resources"].get("limits") or {}).get("memory")
        watching = asyncio.create_task(self._watch_memory(process.pid, int(amount(bound)))) if bound else None
        code = await process.wait()
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        self.kill()
        await listening
        self.log.close()
        return code if code >= 0 else 128 - code

    async def _listen(self, source: asyncio.StreamReader) -> None:
        while data := await source.read(1 << 16):
            self.log.write(data)

    async def _watch_memory(self, pid: int, limit: int) -> None:
        """Kill the largest process when all together hold too much, as a cgroup does."""
        while True:
            sizes = {one: _resident(one) for one in _family(pid)}
            if sum(sizes.values()) > limit:
                self.out_of_memory = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(max(sizes, key=lambda one: sizes[one]), signal.SIGKILL)
            await asyncio.sleep(MEMORY_SECONDS)

    def terminate(self) -> None:
        """Ask the first process to end."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def kill(self) -> None:
        """End all of its processes, one that is only about to begin among them."""
        self._doomed = True
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def message(self, code: int) -> str:
        """Return the termination message."""
        text = b""
        if self._message.exists():
            text = self._message.read_bytes()[-MESSAGE_BYTES:]
        elif code and self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            text = self.log.last_bytes(FALLBACK_BYTES)
        return text.decode(errors="replace")

    async def execute(self, command: list[str]) -> asyncio.subprocess.Process:
        """Run another command in the same place."""
        return await asyncio.create_subprocess_exec(
            *command,
            cwd=self.cwd,
            env=self.env,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )


def _check_command(command: list[str], env: Mapping[str, str]) -> None:
    first = command[0] if command else ""
    if first and shutil.which(first, path=env.get("PATH", BASE_PATH)):
        return
    why = f"stat {first}: no such file or directory" if "/" in first else "executable file not found in $PATH"
    raise StartError(
        "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
        f'unable to start container process: exec: "{first}": {why}: unknown'
    )


def _placed(text: str, places: Mapping[str, Path]) -> str:
    for mount in sorted(places, key=len, reverse=True):
        text = text.replace(mount, str(places[mount]))
    return text


def _expanded(text: str, env: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return env.get(found[1], found[0])

    return _VARIABLE.sub(value, text)


def environment(store: Store, pod: Object, spec: dict[str, Any], base: Mapping[str, str]) -> dict[str, str]:
    """Return a container's variables, or raise ConfigError."""
    namespace = pod["metadata"]["namespace"]
    env = {"PATH": BASE_PATH, "HOSTNAME": pod["metadata"]["name"], "HOME": "/", **base}
    for source in spec.get("envFrom") or ():
        for kind in ("configMap", "secret"):
            if reference := source.get(f"{kind}Ref"):
                found = _config(store, namespace, kind, reference) or {}
                env |= {source.get("prefix", "") + name: value for name, value in found.items()}
    for one in spec.get("env") or ():
        if "valueFrom" in one:
            value = _value_from(store, pod, one["valueFrom"])
            if value is not None:
                env[one["name"]] = value
        else:
            env[one["name"]] = _expanded(str(one.get("value") or ""), env)
    return env


def _config(store: Store, namespace: str, kind: str, reference: dict[str, Any]) -> dict[str, str] | None:
    found = store.get(f"{kind.lower()}s", namespace, reference["name"])
    if found is None:
        if reference.get("optional"):
            return None
        raise ConfigError(f'{kind.lower()} "{reference["name"]}" not found')
    return found.get("data") or {}


def _value_from(store: Store, pod: Object, source: dict[str, Any]) -> str | None:
    if field := source.get("fieldRef"):
        return _field(pod, field["fieldPath"])
    namespace = pod["metadata"]["namespace"]
    for kind in ("configMap", "secret"):
        if reference := source.get(f"{kind}KeyRef"):
            found = _config(store, namespace, kind, reference)
            if found is None or reference["key"] in found or reference.get("optional"):
                return (found or {}).get(reference["key"])
            word = "ConfigMap" if kind == "configMap" else "Secret"
            where = f"{word} {namespace}/{reference['name']}"
            raise ConfigError(f"couldn't find key {reference['key']} in {where}")
    return None


def _field(pod: Object, path: str) -> str:
    name, _, key = path.rstrip("]'\"").partition("[")
    found: Any = pod
    for step in name.split("."):
        found = (found or {}).get(step)
    return str((found or {}).get(key.strip("'\""), "") if key else found or "")


def _family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    found, begun = [], [pid]
    while begun:
        one = begun.pop()
        found.append(one)
        with contextlib.suppress(OSError):
            begun += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
    return found


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
