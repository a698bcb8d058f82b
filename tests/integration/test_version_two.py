"""Control groups of version 2 on a kernel of its own, where this machine's has none with cpu and memory.

User Mode Linux (Debian's `user-mode-linux`) boots as a program in two seconds, over this machine's files, which it may
only read; the tests of enforced resources run in it, as root, and as a user to whom a group was delegated as systemd does it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KERNEL = shutil.which("linux.uml")
pytestmark = [pytest.mark.server("linux.uml"), pytest.mark.slow, pytest.mark.long]
UNFIT = "ptrace set fp regs failed, errno = 14"
"""What it says before its first program begins, on processors whose registers are larger than it knows (as with AMX)."""
REPOSITORY = Path(__file__).parents[2]
BOOT = """\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
for folder in /mnt /run /dev/shm; do mkdir -p $folder; mount -t tmpfs own $folder; done
mkdir -p /dev/pts /run/sshd
mount -t devpts pts /dev/pts
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
cd /sys/fs/cgroup
echo '+cpu +memory' >cgroup.subtree_control
export PATH={path} TMPDIR=/mnt HOME=/mnt PYTHONDONTWRITEBYTECODE=1
set -- {python} -m pytest -q -rA --color=no -p no:cacheprovider -p no:xdist --basetemp=/mnt/tests --rootdir={repository}
{how}
echo the tests ended with $?
exec /sbin/poweroff -f
"""
AS_ROOT = "cd {repository}; {command}"
AS_A_USER = """\
for group in user.slice user.slice/user@1.service user.slice/user@1.service/app.slice; do
    mkdir $group
    echo '+cpu +memory' >$group/cgroup.subtree_control
done
mkdir $group/engine.scope
chown -R nobody user.slice/user@1.service
chown root user.slice/user@1.service/memory.max user.slice/user@1.service/cpu.max
mkdir -m 777 /mnt/nobody
{open_up}
export TMPDIR=/mnt/nobody
echo $$ >$group/engine.scope/cgroup.procs
cd {repository}
setpriv --reuid=nobody --regid=nogroup --clear-groups {command}"""


def opened_up() -> str:
    """Return what lets a user read Python and the repository where those are below a folder that others cannot enter."""
    kept = [Path(sys.base_prefix), Path(sys.prefix), REPOSITORY]
    closed = {
        path: next((up for up in reversed(path.parents) if not up.stat().st_mode & 1), None) for path in kept
    }
    hidden = [path for path in kept if closed[path]]
    aside = [f"mkdir -p /mnt/kept{path}; mount --bind {path} /mnt/kept{path}" for path in hidden]
    cover = [
        f"mount -t tmpfs -o mode=755 own {top}" for top in sorted({str(closed[path]) for path in hidden})
    ]
    back = [f"mkdir -p {path}; mount --bind /mnt/kept{path} {path}" for path in hidden]
    return "\n".join(aside + cover + back)


def booted(folder: Path, how: str, command: str) -> str:
    """Run pytest with these arguments in a machine of its own; return what it printed."""
    path = f"{os.path.dirname(sys.executable)}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    how = how.format(repository=REPOSITORY, open_up=opened_up(), command=f'"$@" {command}')
    init = folder / "init"
    init.write_text(BOOT.format(path=path, python=sys.executable, repository=REPOSITORY, how=how))
    init.chmod(0o755)
    machine = [
        "mem=1500M",
        "root=/dev/root",
        "rootfstype=hostfs",
        "rootflags=/",
        "ro",
        f"init={init}",
        f"uml_dir={folder}/",
        "con=null",
        "con0=null,fd:1",
        "quiet",
    ]
    done = subprocess.run(
        [str(KERNEL), *machine],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=500,
    )
    if UNFIT in done.stdout:
        pytest.skip("this kernel of User Mode Linux has no room for the registers of this processor")
    return done.stdout


@pytest.mark.parametrize(
    "tests",
    [
        "test_enforcing.py -k 'too_much_memory or waits_for_its_turn'",
        pytest.param("test_enforcing.py", marks=pytest.mark.soak),
        pytest.param("test_ssh_groups.py", marks=pytest.mark.soak),
    ],
)
def test_resources_are_enforced_by_version_two_as_by_version_one(tmp_path: Path, tests: str) -> None:
    said = booted(tmp_path, AS_ROOT, f"tests/integration/{tests}")
    assert "the tests ended with 0" in said, said
    assert "SKIPPED" not in said


@pytest.mark.soak
def test_a_user_to_whom_a_group_was_delegated_needs_no_root(tmp_path: Path) -> None:
    said = booted(tmp_path, AS_A_USER, "tests/integration/test_enforcing.py -m 'not server'")
    assert "the tests ended with 0" in said, said
    assert "SKIPPED" not in said
