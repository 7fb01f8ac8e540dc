"""Settings: where they come from, what is refused and how, and that the documents are correct."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stonemux.config import (
    DEFAULT_ROUTING,
    SETTINGS,
    Settings,
    _from_text,
    check_safe,
    load,
    reread,
)
from stonemux.configtext import example, settings_table
from stonemux.errors import MuxError
from stonemux.record import replace

TOP = Path(__file__).parent.parent
HOME = {"HOME": "/home/owner"}
DEFAULTS = replace(
    Settings(),
    data_dir=Path("/home/owner/.stonemux"),
    license_key_file=Path("/home/owner/.stonemux/license.key"),
)

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A function that writes text to a settings file and returns its path."""

    def put(text: str) -> Path:
        path = tmp_path / "mux.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return put


def refused(path: Path | None = None, environ: dict[str, str] | None = None, **flags: Any) -> str:
    """The one line that `load` refuses with."""
    with pytest.raises(MuxError) as caught:
        load(path, HOME | (environ or {}), flags)
    assert caught.value.code == "bad_setting"
    assert "\n" not in caught.value.message
    return caught.value.message


# --- sources


def test_without_anything_the_defaults_hold_with_home_expanded() -> None:
    assert load(None, HOME, {}) == DEFAULTS


def test_environment_wins_over_file_and_flags_win_over_both(write: Write) -> None:
    path = write('[server]\nhost = "127.0.0.2"\nport = 1\ndata_dir = "/file"\n')
    settings = load(path, HOME | {"STONEMUX_PORT": "2", "STONEMUX_DATA_DIR": "/env"}, {"data_dir": "/flag"})
    assert (settings.host, settings.port, settings.data_dir) == ("127.0.0.2", 2, Path("/flag"))


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    assert load(None, HOME, {"port": None, "log_format": None}) == DEFAULTS


def test_an_empty_variable_counts_as_absent() -> None:
    empty = {"STONEMUX_PORT": "", "STONEMUX_HOST": "", "STONEMUX_DATA_DIR": "", "STONEMUX_CONFIG": ""}
    assert load(None, HOME | empty, {}) == DEFAULTS


def test_flags_may_be_text_or_values(tmp_path: Path) -> None:
    flags = {"port": "0", "allow_network_fs": "true", "allowed_hosts": "a,B", "data_dir": tmp_path, "inbox_limit": 5}
    settings = load(None, HOME, flags)
    assert (settings.port, settings.allow_network_fs, settings.allowed_hosts) == (0, True, ("a", "b"))
    assert (settings.data_dir, settings.inbox_limit) == (tmp_path, 5)


def test_the_file_in_the_data_directory_is_read_when_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[server]\nport = 7\n")
    assert load(None, HOME, {"data_dir": str(tmp_path)}).port == 7
    assert load(None, HOME | {"STONEMUX_DATA_DIR": str(tmp_path)}, {}).port == 7


def test_a_named_file_replaces_the_one_in_the_data_directory(tmp_path: Path, write: Write) -> None:
    (tmp_path / "config.toml").write_text("[server]\nport = 7\n")
    path = write("[server]\nport = 8\n")
    named = HOME | {"STONEMUX_CONFIG": str(path)}
    assert load(None, named, {"data_dir": str(tmp_path)}).port == 8
    other = tmp_path / "other.toml"
    other.write_text("[server]\nport = 9\n")
    assert load(other, named, {}).port == 9


