"""Templates as text in, text out: Jinja, strict, with repositories' infos fetched when they are first used.

`{{ inp }}` and `{{ inp.field }}` await `inp.info(job)` once; what a template does not use is never fetched.
An undefined name is an error that says which. Filters of ours: `sh` (quoted for a shell), `json`, `yaml`.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Awaitable, Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.nodes
from jinja2.meta import find_undeclared_variables

from datatask.adapters.yaml_text import dump_yaml
from datatask.engine.api.fingerprints import Fingerprint, of_texts
from datatask.engine.api.parameters import Parameter
from datatask.schema.errors import CallerError, DatataskError

LENGTH_MAX = 64 * 1024 * 1024


class TemplateError(CallerError):
    """A template that cannot be read, compiled or rendered."""

    code = "template"


class Lazy:
    """A value that is fetched when a template first uses it, and then kept."""

    def __init__(self, fetch: Callable[[], Awaitable[Any]]) -> None:
        self._fetch = fetch
        self._fetched = False
        self._value: Any = None

    def __await__(self) -> Generator[Any, Any, Any]:
        if not self._fetched:
            self._value = yield from self._fetch().__await__()
            self._fetched = True
        return self._value


class _AwaitingNames(jinja2.compiler.CodeGenerator):
    """Awaits each name that is read, if its value can be awaited."""

    def visit_Name(self, node: jinja2.nodes.Name, frame: jinja2.compiler.Frame) -> None:
        reading = node.ctx == "load" and self.environment.is_async
        self.write("(await auto_await(" if reading else "")
        super().visit_Name(node, frame)
        self.write("))" if reading else "")


class _Environment(jinja2.Environment):
    """Looks a name up in a document before it looks for a method of Python's: `{{ doc.items }}` is the field."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


def _plain(value: Any) -> Any:
    """Return the value; a method, which a name stands for that the document does not have, is an error like others."""
    if callable(value) and not isinstance(value, jinja2.Undefined):
        name = getattr(value, "__name__", type(value).__name__)
        raise jinja2.UndefinedError(f"{name!r} is undefined: it is a method, no value")
    return value


def _quoted(value: object) -> str:
    _plain(value)
    if isinstance(value, list | tuple):
        return shlex.join(str(item) for item in value)
    return shlex.quote(str(value))


def as_yaml(value: object) -> str:
    """Return a value in YAML's flow style, on one line."""
    return dump_yaml(_plain(value), "a template", line=True).decode().removesuffix("\n...\n").strip()


def _environment() -> jinja2.Environment:
    environment = _Environment(
        enable_async=True,
        undefined=jinja2.StrictUndefined,
        finalize=_plain,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.code_generator_class = _AwaitingNames
    environment.filters |= {
        "sh": _quoted,
        "json": lambda value: json.dumps(_plain(value), default=str),
        "yaml": as_yaml,
    }
    return environment


_jinja = _environment()


class Template:
    """A template given as text, or as the path of an existing file; read and compiled at the first use."""

    def __init__(self, source: str | os.PathLike[str], *, where: str) -> None:
        self.source = source
        self.where = where
        self._compiled: jinja2.Template | None = None

    def compile(self) -> jinja2.Template:
        """Return the compiled template; `TemplateError` names file and line of a mistake."""
        if self._compiled is None:
            text, name = self._text()
            try:
                self._compiled = _jinja.from_string(text)
            except jinja2.TemplateSyntaxError as error:
                raise TemplateError(
                    f"{name}, line {error.lineno}: {error.message}", where=self.where
                ) from error
        return self._compiled

    def _text(self) -> tuple[str, str]:
        path = self._path()
        if path is None:
            return str(self.source), "the template"
        try:
            return path.read_text(encoding="utf-8"), f"the template {path}"
        except (OSError, UnicodeError) as error:
            raise TemplateError(f"the template {path} cannot be read: {error}", where=self.where) from error

    def text(self) -> str:
        """Return the template's source; `TemplateError` where its file cannot be read."""
        return self._text()[0]

    def fingerprint(self, given: Mapping[str, Parameter]) -> Fingerprint:
        """Return what it is, without its comments, and the values of the parameters that it names."""
        try:
            tree = _jinja.parse(self.text())
        except (jinja2.TemplateSyntaxError, TemplateError):
            return Fingerprint({})  # which is told where it is compiled
        texts = {"template": repr(tree)}
        for name in sorted(given.keys() & find_undeclared_variables(tree)):
            texts[f"parameter {name}"] = repr(given[name].to_def().value)
        return Fingerprint(of_texts(texts))

    def names(self, variable: str) -> bool:
        """Whether the text uses a variable by this name; true also where the text cannot be read: rendering reports that."""
        try:
            return variable in find_undeclared_variables(_jinja.parse(self.text()))
        except (jinja2.TemplateSyntaxError, TemplateError):
            return True

    def _path(self) -> Path | None:
        if not isinstance(self.source, str):
            return Path(self.source)
        try:
            return Path(self.source) if "\n" not in self.source and os.path.isfile(self.source) else None
        except ValueError:
            return None

    async def render(self, scope: Mapping[str, Any], *, job: str) -> str:
        """Return the text for a job; `TemplateError` names task, job and what is wrong.

        `scope` may hold awaitables such as `Lazy`. What fetching raises passes through if it is ours.
        """
        where = f"{self.where}[{job}]"
        try:
            text = await self.compile().render_async(scope)
        except DatataskError:
            raise
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise TemplateError(
                f"the template does not render: {reason}", where=where, remedy="see the names that it uses"
            ) from error
        if len(text) > LENGTH_MAX:
            raise TemplateError(f"the template rendered to {len(text)} characters", where=where)
        return text
