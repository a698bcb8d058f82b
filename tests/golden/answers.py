"""What is asked of a golden log, and what was answered when it was written.

`questions(folder)` gives the answer to each question by its name; those in `answers.json` are what later versions must
give too. A later version may add names to the questions; it never changes or leaves out one that was answered.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from datatask.adapters.history import shapes
from datatask.adapters.history.history import History
from datatask.adapters.history.replay import replay
from datatask.adapters.history.verify.verify import verify
from datatask.engine.core.checkpoints import fingerprint

ANSWERS = "answers.json"


def questions(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield names and answers."""
    with History(folder / "log.db") as history:
        reader = history.reader
        boundaries = [batch.last for batch in reader.batches()]
        yield "log", [shapes.event(found) for found in reader.read()]
        yield "chain", {position: reader.chain_at(position).hex() for position in boundaries}
        for position in boundaries:
            yield f"status at {position}", history.status(position)["tasks"]
        state = history.state()
        for task in state.tasks:
            for job in state.jobs:
                yield f"why {task} {job}", history.why(task, job, history.head).to_json()
            yield f"why {task}", history.why(task, at=history.head)
        for job in state.jobs:
            yield f"trace {job}", history.trace(job, history.head).to_json()
            yield f"lineage {job}", history.lineage(job, history.head, whole=True).to_json()
        yield "runs by task and state", list(history.runs(by=["task", "state"], at=history.head))
        yield "waiting", list(history.waiting(at=history.head))
        for view in ("runs", "values_now", "lineage"):
            yield view, list(history.query(f"SELECT * FROM {view}"))
        yield "fingerprint", fingerprint(state)
    replayed = replay(folder / "log.db", verify=True)
    yield "verify", verify(folder / "log.db").ok
    yield "replay", {"chain": replayed.chain, "divergences": [one.to_json() for one in replayed.divergences]}


def plain(answer: Any) -> Any:
    """Return an answer as JSON has it."""
    return json.loads(msgspec.json.encode(answer, enc_hook=str))


def write(folder: Path) -> None:
    """Write the answers of a log that is new."""
    answers = {name: plain(answer) for name, answer in questions(folder)}
    (folder / ANSWERS).write_text(json.dumps(answers, indent=1, sort_keys=True) + "\n")
