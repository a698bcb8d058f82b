"""What local runs may do at their worst, and what becomes of it: disks, floods, bytes, attacks on the script."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from datatask import FileRepository, InProcessMetadataRepository, LocalLinuxManager, ProcessTask, Resources
from datatask.adapters.execute.base.templates import TemplateError
from datatask.schema.messages import Ended, Fact
from datatask.schema.values import is_job
from tests.integration.local_kit import ends, launcher_pid, run_all, spec, task_of
from tests.machine import mounted
from tests.run_kit import until

MIB = 1 << 20


async def one(task: ProcessTask, run: int = 1, job: str = "") -> Ended:
    return (await run_all(task, spec(run, job=job)))[run]


def printed(end: Ended) -> Path:
    (write,) = end.writes
    assert write.source is not None
    return write.source


# --- outputs ------------------------------------------------------------------------------------------


async def test_bytes_that_are_no_text_arrive_as_they_are(tmp_path: Path) -> None:
    end = await one(task_of(tmp_path, r"printf '\377\376\000\n\200'"))
    assert end.ending.outcome == "succeeded"
    assert printed(end).read_bytes() == b"\xff\xfe\x00\n\x80"


async def test_lines_by_the_hundred_thousand_a_second_arrive_all_and_in_order(tmp_path: Path) -> None:
    end = await one(task_of(tmp_path, "seq 1 400000"))
    ending = end.ending
    assert ending.started_at is not None
    assert ending.ended_at is not None
    lines = printed(end).read_bytes().split()
    assert lines == [str(number).encode() for number in range(1, 400_001)]
    assert len(lines) / (ending.ended_at - ending.started_at) * 1e9 > 100_000


async def much_output(tmp_path: Path, size: int) -> None:
    """The engine's memory does not grow with an output, and the repository's file is the run's own."""
    out = FileRepository(tmp_path / "out")
    out._id = "out"
    manager = LocalLinuxManager("app", tmp_path)
    script = f"head -c {size} /dev/zero"
    task = ProcessTask("t", manager, None, Resources(), InProcessMetadataRepository(), script, stdout=out)
    task.link("inp", InProcessMetadataRepository(), is_input=True)
    before = _resident()
    end = await one(task)
    (write,) = end.writes
    await out.validate()
    await out._own_store().put(write)
    assert (tmp_path / "out" / "j1").stat().st_size == size
    assert _resident() - before < 32 * MIB


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


async def test_a_large_output_costs_no_memory(tmp_path: Path) -> None:
    await much_output(tmp_path, 256 * MIB)


@pytest.mark.soak
async def test_ten_gibibytes_of_output_cost_no_memory(tmp_path: Path) -> None:
    await much_output(tmp_path, 10 << 30)


# --- disks --------------------------------------------------------------------------------------------


@pytest.mark.machine("mounts")
async def test_a_disk_that_the_output_fills_fails_the_run_and_no_other(tmp_path: Path) -> None:
    """The script sees the full disk; what it does then is its end, and the next run has the room again."""
    with mounted(tmp_path / "small", "size=4m") as disk:
        end = await one(task_of(disk, "head -c 8000000 /dev/zero"))
        assert (end.ending.outcome, end.ending.exit_code) == ("failed", 1)
        os.truncate(disk / "app" / "feedfacefeedface" / "feedfacefeedface.1.1" / "stdout", 0)
        assert (await one(task_of(disk, "echo there"), run=2)).ending.outcome == "succeeded"
        await _launcher_gone(disk)


@pytest.mark.machine("mounts")
async def test_a_launcher_that_dies_on_a_full_disk_is_replaced_when_there_is_room(tmp_path: Path) -> None:
    """The next one cannot write its journal and fails; the keeper has the exit code until one can."""
    with mounted(tmp_path / "small", "size=4m") as disk:
        task = task_of(disk, "sleep 0.5; exit 5")
        facts: list[Fact] = []
        await task.runner.open(facts.append)
        task.runner.start(spec(1))
        await until(lambda: facts)
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        os.kill(launcher_pid(disk), signal.SIGKILL)
        await asyncio.sleep(1.5)
        assert not ends(facts)
        ballast.unlink()
        await until(lambda: ends(facts))
        assert ends(facts)[1].ending.exit_code == 5
        await task.runner.close()
        await _launcher_gone(disk)


