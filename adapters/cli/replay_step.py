"""`replay --step`: a walk through a log, by commands from the terminal or from a pipe.

In: lines. Out: where one stands, what each event said and what it changed, and the answers to questions about the
state there. The walking is in `adapters/history/replay`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator

from datatask.adapters.cli.output import Output, encode, error_line, is_terminal
from datatask.adapters.cli.status import lines
from datatask.adapters.clock import SystemClock
from datatask.adapters.history import shapes
from datatask.adapters.history.moments import parse_when, position_of
from datatask.adapters.history.replay import Stepper
from datatask.adapters.log.reader import LogReader
from datatask.engine.explain import why
from datatask.schema import events as e
from datatask.schema.errors import CallerError, DatataskError, InvalidValueError, NotPossibleError, unknown
from datatask.schema.troubles import shown

HELP = """\
next [N]              fold the next event (or N of them); so does an empty line
batch [N]             fold the rest of the batch at hand (or N batches)
goto WHEN             stand behind a position, at a time, or at an age such as -2h; back too
until kind KIND       go on behind the next event of this kind; also: job JOB, task TASK, repository REPO, run RUN
event [POSITION]      the last event, or the one at a position, in full
changed               what the last step changed: memberships, queues, counts
why TASK JOB          all that holds a job back here
status                counts per task and link here
where                 where one stands
help                  this
quit                  end; so does the end of the input"""

_SHORT = {"n": "next", "b": "batch", "g": "goto", "u": "until", "e": "event", "c": "changed", "w": "why", "s": "status",
          "h": "help", "?": "help", "q": "quit", "exit": "quit"}  # fmt: skip
_STEPS_MAX = 1_000_000
_SHOWN_MAX = 20
_FIELDS_MAX = 200


def walk(output: Output, reader: LogReader, start: int) -> None:
    """Obey commands until `quit` or the end of the input; on a terminal a wrong one is told and forgiven."""
    walker = _Walker(output, reader)
    if start > walker.stepper.position:
        walker.stepper.goto(start)
    asks = is_terminal(sys.stdin) and is_terminal()
    if asks:
        output.line("`help` lists what can be typed")
    walker.where([])
    for line in _commands(walker, asks):
        try:
            name, *words = shlex.split(line) or ["next"]
            name = _SHORT.get(name, name)
            if name == "quit":
                return
            walker.obey(name, words)
        except (DatataskError, ValueError) as error:
            wrong = error if isinstance(error, DatataskError) else CallerError(f"{error}", where=line.strip())
            if not asks:
                raise wrong from error
            output.say(error_line(wrong))


def _commands(walker: _Walker, asks: bool) -> Iterator[str]:
    while True:
        if asks:
            sys.stdout.write(f"{walker.stepper.position}> ")
        sys.stdout.flush()
        line = sys.stdin.readline()
        if not line:
            return
        yield line


class _Walker:
    """The commands: one method each, with the words behind the command's name."""

    def __init__(self, output: Output, reader: LogReader) -> None:
        self.stepper = Stepper(reader)
        self._output, self._reader = output, reader
        if reader.header.base:
            self.stepper.goto(reader.header.base)

    def obey(self, name: str, words: list[str]) -> None:
        """Do one command."""
        command: Callable[[list[str]], None] | None = getattr(self, name, None)
        if command is None or name not in HELP:
            raise InvalidValueError(f"there is no command {name}", remedy="`help` lists what there is")
        command(words)

    def next(self, words: list[str]) -> None:
        """Fold events."""
        for _ in range(_count(words)):
            if self.stepper.step() is None:
                self._end()
                return
            self._show_changed()

    def batch(self, words: list[str]) -> None:
        """Fold batches."""
        for _ in range(_count(words)):
            found = self.stepper.batch()
            if not found:
                self._end()
                return
            for recorded in found[:_SHOWN_MAX]:
                self._line(_brief(recorded))
            if len(found) > _SHOWN_MAX:
                self._line(f"and {len(found) - _SHOWN_MAX} more, up to position {found[-1].position}")
            self._changes()

    def goto(self, words: list[str]) -> None:
        """Stand somewhere else."""
        (text,) = _exactly(words, 1, "goto WHEN")
        if text.isdecimal():
            self.stepper.goto(int(text))
        else:
            self.stepper.goto(position_of(self._reader, parse_when(text, SystemClock().now())))
        self.where([])

    def until(self, words: list[str]) -> None:
        """Go on to an event."""
        what, value = _exactly(words, 2, "until kind|job|task|repository|run VALUE")
        if what not in ("kind", "job", "task", "repository", "run"):
            raise InvalidValueError(
                f"events have no {what}", remedy="until kind|job|task|repository|run VALUE"
            )
        if what == "kind" and value not in e.KINDS:
            raise unknown("kind of event", value, e.KINDS)

        def matches(position: int, event: e.Event) -> bool:
            if what == "kind":
                return type(event).__name__ == value
            if what == "run":
                return str(event.run) == value or (
                    isinstance(event, e.LaunchDecided) and str(position) == value
                )
            return bool(getattr(event, what) == value)

        if self.stepper.until(matches) is None:
            self._end()
        else:
            self._show_changed()

    def event(self, words: list[str]) -> None:
        """Show an event in full."""
        if words:
            (text,) = _exactly(words, 1, "event [POSITION]")
            if not text.isdecimal():
                raise InvalidValueError(f"{text} is no position", remedy="event [POSITION]")
            position = int(text)
        else:
            position = self.stepper.position
        if position == 0:
            raise NotPossibleError("nothing has been folded yet", remedy="`next`, or name a position")
        (event,) = self._reader.fetch([position])
        self._line(encode(shapes.event(e.Recorded(position, event))))

    def changed(self, words: list[str]) -> None:
        """Show what the last step changed."""
        self._changes()

    def why(self, words: list[str]) -> None:
        """Explain a job."""
        task, job = _exactly(words, 2, "why TASK JOB")
        state = self.stepper.state
        shapes.find_task(state, task)
        alive = state.engine is not None and not state.closed
        found = why.explain(state, task, job, state.at, engine_alive=alive).to_json()
        self._line(f"{task} {job} at {state.position}: {'ready' if found['ready'] else 'not ready'}")
        for condition in found["conditions"]:
            mark = "+" if condition["satisfied"] else "-"
            self._line(f"  {mark} {condition['explain']}")
        for hold in found["held_by"]:
            self._line(f"  held by {hold['what']}: {hold['explain']}")

    def status(self, words: list[str]) -> None:
        """Count jobs."""
        for line in lines(shapes.status(self.stepper.state)):
            self._line(line)

    def where(self, words: list[str]) -> None:
        """Tell where one stands."""
        stepper, head = self.stepper, self._reader.head
        inside = f", {stepper.in_batch} more in this batch" if stepper.in_batch else ""
        self._line(f"behind position {stepper.position} of {head}{inside}")

    def help(self, words: list[str]) -> None:
        """List the commands."""
        self._output.line(HELP)

    def _show_changed(self) -> None:
        assert self.stepper.last is not None
        self._line(_brief(self.stepper.last))
        self._changes()

    def _changes(self) -> None:
        for line in self.stepper.changed.lines():
            self._line(f"  {line}")

    def _end(self) -> None:
        self._line(f"this is the head, position {self.stepper.position}")

    def _line(self, text: str) -> None:
        self._output.line(shown(text))


def _brief(recorded: e.Recorded) -> str:
    event = recorded.event
    about = " ".join(
        part for part in (event.task, event.repository, event.job, event.run and f"run {event.run}") if part
    )
    fields = shapes.brief(event)
    fields = fields if len(fields) <= _FIELDS_MAX else fields[:_FIELDS_MAX] + "…"
    return " ".join(part for part in (str(recorded.position), type(event).__name__, about, fields) if part)


def _count(words: list[str]) -> int:
    if not words:
        return 1
    if len(words) > 1 or not words[0].isdecimal() or not 1 <= int(words[0]) <= _STEPS_MAX:
        raise InvalidValueError(
            f"{' '.join(words)} is no number of steps", remedy=f"use 1 to {_STEPS_MAX}, as in `next 10`"
        )
    return int(words[0])


def _exactly(words: list[str], count: int, usage: str) -> list[str]:
    if len(words) != count:
        raise InvalidValueError("this command is written otherwise", remedy=usage)
    return words
