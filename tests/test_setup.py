"""`stonemux setup`: the client's file keeps its contents, plus or minus one entry, and the entry works."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from children import BARE
from daemons import running_daemon
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from stonemux import cli, jsonc, probe, setup, tomltext
from stonemux.clients import CLIENTS, SCOPES
from stonemux.errors import MuxError

ROOT = Path(__file__).parent.parent
FAKE = str(Path(__file__).parent / "fake_mcp.py")
CHECKOUT = [sys.executable, "-P", str(ROOT / "stonemux" / "__main__.py"), "mcp"]
ENTRY = {"command": "/usr/bin/python3", "args": ["-m", "stonemux", "mcp"], "env": {"A": 'b "c" \\ é'}}

JSON_WITH_COMMENTS = """// kept by hand
{
\t"theme": "dark", // as it was
\t"%s": {
\t\t/* the
\t\t   other one */
\t\t"other": {"command": "x", "args": ["// no comment", "a,]"],}, // trailing
\t},
\t"last": [1, 2.50, null]
}
"""
TOML_WITH_COMMENTS = """# kept by hand
model = "m"   # as it was

[mcp_servers.other]   # foreign
command = "x"
text = '''
[mcp_servers.stonemux]
'''

[projects."/home/a b"]
trust_level = "trusted"
"""


def foreign_text(client: str) -> str:
    row = CLIENTS[client]
    return TOML_WITH_COMMENTS if row.syntax == "toml" else JSON_WITH_COMMENTS % row.table


def strip(text: str) -> str:
    """JSON from JSON with comments, told otherwise than in the program."""
    string = r'("(?:\\.|[^"\\])*")'
    text = re.sub(string + r"|//[^\r\n]*|/\*.*?\*/", lambda found: found[1] or " ", text, flags=re.DOTALL)
    return re.sub(string + r"|,(?=\s*[}\]])", lambda found: found[1] or "", text)


def comments(text: str) -> list[str]:
    found = re.findall(r'"(?:\\.|[^"\\])*"|(//[^\r\n]*|/\*.*?\*/)', text, re.DOTALL)
    return [comment for comment in found if comment]


def parse(client: str, text: str) -> dict[str, Any]:
    return tomllib.loads(text) if CLIENTS[client].syntax == "toml" else json.loads(strip(text) or "{}")


def is_subsequence(small: str, large: str) -> bool:
    rest = iter(large)
    return all(character in rest for character in small)


class Place:
    """A home and a project; `run` types a command there."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.project = path / "home", path / "project"
        self.home.mkdir()
        self.project.mkdir()
        self.environ = {"HOME": str(self.home), "PATH": os.defpath}
        self._capsys = capsys

    def run(self, *arguments: str, **environ: str) -> tuple[int, str, str]:
        status = cli.main(["setup", *arguments], self.environ | environ)
        return status, *self._capsys.readouterr()

    def file(self, client: str, scope: str = "user") -> Path:
        return CLIENTS[client].file(scope, self.environ, self.project)

    def lay(self, client: str, text: str, scope: str = "user") -> Path:
        file = self.file(client, scope)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
        return file

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.home.parent)) for path in self.home.parent.rglob("*") if path.is_file())

    def entry(self, client: str, scope: str = "user") -> dict[str, Any]:
        return parse(client, self.file(client, scope).read_text())[CLIENTS[client].table]["stonemux"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Place:
    place = Place(tmp_path, capsys)
    monkeypatch.chdir(place.project)
    monkeypatch.setattr(setup, "_is_installed", lambda environ: False)  # else an interpreter starts for each test
    return place


@pytest.fixture
def job(place: Place) -> Callable[..., setup.Job]:
    def make(*command: str, client: str = "claude", scope: str = "user") -> setup.Job:
        return setup.Job(
            CLIENTS[client],
            scope,
            setup.Launch(command[0], command[1:], {"STONEMUX_AGENT": "ann"}),
            place.environ,
            place.project,
        )

    return make


every_client = pytest.mark.parametrize("client", CLIENTS)
every_scope = pytest.mark.parametrize("scope", SCOPES)


# --- every client, every scope


@every_client
@every_scope
def test_a_missing_file_is_made_with_its_folders(place, client, scope):
    status, out, _ = place.run(client, "--scope", scope, "--no-check", "--agent", "ann")
    assert status == 0
    assert "configured" in out
    file = place.file(client, scope)
    assert parse(client, file.read_text()).keys() == {CLIENTS[client].table}
    entry = place.entry(client, scope)
    assert [entry["command"], *entry["args"]] == CHECKOUT
    assert entry["env"] == {"STONEMUX_AGENT": "ann"}
    assert file.stat().st_mode & 0o777 == (0o600 if scope == "user" else 0o644)
    assert place.files() == [str(file.relative_to(place.home.parent))], "and nothing beside it"


@every_client
@every_scope
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_comments_and_foreign_entries_stay(place, client, scope, newline):
    text = foreign_text(client).replace("\n", newline)
    file = place.lay(client, text, scope)
    assert place.run(client, "--scope", scope, "--no-check")[0] == 0
    now = file.read_bytes().decode()
    assert is_subsequence(text, now)
    assert now.count(newline) == now.count("\n")
    expected = parse(client, text)
    expected[CLIENTS[client].table]["stonemux"] = place.entry(client, scope)
    assert parse(client, now) == expected
    assert file.with_name(file.name + ".bak-stonemux").read_bytes().decode() == text
    assert place.run(client, "--scope", scope, "--remove")[0] == 0
    assert file.read_bytes().decode() == text


@every_client
@every_scope
def test_the_second_run_changes_nothing(place, client, scope):
    file = place.lay(client, foreign_text(client), scope)
    place.run(client, "--scope", scope, "--no-check")
    before = file.stat()
    files = place.files()
    status, out, _ = place.run(client, "--scope", scope, "--no-check")
    assert (status, out.splitlines()[0].endswith("already configured")) == (0, True)
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert place.files() == files


@every_client
@every_scope
@pytest.mark.parametrize("flags", [(), ("--remove",), ("--dry-run",)])
def test_a_broken_file_is_refused_and_left_alone(place, client, scope, flags):
    text = foreign_text(client) + ("[oops\n" if client == "codex" else "oops\n")
    file = place.lay(client, text, scope)
    status, out, err = place.run(client, "--scope", scope, "--no-check", *flags)
    assert (status, out) == (2, "")
    assert f"{file}, line {len(text.splitlines())}: " in err
    assert "nothing was changed. Repair the file" in err
    assert (file.read_text(), len(place.files())) == (text, 1)


@every_client
@every_scope
def test_a_dry_run_prints_the_difference_only(place, client, scope):
    text = foreign_text(client)
    file = place.lay(client, text, scope)
    status, out, _ = place.run(client, "--scope", scope, "--dry-run")
    assert status == 0
    assert out.startswith(f"--- {file}\n+++ {file}\n@@")
    assert sum(line.startswith("-") for line in out.splitlines()) == 1 + out.count('-\t\t"other"'), "only additions"
    assert str(ROOT / "stonemux") in out
    assert (file.read_text(), len(place.files())) == (text, 1)
    place.run(client, "--scope", scope, "--no-check")
    assert "already configured" in place.run(client, "--scope", scope, "--dry-run")[1]


@every_client
@every_scope
def test_removing_what_is_not_there_changes_nothing(place, client, scope):
    status, out, _ = place.run(client, "--scope", scope, "--remove")
    assert (status, "nothing to remove" in out, place.files()) == (0, True, [])
    place.lay(client, foreign_text(client), scope)
    assert "nothing to remove" in place.run(client, "--scope", scope, "--remove")[1]
    assert len(place.files()) == 1


# --- where, and what goes into the entry


@pytest.mark.parametrize(
    ("client", "variable", "file"),
    [
        ("claude", "CLAUDE_CONFIG_DIR", ".claude.json"),
        ("codex", "CODEX_HOME", "config.toml"),
        ("gemini", "GEMINI_CLI_HOME", ".gemini/settings.json"),
        ("vscode", "XDG_CONFIG_HOME", "Code/User/mcp.json"),
    ],
)
def test_a_client_that_was_moved_is_found(place, monkeypatch, client, variable, file):
    monkeypatch.setattr(sys, "platform", "linux")
    place.run(client, "--no-check", **{variable: str(place.project / "moved")})
    assert place.files() == [f"project/moved/{file}"]


def test_address_data_and_settings_are_handed_on(place):
    (place.project / "s.toml").write_text("")
    flags = ("--port", "4001", "--data-dir", "data", "--config", "s.toml")
    place.run("cursor", "--no-check", *flags, STONEMUX_HOST="localhost", STONEMUX_PORT="4000", STONEMUX_AGENT="me")
    assert place.entry("cursor")["env"] == {
        "STONEMUX_HOST": "localhost",
        "STONEMUX_PORT": "4001",
        "STONEMUX_DATA_DIR": str(place.project / "data"),
        "STONEMUX_CONFIG": str(place.project / "s.toml"),
    }, "flags win; whoever runs setup is not whom the client speaks for"
    place.run("cursor", "--no-check", STONEMUX_TLS_CERT="cert.pem", STONEMUX_TLS_KEY="key.pem")
    assert place.entry("cursor")["env"] == {
        "STONEMUX_TLS_CERT": str(place.project / "cert.pem"),
        "STONEMUX_TLS_KEY": str(place.project / "key.pem"),
    }, "a session may have to start the daemon"
    place.run("cursor", "--no-check")
    assert "env" not in place.entry("cursor"), "what is no longer given goes"


@pytest.mark.parametrize("flags", [("--port", "many"), ("--agent", " ann"), ("--agent", ""), ("--config", "absent")])
def test_what_the_command_would_refuse_is_refused_now(place, flags):
    status, out, _ = place.run("claude", *flags)
    assert (status, out, place.files()) == (2, "", [])


@every_client
def test_what_the_owner_added_to_the_entry_stays(place, client):
    row = CLIENTS[client]
    mine = {
        "timeout": 5,
        "tools": {"mux_send": {"approval_mode": "approve", "at": 1.5, "ok": True}},
        "tags": ["a", "b", {"c d": 1}],
    }
    old = {"url": "http://127.0.0.1:3392/mcp", "headers": {"X": "y"}, **mine}
    old["env"] = {"STONEMUX_TOKEN": "t", "STONEMUX_AGENT": "old", "PYTHONPATH": "/gone"}
    entry = {"a": {"command": "x"}, "stonemux": old, "z": {"command": "y"}}
    text = tomltext.put("", (row.table, "a"), entry["a"]) if row.syntax == "toml" else json.dumps({row.table: entry})
    if row.syntax == "toml":
        text = tomltext.put(tomltext.put(text, (row.table, "stonemux"), old), (row.table, "z"), entry["z"])
    place.lay(client, text)
    place.run(client, "--no-check")
    got = place.entry(client)
    assert {name: got[name] for name in mine} == mine
    assert got["env"] == {"STONEMUX_TOKEN": "t"}
    assert "url" not in got
    assert "headers" not in got
    assert list(parse(client, place.file(client).read_text())[row.table]) == ["a", "stonemux", "z"], "in its place"


def test_codex_timeouts_are_set_unless_the_owner_did(place):
    place.lay("codex", "[mcp_servers.stonemux]\ntool_timeout_sec = 60\n")
    place.run("codex", "--no-check")
    entry = place.entry("codex")
    assert (entry["startup_timeout_sec"], entry["tool_timeout_sec"]) == (30, 60)


# --- how it is started


def launched(python: str, *where: str, home: Path, environ: dict[str, str]) -> dict[str, Any]:
    command = [python, *where, "setup", "claude", "--no-check"]
    environ = {**BARE, "HOME": str(home), **environ}
    subprocess.run(command, cwd=home, env=environ, check=True, capture_output=True, timeout=20)
    return json.loads((home / ".claude.json").read_text())["mcpServers"]["stonemux"]


def test_a_checkout_is_started_by_its_path(tmp_path):
    entry = launched(sys.executable, "-m", "stonemux", home=tmp_path, environ={"PYTHONPATH": str(ROOT)})
    assert [entry["command"], *entry["args"]] == CHECKOUT
    assert "env" not in entry, "Gemini CLI refuses to pass PYTHONPATH on"


def test_what_is_started_by_its_path_needs_no_environment_and_no_folder(tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('the module of the project')")
    done = subprocess.run([*CHECKOUT[:-1], "--version"], cwd=tmp_path, env={}, capture_output=True, text=True)
    assert (done.returncode, done.stdout[:9], done.stderr) == (0, "stonemux ", "")


def test_an_installed_package_needs_no_path(tmp_path):
    venv.create(tmp_path / "v", symlinks=True)
    python = str(tmp_path / "v" / "bin" / "python")
    library = next((tmp_path / "v" / "lib").glob("python3*")) / "site-packages"
    copytree(ROOT / "stonemux", library / "stonemux", ignore=lambda *_: ["__pycache__"])
    entry = launched(python, "-m", "stonemux", home=tmp_path, environ={})
    assert (entry["command"], entry["args"]) == (python, ["-P", "-m", "stonemux", "mcp"])
    assert "env" not in entry


def test_an_archive_is_started_by_its_path(tmp_path):
    with zipfile.ZipFile(tmp_path / "stonemux.pyz", "w") as archive:
        archive.writestr("__main__.py", "import sys\nfrom stonemux.cli import main\nsys.exit(main())\n")
        for module in (ROOT / "stonemux").rglob("*.py"):
            archive.write(module, module.relative_to(ROOT))
    entry = launched(sys.executable, "stonemux.pyz", home=tmp_path, environ={})
    assert (entry["command"], entry["args"]) == (sys.executable, [str(tmp_path / "stonemux.pyz"), "mcp"])
    assert "env" not in entry


# --- the file


def test_a_symbolic_link_stays_one_and_the_mode_stays(place):
    real = place.project / "dotfiles" / "claude.json"
    real.parent.mkdir()
    real.write_text('{"a": 1}')
    real.chmod(0o640)
    link = place.file("claude")
    link.symlink_to(real)
    place.run("claude", "--no-check")
    assert link.is_symlink()
    assert place.entry("claude")
    assert real.stat().st_mode & 0o777 == 0o640
    backup = place.home / ".claude.json.bak-stonemux"
    assert (backup.read_text(), backup.stat().st_mode & 0o777) == ('{"a": 1}', 0o640)


def test_a_link_to_a_file_that_is_not_there_yet_is_followed(place):
    place.file("claude").symlink_to(place.project / "later" / "claude.json")
    assert place.run("claude", "--no-check")[0] == 0
    assert place.files() == ["home/.claude.json", "project/later/claude.json"]


def test_a_read_only_file_is_refused(place):
    file = place.lay("claude", "{}")
    file.chmod(0o444)
    status, _, err = place.run("claude", "--no-check")
    assert (status, file.read_text(), len(place.files())) == (1, "{}", 1)
    assert "read-only" in err
    assert "chmod u+w" in err


@pytest.mark.parametrize("act", ["mkdir", "fifo", "loop"])
def test_what_is_no_file_is_refused(place, act):
    file = place.file("claude")
    {"mkdir": file.mkdir, "fifo": lambda: os.mkfifo(file), "loop": lambda: file.symlink_to(file)}[act]()
    status, out, err = place.run("claude", "--no-check")
    assert (status, out) == (1, "")
    assert "nothing was changed" in err


def test_a_folder_that_cannot_be_made_is_told(place):
    (place.home / ".codex").write_text("in the way")
    status, _, err = place.run("codex", "--no-check")
    assert (status, place.files()) == (1, ["home/.codex"])
    assert "nothing was changed" in err


def test_a_disk_without_room_is_told(place, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, _, err = place.run("claude", "--no-check")
    assert (status, place.files()) == (1, [])
    assert "No space left on device; nothing was changed" in err


def test_bytes_that_are_no_text_are_refused(place):
    file = place.file("claude")
    file.write_bytes(b'{\n"a": "\xff"}')
    status, _, err = place.run("claude", "--no-check")
    assert status == 2
    assert f"{file}, line 2: is not UTF-8" in err


def test_text_that_cannot_be_written_is_refused(place):
    text = '{"mcpServers": {"stonemux": {"note": "\\ud800"}}}'
    file = place.lay("claude", text)
    status, out, err = place.run("claude", "--no-check")
    assert (status, out, file.read_text(), len(place.files())) == (2, "", text, 1)
    assert "UTF-8" in err


def test_an_older_backup_is_kept(place):
    file = place.lay("claude", '{"a": 1}')
    place.run("claude", "--no-check")
    place.run("claude", "--no-check", "--agent", "ann")
    place.run("claude", "--remove")
    place.lay("claude", '{"a": 1}')
    place.run("claude", "--no-check")
    kept = sorted(path.name for path in place.home.iterdir() if "bak" in path.name)
    assert kept == [".claude.json.bak-stonemux", ".claude.json.bak-stonemux-2", ".claude.json.bak-stonemux-3"]
    assert file.with_name(kept[0]).read_text() == '{"a": 1}'


def test_a_file_that_changes_meanwhile_is_edited_anew(job, place, monkeypatch):
    file = place.lay("claude", '{"a": 1}')
    back_up = setup._back_up

    def and_then_the_client_writes(path: Path, text: str) -> Path:
        if text == '{"a": 1}':
            path.write_text('{"a": 2}')
        return back_up(path, text)

    monkeypatch.setattr(setup, "_back_up", and_then_the_client_writes)
    assert setup.write(job("x"))[0]
    assert json.loads(file.read_text())["a"] == 2
    assert place.entry("claude")["command"] == "x"


def test_a_file_that_never_rests_is_given_up(job, place, monkeypatch):
    file = place.lay("claude", "{}")
    monkeypatch.setattr(setup, "_back_up", lambda path, text: path.write_text(f"{text} "))
    with pytest.raises(MuxError, match="close the client"):
        setup.write(job("x"))
    assert file.read_text().strip() == "{}"
    assert len(place.files()) == 1


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("[]", 1, "not an object"),
        ('{\n"mcpServers": []}', 2, '"mcpServers" is not an object'),
        ('{"mcpServers": {},\n"mcpServers": {}}', 2, "appears twice"),
        ('{"mcpServers": {"stonemux": 1,\n\n"stonemux": {}}}', 3, "appears twice"),
        ('{"a": 1,, }', 1, "',' where a key"),
        ('{"a" 1}', 1, "a colon must be"),
        ("{\n/* no end", 2, "an unterminated comment"),
        ("{}\n/* no end", 2, "an unterminated comment"),
        ('{"a": 01}', 1, "a comma or } must be"),
        ('{"a": tru}', 1, "a value must be"),
        ('{"a": "\t"}', 1, "a value must be"),
        ('{"a":\n', 2, "the end of the file where"),
        ('{"a": [1 2]}', 1, "a comma or ] must be"),
        ('{"a": ' + "[" * 300 + "]" * 300 + "}", 1, "more than 200 levels"),
        ("{} {}", 1, "after the end of the document"),
    ],
)
def test_json_that_is_none_is_told_with_its_line(text, line, why):
    with pytest.raises(MuxError, match=re.escape(why)) as caught:
        jsonc.put(text, ("mcpServers", "stonemux"), ENTRY)
    assert (caught.value.code, caught.value.facts["line"]) == ("client_config_broken", line)


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("a = 1\na = 2\n", 2, "overwrite"),
        ("a = 1\nb = [\n", 3, "Invalid value"),
        ("a = 1\nmcp_servers = {stonemux = {command = 'x'}}\n", 2, "as tables"),
        ("\n[[mcp_servers]]\ncommand = 'x'\n", 2, "as tables"),
    ],
)
def test_toml_that_is_none_is_told_with_its_line(text, line, why):
    with pytest.raises(MuxError, match=why) as caught:
        tomltext.put(text, ("mcp_servers", "stonemux"), ENTRY)
    assert (caught.value.code, caught.value.facts["line"]) == ("client_config_broken", line)


