"""The system's service: the system understands what is written, and no foreign file is touched."""

from __future__ import annotations

import json
import os
import plistlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stonemux import cli, flags, launch, service
from stonemux.commands import serve
from stonemux.config import Settings
from stonemux.datadir import DataDir
from stonemux.parser import Parser
from stonemux.record import replace

ASKED = ("systemctl", "--user", "is-active", "--quiet", "stonemux.service")


@pytest.fixture
def typed(tmp_path, capsys, monkeypatch) -> Iterator[Any]:
    """Runs `stonemux service` where `systemctl` notes what it is asked and ends with `status`; gives what was said."""
    tools = tmp_path / "bin"
    tools.mkdir()
    noted = tmp_path / "noted"
    script = tools / "systemctl"
    environ = {"HOME": str(tmp_path / "home"), "PATH": f"{tools}:{os.defpath}"}
    monkeypatch.setattr("sys.platform", "linux")

    def run(*words: str, status: int = 0, expected: int = 0) -> list[str]:
        script.write_text(f'#!/bin/sh\necho "$*" >> {noted}\necho "no bus" >&2\nexit {status}\n')
        script.chmod(0o755)
        noted.write_text("")
        given = [*words, "--data-dir", str(tmp_path / "data")]
        assert cli.main(["service", *given], environ) == expected
        run.asked = noted.read_text().splitlines()
        said = capsys.readouterr()
        run.err = said.err
        return said.out.splitlines()

    run.unit = tmp_path / "home/.config/systemd/user/stonemux.service"
    return run


def words_of(unit: Path) -> list[str]:
    (line,) = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
    return shlex.split(line.partition("=")[2])


def test_a_dry_run_tells_all_and_does_nothing(typed, tmp_path):
    said = typed("install", "--dry-run")
    assert said[0] == f"would write {typed.unit}:"
    assert any("ExecStart=" in line for line in said)
    assert said[-3:] == [
        "would run systemctl --user daemon-reload",
        "would run systemctl --user enable stonemux.service",
        "would run systemctl --user restart stonemux.service",
    ]
    assert not typed.asked
    assert not (tmp_path / "home").exists()


def test_the_written_unit_starts_this_very_program_there(typed, tmp_path):
    typed("install", "--no-start", "--port", "4471")
    assert words_of(typed.unit) == [*launch.command(), *f"serve --port 4471 --data-dir {tmp_path}/data".split()]
    assert not typed.asked
    assert typed("install", "--no-start", "--port", "4471")[0] == f"{typed.unit}: already up to date"


def test_a_second_installation_leads_the_daemon_to_the_same_place(tmp_path, capsys, monkeypatch):
    """After an upgrade nobody remembers the flags, and a daemon with another directory would look like a loss."""
    monkeypatch.setattr("sys.platform", "linux")
    environ = {"HOME": str(tmp_path)}
    unit = tmp_path / ".config/systemd/user/stonemux.service"
    place = tmp_path / 'our "$5" \\data 100%'
    install = ["service", "install", "--no-start"]
    assert cli.main([*install, "--port", "4471", "--data-dir", str(place)], environ) == 0
    first = unit.read_text()
    assert service.kept(environ, "linux") == {"port": "4471", "data_dir": str(place)}
    capsys.readouterr()
    assert cli.main(install, environ) == 0
    assert unit.read_text() == first
    assert "already up to date" in capsys.readouterr().out
    assert cli.main([*install, "--port", "4472"], {**environ, "STONEMUX_HOST": "::1"}) == 0
    assert service.kept(environ, "linux") == {"host": "::1", "port": "4472", "data_dir": str(place)}


def test_a_daemon_with_tls_is_started_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.chdir(tmp_path)
    environ = {"HOME": str(tmp_path), "STONEMUX_TLS_CERT": "cert.pem", "STONEMUX_TLS_KEY": "/k.pem"}
    assert cli.main(["service", "install", "--no-start"], environ) == 0
    words = words_of(tmp_path / ".config/systemd/user/stonemux.service")
    given = words[words.index("serve") + 1 :]
    assert given == ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", "/k.pem"]
    parser = Parser()
    serve.add_arguments(parser)
    settings = flags.settings(parser.read(given), {"HOME": str(tmp_path)})
    assert (settings.tls_cert, settings.tls_key) == (str(tmp_path / "cert.pem"), "/k.pem")


