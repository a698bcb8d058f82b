"""What a name that is none may have been meant to be."""

from __future__ import annotations

from collections.abc import Collection

from datatask.schema.errors import UnknownNameError


def unknown(name: str, known: Collection[str]) -> UnknownNameError:
    """Return the error for a name that is none, with the nearest ones that are."""
    import difflib

    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5) or sorted(known)[:20]
    return UnknownNameError(f"there is no {name}", remedy="use one of: " + ", ".join(near) if near else "")