# --- text, as properties

JSON_PATH, TOML_PATH = ("mcpServers", "stonemux"), ("mcp_servers", "stonemux")
KEYS = st.sampled_from(["a", "b c", "stonemux", "// x", "/* y", '"', "\\", "é", "mcpServers", "{", ","])
PLAIN = st.none() | st.booleans() | st.integers(-9, 10**20) | st.floats(allow_nan=False, allow_infinity=False) | KEYS
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
SERVERS = st.dictionaries(KEYS, VALUES, max_size=3)
DOCUMENTS = st.tuples(st.dictionaries(KEYS, VALUES, max_size=3), st.none() | SERVERS, st.booleans())


def json_text(value: Any, dice: random.Random, newline: str) -> str:
    """`value` as JSON with comments, in a style that `dice` chooses."""
    calm = dice.random() < 0.5

    def gap() -> str:
        if calm and dice.random() < 0.7:
            return dice.choice(["", " "])
        line = newline + dice.choice(["", "  ", "\t"])
        return "".join(
            dice.choices(["", " ", line, f'// , }} " é{line}', '/* " ] , */', f"/*{newline}*/", f"//{line}"], k=2)
        )

    def one(value: Any) -> str:
        if isinstance(value, dict):
            return joined("{", [f"{one(key)}{gap()}:{gap()}{one(inner)}" for key, inner in value.items()], "}")
        if isinstance(value, list):
            return joined("[", [one(inner) for inner in value], "]")
        return json.dumps(value, ensure_ascii=dice.random() < 0.5)

    def joined(opening: str, parts: list[str], closing: str) -> str:
        trailing = "," if parts and dice.random() < 0.3 else ""
        return opening + gap() + f"{gap()},{gap()}".join(parts) + gap() + trailing + gap() + closing

    return gap() + one(value) + gap()


