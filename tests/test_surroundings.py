"""What `doctor` checks beyond the data: the machine, settings, clients, doorbells, the service."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faces import Direct, join, refusal

from stonemux import cli, doctor, launch, surroundings
from stonemux.config import Settings
from stonemux.errors import MuxError


@pytest.fixture
def look(program, tmp_path, capsys, monkeypatch):
    """Runs the command in an empty folder and home; gives the findings of one check."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)

    def run(check: str, *flags: str, port: int = 1, data: Path = program.path, **environ: str) -> list[dict[str, Any]]:
        given = {"HOME": str(home), "PATH": os.defpath} | environ
        cli.main(["doctor", "--json", "--port", str(port), "--data-dir", str(data), *flags], given)
        return [one for one in json.loads(capsys.readouterr().out)["findings"] if one["check"] == check]

    run.home = home
    return run


def told(findings: list[dict[str, Any]], state: str) -> str:
    """The one finding of a state, with its remedy."""
    (found,) = [one for one in findings if one["state"] == state]
    assert found["remedy"] or state == "ok"
    return f"{found['found']} -> {found['remedy']}"


# -- the machine


def test_a_python_with_a_known_bug_is_noted(look, monkeypatch):
    bug = ((3, 11, 0), (*sys.version_info[:2], sys.version_info[2] + 1), "it forgets things")
    monkeypatch.setattr(surroundings, "PYTHON_BUGS", (bug,))
    assert "it forgets things -> use a newer" in told(look("python"), "note")
    monkeypatch.setattr(surroundings, "PYTHON_BUGS", ((bug[0], tuple(sys.version_info[:3]), "fixed"),))
    assert told(look("python"), "ok")


@pytest.mark.parametrize(
    ("version", "state", "what"),
    [
        ((3, 36, 0), "problem", "3.37 or newer"),
        ((3, 52, 0), "note", "withdrawn"),
        ((3, 40, 1), "note", "WAL-reset bug"),
        ((3, 51, 3), "ok", ""),
    ],
)
def test_an_sqlite_that_is_too_old_or_known_to_be_bad_is_told(look, monkeypatch, version, state, what):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    assert what in told(look("sqlite"), state)


def test_an_sqlite_without_full_text_search_is_noted_and_searches_are_refused(look, program, monkeypatch):
    class Plain(sqlite3.Connection):
        def execute(self, query: str, *values: Any) -> sqlite3.Cursor:
            if "using fts5" in query:
                raise sqlite3.OperationalError("no such module: fts5")
            return super().execute(query, *values)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Plain))
    assert "SQLite lacks FTS5: msg.search answers 501 -> use a Python" in told(look("search"), "note")
    program.close()
    program.open(connect=sqlite3.connect)
    assert refusal(Direct(program.mux), "search_unavailable", "msg.search", q="x").failure.http == 501


def test_too_few_open_files_are_a_problem(look, monkeypatch):
    monkeypatch.setattr(surroundings.resource, "getrlimit", lambda what: (64, 64))
    assert "ulimit -n" in told(look("limits"), "problem")


def test_a_clock_that_was_never_set_is_a_problem(look, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.Clock, "now_ms", lambda self: 86_400_000)
    assert "clock says 1970-01-02" in told(look("clock", data=tmp_path / "none"), "problem")


# -- settings


def test_a_misspelled_variable_is_noted_with_the_nearest_one(look):
    findings = look("settings", STONEMUX_DATADIR="/x", STONEMUX_AGENT="ann", STONEMUX_TOKEN="t", STONEMUX_TASK_ID="1")
    assert "STONEMUX_DATADIR -> did you mean STONEMUX_DATA_DIR?" in told(findings, "note")


def test_what_stands_in_the_file_without_effect_is_noted(look, program):
    (program.path / "config.toml").write_text("[server]\nport = 4000\n[coordination]\ninbox_limit = 5\n")
    assert "server.port in the file has no effect" in told(look("settings"), "note")


