"""What goes wrong on the command line: one line, the right exit code, never a traceback; help and documentation."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import click
import pytest

from datatask.adapters.cli.commands import COMMANDS
from datatask.adapters.cli.main import make_group
from datatask.adapters.cli.settings import Settings
from tests.integration.cli_kit import PIPELINE, Project

ROOT = Path(__file__).resolve().parents[2]
GROUP = make_group(Settings())
CONTEXT = click.Context(GROUP, info_name="datatask")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with a log in which one job is done."""
    return Project.after_a_run(tmp_path)


BAD_CALLS = [
    (["nope"], "there is no command nope"),
    (["statsu"], "Did you mean status"),
    (["status", "--nope"], "no such option"),
    (["status", "extra"], "unexpected extra argument"),
    (["launch", "nope", "a"], "there is no task nope"),
    (["launch", "doubel", "a"], "use one of: double"),
    (["pause", "double", "nope"], "there is no task nope"),
    (["why", "nope"], "there is no task nope"),
    (["launch", "double", "../a"], "'../a' is not a job id"),
    (["cancel", "double", "a/b"], "is not a job id"),
    (["trace", "аdmin"], "is not a job id"),
    (["rm", "double", "a", "-"], "is not a job id"),
    (["rm", "nope", "a"], "there is no repository nope"),
    (["rm", "double.nope", "a"], "there is no repository double.nope"),
    (["rm", "succeeded(double)", "a"], "nothing can be deleted"),
    (["ls", "double.nope"], "there is no double.nope"),
    (["ls", "double.done", "&"], "column"),
    (["ls", "__import__('os')"], "'(' is not expected"),
    (["cat", "double.done", "nobody"], "nobody is not there"),
    (["cat", "double.nope", "a"], "there is no repository"),
    (["inject", "double.numbers"], "takes a job"),
    (["inject", "double.numbers", "a", "--from", "x"], "takes a job"),
    (["inject", "double.numbers", "--from", "missing.csv"], "nothing to inject from"),
    (["inject", "succeeded(double)", "a"], "follows from other repositories"),
    (["retry", "double"], "takes a task with jobs or --failed"),
    (["retry", "double", "nobody"], "nobody has no ended run"),
    (["status", "--at", "yesterday"], "is no point in time"),
    (["status", "--at", "99999"], "beyond the head"),
    (["status", "--at", "9" * 30], "is no point in time"),
    (["status", "--at", "1", "--watch"], "looks at the present"),
    (["log", "--kind", "RunEnd"], "use one of: RunEnded"),
    (["runs", "--limit", "0"], "not in the range"),
    (["runs", "--fields", "nope"], "there is no field nope"),
    (["query", "SELECT nope FROM runs"], "no such column"),
    (["query", "DELETE FROM log"], "DELETE is refused"),
    (["query", "ATTACH 'x.db' AS x"], "ATTACH is refused"),
    (["query", "SELECT 1; SELECT 2"], "one"),
    (["run", "--timeout", "0"], "not in the range"),
    (["run", "--timeout", "-1"], "not in the range"),
    (["run", "--forever", "--launch-once"], "contradict"),
    (["graph", "--format", "png"], "is not one of"),
    (["completion", "tcsh"], "is not one of"),
    (["-p", "missing.py", "run"], "no such pipeline file"),
    (["-p", "files", "run"], "this is a directory"),
    (["-p", ".", "run"], "this is a directory"),
    (["-p", "pipeline.yaml", "run"], "no such pipeline file"),
    (["-p", "pipeline.py:nope", "run"], "nope is not there"),
    (["-p", "pipeline.py:session", "run"], "session is no Pipeline"),
    (["-p", "no_such_module:pipeline", "run"], "ModuleNotFoundError"),
    (["-p", "json:loads", "run"], "loads is no Pipeline"),
    (["-p", "a b", "run"], "names no pipeline"),
    (["--log", "missing.db", "status"], "there is no log here"),
    (["--log", ".", "status"], "this is a directory"),
    (["--log", ".", "run"], "this is a directory"),
    (["--log", "mysql://x", "status"], "is not the place of a log"),
    (["--log", "memory:", "status"], "in memory"),
    (["replay", "missing.db"], "there is no log here"),
    (["--color", "blue", "status"], "is not one of"),
]