def test_what_a_doorbell_may_start_is_bound_by_less(tmp_path):
    """Node cannot run without memory that becomes code, and what works on must not end with the daemon."""

    def told(**given: Any) -> set[str]:
        text = service.describe(["/py", "serve"], replace(Settings(), **given), {"HOME": "/h"}, "linux").text
        return {line.partition("=")[0] for line in text.splitlines() if "=" in line}

    alone, with_commands = told(), told(webhooks_exec=("/bin/ring",))
    assert {"MemoryDenyWriteExecute", "RestrictNamespaces", "SystemCallFilter", "UMask"} <= alone - with_commands
    assert with_commands - alone == {"KillMode"}
    assert "NoNewPrivileges" in with_commands
    mac = service.describe(["/py", "serve"], replace(Settings(), webhooks_exec=("*",)), {"HOME": "/h"}, "darwin")
    assert "Umask" not in mac.text


def test_installing_makes_the_directory_that_the_log_is_opened_in(typed, tmp_path):
    typed("install", "--no-start")
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_installing_loads_it_and_waits_until_it_answers(typed, http):
    said = typed("install", "--port", str(http.port))
    assert typed.asked == ["--user daemon-reload", "--user enable stonemux.service", "--user restart stonemux.service"]
    assert f"it answers at 127.0.0.1:{http.port}" in said
    assert typed("status", "--port", str(http.port))[1:] == ["  the system is running it", "  a daemon answers"]


def test_one_that_does_not_come_up_is_told(typed, monkeypatch):
    monkeypatch.setattr(service, "START_MS", 0)
    typed("install", "--port", "1", expected=6)
    assert "see journalctl --user -u stonemux" in typed.err


def test_a_daemon_that_was_started_otherwise_is_in_the_way(typed, tmp_path):
    held = DataDir(tmp_path / "data")
    typed("install", status=3, expected=4)
    held.close()
    assert f"kill {os.getpid()}" in typed.err
    assert not typed.unit.exists()


def test_what_the_system_refuses_is_told_with_its_words(typed):
    typed("install", status=1, expected=1)
    told = f"systemctl --user daemon-reload: no bus; {typed.unit} stays: install again from a login session"
    assert told in typed.err
    assert typed.unit.exists()


def test_removing_takes_away_the_file_also_where_the_system_refuses(typed):
    typed("install", "--no-start")
    assert typed("remove", "--dry-run")[1] == f"would remove {typed.unit}"
    assert typed.unit.exists()
    said = typed("remove", status=1)
    assert "running systemctl --user disable --now stonemux.service: no bus" in said
    assert not typed.unit.exists()
    assert "nothing to remove" in typed("remove")[0]


@pytest.mark.parametrize("settings", [None, "[server"])
def test_it_can_be_removed_without_the_settings_that_it_was_installed_with(typed, tmp_path, settings):
    config = tmp_path / "settings.toml"
    config.write_text("")
    typed("install", "--no-start", "--config", str(config))
    if settings is None:
        config.unlink()
    else:
        config.write_text(settings)
    typed("install", "--no-start", expected=2)
    typed("remove")
    assert not typed.unit.exists()


def test_a_file_of_somebody_else_is_left_alone(typed):
    typed.unit.parent.mkdir(parents=True)
    typed.unit.write_text("[Service]\nExecStart=/usr/bin/other\n")
    for words in (["install"], ["install", "--dry-run"], ["remove"], ["status"]):
        typed(*words, expected=1)
        assert "was not written by stonemux" in typed.err
    assert "other" in typed.unit.read_text()


@pytest.mark.parametrize(
    ("in_the_way", "told"),
    [
        ("home/.config/systemd/user/stonemux.service/x", "stonemux.service cannot be read: Is a directory"),
        ("home/.config/systemd/user/.stonemux.service.new/x", "stonemux.service cannot be written: Is a directory"),
        ("data", "data cannot be created: File exists"),
    ],
)
def test_what_is_in_the_way_is_named(typed, tmp_path, in_the_way, told):
    path = tmp_path / in_the_way
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    typed("install", "--no-start", expected=1)
    assert told in typed.err


def test_a_system_that_does_not_answer_is_told(typed, monkeypatch):
    def hang(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, service.PATIENCE_S)

    monkeypatch.setattr(service.subprocess, "run", hang)
    typed("install", expected=1)
    assert "timed out after 60 seconds" in typed.err


