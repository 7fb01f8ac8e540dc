"""The command line as a whole: its table of commands, its refusals, and its exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from children import BARE
from daemons import ROOT

from stonemux import __version__, cli
from stonemux.parser import Parser

ENVIRON = {"HOME": "/nowhere"}


def typed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Status, standard output and standard error of a command."""
    try:
        status = cli.main(arguments, ENVIRON)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    return status, *capsys.readouterr()


def test_help_lists_every_command(capsys):
    status, out, err = typed(capsys, "--help")
    assert (status, err) == (0, "")
    for command in cli.COMMANDS:
        assert f"\n  {command.name} " in out
        assert command.help in out


def test_no_command_is_help_and_status_2(capsys):
    status, out, err = typed(capsys)
    assert (status, out) == (2, "")
    assert err.startswith("usage: stonemux COMMAND")


def test_the_version_is_told(capsys):
    for word in ("--version", "-V", "version"):
        assert typed(capsys, word) == (0, f"stonemux {__version__}\n", "")


def test_what_users_of_other_programs_type_leads_to_what_exists(capsys):
    for elsewhere, here in cli.HABITS.items():
        assert f"; did you mean stonemux {here}?" in typed(capsys, elsewhere)[2]
        assert typed(capsys, *here.split(), "--help")[0] == 0


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_each_command_explains_itself(capsys, command):
    status, out, err = typed(capsys, command.name, "--help")
    assert (status, err) == (0, "")
    assert f"usage: stonemux {command.name} " in out
    parser = Parser(prog="x")
    module = import_module(f"stonemux.commands.{command.module}")
    module.add_arguments(parser)
    assert module.__doc__.split("\n")[0] in out
    assert all(action.help for action in parser._actions), "every flag says what it does"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["serv"], "stonemux: unknown command 'serv'; did you mean serve? (see stonemux --help)"),
        (["send"], "stonemux: unknown command 'send'; did you mean stonemux msg send?"),
        (
            ["requeue"],
            "stonemux: unknown command 'requeue'; did you mean stonemux msg requeue or stonemux task requeue?",
        ),
        (["start"], "stonemux: unknown command 'start'; did you mean stonemux serve?"),
        (["xyzzy"], "stonemux: unknown command 'xyzzy' (see stonemux --help)"),
        (["task", "create"], "stonemux: task has no verb 'create'; did you mean post?"),
        (["task", "show", "1"], "stonemux: task has no verb 'show'; did you mean get?"),
        (
            ["msg", "send", "ann", "hi"],
            "stonemux: one word too many: 'hi'; only CONTENT may be given without a flag",
        ),
        (["state", "put", "k", "v"], "stonemux: state has no verb 'put'; did you mean set?"),
        (["state", "zzz"], "stonemux: state has no verb 'zzz'. It has: get, set,"),
        (["stop"], "stonemux: unknown command 'stop'; Ctrl-C or SIGTERM stops a daemon"),
        (["restart"], "stonemux: unknown command 'restart'; Ctrl-C or SIGTERM stops a daemon"),
        (["serve", "--foo"], "stonemux serve: unknown flag --foo (see stonemux serve --help)"),
        (["serve", "--prot", "1"], "stonemux serve: unknown flag --prot; did you mean --port?"),
        (["serve", "--debug"], "stonemux serve: unknown flag --debug (see stonemux serve --help)"),
        (["msg", "send", "--message", "hi"], "stonemux: unknown flag --message; did you mean --content?"),
        (["agent", "register", "--name", "ann"], "stonemux: unknown flag --name; did you mean --agent-id?"),
        (["task", "post", "--zzz", "x"], "stonemux: unknown flag --zzz (see stonemux task post --help)"),
        (
            ["--port", "1", "serve"],
            "stonemux: --port goes after the command: stonemux COMMAND --port ... (see stonemux",
        ),
        (["-q", "task", "list"], "stonemux: -q goes after the command: stonemux COMMAND -q ... (see stonemux"),
        (["--frob", "serve"], "stonemux: unknown flag --frob before a command (see stonemux --help)"),
        (["info"], "stonemux: unknown command 'info'; did you mean stonemux status?"),
        (["messages"], "stonemux: unknown command 'messages'; did you mean stonemux msg list?"),
        (["msg", "show", "1"], "stonemux: msg has no verb 'show'; did you mean stonemux show ID?"),
        (
            ["run", "--agent", "a", "claude", "-p"],
            "stonemux run: unknown flag -p; put -- before the command to run (see",
        ),
        (["state", "set", "n", "-5"], "stonemux: unknown flag -5; to give it as a value, put -- before it (see"),
        (["msg", "poll"], "stonemux: --agent-id is required: Whose inbox. Or set STONEMUX_AGENT (see"),
        (["status", "--prot", "1"], "stonemux status: unknown flag --prot; did you mean --port?"),
        (["status", "--prot=1"], "stonemux status: unknown flag --prot; did you mean --port?"),
        (["status", "--por", "1"], "stonemux status: unknown flag --por; did you mean --port?"),
        (["status", "now"], "stonemux status: one word too many: 'now'"),
        (["status", "--port"], "stonemux status: argument --port: expected one argument"),
        (["status", "--port", "abc"], 'stonemux: --port (server.port) is "abc"; it must be an integer from 0 to 65535'),
        (["status", "--port", "70000"], "stonemux: --port (server.port) is 70000; it must be at most 65535"),
        (["restore"], "stonemux restore: the following arguments are required: FILE"),
    ],
)
def test_what_cannot_be_understood_is_one_line_with_the_nearest_name_and_status_2(capsys, words, told):
    status, out, err = typed(capsys, *words)
    assert (status, out) == (2, "")
    assert err.startswith(told)
    assert err.count("\n") == 1