def test_every_mistake_in_the_settings_is_told(look, program):
    (program.path / "config.toml").write_text(
        '[server]\nprot = 1\nport = "x"\nmax_waiters = 9\nmax_waiters_per_agent = 10\n[sever]\nport = 1\n'
    )
    findings = look("settings", STONEMUX_HOST=" ", STONEMUX_PORT="many")
    problems = [one["found"] for one in findings if one["state"] == "problem"]
    assert len(problems) == 6
    mistakes = ("STONEMUX_HOST", "STONEMUX_PORT", 'setting "prot"', "server.port is", 'section "sever"', "more than")
    for mistake, problem in zip(mistakes, problems, strict=True):
        assert mistake in problem


def test_a_settings_file_that_cannot_be_read_at_all_is_one_mistake(look, tmp_path):
    (findings,) = look("settings", STONEMUX_CONFIG=str(tmp_path / "none.toml"))
    assert "no such file" in findings["found"]


def test_a_settings_file_that_another_one_hides_is_noted(look, tmp_path):
    (look.home / ".stonemux").mkdir()
    (look.home / ".stonemux/config.toml").write_text("")
    (tmp_path / "other.toml").write_text("")
    findings = look("settings", STONEMUX_CONFIG=str(tmp_path / "other.toml"))
    assert "config.toml is not read" in told(findings, "note")


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_a_settings_file_that_is_not_read_is_noted_wherever_it_lies(look, tmp_path, program, how):
    (program.path / "config.toml").write_text("[server]\nprot = 1\n")
    other = tmp_path / "other.toml"
    other.write_text("[server]\nport = 4000\n")
    findings = (
        look("settings", "--config", str(other)) if how == "flag" else look("settings", STONEMUX_CONFIG=str(other))
    )
    notes = [one["found"] for one in findings if one["state"] == "note"]
    assert notes == [
        "server.port in the file has no effect: the environment or a flag overrides it",
        f"{program.path / 'config.toml'} is not read, because {other} is used instead",
    ]


def test_each_mistake_in_the_settings_is_told_and_the_rest_is_looked_at(look, program):
    (program.path / "config.toml").write_text("[server]\nprot = 1\n")
    findings = look("settings", STONEMUX_HOST="\t", STONEMUX_DATA_DIR=str(program.path))
    problems = [one["found"] for one in findings if one["state"] == "problem"]
    assert [problem.split()[0] for problem in problems] == ["STONEMUX_HOST", f"{program.path}/config.toml:"]
    assert look("database")


def test_a_flag_that_cannot_be_used_is_bad_usage(look, capsys):
    assert cli.main(["doctor", "--port", "none"], {"HOME": str(look.home)}) == 2
    assert "--port" in capsys.readouterr().err


# -- the daemon that could be started


@pytest.mark.parametrize(
    ("settings", "found", "remedy"),
    [
        ('[server]\nhost = "0.0.0.0"\n', "not a loopback address", "server.tls_cert"),
        ('[server]\ntls_cert = "no.pem"\n', "no.pem cannot be read", "no daemon can start"),
        ('[server]\nhost = "nowhere.invalid"\n', "cannot be resolved", "--host"),
    ],
)
def test_settings_with_which_no_daemon_would_start_are_a_problem(look, tmp_path, monkeypatch, settings, found, remedy):
    def find(host: str, *_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    if "invalid" in settings:
        monkeypatch.setattr(socket, "getaddrinfo", find)
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "config.toml").write_text(settings)
    (problem,) = [one for one in look("daemon", data=data) if one["state"] == "problem"]
    assert found in problem["found"]
    assert remedy in problem["remedy"]


# -- the directory


@pytest.mark.parametrize("kind", ["file", "below a file"])
def test_a_place_where_no_directory_can_be_is_a_problem(look, tmp_path, kind):
    (tmp_path / "file").write_text("")
    data = tmp_path / "file" if kind == "file" else tmp_path / "file" / "data"
    assert "--data-dir" in told(look("directory", data=data), "problem")


