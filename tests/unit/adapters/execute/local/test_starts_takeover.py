"""A launcher that takes over from an earlier one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from datatask.adapters.execute.local.journal import Journal
from datatask.adapters.execute.local.launcher import Launcher
from datatask.adapters.execute.local.starts import REBOOTED, TORN


def test_what_ended_before_the_machine_went_down_is_collected_unless_its_output_is_torn(
    tmp_path: Path,
) -> None:
    """Whole outputs have the recorded size; what was running is lost."""
    whole, torn, silent, running = (f"log.1.{number}" for number in (1, 2, 3, 4))
    before = Journal(str(tmp_path / "journal"), "the boot before")
    before.load()
    for identity, sizes in ((whole, {"stdout": 3}), (torn, {"stdout": 9}), (silent, {})):
        end = {
            "ended": identity,
            "code": 0,
            "began": 1,
            "at": 2,
            "stopped": None,
            "pid": 5,
            "usage": {},
            "why": "",
        }
        before.add({"id": identity, "pid": 5, "start": 1, "began": 1, "ended": {**end, "sizes": sizes}})
    before.add({"id": running, "pid": 5, "start": 1, "began": 1})
    for identity in (whole, torn):
        (tmp_path / "log" / identity).mkdir(parents=True)
        (tmp_path / "log" / identity / "stdout").write_text("abc")
    launcher = Launcher(str(tmp_path))
    launcher.earlier.load()
    found = {
        identity: (facts["ended"]["code"], facts["ended"]["why"])
        for identity, facts in launcher.runs.facts.items()
    }
    assert found == {whole: (0, ""), silent: (0, ""), torn: (None, TORN), running: (None, REBOOTED)}


DIES_BEFORE_IT_WAITS = """
import os, time
from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.local.launcher import Launcher
launcher = Launcher(".")
launcher.earlier.load()
pid = os.posix_spawn("/bin/sh", ["/bin/sh", "-c", {script!r}], {{}})
launcher.runs.facts["log.1.1"] = facts = {{"id": "log.1.1", "pid": pid, "start": proctable.start_time(pid), "began": 1}}
launcher.runs.journal.add(facts)
launcher.runs.children[pid] = "log.1.1"
os.wait4 = lambda pid, options: os.waitpid(pid, 0) and os._exit(9)
while True:
    launcher.ends.reap()
    time.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 7", 7),
        ("kill -SEGV $$", -11),
        ("kill -9 $$", None),
        ("kill -TERM $$", None),
        ("exit 143", None),
    ],
)
def test_an_end_is_known_to_the_next_launcher_once_the_last_one_has_waited(
    tmp_path: Path, script: str, code: int | None
) -> None:
    """It is told once: whoever waited for it, and died of it, has written it down before.

    By a signal that ends all there is, the launcher too, no script has ended by itself.
    """
    program = DIES_BEFORE_IT_WAITS.format(script=script)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, timeout=100, check=False)
    assert done.returncode == 9
    later = Launcher(str(tmp_path))
    later.earlier.load()
    ended = later.runs.facts["log.1.1"]["ended"]
    assert ended["code"] == code
    assert ("was being stopped" in ended["why"]) is (code is None)