@settings(max_examples=120, derandomize=True)
@given(DOCUMENTS, st.integers(0, 10**6), st.sampled_from(["\n", "\r\n"]))
def test_random_json_keeps_everything_but_the_entry(document, seed, newline):
    rest, servers, first = document
    rest = {key: value for key, value in rest.items() if key != "mcpServers"}
    ours = {} if servers is None else {"mcpServers": servers}
    value = ours | rest if first else rest | ours
    text = json_text(value, random.Random(seed), newline)
    assert json.loads(strip(text)) == value, "the test's own tools agree"
    assert jsonc.read(text) == value

    put = jsonc.put(text, JSON_PATH, ENTRY)
    others = servers or {}
    assert json.loads(strip(put)) == {**value, "mcpServers": {**others, "stonemux": ENTRY}}
    assert json.loads(strip(jsonc.put(put, JSON_PATH, ENTRY))) == json.loads(strip(put))
    if "stonemux" not in others:
        assert is_subsequence(text, put)
        assert comments(put) == comments(text)
    dropped = jsonc.drop(put, JSON_PATH)
    left = {key: inner for key, inner in others.items() if key != "stonemux"}
    assert json.loads(strip(dropped)) == {**value, "mcpServers": left}
    assert is_subsequence(dropped, put)
    if left == servers:
        assert "".join(dropped.split()) == "".join(text.split())


