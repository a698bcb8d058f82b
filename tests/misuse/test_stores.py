"""Stores that lie, by the command: nothing is deleted or launched on their word, the reason is kept, all else goes on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.cli_kit import Project, Result, complaints

pytestmark = pytest.mark.long

HEAD = """
import asyncio, os, sys, time
from pathlib import Path
import datatask
from datatask.engine.runtime import observe as observing
from datatask.engine.api.repositories import listing

observing.PATIENCE_SECONDS, observing.LATE_SECONDS, observing.LISTING_SECONDS_MAX = {patience}, {late}, {most}
listing.NAMES_MAX, observing.SAID_SECONDS = 30_000, 0
HERE = Path(__file__).parent

class Jobs(datatask.Repository):
    def __init__(self):
        super().__init__(name="inputs")
    async def info(self, job):
        return job
    async def delete(self, job):
        (HERE / "deleted").write_text(job)
    async def unfiltered_iter(self):
{listing}

inputs = {inputs}
seen = datatask.LogMetadataRepository("seen")
look = datatask.InProcessSyncTask("look", datatask.LogMetadataRepository("looked"))
look.link("inputs", inputs, is_input=True)
look.link("seen", seen, is_output=True)

@look
async def run_look(job, seen):
    await seen.dump(job, 1)

others = datatask.LogMetadataRepository("others")
other = datatask.InProcessSyncTask("other", datatask.LogMetadataRepository("done"))
other.link("others", others, is_input=True)

@other
async def run_other(job):
    pass

pipeline = datatask.Pipeline([look, other], datatask.Session(), [])
"""
TRUE = """        for job in ("a", "b", "c"):
            yield job
"""


def text(
    listing: str = TRUE, inputs: str = "Jobs()", *, patience: float = 0.2, late: float = 0.5, most: float = 60
) -> str:
    """Return a pipeline of a task over what `listing` yields, and one beside it that has nothing to do with that."""
    return HEAD.format(listing=listing, inputs=inputs, patience=patience, late=late, most=most)


def files(folder: Path, *options: str) -> str:
    """Return a pipeline over a folder."""
    return text(inputs=f"datatask.FileRepository({', '.join([repr(str(folder)), *options])}, name='inputs')")


def rewrite(project: Project, pipeline: str) -> None:
    (project.folder / "pipeline.py").write_text(pipeline)


def spoken(project: Project, *arguments: str, prefix: tuple[str, ...] = (), seconds: float = 100) -> Result:
    """Run a command in a process of its own."""
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "datatask", *arguments],
        cwd=project.folder, capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


def members(project: Project) -> list[str]:
    return sorted(project.ok("ls", "seen").out.split())


def listed(project: Project) -> list[str]:
    return sorted(project.ok("ls", "look.inputs").out.split())


def put_other(project: Project, job: str) -> None:
    project.ok("inject", "other.others", job, stdin=b"1")


def other_ran(project: Project, job: str) -> bool:
    return job in project.ok("ls", "other.done").out.split()


def verified(project: Project) -> None:
    assert project.ok("replay", "--verify", "--json").json["divergences"] == []
    assert not (project.folder / "deleted").exists()


def reason_is_told(project: Project, said: str, err: str) -> None:
    """In one line of the engine, in the log, by `why`, `status` and `doctor`."""
    (line,) = [line for line in err.splitlines() if "cannot be listed" in line]
    assert said in line
    assert "Traceback" not in err
    told = [json.loads(line) for line in project.ok("log", "--kind", "RepositoryUnreachable", "--json").lines]
    assert [one["repository"] for one in told] == ["inputs"]
    assert said in told[0]["data"]["why"]
    why = project.call("why", "look", "late", "--json").json
    (hold,) = [hold for hold in why["held_by"] if hold["what"] == "observing"]
    assert said in hold["explain"]
    assert hold["since"] == told[0]["position"]
    assert said in project.ok("status", "--json").json["troubles"]["inputs"]
    assert said in project.ok("status").err
    doctor = project.call("doctor", "--json")
    assert doctor.code == 2
    assert any(check["check"] == "store" and said in check["what"] for check in doctor.json)


HANGS = "        yield 'a'\n        await asyncio.sleep(3600)\n"
SULKS = """        yield 'a'
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                (HERE / "sulks").touch()
                if (HERE / "enough").exists():
                    raise
"""
MUTE = """        class Mute(Exception):
            def __str__(self):
                raise ValueError
        yield 'a'
        raise Mute