def test_a_directory_that_may_not_be_opened_is_told_and_the_rest_is_looked_at(look, program, monkeypatch):
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.datadir, "is_held", refuse)
    assert look("database")


def test_copies_and_keys_that_others_may_read_are_noted(look, program, direct):
    direct.call("admin.backup")
    (made,) = (program.path / "backups").iterdir()
    made.chmod(0o644)
    (program.path / "secret.key").write_text("s")
    (program.path / "secret.key").chmod(0o640)
    found = told(look("files"), "note")
    assert made.name in found
    assert "secret.key" in found
    assert "chmod 600" in found


# -- clients


def configure(home: Path, **entry: Any) -> None:
    write_entry(home, entry)


def write_entry(home: Path, entry: Any) -> None:
    (home / ".gemini").mkdir(exist_ok=True)
    (home / ".gemini/settings.json").write_text(json.dumps({"mcpServers": {"stonemux": entry}}))


def test_no_client_is_no_trouble(look):
    assert "stonemux setup CLIENT" in look("clients")[0]["found"]


def test_a_clients_command_is_started_as_the_client_does_it(look, http):
    command, *args = launch.command()
    configure(look.home, command=command, args=[*args, "mcp"], env={"STONEMUX_PORT": str(http.port)})
    assert "tools answered" in told(look("clients", port=http.port), "ok")


def test_where_no_daemon_answers_none_is_started(look):
    command, *args = launch.command()
    configure(look.home, command=command, args=[*args, "mcp"], env={"STONEMUX_PORT": "1"})
    assert "no daemon answers" in told(look("clients"), "ok")
    assert not (look.home / ".stonemux").exists()
    configure(look.home, command="stonemux-mcp", env={"STONEMUX_PORT": "1"})
    assert "not tested, because no daemon answers" in told(look("clients"), "ok")


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"command": "/no/such/python", "args": ["-m", "stonemux", "mcp"]}, "cannot be started"),
        ({"command": "/bin/false", "args": ["mcp"]}, "does not start stonemux"),
        ({"command": sys.executable, "args": ["-c", "print(1)", "mcp"]}, "does not start stonemux: 1"),
    ],
)
def test_a_clients_command_that_does_not_work_is_a_problem(look, entry, what):
    configure(look.home, **entry, env={"STONEMUX_PORT": "1"})
    found = told(look("clients"), "problem")
    assert what in found
    assert "stonemux setup gemini" in found


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ("stonemux mcp", "must be a table"),
        ({}, "must have a command"),
        ({"command": 5}, "must have a command"),
        ({"command": "/bin/true\0"}, "must have a command"),
        ({"command": "/bin/true", "args": "mcp"}, "must have a command"),
        ({"command": "/bin/true", "args": [1, "mcp"]}, "must have a command"),
        ({"command": "/bin/true", "args": ["mcp"], "env": ["A=1"]}, "must have a command"),
        ({"command": "/bin/true", "args": ["mcp"], "env": None}, "does not start stonemux"),
        ({"command": "/bin/true", "args": ["mcp"], "env": {"STONEMUX_PORT": "abc"}}, "STONEMUX_PORT (server.port)"),
    ],
)
def test_an_entry_that_no_client_can_use_is_a_problem(look, entry, what, monkeypatch):
    monkeypatch.setattr(surroundings.pool, "health", deaf)
    write_entry(look.home, entry)
    found = told(look("clients"), "problem")
    assert what in found
    assert "stonemux setup gemini" in found


def deaf(*_: Any, **__: Any) -> Any:
    raise MuxError("unreachable", "nobody answers")