def test_home_stands_for_the_tilde_everywhere(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    (tmp_path / "mine.toml").write_text('[server]\ndata_dir = "~/mux"\n')
    assert load(None, home | {"STONEMUX_CONFIG": "~/mine.toml"}, {}).data_dir == tmp_path / "mux"
    assert load(None, home, {"data_dir": "~"}).data_dir == tmp_path


def test_relative_paths_count_from_the_file_or_the_working_directory(write: Write) -> None:
    path = write('[server]\ndata_dir = "data"\n')
    assert load(path, HOME, {}).data_dir == path.parent / "data"
    assert load(path, HOME, {"data_dir": "data"}).data_dir == Path.cwd() / "data"


def test_routing_entries_are_merged_over_the_defaults(write: Write) -> None:
    routing = load(write('[routing]\nstatus = "lead"\npraise = "worker"\n'), HOME, {}).routing
    assert routing == {**DEFAULT_ROUTING, "status": "lead", "praise": "worker"}


def test_lists_are_read_without_repetitions(write: Write) -> None:
    text = 'allow_cidrs = ["10.1.0.0/16", "fd00::/8", "10.1.0.0/16"]\nexec = ["/bin/ring x", "/bin/ring x"]\n'
    settings = load(write(f"[webhooks]\n{text}"), HOME, {})
    assert (settings.webhooks_allow_cidrs, settings.webhooks_exec) == (("10.1.0.0/16", "fd00::/8"), ("/bin/ring x",))


def test_keys_that_differ_from_their_attribute_are_read(write: Write) -> None:
    text = '[license]\nkey_file = "/k"\n[events]\nretention = 5\n[logging]\nlevel = "debug"\nformat = "text"\n'
    settings = load(write(text + '[auth]\ntokens = "off"\n'), HOME, {})
    assert (settings.license_key_file, settings.event_retention) == (Path("/k"), 5)
    assert (settings.log_level, settings.log_format, settings.auth_tokens) == ("debug", "text", "off")


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "mux.toml"
    path.write_bytes(b"\xef\xbb\xbf[server]\r\nport = 5\r\n")
    assert load(path, HOME, {}).port == 5


def test_settings_are_frozen() -> None:
    settings = Settings()
    with pytest.raises(AttributeError):
        settings.port = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.routing["status"] = "me"  # type: ignore[index]


# --- refusals


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[server]\nport = 65536\n", "server.port is 65536; it must be at most 65535"),
        ("[server]\nport = -1\n", "server.port is -1; it must be at least 0"),
        ("[server]\nport = true\n", "server.port is true; it must be an integer from 0 to 65535"),
        ("[server]\nport = 80.0\n", "server.port is 80.0; it must be an integer"),
        ('[server]\nport = "80"\n', 'server.port is "80"; it must be an integer'),
        ("[coordination]\ninbox_limit = 0\n", "coordination.inbox_limit is 0; it must be at least 1 message"),
        ("[coordination]\nmax_deliveries = 0\n", "coordination.max_deliveries is 0; it must be at least 1 delivery"),
        ("[server]\nport = " + "0x" + "f" * 9000 + "\n", "server.port is a huge number; it must be at most"),
        ('[server]\nallow_network_fs = "no"\n', 'server.allow_network_fs is "no"; it must be true or false'),
        ("[server]\nallow_network_fs = 1\n", "server.allow_network_fs is 1; it must be true or false"),
        ("[server]\nhost = 127\n", "server.host is 127; it must be text"),
        ('[server]\nhost = ""\n', "server.host is empty"),
        (
            '[server]\nhost = "http://localhost"\n',
            'server.host is "http://localhost"; it must be a name or an address alone',
        ),
        ('[server]\nhost = "127.0.0.1:80"\n', 'server.host is "127.0.0.1:80"; it must be a name or an address alone'),
        ('[server]\nhost = "[::1]"\n', 'server.host is "[::1]"; it must be a name or an address alone'),
        ('[server]\nhost = "a\\nb"\n', 'server.host is "a\\nb"; it must be text'),
        ('[server]\nhost = "\\u202e"\n', "it must be text without control characters"),
        ('[server]\ndata_dir = ""\n', 'server.data_dir is ""; it must be a path'),
        ('[server]\ndata_dir = "a\\u0000"\n', 'server.data_dir is "a\\u0000"; it must be a path'),
        ('[server]\ndata_dir = "~nobody-here/x"\n', "there is no such home folder"),
        ("[server]\ndata_dir = 2024-01-01\n", "server.data_dir is 2024-01-01; it must be a path"),
        ('[server]\nallowed_hosts = "a"\n', 'server.allowed_hosts is "a"; it must be a list'),
        ('[server]\nallowed_hosts = ["*"]\n', 'server.allowed_hosts holds "*"; it must hold host names'),
        ('[server]\nallowed_hosts = ["a:"]\n', 'server.allowed_hosts holds "a:"'),
        ('[server]\nallowed_hosts = ["a:080"]\n', 'server.allowed_hosts holds "a:080"'),
        ("[server]\nallowed_hosts = [1]\n", "server.allowed_hosts holds 1"),
        ('[logging]\nlevel = "loud"\n', 'logging.level is "loud"; it must be one of: debug, info, warning, error'),
        ("[auth]\ntokens = true\n", "auth.tokens is true; it must be one of: auto, required, off"),
        ('[license]\ndefault_tier = "Pro"\n', "it must be one of: free, pro, enterprise"),
        ("[routing]\nstatus = 1\n", 'routing maps "status" to 1; the role must be a name'),
        ('[routing]\n"" = "x"\n', 'routing maps "" to "x"; the type must be a name'),
        ('[routing]\nstatus = " x"\n', 'routing maps "status" to " x"; the role must be a name'),
        ('[webhooks]\nallow_cidrs = "10.0.0.0/8"\n', "it must be a list of networks"),
        ('[webhooks]\nallow_cidrs = ["10.0.0.1/8"]\n', 'holds "10.0.0.1/8"; it must hold networks'),
        ("[webhooks]\nallow_cidrs = [10]\n", "holds 10; it must hold networks"),
        ('[webhooks]\nexec = "/bin/ring"\n', "it must be true, false, or a list of commands"),
        ('[webhooks]\nexec = ["ring"]\n', 'holds "ring"; it must hold commands by their full path'),
        ('[license]\nlicense_server = "ftp://x"\n', "it must look like https://license.example.org"),
        ('[license]\nlicense_server = "https://x/path"\n', "without a path"),
        ('[license]\ntrusted_issuers = "x"\n', "it must be a list of public keys"),
        ('[license]\ntrusted_issuers = ["x"]\n', "a public key has 64 hexadecimal digits"),
        ("[serve]\nport = 1\n", 'unknown section "serve"; did you mean [server]?'),
        ("port = 1\n", 'unknown section "port"; did you mean server.port (under [server])?'),
        ("[server]\nprot = 1\n", '[server] has no setting "prot"; did you mean server.port?'),
        ('[server]\nlevel = "info"\n', '[server] has no setting "level"; did you mean logging.level?'),
        ('"a\\nb" = 1\n', 'unknown section "a\\nb"'),
        ("server = 1\n", "server must be a section, written [server]"),
        ("[[server]]\nport = 1\n", "server must be a section, written [server]"),
        ("[server]\nport = = 1\n", "not valid TOML: Invalid value (at line 2, column 8)"),
        ("[server]\nport = 1\nport = 2\n", "not valid TOML: Cannot overwrite a value (at line 3"),
        ("a = " + "[" * 100_000, "not valid TOML: nested too deeply"),
        ("[server]\nport = " + "9" * 5000 + "\n", "not valid TOML: Exceeds the limit"),
        ("[server]\nmax_connections = 9\n", "server.max_waiters (384) is more than server.max_connections (9)"),
        ("[coordination]\nstale_threshold = 9\n", "coordination.heartbeat_interval (60) is more than"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(write: Write, text: str, told: str) -> None:
    message = refused(write(text))
    assert told in message
    assert len(message) < 500


@pytest.mark.parametrize("text", ["[server]\nport = 'x'\n", "[server]\nprot = 1\n", "[sever]\n", "=\n"])
def test_the_file_is_named(write: Write, text: str) -> None:
    path = write(text)
    assert refused(path).startswith(f"{path}: ")


def test_a_bad_value_in_the_file_is_refused_even_where_it_is_overridden(write: Write) -> None:
    assert "server.port" in refused(write("[server]\nport = -1\n"), port=5)


def test_a_bad_variable_is_named() -> None:
    told = "STONEMUX_PORT (server.port) is"
    assert refused(environ={"STONEMUX_PORT": "http"}) == f'{told} "http"; it must be an integer from 0 to 65535'
    assert refused(environ={"STONEMUX_PORT": "70000"}) == f"{told} 70000; it must be at most 65535"


def test_a_bad_flag_is_named() -> None:
    assert "--port (server.port) is -1; it must be at least 0" in refused(port="-1")
    assert '--log-format (logging.format) is "xml"; it must be one of: text, json' in refused(log_format="xml")
    assert "--prot is not a setting; did you mean --port?" in refused(prot=1)


def test_a_named_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert refused(path) == f"{path}: no such file"
    assert refused(environ={"STONEMUX_CONFIG": str(path)}) == f"{path}: no such file"


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    loop = tmp_path / "config.toml"
    loop.symlink_to(loop)
    assert "cannot be read" in refused(loop)
    assert "cannot be read" in refused(data_dir=str(tmp_path))


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mux.toml"
    path.write_bytes(b"[server]\n# caf\xe9\n")
    assert refused(path) == f"{path}: line 2 is not UTF-8 text"


@given(st.text(max_size=40) | st.from_regex(r"\[[a-z]{1,8}\]\n[a-z_]{1,8} = .{0,20}\n", fullmatch=True))
def test_any_text_gives_settings_or_one_line(text: str) -> None:
    refusal = None
    try:
        _from_text(text, Path("any.toml"), "/home/owner", None)
    except MuxError as error:
        refusal = error
    assert refusal is None or (refusal.code == "bad_setting" and refusal.message.isprintable())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "0:0:0:0:0:0:0:1", "localhost", "LocalHost"])