"""
FAILING = {
    "an error half-way": (
        "        yield 'a'\n        raise OSError('the share is gone')\n",
        "the share is gone",
    ),
    "no error to be printed": (MUTE, "Mute"),
    "it exits": ("        yield 'a'\n        sys.exit('enough')\n", "SystemExit: enough"),
    "it calls itself off": ("        yield 'a'\n        raise asyncio.CancelledError\n", "CancelledError"),
    "no iterator": ("        return ['a']\n", "unfiltered_iter returns a coroutine"),
    "names for ever": ("        while True:\n            yield 'a'\n", "more than 30000 names"),
    "invalid names for ever": ("        while True:\n            yield '../a'\n", "more than 30000 names"),
}


@pytest.mark.parametrize("how", FAILING)
def test_a_listing_that_fails(tmp_path: Path, how: str) -> None:
    listing, said = FAILING[how]
    project = Project(tmp_path, text())
    project.ok("run")
    assert members(project) == ["a", "b", "c"]
    rewrite(project, text(listing, patience=2, late=60))
    put_other(project, "x")
    ended = spoken(project, "run")
    assert ended.code in (0, 6), ended
    assert listed(project) == ["a", "b", "c"]
    assert other_ran(project, "x")
    reason_is_told(project, said, ended.err)
    rewrite(project, text(TRUE.replace('"c"', '"c", "d"')))
    assert complaints(spoken(project, "run").err) == []
    assert members(project) == ["a", "b", "c", "d"]
    assert project.ok("status", "--json").json["troubles"] == {}
    verified(project)


def test_a_listing_that_takes_long_holds_up_only_its_own_task(tmp_path: Path) -> None:
    """It is told that it does, the others go on meanwhile, and what it says in the end is believed."""
    slow = TRUE.replace("yield job", "await asyncio.sleep(0.6)\n            yield job")
    project = Project(tmp_path, text(slow))
    put_other(project, "x")
    ended = spoken(project, "run")
    assert ended.code == 0, ended
    assert members(project) == ["a", "b", "c"]
    positions = {
        kind: [json.loads(line)["position"] for line in project.ok("log", "--kind", kind, "--json").lines]
        for kind in ("RepositoryUnreachable", "RepositorySynced", "RunEnded")
    }
    assert (
        min(positions["RunEnded"]) < positions["RepositoryUnreachable"][0] < positions["RepositorySynced"][0]
    )
    assert "more than 0.5 s" in ended.err
    assert project.ok("status", "--json").json["troubles"] == {}
    verified(project)


def test_one_round_waits_for_a_slow_store_after_it_has_launched_the_others(tmp_path: Path) -> None:
    slow = TRUE.replace("yield job", "await asyncio.sleep(0.4)\n            yield job")
    project = Project(tmp_path, text(slow))
    put_other(project, "x")
    assert spoken(project, "update").code == 0
    launched = [
        json.loads(line)["task"] for line in project.ok("log", "--kind", "LaunchDecided", "--json").lines
    ]
    assert launched == ["other", "look", "look", "look"]


@pytest.mark.parametrize(
    "listing", [HANGS, SULKS], ids=["hangs", "hangs and does not let itself be called off"]
)
def test_a_listing_that_never_ends(tmp_path: Path, listing: str) -> None:
    """The others go on; it is given up after its time and tried again; `run --timeout` and a stop end at once."""
    project = Project(tmp_path, text())
    project.ok("run")
    put_other(project, "x")
    rewrite(project, text(listing, most=2))
    with project.engine() as engine:
        project.until("x", "ls", "other.done")
        project.until("did not end within 2 s", "status", "--json")
        assert listed(project) == ["a", "b", "c"]
        assert "more than 0.5 s" in project.ok("log", "--kind", "RepositoryUnreachable").out
        (tmp_path / "enough").touch()
        engine.terminate()
        engine.wait(100)
    assert members(project) == ["a", "b", "c"]
    verified(project)


def test_a_listing_that_blocks_the_loop_is_named(tmp_path: Path) -> None:
    blocks = "        yield 'a'\n        time.sleep(0 if (HERE / 'seen').exists() else 7)\n        (HERE / 'seen').touch()\n"
    project = Project(tmp_path, text(blocks))
    ended = spoken(project, "run")
    assert ended.code == 0
    assert "the listing of inputs has blocked the event loop" in ended.err


def test_a_million_members(tmp_path: Path) -> None:
    """They come in, and whoever else is there gets a turn meanwhile. Bounded here; the figures are in the limits."""
    many = int(os.environ.get("DATATASK_TEST_MEMBERS", "25000"))
    listing = f"        for number in range({many}):\n            yield f'j{{number}}'\n"
    project = Project(tmp_path, text(listing).replace("30_000", "30_000_000"))
    put_other(project, "x")
    project.ok("pause", "look")
    assert spoken(project, "run", seconds=300).code in (0, 6)
    assert project.ok("status", "--json").json["tasks"]["look"]["ready"] == many
    assert other_ran(project, "x")


def test_names_that_are_none(tmp_path: Path) -> None:
    """Of any type: told once and left out."""
    listing = "        for job in ('a', '../b', '', None, 7, b'c', Path('d'), 'e' * 200, 'é', '.f', 'g\\n'):\n            yield job\n"
    project = Project(tmp_path, text(listing))
    ended = spoken(project, "run")
    assert ended.code == 0
    assert members(project) == ["a"]
    told = complaints(ended.err)
    assert len(told) == 10
    assert all("not a valid job id" in line for line in told)


# --- real folders -----------------------------------------------------------------------------------


def folder_of(tmp_path: Path, *names: str) -> Path:
    folder = tmp_path / "inputs"
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(name)
    return folder


@pytest.mark.server("setpriv")
def test_permissions_that_are_withdrawn(tmp_path: Path) -> None:
    """Of the folder: nothing is believed gone, the line names the folder and the remedy."""
    folder = folder_of(tmp_path, "a", "b")
    project = Project(tmp_path, files(folder))
    project.ok("run")
    put_other(project, "x")
    as_mortal = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.getuid() == 0 else ()
    with project.engine():
        pass
    folder.chmod(0o300)
    try:
        ended = spoken(project, "run", prefix=as_mortal)
    finally:
        folder.chmod(0o700)
    assert ended.code in (0, 2, 6), ended
    assert ended.err.count("\n") == 1, ended.err
    assert str(folder) in ended.err
    assert "make it readable" in ended.err
    assert listed(project) == ["a", "b"]
    (folder / "c").write_text("c")
    project.ok("run")
    assert members(project) == ["a", "b", "c"]
    verified(project)


def test_what_is_no_file(tmp_path: Path) -> None:
    """Folders, sockets, pipes and links to nowhere with our extension are no members, and nobody waits for a pipe."""
    folder = folder_of(tmp_path, "a.txt")
    (folder / "dir.txt").mkdir()
    os.mkfifo(folder / "pipe.txt")
    (folder / "link.txt").symlink_to("nowhere")
    (folder / "circle.txt").symlink_to("circle.txt")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "sock.txt"))
    project = Project(tmp_path, files(folder, "'.txt'", "record='digest'"))
    ended = spoken(project, "run")
    assert ended.code == 0
    assert complaints(ended.err) == []
    assert members(project) == ["a"]
    with project.engine():
        (folder / "a.txt").unlink()
        os.mkfifo(folder / "a.txt")
        (folder / "b.txt").write_text("b")
        project.until("b", "ls", "seen")
        assert listed(project) == ["b"]


CHURN = """
import itertools, os, sys
os.chdir(sys.argv[1])
for n in itertools.count():
    open(f'new{n % 50}', 'w').close()
    os.rename(f'new{n % 50}', f'old{n % 50}')
    n % 3 or os.unlink(f'old{n % 50}')
"""


def test_a_folder_that_changes_while_it_is_listed(tmp_path: Path) -> None:
    """Files come, go and are renamed all the while: what stayed is neither lost nor run twice."""
    folder = folder_of(tmp_path, *(f"stays{number}" for number in range(300)))
    project = Project(tmp_path, files(folder))
    churn = subprocess.Popen([sys.executable, "-c", CHURN, folder])
    try:
        for _ in range(2):
            ended = spoken(project, "run", "--timeout", "2")
            assert ended.code in (0, 7), ended
    finally:
        churn.kill()
        churn.wait()
    project.ok("run")
    assert sorted(path.name for path in folder.iterdir()) == listed(project)
    twice = project.ok(
        "query", "SELECT job FROM runs WHERE job LIKE 'stays%' GROUP BY job HAVING count(*) > 1", "--json"
    ).json["rows"]
    assert twice == []
    assert {job for job in members(project) if job.startswith("stays")} == {
        f"stays{number}" for number in range(300)
    }
    deleted = project.ok("log", "--kind", "ValueDeleted", "--json").lines
    assert not [line for line in deleted if json.loads(line)["job"].startswith("stays")]
    verified(project)