@pytest.mark.machine("mounts")
async def test_a_file_system_that_executes_nothing_refuses_the_run_by_name(tmp_path: Path) -> None:
    with mounted(tmp_path / "noexec", "size=4m,noexec") as disk:
        ending = (await one(task_of(disk, "echo there"))).ending
        assert ending.outcome == "refused"
        assert ending.error is not None
        assert "Permission denied" in ending.error.message
        assert str(disk) in ending.error.message
        await _launcher_gone(disk)


async def _launcher_gone(path: Path) -> None:
    """End the launcher, so that the disk can be unmounted."""
    pid = int((path / "app" / "launcher.lock").read_text())
    os.kill(pid, 9)
    while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        await asyncio.sleep(0.01)


# --- scripts that documents try to change --------------------------------------------------------------

ATTACKS = [
    "$(touch {mark})",
    "`touch {mark}`",
    "'; touch {mark}; '",
    '"; touch {mark}; "',
    "\n touch {mark}\n",
    "a' $(touch {mark}) 'b",
    "{{% raw %}}{{{{ 7 * 7 }}}}",
    "-n",
    "~",
    "*",
    "\\",
    "a\\'; touch {mark} #",
    "é\u2028x",
]


@pytest.mark.parametrize(
    "way", ["{{ doc.name | sh }}", "{{ doc.name | json | sh }}", "{{ doc.name | yaml | sh }}"]
)
@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_documents_value_that_is_quoted_is_one_word_and_nothing_else(
    tmp_path: Path, attack: str, way: str
) -> None:
    mark = tmp_path / "mark"
    value = attack.format(mark=mark)
    task = task_of(tmp_path, f"printf '%s|' before {way} after")
    task.link("doc", InProcessMetadataRepository({"j1": {"name": value}}), is_input=True)
    end = await one(task)
    assert not mark.exists()
    before, word, after, rest = printed(end).read_bytes().decode().rsplit("|", 3)
    assert (before, after, rest) == ("before", "after", "")
    if "json" not in way and "yaml" not in way:
        assert word == value


async def test_what_is_not_quoted_is_the_scripts_own_text(tmp_path: Path) -> None:
    """The attack works where a template does not quote: that is what `sh` is for."""
    task = task_of(tmp_path, "echo {{ doc.name }}")
    mark = tmp_path / "mark"
    task.link("doc", InProcessMetadataRepository({"j1": {"name": f"$(touch {mark})"}}), is_input=True)
    await one(task)
    assert mark.exists()


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("echo {{ nothing }}", "'nothing' is undefined"),
        ("echo {{ doc.nothing | sh }}", "has no attribute 'nothing'"),
        ("echo {{ doc.items }}", "'items' is undefined"),
        ("echo {{ doc.items | sh }}", "'items' is undefined"),
        ("echo {{ doc.items | json | sh }}", "'items' is undefined"),
        ("echo {{ doc.items | yaml | sh }}", "'items' is undefined"),
        ("{% include '/etc/passwd' %}", "no loader"),
    ],
)
async def test_a_missing_name_is_an_error_before_anything_starts(
    tmp_path: Path, template: str, what: str
) -> None:
    task = task_of(tmp_path, f"touch {tmp_path}/mark; {template}")
    task.link("doc", InProcessMetadataRepository({"j1": {}}), is_input=True)
    ending = (await one(task)).ending
    assert ending.outcome == "refused"
    assert ending.error is not None
    assert ending.error.type == TemplateError.__name__
    assert ending.error.message.startswith("t[j1]: ")
    assert what in ending.error.message
    assert not (tmp_path / "mark").exists()


async def test_a_field_with_the_name_of_a_method_is_the_field(tmp_path: Path) -> None:
    task = task_of(tmp_path, "echo {{ doc.items | sh }} {{ doc.values }} {{ doc.keys() | list | sh }}")
    document = {"items": ["a", "b c"], "values": 3}
    task.link("doc", InProcessMetadataRepository({"j1": document}), is_input=True)
    assert printed(await one(task)).read_text() == "a b c 3 items values\n"


@pytest.mark.parametrize("job", ["a b", "a;b", "$(x)", "../x", "", "a\nb"])
def test_no_job_can_be_called_what_a_shell_would_take_apart(job: str) -> None:
    assert not is_job(job)
