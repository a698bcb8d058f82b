"""The package as it is installed: the links, the lazy facade, and README's two commands."""

import ast
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import datatask

ROOT = Path(__file__).resolve().parents[2]
LINKS = ("adapters", "engine", "schema")


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


def copy_without_links(target: Path) -> None:
    """What a checkout with core.symlinks=false looks like: each link is a text file that holds its path."""
    (target / "datatask").mkdir()
    for path in ROOT.glob("datatask/*.py"):
        shutil.copy(path, target / "datatask")
    for name in LINKS:
        (target / "datatask" / name).write_text(f"../{name}")
        (target / name).mkdir()
        shutil.copy(ROOT / name / "__init__.py", target / name)
    shutil.copy(ROOT / "setup.py", target)


@pytest.mark.parametrize("name", LINKS)
def test_the_import_name_holds_a_link_to_each_room(name: str) -> None:
    link = ROOT / "datatask" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", name)


def test_a_build_from_a_checkout_without_links_fails_with_one_line(tmp_path: Path) -> None:
    copy_without_links(tmp_path)
    done = python("setup.py", "--version", cwd=tmp_path)
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "no symbolic links" in line
    assert "datatask/engine" in line
    assert "core.symlinks" in line


def test_a_build_from_folders_in_place_of_links_passes_the_check(tmp_path: Path) -> None:
    """An sdist holds folders where the checkout has links."""
    copy_without_links(tmp_path)
    for name in LINKS:
        (tmp_path / "datatask" / name).unlink()
        shutil.copytree(tmp_path / name, tmp_path / "datatask" / name)
    done = python("-c", "import setup; from pathlib import Path; setup.check_links(Path.cwd())", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("asked", "unloaded"), [("datatask", "datatask."), ("datatask.schema", "datatask.engine")]
)
def test_importing_a_room_loads_no_other(asked: str, unloaded: str, tmp_path: Path) -> None:
    loaded = (
        "print(*(name for name, module in sys.modules.items() if module is not datatask))"  # nor its aliases
    )
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {asked}, datatask; {loaded}"
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [
        name for name in done.stdout.split() if name.startswith((unloaded, "sqlalchemy", "click", "numpy"))
    ] == []


@pytest.mark.parametrize("name", sorted(datatask._HOME))
def test_a_public_name_is_where_the_table_says(name: str) -> None:
    assert getattr(datatask, name) is getattr(import_module(datatask._HOME[name]), name)
    assert name in dir(datatask)
    assert name in datatask.__all__


def test_checkers_see_the_names_that_the_table_has() -> None:
    tree = ast.parse((ROOT / "datatask" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname: node.module for node in imports for alias in node.names}
    assert seen == datatask._HOME


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'datatask' has no attribute 'Pipelime'"):
        _ = datatask.Pipelime


@pytest.mark.parametrize("title", ["Run it", "Test it"])
def test_readme_has_one_command_line_for_it(title: str) -> None:
    """`.ci/run` runs the second one to the letter."""
    section = (ROOT / "README.md").read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    (command,) = re.findall(r"^```sh\n(.*?)\n```$", section, flags=re.DOTALL | re.MULTILINE)[:1]
    assert len(command.splitlines()) == 1
    for path in re.findall(r"[\w/]+\.(?:py|yaml)\b", command):
        assert (ROOT / path).is_file()


SUITE = """
import asyncio
import pytest

@pytest.mark.server("no-such-program-anywhere")
def test_missing(): ...

@pytest.mark.server("sh")
async def test_present(tmp_path):
    await asyncio.sleep(0)
    assert tmp_path.is_dir()

async def test_wrong():
    await asyncio.sleep(0)
    assert False
"""


@pytest.mark.parametrize(
    ("ci", "summary"), [("", "1 failed, 1 passed, 1 skipped"), ("true", "1 failed, 1 passed, 1 error")]
)
def test_a_missing_server_skips_here_and_fails_in_ci(
    ci: str, summary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: coroutine tests are run, and can fail."""
    monkeypatch.setenv("CI", ci)
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = server\n")
    (tmp_path / "test_suite.py").write_text(SUITE)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for tests.effort
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path)
    assert summary in done.stdout


@pytest.mark.parametrize("name", ["PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"])
def test_what_the_tests_compile_is_kept_in_every_environment(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the sources, or in the folder of pytest's cache where that is not wanted; also by processes that they start."""
    for variable in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    code = "import subprocess, sys\nfrom tests import bytecode\nbytecode.keep()\nsubprocess.run([sys.executable, '-c', %r])"
    shown = "import sys; print(sys.dont_write_bytecode, sys.pycache_prefix)"
    folder = ROOT / ".pytest_cache" / "bytecode" if name == "PYTHONDONTWRITEBYTECODE" else None
    assert python("-c", code % shown, cwd=tmp_path).stdout == f"False {folder}\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [("S3BucketReader", "async with repository.open"), ("ExecutorLiveRepo", "task.live"), ("fuse", "datatask ls")],
)  # fmt: skip
def test_names_of_pydatatask_that_are_not_there_say_so(name: str, words: str) -> None:
    with pytest.raises(ImportError, match=f"pydatatask's {name} is not there in datatask: .*{words}"):
        exec(f"from datatask import {name}")
    with pytest.raises(ImportError, match=words):
        getattr(datatask.repository, name)
    page = (ROOT / "docs" / "coming-from-pydatatask.md").read_text()
    assert all(f"`{absent}`" in page for absent in datatask._ABSENT)


def test_loggers_bear_the_names_of_pydatatask_or_of_its_own_parts() -> None:
    """A script that has set the level of `pydatatask.repository` does so for `datatask.repository`."""
    known = {f"datatask.{name}" for name in (*datatask._FORMER, "main", "engine", "log")}
    found = {
        name
        for room in ("engine", "adapters", "schema")
        for path in (ROOT / room).rglob("*.py")
        for name in re.findall(r'getLogger\("(datatask[^"]*)"\)|getLogger\((__name__)\)', path.read_text())
        for name in name
        if name
    }
    assert {"datatask.repository", "datatask.task", "datatask.pipeline"} <= found <= known
