"""The inbox of an engine: what may lie in it, who may ask through it, and that no entry makes an engine deaf."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from datatask.adapters.log.blobs import FileBlobs
from datatask.adapters.log.inbox import QUARANTINE, FileInbox
from datatask.adapters.log.inbox_client import NoEngineError, ask
from datatask.adapters.log.open import Opener, create_log
from datatask.adapters.log.private import FILE_BYTES_MAX, OddFileError, PrivateFolder
from datatask.schema.errors import CallerError, LogError
from datatask.schema.messages import PauseTask, Ping, Reply
from tests.run_kit import until

GOOD = msgspec.json.encode(PauseTask(id="good", actor="ada", task="t"))
DEEP = b'{"ask":"PutValues","id":"odd","actor":"a","repository":"r","items":[{"job":"j","value":%s}]}'


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        os.chdir(path.parent)  # a socket's path may have 107 bytes at most
        end.bind(path.name)


def huge(path: Path) -> None:
    path.write_bytes(b"")
    os.truncate(path, 8 * 2**30)


def both(path: Path) -> None:
    path.touch()
    path.with_suffix(".reply").mkdir()


def writable(path: Path) -> None:
    path.write_bytes(GOOD.replace(b"good", b"odd"))
    path.chmod(0o666)


def twice(path: Path) -> None:
    path.with_name("other").write_bytes(GOOD.replace(b"good", b"odd"))
    os.link(path.with_name("other"), path)


ODD: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(os.urandom(1000)),
    "empty": lambda path: path.touch(),
    "deep": lambda path: path.write_bytes(b"[" * 200_000),
    "deep value": lambda path: path.write_bytes(DEEP % (b"[" * 200_000 + b"]" * 200_000)),
    "another id": lambda path: path.write_bytes(GOOD),
    "no UTF-8": lambda path: path.write_bytes(GOOD.replace(b"good", b"odd").replace(b"ada", b"\xff\xfe")),
    "folder": lambda path: path.mkdir(),
    "full folder": lambda path: (path / "in").mkdir(parents=True),
    "dangling link": lambda path: path.symlink_to("/nonexistent"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to a request": lambda path: path.symlink_to("good.json"),
    "hard link": twice,
    "pipe": os.mkfifo,
    "socket": bind,
    "gigabytes": huge,
    "writable": writable,
    "reply is a folder": both,
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "log.db.inbox"


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_an_odd_entry_is_set_aside_by_name_and_refused_and_others_are_read(
    root: Path, make: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    inbox = FileInbox(root)
    make(root / "odd.json")
    (root / "good.json").write_bytes(GOOD)
    assert [request.id for request in inbox.pending()] == ["good"]
    assert [name.partition("-")[2] for name in os.listdir(root / QUARANTINE) if "json" in name] == [
        "odd.json"
    ]
    assert "odd.json" in caplog.text
    assert not (root / "odd.json").is_symlink()
    reply = msgspec.json.decode((root / "odd.reply").read_bytes(), type=Reply)
    assert reply.refusal is not None
    assert reply.refusal.where.endswith("odd.json")
    inbox.answer(Reply(id="good"))
    assert inbox.pending() == []


@pytest.mark.parametrize("name", [b"\xff\xfe.json", b"a" * 250 + b".json", b"a\nb.json", b".json"])
def test_an_entry_whose_name_is_no_id_is_set_aside(
    root: Path, name: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = FileInbox(root)
    (Path(os.fsdecode(os.path.join(os.fsencode(root), name)))).touch()
    assert inbox.pending() == []
    assert os.listdir(root) == [QUARANTINE]
    (told,) = caplog.messages
    assert told.isprintable()  # one line, and a terminal of any encoding can show it


def test_a_link_in_place_of_the_quarantine_is_not_followed(root: Path, tmp_path: Path) -> None:
    inbox = FileInbox(root)
    (tmp_path / "elsewhere").mkdir()
    (root / QUARANTINE).symlink_to(tmp_path / "elsewhere")
    (root / "odd.json").touch()
    assert inbox.pending() == []
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert len(list((root / QUARANTINE).iterdir())) == 1


def test_an_answered_request_that_cannot_be_removed_is_not_answered_for_ever(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = FileInbox(root)
    (root / "good.json").write_bytes(GOOD)
    assert len(inbox.pending()) == 1

    def remove(folder: PrivateFolder, name: bytes) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(PrivateFolder, "remove", remove)
    inbox.answer(Reply(id="good"))
    assert inbox.pending() == []


def test_many_odd_entries_do_not_keep_a_request_waiting_for_ever(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = FileInbox(root)
    for number in range(1200):
        (root / f"g{number}.json").write_bytes(b"{}")
        os.utime(root / f"g{number}.json", ns=(number, number))
    (root / "good.json").write_bytes(GOOD)
    assert inbox.pending() == []  # a thousand are looked at
    assert [request.id for request in inbox.pending()] == ["good"]
    assert len(caplog.records) < 20
    assert all(f"'g{number}.json'" in caplog.text for number in range(20))


@pytest.mark.parametrize("instead", ["nothing", "file", "link"])
def test_a_folder_that_vanishes_is_made_again(root: Path, instead: str) -> None:
    inbox = FileInbox(root)
    shutil.rmtree(root)
    if instead == "file":
        root.write_text("mine")
    elif instead == "link":
        root.symlink_to("/")
    assert inbox.pending() == []
    assert stat.S_IMODE(root.lstat().st_mode) == 0o700
    if instead == "file":
        assert [path.read_text() for path in root.parent.glob("*.aside")] == ["mine"]


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_modes_do_not_depend_on_the_umask(root: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        inbox = FileInbox(root)
        inbox.answer(Reply(id="a"))
        with PrivateFolder(root) as folder:
            folder.write("b.json", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in root.iterdir()} == {0o600}


def test_a_folder_that_others_may_write_is_closed_to_them(root: Path) -> None:
    root.mkdir()
    root.chmod(0o777)
    FileInbox(root)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


@pytest.mark.machine("root")
def test_what_a_third_user_wrote_is_not_believed(root: Path) -> None:
    FileInbox(root)
    (root / "good.json").write_bytes(GOOD)
    os.chown(root / "good.json", 12345, 12345)
    with PrivateFolder(root) as folder, pytest.raises(OddFileError, match="uid 12345 wrote it"):
        folder.read("good.json")


@pytest.mark.machine("root")
def test_what_root_writes_belongs_to_the_folders_owner(root: Path) -> None:
    """So that the engine of a user can read what `sudo` asks of it, and a user the answers of root's engine."""
    root.mkdir()
    os.chown(root, 12345, 12346)
    inbox = FileInbox(root)
    inbox.answer(Reply(id="a"))
    assert ((root / "a.reply").stat().st_uid, (root / "a.reply").stat().st_gid) == (12345, 12346)
    (root / "good.json").write_bytes(GOOD)
    os.chown(root / "good.json", 12345, 12345)
    assert [request.id for request in inbox.pending()] == ["good"]