def test_a_daemon_is_not_started_where_the_commands_flags_lead(look, http):
    """One answers where the environment leads, but not there."""
    command, *args = launch.command()
    data = look.home / "data"
    for flags in (["--port", "1", "--data-dir", str(data)], ["--port=1", f"--data-dir={data}"]):
        env = {"STONEMUX_PORT": str(http.port)}
        configure(look.home, command=command, args=[*args, "mcp", *flags], env=env)
        assert "no daemon answers" in told(look("clients", port=http.port), "ok")
    assert not data.exists()


def test_a_client_that_calls_over_http_is_looked_after(look, http):
    configure(look.home, httpUrl=f"http://127.0.0.1:{http.port}/mcp")
    assert "a daemon answers" in told(look("clients"), "ok")
    for url in ("http://127.0.0.1:1/mcp", "http://[nowhere"):
        configure(look.home, httpUrl=url)
        assert "no daemon answers at" in told(look("clients"), "note")


def test_a_client_that_lacks_a_token_is_told_how_to_get_one(look, http, monkeypatch):
    def refuse(*_: Any, **__: Any) -> Any:
        raise MuxError("client_check_failed", "it refused initialize", refused="token_missing")

    monkeypatch.setattr(surroundings.probe, "list_tools", refuse)
    configure(look.home, command="stonemux", args=["mcp"], env={"STONEMUX_PORT": str(http.port)})
    assert "stonemux token --agent NAME" in told(look("clients"), "problem")


@pytest.mark.parametrize(
    ("file", "table", "token"),
    [
        (".gemini/settings.json", "mcpServers", "$MY_TOKEN"),
        (".gemini/settings.json", "mcpServers", "${MY_TOKEN}"),
        (".mcp.json", "mcpServers", "${MY_TOKEN}"),
        (".mcp.json", "mcpServers", "${OTHER:-abc}"),
        (".cursor/mcp.json", "mcpServers", "${env:MY_TOKEN}"),
        (".vscode/mcp.json", "servers", "${env:MY_TOKEN}"),
    ],
)
def test_variables_in_a_clients_file_have_their_values(look, http, monkeypatch, file, table, token):
    """Files that a team shares name a token so, since each has its own."""
    given: list[str] = []

    def listen(command: Any, environ: Any, *_: Any, **__: Any) -> list[str]:
        given.extend((environ["STONEMUX_TOKEN"], command[-1]))
        return ["mux_poll"]

    monkeypatch.setattr(surroundings.probe, "list_tools", listen)
    env = {"STONEMUX_PORT": str(http.port), "STONEMUX_TOKEN": token}
    place = "${userHome}" if "env:" in token else "~"
    entry = {"command": "stonemux", "args": ["mcp", "--data-dir", place], "env": env}
    (look.home / file).parent.mkdir(exist_ok=True)
    (look.home / file).write_text(json.dumps({table: {"stonemux": entry}}))
    assert all(one["state"] == "ok" for one in look("clients", port=http.port, MY_TOKEN="abc"))
    assert given[:2] == ["abc", str(look.home) if "env:" in token else "~"]
    if "MY_TOKEN" in token:
        assert "MY_TOKEN, which is not set here" in told(look("clients", port=http.port), "note")


def test_a_variable_in_an_address_has_its_value(look, http):
    configure(look.home, httpUrl="http://127.0.0.1:${MY_PORT:-1}/mcp")
    assert "no daemon answers at http://127.0.0.1:1/" in told(look("clients"), "note")
    assert "a daemon answers" in told(look("clients", MY_PORT=str(http.port)), "ok")


def test_what_codex_reads_names_no_variables(look, http, monkeypatch):
    monkeypatch.setattr(
        surroundings.probe, "list_tools", lambda command, environ, *_, **__: [environ["STONEMUX_TOKEN"]]
    )
    (look.home / ".codex").mkdir()
    text = f'[mcp_servers.stonemux]\ncommand = "stonemux"\nargs = ["mcp"]\nenv = {{ STONEMUX_PORT = "{http.port}", '
    (look.home / ".codex/config.toml").write_text(text + 'STONEMUX_TOKEN = "${MY_TOKEN}" }\n')
    assert "1 tools answered" in told(look("clients", port=http.port), "ok")