LINES = [
    "a = 1",
    '"b.c" = "x # no comment" # one',
    "c = [ # in a list\n  1, ']',\n  [2],\n]",
    'd = """\n[mcp_servers.stonemux]\n\\""" "" """""',
    "e = '''\n# no comment\n[x]'''''",
    "f.g . 'h' = {i = [1, {j = '}'}]}",
    "k = 2026-01-02T03:04:05Z",
    'l = "\\""',
]
TABLES = [
    "[other]",
    "[mcp_servers]",
    "  [ mcp_servers . other ] # one",
    '[mcp_servers."stone mux"]',
    "[mcp_servers.stonemux-2]",
    "[mcp_servers.other.env]",
    "[[list]]",
    "[[list]]",
    "[stonemux]",
]
OURS = [
    "[mcp_servers.stonemux]",
    "[mcp_servers.stonemux.env]",
    "[mcp_servers.'stonemux'.tools.mux_send]",
    "[[mcp_servers.stonemux.list]]",
]
BLOCKS = st.tuples(st.sampled_from(TABLES), st.lists(st.sampled_from(LINES), max_size=3, unique=True))
OUR_BLOCKS = st.tuples(st.sampled_from(OURS), st.lists(st.sampled_from(LINES), max_size=2, unique=True))
HEADS = st.lists(st.sampled_from([*LINES, "mcp_servers.stonemux.command = 'x'"]), max_size=3, unique=True)


