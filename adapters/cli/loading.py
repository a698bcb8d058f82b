"""A pipeline from its name: `file.py`, `file.py:attribute`, `module` or `module:attribute`.

The file is run once, as a module that is not `__main__`, with its folder on `sys.path`; what it raises becomes
one line that names file and line. A file that ends in an unguarded `datatask.main(pipeline)` is fine: while it
is being loaded that call does nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, NamedTuple

from datatask.adapters.log.locate import at_home
from datatask.schema.errors import CallerError, InvalidValueError, NotPossibleError
from datatask.schema.troubles import trouble

if TYPE_CHECKING:
    from datatask.adapters.wiring.pipeline import Pipeline

CANDIDATE = "pipeline.py"
_loading: list[str] = []


class Reference(NamedTuple):
    """A parsed name: a file or a module, and the attribute that is asked for, if any."""

    text: str
    file: Path | None = None
    module: str = ""
    attribute: str = ""


class Loaded(NamedTuple):
    """A pipeline, the folder of the file that it came from, and that file's name ("": the running program's)."""

    pipeline: Pipeline
    folder: Path
    program: str = ""


def is_loading() -> bool:
    """Whether a pipeline file is being run right now, so that its own `datatask.main` must not act."""
    return bool(_loading)


def find_reference(text: str | None, folder: Path | None = None) -> Reference | None:
    """Return what `text`, else $DATATASK_PIPELINE, else a file in the working directory, refers to."""
    text = text or os.environ.get("DATATASK_PIPELINE")
    if text:
        return parse_reference(text)
    path = (folder or Path.cwd()) / CANDIDATE
    return Reference(CANDIDATE, file=path) if path.is_file() else None


def parse_reference(text: str) -> Reference:
    """Return the parts of a PIPELINE argument."""
    path, separator, attribute = text.rpartition(":")
    if not separator:
        path, attribute = text, ""
    if path.endswith((".py", ".yaml", ".yml")) or os.sep in path or Path(text).exists():
        whole = Path(text)
        file = whole if whole.exists() and not path.endswith(".py") else Path(path)
        return Reference(text, file=at_home(str(file)).absolute(), attribute=attribute)
    if not all(part.isidentifier() for part in path.split(".")) or (separator and not attribute):
        raise InvalidValueError(
            f"{text!r:.200} names no pipeline", remedy="use file.py, file.py:attribute or module:attribute"
        )
    return Reference(text, module=path, attribute=attribute)


def load(reference: Reference) -> Loaded:
    """Return the pipeline that a reference names; `CallerError` in one line for all that can be wrong."""
    if reference.file is not None:
        file = reference.file
        check_file(file)
        module = _guarded(str(file), lambda: _run_file(file))
    else:
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        module = _guarded(reference.module, lambda: importlib.import_module(reference.module))
        file = Path(getattr(module, "__file__", None) or Path.cwd() / f"{module.__name__}.py")
    return Loaded(_pick(module, reference), file.parent.absolute(), file.name)


def check_file(file: Path) -> None:
    """Raise unless the file is one that can be loaded."""
    if file.is_dir():
        raise CallerError(
            "this is a directory, not a pipeline file",
            where=str(file),
            remedy=f"try -p {file / 'pipeline.py'}",
        )
    if not file.exists():
        raise InvalidValueError(
            "there is no such pipeline file", where=str(file), remedy="check -p, or run `datatask init`"
        )
    if not file.is_file():
        raise InvalidValueError(
            "this is no file that can be read twice", where=str(file), remedy="name a plain file with -p"
        )
    if file.suffix in (".yaml", ".yml"):
        raise NotPossibleError(
            "pipelines in YAML are not there yet",
            where=str(file),
            remedy="declare the pipeline in Python: `datatask init` makes an example",
        )


def names_log(file: Path) -> bool:
    """Whether a pipeline file gives its `Pipeline` a log; it is read, not run. One that cannot be read gives none."""
    try:
        source = file.read_bytes()
        if b"log" not in source and b"**" not in source:
            return False
        import ast  # takes long, and most files name no log

        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(
        getattr(call.func, "id", getattr(call.func, "attr", "")) == "Pipeline"
        and any(keyword.arg in ("log", None) for keyword in call.keywords)
        for call in calls
    )


def _run_file(file: Path) -> ModuleType:
    folder = str(file.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = file.stem
    known = sys.modules.get(name)
    if not name.isidentifier() or (known is not None and not _is_at(known, file)) or _is_taken(name, file):
        name = f"datatask_pipeline_{abs(hash(str(file))):x}"
    spec = importlib.util.spec_from_file_location(name, file, loader=_FreshLoader(name, str(file)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # functions must be found again by name in worker processes
    spec.loader.exec_module(module)
    return module


class _FreshLoader(SourceFileLoader):
    """Always compiles the file as it is: cached bytecode is told by size and second, too coarse for an edit."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the source."""
        return self.source_to_code(self.get_data(self.path), self.path)


