"""What is stored into a folder belongs to whom a file made there belongs, whichever way it came."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datatask import DirectoryRepository, FileRepository, YamlMetadataFileRepository
from datatask.adapters.store.filestore import FileStore
from datatask.adapters.store.staged import belonging
from datatask.schema.messages import Write
from tests.machine import open_way_to

OTHERS = 4242
"""A group of nobody's."""


def run(*words: str | Path) -> None:
    subprocess.run(words, check=True)


def setgid(folder: Path) -> None:
    os.chown(folder, -1, OTHERS)
    folder.chmod(0o2775)


def listed(folder: Path) -> None:
    run("setfacl", "-m", "d:u:1234:rw,d:g::r,d:o::-", folder)


def plain(folder: Path) -> None:
    folder.chmod(0o755)


def masked(folder: Path) -> None:
    setgid(folder)
    listed(folder)


KINDS = [
    pytest.param(plain, id="plain"),
    pytest.param(setgid, id="setgid", marks=pytest.mark.machine("root")),
    pytest.param(listed, id="access list", marks=pytest.mark.server("setfacl")),
    pytest.param(masked, id="both", marks=[pytest.mark.machine("root"), pytest.mark.server("setfacl")]),
]


@pytest.fixture(autouse=True, params=[0o022, 0o002, 0o077, 0o027])
def umask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr("datatask.adapters.store.staged.UMASK_SECONDS", 0.0)
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


async def fill(folder: Path, source: Path) -> dict[str, Path]:
    """Store values in all ways; return where they are."""
    store, files = FileStore(folder), FileRepository(folder)
    await store.put(Write(repository="r", job="linked", source=source))
    await store.put(Write(repository="r", job="blob", source=source, digest="0" * 64, size=1))
    await store.put(Write(repository="r", job="data", data=b"x"))
    async with files.open("opened", "w") as stream:
        await stream.write("x")
    documents = YamlMetadataFileRepository(folder)
    await documents.dump("document", {"a": 1})
    names = ("linked", "blob", "data", "opened", "document.yaml")
    return {name: folder / name for name in names}


@pytest.mark.parametrize("kind", KINDS)
async def test_results_belong_to_whom_files_made_there_belong(
    kind: Callable[[Path], None], tmp_path: Path
) -> None:
    folder, private = tmp_path / "out", tmp_path / "run"
    folder.mkdir()
    private.mkdir(0o700)
    source = private / "stdout"
    source.write_bytes(b"x")
    source.chmod(0o600)
    kind(folder)
    made = folder / "made"
    made.touch()
    stored = await fill(folder, source)
    assert {name: belonging(path) for name, path in stored.items()} == dict.fromkeys(stored, belonging(made))
    assert stored["linked"].samefile(source), "without a copy"
    await DirectoryRepository(folder).mkdir("tree")
    (folder / "by hand").mkdir()
    assert belonging(folder / "tree") == belonging(folder / "by hand")


@pytest.mark.machine("root")
async def test_a_rewritten_file_keeps_group_and_rights(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.chown(tmp_path / "a", -1, OTHERS)
    (tmp_path / "a").chmod(0o664)
    before = belonging(tmp_path / "a")
    await FileStore(tmp_path).put(Write(repository="r", job="a", data=b"new"))
    assert (belonging(tmp_path / "a"), (tmp_path / "a").read_bytes()) == (before, b"new")


@pytest.mark.server("setfacl")
async def test_a_rewritten_file_keeps_its_access_list_and_gets_none_that_it_had_not(tmp_path: Path) -> None:
    for name in ("has", "hasnot"):
        (tmp_path / name).touch()
    run("setfacl", "-m", "u:1234:rw", tmp_path / "has")
    listed(tmp_path)
    before = [belonging(tmp_path / name) for name in ("has", "hasnot")]
    for name in ("has", "hasnot"):
        await FileStore(tmp_path).put(Write(repository="r", job=name, data=b"new"))
    assert [belonging(tmp_path / name) for name in ("has", "hasnot")] == before


@pytest.mark.machine("root")
async def test_a_group_that_we_may_not_give_is_had_by_copying(tmp_path: Path) -> None:
    """Whoever is no member of the folder's group makes files of that group there all the same."""
    folder, source = tmp_path / "out", tmp_path / "stdout"
    folder.mkdir()
    setgid(folder)
    folder.chmod(0o2777)
    source.write_bytes(b"x")
    os.chown(source, 65534, 65534)
    open_way_to(tmp_path)
    before = os.getgroups()
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
    try:
        FileStore(folder).put_now(Write(repository="r", job="a", source=source))
        (folder / "a").touch()
        (folder / "made").touch()
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)
    assert belonging(folder / "a") == belonging(folder / "made")
    assert belonging(folder / "a").gid == OTHERS
    assert not (folder / "a").samefile(source)


@pytest.mark.machine("mounts", "root")
@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])  # the second knows no access lists
async def test_on_another_file_system(kind: str, tmp_path: Path) -> None:
    source, folder = tmp_path / "stdout", tmp_path / "out"
    source.write_bytes(b"x")
    source.chmod(0o600)
    folder.mkdir()
    run("mount", "-t", kind, kind, folder)
    try:
        setgid(folder)
        (folder / "made").touch()
        stored = await fill(folder, source)
        assert {belonging(path) for path in stored.values()} == {belonging(folder / "made")}
    finally:
        run("umount", folder)