@settings(max_examples=120, derandomize=True)
@given(HEADS, st.lists(BLOCKS | OUR_BLOCKS, max_size=5), st.sampled_from(["", "\n", "# c\n", "\n\n"]), st.booleans())
@example(["a = 1"], [("[mcp_servers]", []), ("[mcp_servers.stonemux]", ["a = 1"]), ("[other]", [])], "", False)
def test_random_toml_keeps_everything_but_the_entry(head, blocks, gap, crlf):
    parts = ["".join(f"{line}\n{gap}" for line in head)]
    parts += [f"{header}\n" + "".join(f"{line}\n{gap}" for line in lines) for header, lines in blocks]
    text = gap.join(parts)
    text = text.replace("\n", "\r\n") if crlf else text
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        assume(False)
    others = value.get("mcp_servers", {})
    left = {key: inner for key, inner in others.items() if key != "stonemux"}

    put = tomltext.put(text, TOML_PATH, ENTRY)
    assert tomllib.loads(put) == {**value, "mcp_servers": {**others, "stonemux": ENTRY}}
    assert tomltext.put(put, TOML_PATH, ENTRY) == put
    dropped = tomltext.drop(put, TOML_PATH)
    read = tomllib.loads(dropped)
    assert {**read, "mcp_servers": read.get("mcp_servers", {})} == {**value, "mcp_servers": left}
    assert is_subsequence(dropped, put)
    if "stonemux" not in others:
        assert put.startswith(text)
        assert dropped == text