def test_a_program_gets_what_was_not_understood_as_json(capsys):
    for words in (["inbox", "--json", "--bogus"], ["bogus", "--json"], ["msg", "list", "--json", "--bogus"]):
        status, out, err = typed(capsys, *words)
        told = json.loads(out)["error"]["message"]
        assert (status, err.count("\n"), told in err) == (2, 1, True)


def child(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    environ = {**BARE, "HOME": "/nowhere"}
    command = [sys.executable, "-m", "stonemux", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=stdout, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("words", [["reference"], ["--help"], ["reference", "--help"]], ids=" ".join)
def test_a_reader_that_went_away_is_no_error(words):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = child(*words, stdout=writing)
    finally:
        os.close(writing)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")


HEAVY = {
    "argparse",
    "asyncio",
    "encodings.idna",
    "hashlib",
    "http.client",
    "shlex",
    "sqlite3",
    "ssl",
    "tomllib",
    "uuid",
}


@pytest.mark.parametrize("words", [["health"], ["msg", "send", "hi", "--to", "bob", "--from", "ann"], ["show", "1"]])
def test_a_verb_loads_only_what_it_needs(words):
    script = f"""if True:
        import sys
        from stonemux import cli
        assert cli.main({words!r}, {{"HOME": "/nowhere", "STONEMUX_PORT": "1"}}) == 6
        print(*sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=20)
    loaded = set(done.stdout.split())
    assert {"stonemux.remote", "json"} <= loaded
    assert not loaded & (HEAVY - {"argparse"} if words[0] == "show" else HEAVY)
    assert not {name for name in loaded if name.startswith("stonemux.")} & {
        "stonemux.store",
        "stonemux.mux",
        "stonemux.door",
    }


def test_an_interrupt_is_status_130_without_a_trace(capsys, monkeypatch):
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("stonemux.commands.reference.run", interrupted)
    assert typed(capsys, "reference") == (130, "", "")


def test_a_python_without_a_module_that_a_command_needs_is_told_so_in_one_line(capsys, monkeypatch):
    def lacking(name: str) -> Any:
        raise ModuleNotFoundError("No module named '_sqlite3'", name="_sqlite3")

    monkeypatch.setattr(cli, "import_module", lacking)
    assert cli.main(["serve"], {}) == 5
    told = capsys.readouterr().err
    assert "_sqlite3" in told
    assert sys.executable in told
    assert told.count("\n") == 1
    assert cli.main(["--version"], {}) == 0


def test_a_full_disk_behind_standard_output_is_one_line(capsys):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        process = child("reference", stdout=full.fileno())
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (1, "stonemux: cannot write: No space left on device\n")
