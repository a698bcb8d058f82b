"""What does not hold, as a value: where, in words, what was expected, what is recorded instead, and what to do."""

from __future__ import annotations

from typing import Any, NamedTuple


class Divergence(NamedTuple):
    """One thing found wrong; `expected` and `recorded` are plain values (text, numbers) or None for nothing."""

    position: int
    what: str
    expected: Any = None
    recorded: Any = None
    remedy: str = ""

    def __str__(self) -> str:
        """Return it as one line; position 0 stands for the file as a whole."""
        where = f"position {self.position}: " if self.position else ""
        line = f"{where}{self.what}: expected {told(self.expected)}, recorded {told(self.recorded)}"
        return f"{line}; {self.remedy}" if self.remedy else line

    def to_json(self) -> dict[str, Any]:
        """Return the documented shape."""
        return self._asdict()


def told(value: Any) -> str:
    """Return an expected or a recorded value in words."""
    return "nothing" if value is None else value if isinstance(value, str) else repr(value)