def test_toml_without_a_last_line_end_gets_one():
    put = tomltext.put("a = 1 # x", TOML_PATH, {"command": "y"})
    assert put == 'a = 1 # x\n\n[mcp_servers.stonemux]\ncommand = "y"\n'


@pytest.mark.parametrize("name", ["stonemux = {command = 'x'}", "stonemux.command = 'x'"])
def test_an_entry_of_another_form_becomes_a_table(name):
    text = f"[mcp_servers]\nother = {{command = 'o'}} # kept\n{name}\nlast = {{command = 'l'}}\n"
    put = tomltext.put(text, TOML_PATH, ENTRY)
    assert tomllib.loads(put)["mcp_servers"] == {"other": {"command": "o"}, "last": {"command": "l"}, "stonemux": ENTRY}
    assert put.startswith(text.replace(f"{name}\n", ""))


@pytest.mark.parametrize(
    ("text", "gap"), [("", ""), (" \n", ""), ("\ufeff", ""), ("// only this", "\n"), ("/* only */\n\n", "")]
)
def test_an_empty_document_becomes_one_with_the_entry(text, gap):
    put = jsonc.put(text, JSON_PATH, ENTRY)
    assert put.startswith(f"{text}{gap}{{")
    assert json.loads(strip(put.lstrip("\ufeff"))) == {"mcpServers": {"stonemux": ENTRY}}


