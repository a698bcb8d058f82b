"""The servers that a test over SSH is run against."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ssh_kit import shared

DROPBEAR = [pytest.mark.server("dropbear"), pytest.mark.machine("root")]


@pytest.fixture(params=["sshd", pytest.param("dropbear", marks=DROPBEAR)])
def each_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The shared server is OpenSSH's, then dropbear."""
    with shared(request.param):
        yield request.param
