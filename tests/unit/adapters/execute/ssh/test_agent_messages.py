"""Records of runs as shells write them: what the numbers say, and what is torn."""

from __future__ import annotations

import pytest

from datatask.adapters.execute.ssh.agent_messages import parse, plain, seconds
from datatask.schema.events import StopReason


def test_a_shell_tells_signals_as_128_and_more() -> None:
    assert [plain(text) for text in ("0", "3", "127", "128", "137", "143", "255")] == [
        0,
        3,
        127,
        128,
        -9,
        -15,
        255,
    ]


def test_times_of_every_shell_are_seconds() -> None:
    """dash, bash and busybox print them differently."""
    assert [seconds(text) for text in ("0m0.070000s", "2m1.5s", "0m0,25s")] == [0.07, 121.5, 0.25]


WHOLE = "71 990 b00t 12.50 137 - -stdout=9,stdout_sum=77,peak=5,oom=0,peak=7,oom=1, 0m1.5s 1m0.25s"


def test_a_record_is_read_or_told_to_be_torn() -> None:
    """Each cut of a record is torn, but for those of its last number, which the agent's closing dot covers."""
    record = parse(WHOLE.split(" "))
    assert record == (
        "71",
        "990",
        "b00t",
        12.5,
        -9,
        None,
        {"stdout": 9},
        7,
        True,
        61.75,
        {},
        {"stdout": "77"},
        False,
    )
    gone = parse(WHOLE.replace("stdout=9", "stdout=9,stdout_gone=1,stderr_written=5").split(" "))
    assert gone is not None
    assert gone.sizes == {"stderr": 0}
    assert {name: words.partition(" while ")[0] for name, words in gone.wrong.items()} == {
        "stdout": "its stdout was removed or exchanged",
        "stderr": "its stderr was cut",
    }
    assert [cut for cut in range(len(WHOLE)) if parse(WHOLE[:cut].split(" "))] == []
    assert parse([*WHOLE.split(" "), "more"]) is None


@pytest.mark.parametrize(
    ("noted", "stop", "outcome", "words"),
    [
        ("137 - -", None, "failed", "killed by SIGKILL"),
        (
            "137 - -killed=1,",
            None,
            "failed",
            "killed by SIGKILL: the kernel has killed for lack of memory meanwhile",
        ),
        (
            "137 - -oom=1,",
            None,
            "failed",
            "killed by SIGKILL: out of memory: the kernel killed at the 64 bytes",
        ),
        ("137 timeout -", None, "timed_out", "stopped: its time was up"),
        ("137 - -", "cancelled", "cancelled", "stopped: it was cancelled"),
        ("3 - -", "cancelled", "failed", "exit code 3"),
        ("unstarted - -", None, "lost", "it could not be started"),
    ],
)
def test_what_a_record_means(noted: str, stop: StopReason | None, outcome: str, words: str) -> None:
    record = parse(f"71 990 b00t 12.50 {noted} 0m0.0s 0m0.0s".split(" "))
    assert record is not None
    ending = record.ending(stop, 64)
    assert (ending.outcome, ending.error is not None and ending.error.message.startswith(words)) == (
        outcome,
        True,
    )