def test_loopback_is_safe(host: str) -> None:
    check_safe(replace(Settings(), host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "mux.local", "::ffff:127.0.0.1", "127.0.0.1.nip.io"])
def test_anything_beyond_loopback_is_unsafe(host: str) -> None:
    with pytest.raises(MuxError, match="not a loopback address") as caught:
        check_safe(replace(Settings(), host=host))
    assert caught.value.code == "unsafe_environment"


# --- documents


def test_the_example_file_equals_the_defaults() -> None:
    assert load(TOP / "stonemux.toml.example", HOME, {}) == DEFAULTS


def test_every_field_has_its_line_in_example_and_table() -> None:
    lines, table = example().splitlines(), settings_table()
    assert [setting.attribute for setting in SETTINGS] == list(Settings.fields)
    for setting in SETTINGS:
        assert f"[{setting.section}]" in lines
        keys = [setting.key] if setting.key else list(setting.default)
        assert all(any(line.startswith(f"{key} = ") for line in lines) for key in keys)
        assert f"| `{setting.section}.{setting.key or 'TYPE'}` |" in table


def test_every_default_lies_within_its_limits() -> None:
    for setting in SETTINGS:
        if setting.kind == "integer":
            assert setting.least <= setting.default <= setting.most
        assert setting.doc.endswith(".")


def test_what_a_running_daemon_takes_over_and_what_waits():
    old = Settings()
    new = replace(old, inbox_limit=5, port=4000, routing={**old.routing, "question": "steward"})
    settings, live, waiting = reread(old, new)
    assert (settings.inbox_limit, settings.port, settings.routing["question"]) == (5, old.port, "steward")
    assert [setting.name for setting in live] == ["coordination.inbox_limit", "routing"]
    assert [setting.name for setting in waiting] == ["server.port"]
    assert reread(old, old) == (old, [], [])


def test_a_mixture_of_old_and_new_must_not_contradict_itself():
    old = Settings()
    with pytest.raises(MuxError, match=r"max_waiters_per_agent.*, or restart the daemon"):
        reread(old, replace(old, max_connections=2000, max_waiters=1000, max_waiters_per_agent=900))


def test_where_and_how_it_listens_waits_for_a_start():
    """So does all that is opened, measured out or checked once."""
    live = {setting.attribute for setting in SETTINGS if setting.live}
    once = {
        "host",
        "port",
        "data_dir",
        "unix_socket",
        "max_connections",
        "max_waiters",
        "default_tier",
        "max_event_buffer",
    }
    assert not live & once
