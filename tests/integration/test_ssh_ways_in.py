"""Ways into a host: passwords, agents, passphrases, jump hosts, ~/.ssh/config, and whom to trust; each refusal in words."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datatask import CallerError, InProcessBlobRepository, SSHHost, SSHLinuxManager, TemporaryError
from datatask.adapters.execute.ssh import contact, target
from datatask.schema.messages import Started, Unreachable
from tests import ssh_kit
from tests.run_kit import contents, opened, spec
from tests.ssh_kit import Server, server, serving
from tests.ssh_runs import called, ended, make, on_server

pytestmark = pytest.mark.server("sshd")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of the test's own, with ~/.ssh, and no agent."""
    folder = tmp_path / "home"
    (folder / ".ssh").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return folder


@pytest.fixture
def agent(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real ssh-agent that holds nothing yet."""
    path = str(tmp_path / "agent")
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    while not os.path.exists(path):
        assert process.poll() is None
    monkeypatch.setenv("SSH_AUTH_SOCK", path)
    yield path
    process.terminate()
    process.wait()


def trusted(home: Path, at: Server) -> None:
    """Make the server's key known in ~/.ssh."""
    shutil.copy(at.folder / "known_hosts", home / ".ssh/known_hosts")


def fingerprint(key: Path) -> str:
    """Return a key's fingerprint, as OpenSSH tells it."""
    return called("ssh-keygen", "-lf", str(key)).split()[1]


def locked_key(path: Path, at: Server) -> Path:
    """Return a copy of the user's key that has the passphrase `open sesame`."""
    shutil.copy(at.folder / "user_key", path)
    path.chmod(0o600)
    called("ssh-keygen", "-q", "-p", "-P", "", "-N", "open sesame", "-f", str(path))
    return path


async def enters(host: SSHHost, tmp_path: Path) -> bool:
    """Whether a manager's run goes there and back, with its input and its output."""
    given = InProcessBlobRepository({"good": b"carried"})
    end = await ended(SSHLinuxManager("app", host, tmp_path / "remote"), "cat\n", stdin=given)
    return end.ending.outcome == "succeeded" and contents(end.writes[0]) == b"carried"


async def refusal(host: SSHHost) -> str:
    """Return what is said to whom the host turns away; one line, with the host and a remedy."""
    with pytest.raises(CallerError) as refused:
        await host.connect()
    assert refused.value.where == host.label
    assert refused.value.remedy
    assert "\n" not in str(refused.value)
    return str(refused.value)


def address(at: Server, **options: Any) -> SSHHost:
    """Return the server as a user names it, with nothing but ~/.ssh to go by."""
    return SSHHost(f"127.0.0.1:{at.port}", options=options)


async def test_the_agent_s_keys_are_taken(home: Path, agent: str, tmp_path: Path) -> None:
    trusted(home, server())
    called("ssh-add", "-q", str(server().folder / "user_key"))
    assert await enters(address(server()), tmp_path)


async def test_a_refused_key_of_the_agent_is_named(home: Path, agent: str) -> None:
    trusted(home, server())
    called("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / "other"))
    called("ssh-add", "-q", str(home / "other"))
    text = await refusal(address(server()))
    assert f"{fingerprint(home / 'other.pub')} " in text
    assert "of the agent" in text


async def test_a_refused_key_is_named_with_the_user(home: Path) -> None:
    trusted(home, server())
    called("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / ".ssh/id_ed25519"))
    host = SSHHost(f"nobody@127.0.0.1:{server().port}")
    text = await refusal(host)
    assert "lets nobody in as nobody with the key " + fingerprint(home / ".ssh/id_ed25519.pub") in text


async def test_without_any_key_that_is_told(home: Path) -> None:
    trusted(home, server())
    assert "with no key" in await refusal(address(server()))


async def test_a_passphrase_opens_its_key(home: Path, tmp_path: Path) -> None:
    trusted(home, server())
    key = str(locked_key(home / "locked", server()))
    assert await enters(address(server(), client_keys=[key], passphrase="open sesame"), tmp_path)


@pytest.mark.parametrize("options", [{}, {"passphrase": "wrong"}])
async def test_a_key_without_its_passphrase_is_told(home: Path, options: dict[str, str]) -> None:
    trusted(home, server())
    key = str(locked_key(home / "locked", server()))
    text = await refusal(address(server(), client_keys=[key], **options))
    assert "a private key cannot be read" in text
    assert "ssh-add" in text


async def test_ssh_config_gives_name_port_user_key_and_jump_host(home: Path, tmp_path: Path) -> None:
    at = server()
    trusted(home, at)
    user = called("id", "-un").strip()
    (home / ".ssh/config").write_text(
        f"Host inner\n HostName 127.0.0.1\n ProxyJump jump\n"
        f"Host jump\n HostName 127.0.0.1\n"
        f"Host *\n Port {at.port}\n User {user}\n IdentityFile {at.folder}/user_key\n"
    )
    assert await enters(SSHHost("inner"), tmp_path)


async def test_an_unknown_host_of_ssh_config_is_told_by_its_real_name_and_port(home: Path) -> None:
    at = server()
    (home / ".ssh/config").write_text(f"Host short\n HostName 127.0.0.1\n Port {at.port}\n")
    text = await refusal(SSHHost("short"))
    assert "the host is not known" in text
    assert fingerprint(at.folder / "host_key.pub") in text
    assert f"ssh-keyscan -p {at.port} 127.0.0.1 >> ~/.ssh/known_hosts" in text


async def test_a_jump_host_can_be_given_with_the_host(home: Path, agent: str, tmp_path: Path) -> None:
    """By the agent's keys, at both."""
    at = server()
    trusted(home, at)
    called("ssh-add", "-q", str(at.folder / "user_key"))
    assert await enters(address(at, tunnel=f"127.0.0.1:{at.port}"), tmp_path)


async def test_an_unknown_jump_host_is_told_as_that(home: Path) -> None:
    at = server()
    options = {"tunnel": f"127.0.0.1:{at.port}", "client_keys": [str(at.folder / "user_key")]}
    assert "a host on the way there is not known" in await refusal(address(at, **options))


@pytest.mark.parametrize("changed", [False, True])
async def test_hashed_names_in_known_hosts_count(home: Path, changed: bool, tmp_path: Path) -> None:
    """The right key lets in, another one is told as that."""
    at = server()
    key = (at.folder / ("user_key.pub" if changed else "host_key.pub")).read_text()
    known = home / ".ssh/known_hosts"
    known.write_text(f"[127.0.0.1]:{at.port} {key}")
    called("ssh-keygen", "-q", "-H", "-f", str(known))
    assert "127.0.0.1" not in known.read_text()
    host = address(at, client_keys=[str(at.folder / "user_key")])
    if changed:
        text = await refusal(host)
        assert "is not the one that is known" in text
        assert f"ssh-keygen -R '[127.0.0.1]:{at.port}'" in text
    else:
        assert await enters(host, tmp_path)


OPEN_SESAME = (
    "$6$datatask$AIFDEEVc0/a47wZA.zhboPRudDYfOyr1y3baWO2jDFShqud0vBVYZ6yugB9lElP7hdVmlxLP/I1gDb80cjrAC/"
)
"""What crypt makes of `open sesame`."""
WAYS = {
    "password": "UsePAM no\nPasswordAuthentication yes\nKbdInteractiveAuthentication no\n",
    "keyboard-interactive": "UsePAM yes\nPasswordAuthentication no\nKbdInteractiveAuthentication yes\n",
}


@pytest.mark.machine("root")
@pytest.mark.parametrize("way", WAYS)
async def test_sshd_lets_in_by_password_and_a_wrong_one_is_told(home: Path, tmp_path: Path, way: str) -> None:
    """By its own reading of shadow, and by PAM."""
    shadow = tmp_path / "shadow"
    shadow.write_text(f"root:{OPEN_SESAME}:20000:0:99999:7:::\n")
    first = f"{WAYS[way]}PubkeyAuthentication no\nPermitRootLogin yes\n"
    with serving(tmp_path / "by-password", first=first, over={"/etc/shadow": shadow}) as at:
        trusted(home, at)
        assert await enters(address(at, username="root", password="open sesame"), tmp_path)
        text = await refusal(address(at, username="root", password="hunter2"))
    assert "with no key and the password" in text
    assert "hunter2" not in text


# --- trust --------------------------------------------------------------------------------------------


async def test_an_unknown_host_is_refused_and_how_to_trust_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "known").touch()
    host = server().host()
    options = {**host.options, "known_hosts": str(tmp_path / "known")}
    manager = SSHLinuxManager("app", SSHHost(host.address, options=options), tmp_path)
    with pytest.raises(CallerError) as refused:
        async with opened(make(manager, "true\n").runner):
            pass
    text = str(refused.value)
    fingerprint = called("ssh-keygen", "-lf", str(server().folder / "host_key.pub")).split()[1]
    assert "the host is not known" in text
    assert fingerprint in text
    assert f"ssh-keyscan -p {server().port} 127.0.0.1 >> ~/.ssh/known_hosts" in text


async def test_another_key_than_the_known_one_is_told_as_that(tmp_path: Path) -> None:
    other = (server().folder / "user_key.pub").read_text()
    (tmp_path / "known").write_text(f"[127.0.0.1]:{server().port} {other}")
    host = server().host()
    manager = SSHLinuxManager(
        "app",
        SSHHost(host.address, options={**host.options, "known_hosts": str(tmp_path / "known")}),
        tmp_path,
    )
    with pytest.raises(CallerError, match=r"is not the one that is known.*ssh-keygen -R"):
        async with opened(make(manager, "true\n").runner):
            pass


async def test_a_key_that_is_not_accepted_is_told(tmp_path: Path) -> None:
    called("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key"))
    host = server().host()
    options = {**host.options, "client_keys": [str(tmp_path / "key")]}
    manager = SSHLinuxManager("app", SSHHost(host.address, options=options), tmp_path)
    with pytest.raises(CallerError, match="lets nobody in"):
        async with opened(make(manager, "true\n").runner):
            pass


async def test_a_name_of_ssh_config_leads_through_a_jump_host(tmp_path: Path) -> None:
    """Address, port, key and jump host come from the file."""
    at = server()
    (tmp_path / "config").write_text(
        f"Host inner\n HostName 127.0.0.1\n ProxyJump jump\n"
        f"Host jump\n HostName 127.0.0.1\n"
        f"Host *\n Port {at.port}\n IdentityFile {at.folder}/user_key\n UserKnownHostsFile {at.folder}/known_hosts\n"
    )
    options = {"config": [str(tmp_path / "config")], "agent_path": None}
    manager = SSHLinuxManager("app", SSHHost("inner", options=options), tmp_path / "remote")
    assert (await ended(manager, "echo there\n")).ending.outcome == "succeeded"


async def test_a_function_that_connects_is_asked_again(tmp_path: Path) -> None:
    """As pydatatask's session resources are given; an async one makes a new connection when the old one is lost."""
    made = []

    async def connect() -> Any:
        made.append(await server().host().connect())
        return made[-1]

    runner = make(SSHLinuxManager("app", connect, tmp_path / "remote"), "sleep 0.5\n").runner
    async with opened(runner) as facts:
        runner.start(spec(1))
        await facts.first(1, Started)
        made[0].abort()
        assert (await facts.end_of(1)).ending.outcome == "succeeded"
    assert len(made) >= 2
    assert not made[-1].is_closed()
    made[-1].close()
    await made[-1].wait_closed()


# --- servers that let us in and no further ------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            f"MaxSessions 2\n{ssh_kit.CONFIG}",
            "opens no more sessions: open failed; have its sshd_config allow three",
        ),
        (
            ssh_kit.CONFIG.replace("Subsystem sftp internal-sftp\n", ""),
            "offers no SFTP; have its sshd_config say: Subs",
        ),
        (
            ssh_kit.CONFIG.replace("internal-sftp", "/nowhere/sftp-server"),
            "SFTP ends at once \\(.*\\); have its sshd_config say: Subs",
        ),
        (
            ssh_kit.CONFIG.replace("Subsystem sftp internal-sftp", "Subsystem sftp /bin/echo good morning"),
            "SFTP ends at once \\(.*\\); have its sshd_config say: Subs",
        ),
    ],
    ids=["sessions", "no SFTP", "no program", "a talking shell"],
)
async def test_a_server_that_allows_too_little_is_told_once_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, config: str, says: str
) -> None:
    """By `doctor`, by the run that waits, and on stderr; it is tried again, for it may be mended meanwhile."""
    allowing = ssh_kit.CONFIG
    monkeypatch.setattr(ssh_kit, "CONFIG", config)
    monkeypatch.setattr(contact, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(target, "RETRY_SECONDS_MAX", 0.2)
    folder = tmp_path / "server"
    with serving(folder) as at:
        manager = on_server(tmp_path, at)
        with pytest.raises(TemporaryError, match=says):
            await manager.list_runs()
        runner = make(manager, "true\n").runner
        async with opened(runner) as facts:
            runner.start(spec(1))
            told = await facts.first(1, Unreachable)
            assert isinstance(told, Unreachable)
            assert re.search(says, told.message)
            monkeypatch.setattr(ssh_kit, "CONFIG", allowing)
            (folder / "sshd_config").write_text(allowing.format(port=at.port, folder=folder, more=""))
            os.kill(at.pid, signal.SIGHUP)  # it reads its configuration anew, as the same process
            assert (await facts.end_of(1)).ending.outcome == "succeeded"
        said = [record.getMessage() for record in caplog.records if record.name == "datatask.proc_manager"]
        assert said == [f"target cannot be reached: {said[0].partition(': ')[2]}", "target answers again"]
        assert re.search(says, said[0])
        assert [run.state for run in await manager.list_runs()] == ["it has ended"]