def test_what_a_client_prefers_in_this_folder_is_looked_at_too(look):
    entry = {"command": "/no/such", "args": ["mcp"]}
    projects = {str(look.home): {"mcpServers": {"stonemux": entry}}, "/other": {}, "/broken": 5}
    (look.home / ".claude.json").write_text(json.dumps({"projects": projects}))
    found = told(look("clients"), "problem")
    assert "cannot be started" in found
    assert "remove it from 'projects'" in found


def of_project(home: Path, **entry: Any) -> None:
    (home / ".mcp.json").write_text(json.dumps({"mcpServers": {"stonemux": entry}}))


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"command": "{script}", "args": ["mcp"]}, "it starts another program"),
        ({"command": "/bin/sh", "args": ["-c", "{script}", "mcp"]}, "it starts another program"),
        ({"command": "{script}"}, "it starts another program"),
        ({"command": "stonemux", "args": ["mcp"], "env": {"PATH": "{folder}"}}, "it sets PATH"),
        ({"command": "stonemux", "args": ["mcp"], "env": {"LD_PRELOAD": "x"}}, "it sets LD_PRELOAD"),
    ],
)
def test_what_the_file_of_a_project_names_is_not_started_unless_it_is_stonemux(look, http, entry, why):
    """Whoever made the folder may have written it; a client asks before it starts that."""
    script = look.home / "stonemux"
    script.write_text(f"#!/bin/sh\ntouch {look.home}/started\necho stonemux 1\n")
    script.chmod(0o700)
    named = json.loads(json.dumps(entry).replace("{script}", str(script)).replace("{folder}", str(look.home)))
    of_project(look.home, **named)
    for port in (1, http.port):
        found = told(look("clients", port=port, STONEMUX_PORT=str(port)), "note")
        assert f"was not tried: {why}" in found
        assert "stonemux setup claude --scope project" in found
    assert not (look.home / "started").exists()


def test_a_projects_own_stonemux_is_tried(look, http):
    command, *args = launch.command()
    of_project(look.home, command=command, args=[*args, "mcp"], env={"STONEMUX_PORT": str(http.port)})
    assert "tools answered" in told(look("clients", port=http.port), "ok")


@pytest.mark.parametrize(
    "entry",
    [
        {"url": "http://${MY_SECRET}.example.org:3392/mcp"},
        {"command": "stonemux", "args": ["mcp"], "env": {"STONEMUX_HOST": "example.org"}},
        {"command": "stonemux", "args": ["mcp", "--host", "${MY_SECRET}.example.org"]},
        {"command": "stonemux", "args": ["mcp", "--host", "${MY_SECRET}.example.org", "--data-dir", "mcp"]},
    ],
)
def test_the_file_of_a_project_leads_to_no_other_machine(look, monkeypatch, entry):
    """A token in it may be any variable of whoever looks."""
    monkeypatch.setattr(surroundings.pool, "answers", lambda *_, **__: pytest.fail("somebody else was asked"))
    monkeypatch.setattr(surroundings.pool, "health", deaf)
    of_project(look.home, **entry)
    assert "leads to another machine" in told(look("clients", MY_SECRET="abc"), "note")


def test_findings_cannot_play_with_the_terminal():
    text = doctor.as_text([doctor.Finding("clients", "note", "\x1b[2J\x9b", "see \u202e")])
    assert text.isascii()
    assert "\\x1b[2J\\x9b" in text


def test_a_clients_file_that_cannot_be_read_is_noted(look):
    configure(look.home, command="x")
    (look.home / ".gemini/settings.json").write_text("{")
    assert "repair the file" in told(look("clients"), "note")


# -- doorbells, the service


@pytest.fixture
def bell(direct):
    join(direct, "ann")

    def hang(url: str) -> None:
        direct.call("agent.register", agent_id="ann", webhook_url=url)

    return hang


