"""What others could have filled is not read back, and the refusal says what to change."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

import pytest

from datatask.adapters.trust import (
    UnsafePlaceError,
    check_above,
    check_own,
    make_private,
    open_own,
    private,
    writers,
)

STRANGER = 54321
ACL = "system.posix_acl_access"


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def _refused(path: Path, *, group: bool = False) -> str:
    with pytest.raises(UnsafePlaceError) as caught:
        check_above(path, group=group)
    return str(caught.value)


def test_a_folder_above_that_every_user_may_write_is_refused_with_the_remedy(tmp_path: Path) -> None:
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(0o777)
    inner = open_folder / "inner"
    assert f"chmod o-w {open_folder}`" in _refused(inner)
    inner.mkdir(mode=0o700)
    for deep in (inner, inner / "not" / "yet", inner / ".." / "inner" / "x"):
        assert "every user may put another thing" in _refused(deep, group=True)
    open_folder.chmod(0o1777)
    check_above(inner / "x")
    check_above(open_folder)


def test_the_remedy_for_a_container_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o777)
    assert "DATATASK_TRUST=all" in _refused(tmp_path / "x")
    monkeypatch.setenv("DATATASK_TRUST", "all")
    check_above(tmp_path / "x")


def test_links_are_followed_and_each_is_checked_where_it_lies(tmp_path: Path) -> None:
    open_folder, good = tmp_path / "open", tmp_path / "good"
    open_folder.mkdir()
    good.mkdir()
    open_folder.chmod(0o777)
    (open_folder / "link").symlink_to(good)
    (good / "back").symlink_to("../open/there")
    (good / "round").symlink_to("round")
    assert str(open_folder) in _refused(open_folder / "link" / "x")
    assert str(open_folder) in _refused(good / "back" / "x")
    with pytest.raises(Exception, match="too many links"):
        check_above(good / "round" / "x")


@pytest.mark.machine("root")
def test_other_owners_and_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o755)
    os.chown(theirs, STRANGER, STRANGER)
    assert f"belongs to uid {STRANGER}" in _refused(theirs / "x")
    check_above(theirs / "x", group=True)
    tmp_path.chmod(0o1777)
    assert f"belongs to uid {STRANGER}, in a folder that every user may write" in _refused(
        theirs / "x", group=True
    )
    monkeypatch.setenv("DATATASK_TRUST", f"1, {STRANGER}")
    check_above(theirs / "x")
    monkeypatch.delenv("DATATASK_TRUST")
    tmp_path.chmod(0o755)

    team = tmp_path / "team"
    team.mkdir()
    os.chown(team, 0, STRANGER)
    team.chmod(0o2775)
    assert f"`chmod g-w {team}`" in _refused(team / "x")
    check_above(team / "x", group=True)


@pytest.mark.machine("root")
def test_a_group_with_no_member_but_this_user_is_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "private"
    folder.mkdir()
    os.chown(folder, STRANGER, STRANGER)
    folder.chmod(0o775)
    tmp_path.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.chdir(tmp_path)  # above it are folders that the other user may not enter
            os.setgroups([])
            os.setresgid(STRANGER, STRANGER, STRANGER)
            os.setresuid(STRANGER, STRANGER, STRANGER)
            code = 0 if writers("private") == "" else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert writers(folder) == f"group {STRANGER}"


@pytest.mark.machine("root")
def test_an_acl_that_lets_others_write_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "acl"
    folder.mkdir()
    entries = [(1, 7, 2**32 - 1), (2, 7, STRANGER), (4, 5, 2**32 - 1), (16, 7, 2**32 - 1), (32, 5, 2**32 - 1)]
    data = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(folder, ACL, data)
    except OSError:
        pytest.skip("this file system has no ACLs")
    assert f"setfacl -b {folder}" in _refused(folder / "x", group=True)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077, 0o777])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        make_private(tmp_path / "a" / "b" / "c")
        with open(tmp_path / "a" / "file", "wb", opener=private) as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert [_mode(tmp_path / name) for name in ("a", "a/b", "a/b/c", "a/file")] == [
        0o700,
        0o700,
        0o700,
        0o600,
    ]


def test_what_is_ours_and_too_wide_is_narrowed_and_told_once(tmp_path: Path) -> None:
    folder = tmp_path / "wide"
    folder.mkdir()
    folder.chmod(0o2775)
    assert check_own(folder)
    assert _mode(folder) == 0o2700
    assert not check_own(folder)
    with pytest.raises(FileNotFoundError):
        check_own(tmp_path / "none")


def test_a_link_or_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnsafePlaceError, match="this is a link"):
        check_own(tmp_path / "link", "file", allowed=0o600)
    for name, words in (("link", "is a link"), ("pipe", "is no file"), ("", "is no file")):
        with pytest.raises(UnsafePlaceError, match=words):
            os.close(open_own(tmp_path / name))
    os.close(open_own(tmp_path / "file"))
    (tmp_path / "file").chmod(0o666)
    with pytest.raises(UnsafePlaceError, match="every user may write this"):
        open_own(tmp_path / "file")


@pytest.mark.machine("root")
def test_what_belongs_to_another_user_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    os.chown(file, STRANGER, STRANGER)
    with pytest.raises(UnsafePlaceError, match=f"belongs to uid {STRANGER}, not to root"):
        open_own(file)
    with pytest.raises(UnsafePlaceError, match=f"DATATASK_TRUST={STRANGER}"):
        check_own(file, "file")


def test_several_make_one_folder_at_once(tmp_path: Path) -> None:
    """Who comes second finds it made, also when the folder above was missing for both."""
    refused: list[OSError] = []

    def make(folder: Path, together: threading.Barrier) -> None:
        together.wait(100)
        try:
            make_private(folder)
        except OSError as error:
            refused.append(error)

    for number in range(30):
        together = threading.Barrier(8)
        folder = tmp_path / str(number) / "below"
        makers = [threading.Thread(target=make, args=(folder, together)) for _ in range(8)]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join(100)
    assert refused == []
