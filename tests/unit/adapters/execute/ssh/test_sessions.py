"""A command line that any login shell hands to /bin/sh as it is."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datatask.adapters.execute.ssh.sessions import command

SHELLS = [
    "sh",
    *(pytest.param(name, marks=pytest.mark.server(name)) for name in ("bash", "fish", "tcsh", "busybox")),
]
WORDS = 'it\'s 20 % \\ of !all; ä\t$HOME `id` {a,b} ~ "*" #'


def printed(shell: str, line: str) -> str:
    """Return what a login shell prints for a command line, as an SSH server hands it over."""
    words = [shutil.which(shell) or shell, *(["sh"] if shell == "busybox" else []), "-c", line]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_any_login_shell_hands_a_script_on_as_it_is(shell: str) -> None:
    """Words of the plainest kind and of the worst."""
    assert printed(shell, command("echo $((6 * 7)) one; exit 0")) == "42 one\n"
    quoted = WORDS.replace("'", "'\\''")
    assert printed(shell, command(f"printf %s '{quoted}'")) == WORDS


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40))
def test_between_its_quotes_is_nothing_that_shells_read_differently(text: str) -> None:
    """No quote, line end, history sign or byte beyond ASCII; a backslash only before a digit."""
    found = re.fullmatch("exec /bin/sh -c '([ -~]*)'", command(text))
    assert found is not None
    assert "'" not in found[1]
    assert "!" not in found[1]
    assert not re.search(r"\\[^0]", found[1])