def _is_at(module: ModuleType, file: Path) -> bool:
    found = getattr(module, "__file__", None)
    return found is not None and Path(found).absolute() == file


def _is_taken(name: str, file: Path) -> bool:
    """Whether importing `name` would give something else than this file, as `json` or `datatask` would."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and (spec.origin is None or Path(spec.origin).absolute() != file)


def _guarded(what: str, run: Callable[[], ModuleType]) -> ModuleType:
    _loading.append(what)
    try:
        return run()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        from datatask.adapters.execute.base.pressure import (
            is_momentary,
        )  # with it comes asyncio, and --help is to be fast

        where = _place(error, what)
        if is_momentary(error) and (known := trouble(error, where)) is not None:
            raise known from error  # no mistake of the file's
        raise CallerError(_described(error), where=where, remedy="mend the pipeline file") from error
    finally:
        _loading.pop()


def _described(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg}"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}" if text else type(error).__name__


def _place(error: BaseException, what: str) -> str:
    """Return `file:line` of the innermost frame in the file itself, else of the innermost one at all."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if frame.filename == what]
    others = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    chosen = (mine or others)[-1:]
    return f"{chosen[0].filename}:{chosen[0].lineno}" if chosen else what


def _pick(module: ModuleType, reference: Reference) -> Pipeline:
    pipeline = _named(module, reference)
    _check_parameters(module, reference)
    return pipeline


def _check_parameters(module: ModuleType, reference: Reference) -> None:
    """Raise for a parameter that no pipeline of the file lists: nothing would record it."""
    from datatask.adapters.wiring.pipeline import Pipeline
    from datatask.engine.api.parameters import Parameter

    pipelines = [value for value in vars(module).values() if isinstance(value, Pipeline)]
    for value in vars(module).values():
        if isinstance(value, Parameter) and not any(
            value is pipeline.parameters.get(value.name) for pipeline in pipelines
        ):
            raise CallerError(
                f"the pipeline does not list the parameter {value.name}",
                where=reference.text,
                remedy="give it to the pipeline: Pipeline(…, parameters=[…])",
            )


def _named(module: ModuleType, reference: Reference) -> Pipeline:
    from datatask.adapters.wiring.pipeline import Pipeline

    if reference.attribute:
        found = getattr(module, reference.attribute, None)
        if isinstance(found, Pipeline):
            return found
        what = "is no Pipeline" if found is not None else "is not there"
        raise CallerError(f"{reference.attribute} {what}", where=reference.text, remedy=_choices(module))
    pipelines = {id(value): name for name, value in vars(module).items() if isinstance(value, Pipeline)}
    if len(pipelines) != 1:
        what = "holds no pipeline" if not pipelines else f"holds {len(pipelines)} pipelines"
        raise CallerError(f"this file {what}", where=reference.text, remedy=_choices(module))
    (name,) = pipelines.values()
    chosen = getattr(module, name)
    assert isinstance(chosen, Pipeline)
    return chosen


def _choices(module: ModuleType) -> str:
    from datatask.adapters.wiring.pipeline import Pipeline

    names = [name for name, value in vars(module).items() if isinstance(value, Pipeline)]
    if not names:
        return "assign a datatask.Pipeline to a name at the top level of the file"
    return "name one: " + ", ".join(f"FILE:{name}" for name in names)
