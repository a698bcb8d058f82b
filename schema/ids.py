"""Names that are accepted from outside, and nothing else.

A job id becomes a file name, an object key, a label and an SQL value; the rule is therefore narrow and
the same everywhere: 1-128 ASCII letters, digits, `.`, `_`, `-`, alphanumeric at both ends. Path tricks
(`..`, `a/b`) and look-alikes from other alphabets never match.
"""

from __future__ import annotations

import re
import string

from datatask.schema.errors import InvalidJobError, InvalidValueError

JOB_LENGTH_MAX = 128
JOB_ENDS = string.ascii_letters + string.digits
JOB_CHARACTERS = JOB_ENDS + "._-"
_JOB = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?", re.ASCII)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}", re.ASCII)

_valid_job = _JOB.fullmatch


def is_job(text: object) -> bool:
    """Whether `text` is a job id."""
    return isinstance(text, str) and _valid_job(text) is not None


def check_job(text: str, *, where: object = "") -> str:
    """Return `text` when it is a job id, else raise `InvalidJobError` naming it and `where` (a text, or what has a repr)."""
    if not is_job(text):
        raise InvalidJobError(
            f"{text!r:.160} is not a job id",
            where=where if isinstance(where, str) else repr(where),
            remedy="use 1-128 letters, digits, '.', '_' or '-', with a letter or digit at both ends",
        )
    return text


def check_name(text: str, what: str) -> str:
    """Return `text` when it can name a task, link, quota or pipeline, else raise `CallerError`."""
    if not isinstance(text, str) or _NAME.fullmatch(text) is None:
        raise InvalidValueError(
            f"{text!r:.160} cannot name a {what}",
            remedy="start with a letter or '_' and go on with letters, digits, '_', '-', '.' (128 at most)",
        )
    return text