@pytest.mark.parametrize(
    ("text", "put"),
    [
        ("{}", '{\n  "s": {\n    "x": {\n      "c": 1\n    }\n  }\n}'),
        ('{"s":{}}', '{"s":{"x": {"c": 1}}}'),
        ('{"s": {"a": 1}}', '{"s": {"a": 1, "x": {"c": 1}}}'),
        ('{"s": {"a": 1,}}', '{"s": {"a": 1, "x": {"c": 1},}}'),
        ('{\n\t"s": {\n\t}\n}', '{\n\t"s": {\n\t\t"x": {\n\t\t\t"c": 1\n\t\t}\n\t}\n}'),
        ('{\n "s": {\n  "a": 1 // n\n }\n}', '{\n "s": {\n  "a": 1, // n\n  "x": {\n   "c": 1\n  }\n }\n}'),
        ('{\n "s": {\n  // here\n }\n}', '{\n "s": {\n  // here\n  "x": {\n   "c": 1\n  }\n }\n}'),
        ('{\n "s": {"a": 1}\n}', '{\n "s": {"a": 1, "x": {"c": 1}}\n}'),
        ('{"s": {"x": null}}', '{"s": {"x": {"c": 1}}}'),
    ],
)
def test_an_entry_looks_like_its_neighbors(text, put):
    assert jsonc.put(text, ("s", "x"), {"c": 1}) == put


@pytest.mark.parametrize("text", ["", "\ufeff // nothing\n", "{}", '{"s": {}}', '{"s": {"y": 1}}'])
def test_an_entry_that_is_not_there_is_removed_without_a_change(text):
    assert jsonc.drop(text, ("s", "x")) == text


# --- the proof