def test_the_status_tells_what_is_missing(typed):
    assert typed("status", "--port", "1", expected=3) == [
        f"not installed ({typed.unit}); install it with: stonemux service install"
    ]
    typed("install", "--no-start")
    assert "differs from what this version would write" in typed("status", "--port", "1", status=3, expected=6)[1]
    told = json.loads(typed("status", "--json", "--port", "1", status=3, expected=6)[0])
    assert told == {"file": str(typed.unit), "installed": True, "current": False, "running": False, "answers": False}


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("/plain/path", "/plain/path"),
        ("a b", '"a b"'),
        ("100%", "100%%"),
        ("$HOME", "$$HOME"),
        ('say "hi"', '"say \\"hi\\""'),
        ("it's", '"it\'s"'),
        ("back\\slash", "back\\\\slash"),
        ("a;b", '"a;b"'),
        ("", '""'),
    ],
)
def test_a_unit_quotes_what_systemd_would_change(word, written):
    assert service._for_systemd(word) == written


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_finds_a_python_in_a_folder_with_a_strange_name(tmp_path):
    python = tmp_path / "our $5 100%" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    (tmp_path / "run").mkdir(mode=0o700)
    found = service.describe([str(python), str(python)], Settings(), {"HOME": str(tmp_path)}, "linux")
    found.file.parent.mkdir(parents=True)
    found.file.write_text(found.text)
    environ = {"PATH": os.defpath, "XDG_RUNTIME_DIR": str(tmp_path / "run"), "HOME": str(tmp_path)}
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(found.file)], env=environ, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert service._of_systemd(found.text)[1] == str(python)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("settings", ["", "[webhooks]\nexec = true\n"])
def test_systemd_finds_nothing_wrong_with_the_unit(typed, tmp_path, settings):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/config.toml").write_text(settings)
    typed("install", "--no-start")
    (tmp_path / "run").mkdir(mode=0o700)
    environ = {"PATH": os.defpath, "XDG_RUNTIME_DIR": str(tmp_path / "run"), "HOME": str(tmp_path)}
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(typed.unit)], env=environ, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reload_that_comes_before_python_can_heed_it_leaves_a_daemon_running(typed):
    """By default, systemd takes the end by SIGHUP for a stop that was wanted."""
    typed("install", "--no-start")
    assert "\nRestartForceExitStatus=SIGHUP\n" in typed.unit.read_text()


def test_launchd_is_told_the_same(tmp_path):
    settings = replace(Settings(), data_dir=tmp_path)
    found = service.describe(["/py", "-P", "/a b/m.py", "serve"], settings, {"HOME": "/Users/ann"}, "darwin")
    told = plistlib.loads(found.text.encode())
    assert told["ProgramArguments"] == ["/py", "-P", "/a b/m.py", "serve"]
    assert told["KeepAlive"] == {"SuccessfulExit": False}
    assert told["StandardErrorPath"] == str(tmp_path / "daemon.log")
    assert str(found.file) == "/Users/ann/Library/LaunchAgents/stonemux.plist"
    assert service.MARK in found.text
    assert found.file == service.file_of({"HOME": "/Users/ann"}, "darwin")
    assert found.load == (("launchctl", "bootstrap", f"gui/{os.getuid()}", str(found.file)),)


def test_launchd_is_given_time_to_take_out_an_earlier_one(tmp_path, http, capsys, monkeypatch):
    """It refuses to load a service for some seconds after it was unloaded."""
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(service, "SETTLE_MS", 1)
    busy, script = tmp_path / "busy", tmp_path / "launchctl"
    busy.mkdir()
    script.write_text(
        f'#!/bin/sh\ncase $1 in bootstrap) rmdir {busy} && echo "failed: 5" >&2 && exit 5;; esac\nexit 0\n'
    )
    script.chmod(0o755)
    install = ["service", "install", "--port", str(http.port), "--data-dir", str(tmp_path / "data")]
    environ = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.defpath}"}
    assert cli.main(install, environ) == 0
    assert f"it answers at 127.0.0.1:{http.port}" in capsys.readouterr().out
    assert not busy.exists()


def test_launchds_file_says_what_it_was_told(tmp_path):
    environ = {"HOME": str(tmp_path)}
    words = service.words_for(environ, {"port": "4471", "data_dir": "/a <b>"}, tmp_path)
    found = service.describe(words, Settings(), environ, "darwin")
    assert service.kept(environ, "darwin") == {}
    found.file.parent.mkdir(parents=True)
    for text, told in ((found.text, {"port": "4471", "data_dir": "/a <b>"}), (f"<plist>{service.MARK}", {})):
        found.file.write_text(text)
        assert service.kept(environ, "darwin") == told


def test_a_path_that_no_line_can_hold_is_refused(tmp_path):
    with pytest.raises(service.MuxError, match="control characters"):
        service.describe(["/a\nExecStart=/bin/sh"], Settings(), {"HOME": "/h"}, "linux")