@pytest.mark.parametrize(
    ("arguments", "expected"), BAD_CALLS, ids=[" ".join(call)[:40] for call, _ in BAD_CALLS]
)
def test_a_wrong_call_is_one_line_and_exit_code_2(
    project: Project, arguments: list[str], expected: str
) -> None:
    """On stderr, without a traceback; with --json the documented object on stdout."""
    before = project.log.read_bytes()
    result = project.call(*arguments)
    assert (result.code, result.out) == (2, ""), result
    assert re.fullmatch(r"(warning: .*\n)?datatask: .*\n", result.err), result.err
    assert expected.lower() in result.err.lower()
    shaped = project.call(*arguments, "--json")
    assert shaped.code == 2
    assert shaped.json.keys() == {"error"}
    assert shaped.json["error"].keys() == {"code", "what", "where", "remedy"}
    if arguments[0] != "retry":  # the engine alone knows which runs have ended
        assert project.log.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\nraise ValueError('two\\nlines')\n", r"pipeline.py:2: ValueError: two lines"),
        ("def f(:\n", r"pipeline.py:1: SyntaxError"),
        ("import no_such_module\n", r"pipeline.py:1: ModuleNotFoundError"),
        ("x = 1\n", r"holds no pipeline"),
        (PIPELINE + "\nother = datatask.Pipeline([], session, [])\n", r"holds 2 pipelines.*FILE:pipeline, FILE:other"),
        ("import sys\nsys.exit(3)\n", r"pipeline.py:2: SystemExit: 3"),
        (PIPELINE.replace('"doubled", doubled, is_output', '"numbers", doubled, is_output'), r"pipeline.py:14: .*numbers already"),
    ],
)  # fmt: skip
def test_a_pipeline_file_that_is_wrong_is_told_by_file_and_line(
    project: Project, text: str, expected: str
) -> None:
    """One line, exit code 2, whatever it raises."""
    (project.folder / "pipeline.py").write_text(text)
    result = project.call("run")
    assert result.code == 2
    assert re.search(expected, result.err), result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        ("MemoryError", "pipeline.py:2: no memory is left; end something, "),
        ("OSError(28, 'No space left on device')", "pipeline.py:2: the disk is full (No space left on device); free some space"),
    ],
)  # fmt: skip
def test_what_the_machine_refuses_a_pipeline_file_is_no_mistake_of_the_file(
    project: Project, raised: str, expected: str
) -> None:
    (project.folder / "pipeline.py").write_text(f"# loaded when the machine has no room\nraise {raised}\n")
    refused = project.call("run")
    assert refused.code == 1
    assert expected in refused.err
    assert "mend" not in refused.err


def test_yaml_pipelines_are_refused_by_name(project: Project) -> None:
    """One that only lies in the folder is no pipeline."""
    (project.folder / "pipeline.yaml").write_text("tasks: {}\n")
    assert project.call("plan").code == 0
    result = project.call("-p", "pipeline.yaml", "run")
    assert result.code == 2
    assert "not there yet" in result.err


def test_environment_variables_name_pipeline_and_log(project: Project) -> None:
    """--log and -p win over them."""
    shutil.move(project.folder / "pipeline.py", project.folder / "other.py")
    shutil.copytree(project.log.parent, project.folder / "copy")
    assert project.call("plan").code == 2
    assert project.call("plan", env={"DATATASK_PIPELINE": "other.py"}).code == 0
    log = {"DATATASK_LOG": "copy/log.db"}
    assert "/copy/log.db" in project.call("status", "--json", env=log).json["log"]["url"]
    assert (
        "/.datatask/"
        in project.call("--log", ".datatask/log.db", "status", "--json", env=log).json["log"]["url"]
    )


