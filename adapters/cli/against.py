"""`--against PIPELINE`: the other definition, from whatever names one."""

from __future__ import annotations

from datatask.adapters.cli.loading import load, parse_reference
from datatask.adapters.history.against import Other, other_of, read_definition
from datatask.adapters.log.locate import at_home, locate


def other_definition(text: str) -> Other:
    """Return the definition of a pipeline (as -p names one: declared, not run), of a JSON file, or of a log."""
    path = locate(text).path if "://" in text else at_home(text)
    found = read_definition(path) if path is not None else None
    if found is not None:
        return found
    return other_of(load(parse_reference(text)).pipeline)