def test_the_real_command_answers_whatever_lies_in_the_project(place, tmp_path):
    (place.project / "json.py").write_text("raise SystemExit('the module of the project')")
    with running_daemon(tmp_path / "data") as daemon:
        flags = ("--port", str(daemon.port), "--data-dir", str(tmp_path / "data"))
        status, out, err = place.run("codex", "--scope", "project", *flags)
    assert (status, err) == (0, "")
    assert re.search(r"^  its command works: \d\d tools answered$", out, re.MULTILINE)


def test_nothing_is_started_with_what_the_file_of_a_project_adds_to_its_environment(place, monkeypatch):
    """Whoever made the project may have written it."""
    monkeypatch.setattr(probe, "list_tools", lambda *_, **__: pytest.fail("it was started"))
    added = {"STONEMUX_TOKEN": "t", "LD_PRELOAD": "./evil.so"}
    place.lay("claude", json.dumps({"mcpServers": {"stonemux": {"command": "x", "env": added}}}), "project")
    status, out, _ = place.run("claude", "--scope", "project")
    assert status == 0
    assert "its command was not tried: it sets LD_PRELOAD" in out
    assert place.entry("claude", "project")["env"] == added


def test_a_preview_cannot_play_with_the_terminal(place):
    place.lay("claude", '{"mcpServers": {\n// \x1b[2J\n}}', "project")
    _, out, _ = place.run("claude", "--scope", "project", "--dry-run")
    assert "\\x1b[2J" in out
    assert "\x1b" not in out


def test_the_command_is_started_and_its_tools_counted(job, place):
    lines: list[str] = []
    setup.run(job(sys.executable, "-S", FAKE, "good"), dry_run=False, checked=True, say=lines.append)
    assert lines == [
        f"Claude Code, user scope: {place.home}/.claude.json: configured",
        "  its command works: 4 tools answered",
    ]


def test_the_command_gets_what_the_file_says_and_little_else(place, monkeypatch):
    heard: dict[str, Any] = {}

    def listen(command: list[str], environ: dict[str, str], folder: Path, *, patience_ms: int) -> list[str]:
        heard.update(command=command, environ=environ, folder=folder)
        return ["a"]

    monkeypatch.setattr(probe, "list_tools", listen)
    place.lay("codex", '[mcp_servers.stonemux]\nenv = {STONEMUX_TOKEN = "t"}\n')
    assert "1 tools answered" in place.run("codex", SECRET="x", TERM="dumb")[1]
    assert heard == {
        "command": CHECKOUT,
        "environ": {**place.environ, "TERM": "dumb", "STONEMUX_TOKEN": "t"},
        "folder": place.home,
    }


def test_a_command_that_hangs_is_reported(job):
    work = job("/bin/sh", "-c", "read asked; echo waiting for something >&2; exec sleep 60")
    setup.write(work)
    with pytest.raises(MuxError) as caught:
        setup.check(work, patience_ms=300)
    late = "it did not answer initialize within 0.3 s; the end of its standard error:\n  | waiting for something"
    assert caught.value.message.endswith(late)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("die", "it ended with status 7 before it answered initialize; the end of its standard error:\n  | line 29\n"),
        ("chatter", "it wrote something other than the protocol to standard output: b'Welcome!'"),
        ("refuse", "it refused initialize: not today (-32602); set STONEMUX_TOKEN in the env of its entry"),
        ("odd", "its answer to tools/list has no list of tools"),
    ],
)
def test_a_command_that_fails_is_reported(job, place, how, told):
    work = job(sys.executable, "-S", FAKE, how)
    setup.write(work)
    with pytest.raises(MuxError) as caught:
        setup.check(work, patience_ms=10_000)
    assert caught.value.code == "client_check_failed"
    assert caught.value.message.startswith(f"{place.file('claude')} was written, but its command does not work: ")
    assert told in caught.value.message
    assert caught.value.facts["refused"] == ("token_missing" if how == "refuse" else "")


def test_a_failed_check_is_status_one_and_the_file_stays(place, monkeypatch):
    monkeypatch.setattr(setup, "launch_for", lambda *_: setup.Launch("/no/such/python", (), {}))
    status, out, err = place.run("claude")
    assert status == 1
    assert "configured" in out
    assert "was written, but its command does not work: it cannot be started" in err
    assert place.entry("claude")["command"] == "/no/such/python"