def test_a_doorbell_where_somebody_listens_is_well(look, bell):
    with closing(socket.create_server(("127.0.0.1", 0))) as receiver:
        bell(f"http://127.0.0.1:{receiver.getsockname()[1]}/ring")
        assert "1 reachable" in told(look("doorbells"), "ok")


def test_a_doorbell_that_nobody_hears_is_noted(look, bell, program):
    with closing(socket.create_server(("127.0.0.1", 0))) as receiver:
        port = receiver.getsockname()[1]
    bell(f"http://127.0.0.1:{port}/ring")
    assert "nobody answers at its address" in told(look("doorbells"), "note")
    program.store.write(lambda tx: tx.run("update webhook set disabled_at = 1, disabled_for = 'gone (410)'"))
    assert "ann: disabled: gone (410)" in told(look("doorbells"), "note")


def test_a_doorbell_whose_last_delivery_failed_or_that_is_no_longer_allowed_is_noted(look, bell, program):
    with closing(socket.create_server(("127.0.0.1", 0))) as receiver:
        bell(f"http://127.0.0.1:{receiver.getsockname()[1]}/ring")
        program.store.write(lambda tx: tx.run("update webhook set last_error = 'status 500'"))
        assert "ann: reachable, but its last delivery failed: status 500" in told(look("doorbells"), "note")
    program.store.write(lambda tx: tx.run("update webhook set url = 'http://10.0.0.1/'"))
    found = told(look("doorbells"), "note")
    assert found.startswith("ann: its URL ")
    assert "-> register another one" in found


def test_a_database_from_before_there_were_doorbells_has_none(look, direct, tmp_path):
    copy = Path(direct.call("admin.backup")["path"])
    with closing(sqlite3.connect(copy)) as db:
        db.execute("drop table webhook")
    (old := tmp_path / "old").mkdir(mode=0o700)
    copy.rename(old / "stonemux.db")
    assert look("doorbells", data=old) == []


def test_a_command_that_would_not_be_run_is_noted(look, bell, program):
    bell("http://127.0.0.1:1/x")

    def hang(command: str) -> str:
        program.store.write(lambda tx: tx.run("update webhook set url = ?", f"exec:{command}"))
        return told(look("doorbells"), "note")

    assert "webhooks.exec" in hang("/bin/true")
    (program.path / "config.toml").write_text("[webhooks]\nexec = true\n")
    assert "/no/such does not exist or is not executable -> install it and make it executable (chmod +x)" in hang(
        "/no/such"
    )
    program.store.write(lambda tx: tx.run("update webhook set url = 'exec:/bin/true'"))
    assert "1 reachable" in told(look("doorbells"), "ok")


def test_more_doorbells_than_are_looked_at_are_told(look, bell, monkeypatch):
    bell("http://127.0.0.1:1/x")
    monkeypatch.setattr(surroundings, "MOST_BELLS", 0)
    assert "newest 0 of 1" in told(look("doorbells"), "ok")


def test_a_service_that_the_system_does_not_run_is_noted(look, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    unit = look.home / ".config/systemd/user/stonemux.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(f"# {surroundings.service.MARK}\n")
    assert "stonemux service install" in told(look("service", PATH="/nowhere"), "note")


def test_a_service_that_runs_as_another_version_wrote_it_is_noted(look, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.platform", "linux")
    environ, service = {"HOME": str(look.home), "PATH": str(tmp_path)}, surroundings.service
    (tmp_path / "systemctl").symlink_to("/bin/true")
    words = service.words_for(environ, {"port": "4471"}, tmp_path)
    unit = service.describe(words, Settings(), environ, "linux")
    unit.file.parent.mkdir(parents=True)
    unit.file.write_text(unit.text)
    assert "the system runs it" in told(look("service", PATH=str(tmp_path)), "ok")
    unit.file.write_text(unit.text.replace("RestartSec=1", "RestartSec=9"))
    assert "stonemux service install" in told(look("service", PATH=str(tmp_path)), "note")
