"""Values from outside, as items of a request: one from stdin, or many from a folder, a CSV or JSON lines.

In: a source and whether the repository takes documents or bytes. Out: (job, content) pairs, checked, one at a
time, and portions of them that fit into one request each. Documents are read as YAML, of which JSON is part.
"""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from datatask.engine.api.streams import BLOCK_BYTES
from datatask.engine.ports import Blobs
from datatask.schema.errors import CallerError, InvalidValueError, NotPossibleError
from datatask.schema.messages import Item
from datatask.schema.values import INLINE_BYTES_MAX, check_job, encode_value

PORTION_ITEMS = 1000
PORTION_BYTES = 4 * 1024 * 1024
LINE_BYTES_MAX = 64 * 1024 * 1024
_WORDS: dict[str, Any] = {"": None, "true": True, "false": False, "null": None}


def document_of(data: bytes, where: str) -> bytes:
    """Return YAML text as the JSON that events hold."""
    from datatask.adapters.yaml_text import load_yaml

    return encode_value(load_yaml(data, where, typed=True))


Content = bytes | Path
"""A document's JSON, or bytes: given, or in a file that is read when its turn comes."""


def item(job: str, content: Content, documents: bool, blobs: Blobs) -> Item:
    """Return the item for a value; what does not travel in the event is put among the blobs first."""
    if isinstance(content, Path):
        digest, size = blobs.put_file(content)
    elif documents and len(content) <= INLINE_BYTES_MAX:
        return Item(job=job, value=msgspec.Raw(content))
    else:
        digest, size = blobs.put_bytes(content)
    return Item(job=job, digest=digest, size=size)


class Spooled:
    """Bytes that come as a stream: taken among the blobs once, in constant memory, and the same item ever after."""

    def __init__(self, stream: BinaryIO, job: str) -> None:
        self._stream = stream
        self._job = job
        self._item: Item | None = None

    def item(self, blobs: Blobs) -> Item:
        """Return the item, after the stream has ended."""
        if self._item is None:
            fresh = blobs.new()
            try:
                with fresh.open("xb") as file:
                    shutil.copyfileobj(self._stream, file, BLOCK_BYTES)
                digest, size = blobs.adopt(fresh)
            except BaseException:
                fresh.unlink(missing_ok=True)
                raise
            self._item = Item(job=self._job, digest=digest, size=size)
        return self._item


def read_many(source: Path, documents: bool, extension: str | None) -> Iterator[tuple[str, Content]]:
    """Yield (job, content) from a folder, `.csv`, `.jsonl` or `.ndjson`; errors name the file and line."""
    if source.is_dir():
        yield from _folder(source, documents, extension)
        return
    if not source.is_file():
        raise InvalidValueError("there is nothing to inject from", where=str(source), remedy="check --from")
    readers = {".csv": _csv, ".jsonl": _lines, ".ndjson": _lines}
    reader = readers.get(source.suffix.lower())
    if reader is None:
        raise NotPossibleError(
            f"{source.suffix or 'a file without a suffix'} cannot be injected from",
            where=str(source),
            remedy="use a directory, .csv, .jsonl or .ndjson",
        )
    for where, job, value in reader(source):
        yield check_job(job, where=where), _content(value, documents, where)


def portions(
    pairs: Iterable[tuple[str, Content]], documents: bool, blobs: Blobs
) -> Iterator[tuple[Item, ...]]:
    """Yield items in portions that are one request each."""
    part: list[Item] = []
    size = 0
    for job, content in pairs:
        part.append(item(job, content, documents, blobs))
        size += len(part[-1].value)
        if len(part) == PORTION_ITEMS or size >= PORTION_BYTES:
            yield tuple(part)
            part, size = [], 0
    if part:
        yield tuple(part)


def _content(value: Any, documents: bool, where: str) -> bytes:
    if documents:
        return encode_value(value)
    if not isinstance(value, str):
        raise InvalidValueError(
            "a repository of bytes takes text here", where=where, remedy='write {"job": "…", "value": "text"}'
        )
    return value.encode()


def _folder(folder: Path, documents: bool, extension: str | None) -> Iterator[tuple[str, Content]]:
    seen: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name.startswith("."):
            continue
        if extension is not None and not path.name.endswith(extension):
            continue
        job = path.name[: len(path.name) - len(extension)] if extension else path.stem
        check_job(job, where=str(path))
        if job in seen:
            raise InvalidValueError(
                f"{seen[job]} and {path.name} are both job {job}", where=str(folder), remedy="say --extension"
            )
        seen[job] = path.name
        yield job, document_of(path.read_bytes(), str(path)) if documents else path


def _csv(source: Path) -> Iterator[tuple[str, str, Any]]:
    with source.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            if reader.fieldnames is None or "job" not in reader.fieldnames:
                raise InvalidValueError(
                    "the first line has no column job", where=str(source), remedy="name one column job"
                )
            for row in reader:
                where = f"{source}:{reader.line_num}"
                if None in row or None in row.values():
                    raise InvalidValueError("this line has not as many cells as the first", where=where)
                job = row.pop("job")
                yield (
                    where,
                    job,
                    row["value"] if list(row) == ["value"] else {k: _scalar(v) for k, v in row.items()},
                )
        except csv.Error as error:
            raise InvalidValueError(f"not CSV: {error}", where=f"{source}:{reader.line_num}") from error
        except UnicodeDecodeError as error:
            raise _not_utf8(source) or error from error


def _not_utf8(source: Path) -> CallerError | None:
    """Return the error for a file in another encoding, with the line: text is read ahead, so its reader does not know."""
    with source.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES_MAX), b""), 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                wide = number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff"))
                return InvalidValueError(
                    f"this is not UTF-8 (byte 0x{line[error.start]:02x} at {error.start + 1})",
                    where=f"{source}:{number}",
                    remedy=f"convert it: iconv -f {'UTF-16' if wide else 'LATIN1'} -t UTF-8",
                )
    return None


def _scalar(text: str) -> Any:
    """Return a cell's number, truth value or nothing where it is written as we would write it, else its text."""
    if text in _WORDS:
        return _WORDS[text]
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if repr(number) == text and math.isfinite(number):
            return number
    return text


def _is_text(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _lines(source: Path) -> Iterator[tuple[str, str, Any]]:
    with source.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES_MAX), b""), 1):
            where = f"{source}:{number}"
            if not line.strip():
                continue
            try:
                value = msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise (None if _is_text(line) else _not_utf8(source)) or InvalidValueError(
                    f"not JSON: {error}", where=where, remedy="write one object a line"
                ) from error
            if not isinstance(value, dict) or not isinstance(value.get("job"), str):
                raise InvalidValueError(
                    'this line has no "job"', where=where, remedy='write {"job": "…", "value": …}'
                )
            job = value.pop("job")
            yield where, job, value["value"] if list(value) == ["value"] else value