# --- who asks -----------------------------------------------------------------------------------------


@pytest.fixture
def log(root: Path) -> Path:
    """A log, and the inbox of an engine that is said to run."""
    path = root.parent / "log.db"
    create_log(path, Opener("p", "1", "lab", 1, 0), "0" * 32, itertools.repeat(1))
    return path


async def test_a_request_that_vanishes_with_its_folder_is_put_again(log: Path, root: Path) -> None:
    inbox = FileInbox(root)
    asking = asyncio.create_task(
        asyncio.to_thread(ask, log, Ping(id="p", actor="ada"), timeout_seconds=100, alive=lambda _: 1)
    )
    await until(inbox.pending)
    root.rename(root.with_name("gone"))
    await until(inbox.pending)
    inbox.answer(Reply(id="p", position=3))
    assert (await asking).position == 3


async def test_a_request_that_is_not_believed_is_refused_at_once(log: Path, root: Path) -> None:
    inbox = FileInbox(root)
    asking = asyncio.create_task(
        asyncio.to_thread(ask, log, Ping(id="p", actor="ada"), timeout_seconds=100, alive=lambda _: 1)
    )
    await until(lambda: list(root.glob("p.json")))
    (root / "p.json").chmod(0o666)
    await until(lambda: inbox.pending() or (root / QUARANTINE).exists())
    reply = await asking
    assert reply.refusal is not None
    assert "others may write it" in reply.refusal.what


def test_an_answer_that_is_not_believed_is_told(log: Path, root: Path) -> None:
    FileInbox(root)
    (root / "p.reply").symlink_to("/etc/passwd")
    with pytest.raises(LogError, match="it is a link"):
        ask(log, Ping(id="p", actor="ada"), timeout_seconds=100, alive=lambda _: 1)


def test_a_request_that_no_inbox_takes_is_refused_before_it_is_written(log: Path, root: Path) -> None:
    FileInbox(root)
    long = PauseTask(id="p", actor="ada", task="t" * FILE_BYTES_MAX)
    with pytest.raises(CallerError, match="in portions"):
        ask(log, long, timeout_seconds=100, alive=lambda _: 1)
    assert os.listdir(root) == []


def test_a_place_that_others_may_fill_is_refused_to_who_asks_and_by_the_engine(log: Path, root: Path) -> None:
    inbox = FileInbox(root)
    root.parent.chmod(0o777)
    (root / "good.json").write_bytes(GOOD)
    with pytest.raises(CallerError, match="every user may put another thing"):
        ask(log, Ping(id="p", actor="ada"), timeout_seconds=100, alive=lambda _: 1)
    with pytest.raises(CallerError, match="every user may put another thing"):
        inbox.pending()
    root.parent.chmod(0o700)


def test_a_request_under_way_when_the_engine_dies_is_withdrawn(log: Path, root: Path) -> None:
    FileInbox(root)
    alive = iter([1, None])
    with pytest.raises(NoEngineError, match="before it carried"):
        ask(log, Ping(id="p", actor="ada"), timeout_seconds=100, alive=lambda _: next(alive))
    assert os.listdir(root) == []


@pytest.mark.machine("root")
def test_a_blob_that_root_stores_belongs_to_the_owner_of_the_log(tmp_path: Path) -> None:
    """`sudo datatask inject` hands the engine of a user the name of a blob, which that has to be able to read."""
    os.chown(tmp_path, 12345, 12346)
    blobs = FileBlobs(tmp_path / "log.db.blobs")
    digest, _ = blobs.put_bytes(b"x")
    assert blobs.put_bytes(b"x") == (digest, 1)
    place = blobs.path(digest)
    for one in (place, place.parent, blobs.root):
        assert (one.stat().st_uid, one.stat().st_gid) == (12345, 12346)