def test_a_damaged_log_is_exit_code_5_and_verify_finds_the_position(project: Project) -> None:
    """Not a database, cut off, overwritten, of a newer version: each by name."""
    good = project.log.read_bytes()
    project.log.write_bytes(b"this is no database " * 100)
    refused = project.call("status")
    assert refused.code == 5
    assert "not a log" in refused.err
    assert project.call("doctor").code == 5
    project.log.write_bytes(b"")
    assert project.call("status").code == 5
    project.log.write_bytes(good[: len(good) // 2])
    assert project.call("log").code == 5
    project.log.write_bytes(good)
    with closing(sqlite3.connect(project.log)) as connection:
        connection.execute('UPDATE log SET payload = \'{"value":{"n":7}}\' WHERE position = 4')
        connection.commit()
    found = project.call("verify", "--json")
    assert found.code == 3
    assert found.json["chain"] == {"broken_at": 4}
    project.log.write_bytes(good)
    with closing(sqlite3.connect(project.log)) as connection:
        connection.execute("UPDATE meta SET value = 99 WHERE key = 'may_read'")
        connection.commit()
    newer = project.call("status")
    assert newer.code == 5
    assert "newer" in newer.err


def test_control_characters_from_outside_do_not_reach_the_terminal(project: Project) -> None:
    """What a value, an error or a reason says is shown, and does not act."""
    project.ok("pause", "double", "--reason", "\x1b[31mred\x07")
    assert "\x1b" not in project.ok("log", "--kind", "TaskPaused").out
    assert "\x1b" not in project.ok("query", "SELECT char(27) || '[31m' AS c").out


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("x.csv", "n\n1\n", "no column job"),
        ("x.csv", "job,n\na\n", "x.csv:2"),
        ("x.csv", "job,n\na/b,1\n", "'a/b' is not a job id"),
        ("x.jsonl", '{"job": "a"}\nnope\n', "x.jsonl:2: not JSON"),
        ("x.jsonl", '{"n": 1}\n', 'x.jsonl:1: this line has no "job"'),
        ("x.txt", "a", "cannot be injected from"),
    ],
)
def test_a_bad_source_puts_nothing(project: Project, name: str, text: str, expected: str) -> None:
    """The first lines may be fine: all is checked before the first value is put."""
    good = {"x.csv": "job,n\n", "x.jsonl": '{"job": "good", "n": 1}\n'}.get(name, "")
    (project.folder / name).write_text(text if text.startswith(("n", "job")) else good + text)
    result = project.call("inject", "double.numbers", "--from", name)
    assert result.code == 2
    assert expected.split(":")[-1] in result.err
    assert project.ok("ls", "numbers").lines == ["a"]


# --- help and documentation -------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_parses(name: str) -> None:
    """Each example names real commands and options."""
    command = GROUP.get_command(CONTEXT, name)
    assert command is not None
    with click.Context(command, info_name=name, parent=CONTEXT) as context:
        text = command.get_help(context)
    assert "Example:\n" in text
    examples = [
        line.partition("datatask ")[2]
        for line in text.split("Example:\n")[1].splitlines()
        if "datatask" in line
    ]
    assert examples
    for example in examples:
        flags = set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", example.split("#")[0].split(" > ")[0]))
        known = {
            flag
            for part in (command, GROUP)
            for option in part.params
            for flag in (*option.opts, *option.secondary_opts)
        }
        assert flags <= known | {"-1h", "-2h", "-1d"}, example


def test_every_command_and_option_is_documented() -> None:
    """docs/cli.md has a section for each command, and names each of its options there or among the common ones."""
    text = (ROOT / "docs" / "cli.md").read_text()
    common, *sections = re.split(r"^### ", text, flags=re.MULTILINE)
    documented = {section.split("\n")[0]: section for section in sections}
    assert set(documented) == set(COMMANDS)
    for name, section in documented.items():
        command = GROUP.get_command(CONTEXT, name)
        assert command is not None
        for option in command.params:
            if isinstance(option, click.Option):
                for flag in (*option.opts, *option.secondary_opts):
                    assert f"`{flag}" in section + common, f"{name} {flag}"


def test_the_table_says_what_the_commands_say() -> None:
    """One line of help in the table, the same as the first of the command's own."""
    for name, entry in COMMANDS.items():
        command = GROUP.get_command(CONTEXT, name)
        assert command is not None
        assert command.name == name
        assert entry.help.endswith(".")


def test_help_is_fast_because_it_imports_next_to_nothing() -> None:
    """Neither SQLAlchemy nor the other heavy ones; the commands themselves are not imported either."""
    script = (
        "import sys; from datatask.adapters.cli.main import invoke; invoke(['--help']);"
        "print([name for name in ('sqlalchemy', 'numpy', 'jinja2', 'rich', 'yaml', 'asyncio', 'pyroaring',"
        " 'datatask.adapters.cli.run') if name in sys.modules], file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert found.stderr == "[]\n"


def test_output_that_nobody_reads_ends_quietly(project: Project) -> None:
    """`datatask log | head -1` is no error."""
    lines = "".join(json.dumps({"job": f"j{i}", "n": i}) + "\n" for i in range(2000))
    (project.folder / "many.jsonl").write_text(lines)
    project.ok("inject", "numbers", "--from", "many.jsonl")
    command = f"{sys.executable} -m datatask log | head -1"
    found = subprocess.run(
        command, shell=True, cwd=project.folder, capture_output=True, text=True, timeout=60
    )
    assert found.stdout.count("\n") == 1
    assert found.stderr == ""


def test_a_reader_that_has_seen_enough_is_no_failure(project: Project) -> None:
    """`datatask log | head -1` under `set -o pipefail`: exit code 0, and not a word."""
    project.put(**{f"job{number}": number for number in range(2000)})
    process = project.spawn("log")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(100) == 0
    assert process.stderr is not None
    with process.stderr as told:
        assert told.read() == b""
