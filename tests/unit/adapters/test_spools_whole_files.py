"""A file appears under its name whole, or the old one stays and nothing is left beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from datatask.adapters.spools import whole
from datatask.adapters.trust import private


@pytest.mark.parametrize("durable", [False, True])
def test_what_fails_in_between_changes_nothing(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"before")

    def refuse(_: Path) -> None:
        raise ValueError

    with pytest.raises(KeyError), whole(path, durable=durable) as file:
        file.write(b"half")
        file.flush()
        assert path.read_bytes() == b"before"
        raise KeyError
    with pytest.raises(ValueError), whole(path, durable=durable, finish=refuse) as file:
        file.write(b"refused")
    assert (os.listdir(tmp_path), path.read_bytes()) == (["state"], b"before")


def test_bytes_are_on_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def replaced(old: Path, new: Path) -> None:
        done.append(f"{old.name} -> {new.name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    with whole(tmp_path / "state", durable=True, fresh="fresh", opener=private) as file:
        file.write(b"all")
    assert done == ["fresh", "fresh -> state", tmp_path.name]
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600
    with whole(tmp_path / "cache", durable=False) as file:
        file.write(b"all")
    assert done[3:] == [done[-1]]
    assert done[-1].endswith("-> cache")
