"""Settings: what the owner can configure, with a file, the environment, and flags.

`Settings` is the only list. Each field carries a `Setting` (section, key, limits, and a sentence with the reason for
the value), and everything else derives from the fields: parsing, and the documents (`configtext`).

Rules: file < environment < flags. Nothing is guessed: an unknown name, or a value with the wrong type or out of bounds,
is refused with one line that says where it is, what it is, and what it may be. A value in the file is checked even if
the environment or a flag overrides it. Relative paths in the file are resolved from the file's folder, all others from
the working directory.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stonemux.errors import MuxError, did_you_mean, guess
from stonemux.launch import DEFAULT_PORT
from stonemux.record import Record, field, replace
from stonemux.setting import Given, Setting, expanded, shown

DEFAULT_ROUTING: Mapping[str, str] = MappingProxyType(
    {
        "question": "director",
        "status": "director",
        "blocker": "director",
        "report": "director",
        "review": "steward",
        "alert": "steward",
        "recovery": "steward",
        "assignment": "worker",
        "clarification": "worker",
        "nudge": "worker",
    }
)

SPARE_FILES = 128
"""File descriptors besides the connections: database, log, readers, and the program's own."""
_MONTH, _YEAR, _DECADE = 2_592_000, 31_536_000, 315_360_000


def _setting(
    default: Any, section: str, doc: str, *, key: str | None = None, kind: str = "integer", **more: Any
) -> Any:
    """A field of `Settings`; its key in the file is the attribute's name unless `key` is given."""
    return field(default=default, metadata={"section": section, "doc": doc, "key": key, "kind": kind} | more)


class Settings(Record):
    """Every setting with its default; `load` returns a daemon's actual settings (with `~` in paths expanded)."""

    host: str = _setting(
        "127.0.0.1",
        "server",
        "Address to listen on. Beyond loopback, callers need tokens and the port needs TLS or insecure_http; list the "
        "host names that callers use in allowed_hosts.",
        kind="host",
        environment="STONEMUX_HOST",
    )
    port: int = _setting(
        DEFAULT_PORT,
        "server",
        "Port to listen on; 0 picks any free port, which the `listening` line of the output shows.",
        least=0,
        most=65535,
        environment="STONEMUX_PORT",
    )
    data_dir: Path = _setting(
        Path("~/.stonemux"),
        "server",
        "Folder for all stored data; on a local disk, because locks on network file systems are unreliable.",
        kind="path",
        environment="STONEMUX_DATA_DIR",
    )
    unix_socket: str = _setting(
        "",
        "server",
        "A Unix socket to listen on as well, which only this user can reach; empty for none, because the loopback "
        "port serves everybody.",
        kind="place",
    )
    tls_cert: str = _setting(
        "",
        "server",
        "PEM file with the certificate (and any intermediates): the port then speaks TLS 1.2 or newer. Commands on "
        "this machine and clients trust the certificates in it. Empty for none, because nobody can eavesdrop on "
        "loopback; read at startup and again on SIGHUP, after a renewal.",
        kind="place",
        environment="STONEMUX_TLS_CERT",
    )
    tls_key: str = _setting(
        "",
        "server",
        "PEM file with the certificate's key, not encrypted; empty if tls_cert contains it. Clients do not need it.",
        kind="place",
        environment="STONEMUX_TLS_KEY",
    )
    insecure_http: bool = _setting(
        False,
        "server",
        "Whether to listen beyond loopback without TLS; false, because anyone on the path could read and change the "
        "traffic. Set it to true where something else encrypts, such as a VPN or a proxy.",
        kind="boolean",
    )
    max_connections: int = _setting(
        512,
        "server",
        "Number of open connections; one more takes the place of the one that has been idle longest, or is answered "
        "503 if none is idle. Half of the 1,024 files that most systems let a process open.",
        least=4,
        most=20_000,
    )
    max_waiters: int = _setting(
        384,
        "server",
        "Number of calls and streams that may wait at the same time; fewer than max_connections, so that a send still "
        "gets through when everybody is waiting.",
        least=1,
        most=20_000,
    )
    max_waiters_per_agent: int = _setting(
        8,
        "server",
        "Number of calls that one agent may have waiting; enough for a poll, a claim, and a few watches, but too few "
        "to crowd out the others by mistake.",
        least=1,
        most=20_000,
        live=True,
    )
    allowed_hosts: tuple[str, ...] = _setting(
        (),
        "server",
        "Names accepted in the Host header in addition to the loopback ones; all others are refused, so that no web "
        "page can reach the daemon through a name of its own. If a tunnel or a container uses another port, include "
        'it: "localhost:8000".',
        kind="hosts",
    )
    allow_network_fs: bool = _setting(
        False,
        "server",
        "Whether data_dir may be on a network file system; false, because two machines could then write to the same "
        "database.",
        kind="boolean",
    )
    license_key_file: Path = _setting(
        Path("~/.stonemux/license.key"),
        "license",
        "Path of the signed license from the activation of a key; without one, default_tier applies.",
        key="key_file",
        kind="path",
    )
    license_server: str = _setting(
        "",
        "license",
        "Address of the server where keys are activated, like https://license.example.org; empty, because the owner "
        "of the machine is the licensor. With a server, no license means the free tier.",
        kind="url",
    )
    license_heartbeat: bool = _setting(
        True,
        "license",
        "Whether to tell the license server once a day that this daemon is running (docs/license.md lists everything "
        "it is told); true, so that commands from the licensor arrive. Its answer, or the lack of one, changes "
        "nothing else.",
        key="heartbeat",
        kind="boolean",
    )
    trusted_issuers: tuple[str, ...] = _setting(
        (),
        "license",
        "Public keys (64 hexadecimal digits each) of the issuers whose licenses are accepted in addition to this "
        "machine's own; empty, because nobody else is your licensor unless you say so.",
        kind="keys",
    )
    default_tier: str = _setting(
        "enterprise",
        "license",
        "Tier in force without a license key; enterprise, so that a fresh installation does everything.",
        kind="text",
        choices=("free", "pro", "enterprise"),
    )
    max_message_size: int = _setting(
        65536,
        "coordination",
        "Maximum content of a message, as UTF-8; what a model can read in one go, and less than the 1 MiB limit on a "
        "request body.",
        unit="bytes",
        least=256,
        most=1_000_000,
        live=True,
    )
    max_document_size: int = _setting(
        10_485_760,
        "coordination",
        "Maximum document, as UTF-8; room for a long log or a whole book, and less than the 16 MiB limit on the body "
        "of document.create.",
        unit="bytes",
        least=256,
        most=16_000_000,
        live=True,
    )
    poll_timeout_max: int = _setting(
        120,
        "coordination",
        "Longest wait of one call; longer ones are capped at it. Short enough that a client notices when the daemon "
        "is gone.",
        unit="seconds",
        least=1,
        most=3600,
        live=True,
    )
    task_claim_timeout: int = _setting(
        300,
        "coordination",
        "Time after which a claimed, unfinished task becomes available again; long enough for one step of work, and "
        "extendable for more.",
        unit="seconds",
        least=1,
        most=43_200,
        live=True,
    )
    heartbeat_interval: int = _setting(
        60,
        "coordination",
        "How often agents should show that they are alive; any call by an agent counts. stonemux run reads it at "
        "startup and keeps to it while its commands work.",
        unit="seconds",
        least=1,
        most=86_400,
        live=True,
    )
    stale_threshold: int = _setting(
        300,
        "coordination",
        "Silence after which an agent is stale; five heartbeats, so that one lost call does not matter.",
        unit="seconds",
        least=1,
        most=604_800,
        live=True,
    )
    inbox_limit: int = _setting(
        100_000,
        "coordination",
        "Queued messages that an inbox holds before senders get inbox_full; a reader this far behind has stopped, "
        "and its senders should know.",
        unit="messages",
        least=1,
        most=1_000_000,
        live=True,
    )
    max_deliveries: int = _setting(
        20,
        "coordination",
        "How many times a message is delivered on a lease without being acknowledged before it becomes a dead letter; "
        "by then it probably harms its readers.",
        unit="deliveries",
        least=1,
        most=1000,
        live=True,
    )
    message_retention: int = _setting(
        604_800,
        "coordination",
        "How long settled messages and the old values of deleted keys stay readable; a week, so that last week's "
        "conversations can be looked up without the database growing forever.",
        unit="seconds",
        least=1,
        most=_DECADE,
        live=True,
    )
    task_retention: int = _setting(
        604_800,
        "coordination",
        "How long finished tasks stay readable; a week, as for messages.",
        unit="seconds",
        least=1,
        most=_DECADE,
        live=True,
    )
    dispatch_auto: bool = _setting(
        False,
        "dispatch",
        "Whether the daemon assigns pending tasks to idle, active agents that can do them, most urgent first, and "
        "notifies them (a task that requires no capability goes to the role that [routing] names for assignments, and "
        "never to its poster); false, because agents that claim tasks themselves do not need it.",
        key="auto",
        kind="boolean",
        live=True,
    )
    sse_keepalive: int = _setting(
        15,
        "events",
        "How often an idle event stream sends a comment; below the 30 to 60 seconds after which proxies close idle "
        "connections.",
        unit="seconds",
        least=1,
        most=300,
        live=True,
    )
    max_event_buffer: int = _setting(
        1000,
        "events",
        "Number of the newest events that all streams share in memory; a stream that lags further behind reads from "
        "the database. As many are kept there, whatever their age, and at least 1,000.",
        unit="events",
        least=1,
        most=100_000,
    )
    event_retention: int = _setting(
        3600,
        "events",
        "How far back a stream can resume before it gets a gap; an hour covers a restart or a laptop's nap.",
        key="retention",
        unit="seconds",
        least=1,
        most=_YEAR,
        live=True,
    )
    webhooks_timeout: int = _setting(
        5,
        "webhooks",
        "How long one delivery may take, from the name lookup to the answer; receivers on the same machine answer at "
        "once and do the work afterward.",
        key="timeout",
        unit="seconds",
        least=1,
        most=30,
    )
    webhooks_connect_timeout: int = _setting(
        2,
        "webhooks",
        "How much of that time connecting may take; enough to tell that a machine is not there.",
        key="connect_timeout",
        unit="seconds",
        least=1,
        most=30,
    )
    webhooks_allow_private: bool = _setting(
        False,
        "webhooks",
        "Whether deliveries may go to private networks (10/8, 172.16/12, 192.168/16, 100.64/10, fc00::/7); false, "
        "because an agent could otherwise reach through the daemon what it cannot reach itself. Loopback is always "
        "allowed, link-local and metadata addresses never.",
        key="allow_private",
        kind="boolean",
    )
    webhooks_allow_cidrs: tuple[str, ...] = _setting(
        (),
        "webhooks",
        "The private networks that deliveries may go to if allow_private is false.",
        key="allow_cidrs",
        kind="networks",
    )
    webhooks_exec: tuple[str, ...] = _setting(
        (),
        "webhooks",
        "The commands that a doorbell exec:COMMAND may run, each in full and word for word; true allows every "
        "command. None by default, because anyone who can register an agent could run programs as this user.",
        key="exec",
        kind="commands",
    )
    webhooks_exec_timeout: int = _setting(
        30,
        "webhooks",
        "How long such a command may run before it is killed; it should start longer work in the background and exit.",
        key="exec_timeout",
        unit="seconds",
        least=1,
        most=600,
    )
    webhooks_attempt_retention: int = _setting(
        259_200,
        "webhooks",
        "How long delivery attempts stay listed; three days, as long as an event is retried.",
        key="attempt_retention",
        unit="seconds",
        least=60,
        most=_YEAR,
    )
    log_level: str = _setting(
        "info",
        "logging",
        "What is logged to standard error; debug adds a line for each request.",
        key="level",
        kind="text",
        choices=("debug", "info", "warning", "error"),
        live=True,
    )
    log_format: str = _setting(
        "json",
        "logging",
        "Format of a log line; json for programs that collect logs, text for people.",
        key="format",
        kind="text",
        choices=("text", "json"),
        live=True,
    )
    auth_tokens: str = _setting(
        "auto",
        "auth",
        "Whether calls need a token; auto requires one beyond loopback and where the active license demands it. off "
        "ignores tokens altogether.",
        key="tokens",
        kind="text",
        choices=("auto", "required", "off"),
    )
    token_ttl: int = _setting(
        86_400,
        "auth",
        "How long a token lasts; a day, so that a stolen one is of little use.",
        unit="seconds",
        least=60,
        most=_MONTH,
    )
    license_wide_tokens: bool = _setting(
        True,
        "auth",
        "Whether a license key can also obtain tokens that may act as any agent; true, because most clients ask for "
        "one that way.",
        kind="boolean",
    )
    audit_enabled: bool = _setting(
        True,
        "audit",
        "Whether to record every changing call and every refusal in the audit log; true, because what was not "
        "recorded cannot be looked up later.",
        key="enabled",
        kind="boolean",
    )
    audit_retention_days: int = _setting(
        30,
        "audit",
        "How long records are kept, 0 for forever; a month, at half a kilobyte per changing call. A signed checkpoint "
        "replaces purged records.",
        key="retention_days",
        live=True,
        unit="days",
        least=0,
        most=3650,
    )
    routing: Mapping[str, str] = _setting(
        DEFAULT_ROUTING,
        "routing",
        "The role that receives a message of a given type that names no recipient; your entries are added to these or "
        "replace them.",
        key="",
        kind="routing",
        live=True,
    )

    @property
    def scheme(self) -> str:
        """The URL scheme of its addresses."""
        return "https" if self.tls_cert else "http"

    @property
    def open_files(self) -> int:
        """How many files a daemon must be able to open: for its connections and for the program itself."""
        return self.max_connections + self.max_waiters + SPARE_FILES

    @property
    def url(self) -> str:
        """The base URL of the daemon."""
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """Host and port in URL syntax."""
        return authority(self.host, self.port)


def _settings() -> tuple[Setting, ...]:
    defaults = Settings()
    told = []
    for name, metadata in Settings.fields.items():
        about = dict(metadata)
        key = about.pop("key")
        key = name if key is None else key
        told.append(Setting(key=key, attribute=name, default=getattr(defaults, name), **about))
    return tuple(told)


SETTINGS = _settings()
"""Every setting, in the order of the example file."""

_BY_ATTRIBUTE = {setting.attribute: setting for setting in SETTINGS}
_BY_PLACE = {(setting.section, setting.key): setting for setting in SETTINGS}
SECTIONS = tuple(dict.fromkeys(setting.section for setting in SETTINGS))
"""The sections, in the same order."""


def load(
    path: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, Any],
    troubles: list[MuxError] | None = None,
) -> Settings:
    """The settings in force: defaults < file < environment < flags.

    `path` names the file; without it, `STONEMUX_CONFIG` does, or else `config.toml` in the data directory is read if it
    exists. `environ` is the environment; an empty variable counts as absent, and `HOME` determines `~`. `flags` maps
    attribute names to values, where None means not given and numbers may be text. Raises `bad_setting`, also for a
    named file that is missing; with a list of `troubles`, errors in the file and the environment are added to the list
    instead, and the bad values are left out.
    """
    home = environ.get("HOME") or os.path.expanduser("~")
    given = _from_environment(environ, home, troubles) | _from_flags(flags, home)
    defaults = {setting.attribute: _default(setting, home) for setting in SETTINGS}
    named = path or (Path(environ["STONEMUX_CONFIG"]) if environ.get("STONEMUX_CONFIG") else None)
    if named is not None:
        named, missing_ok = expanded(named, home), False
    else:
        named, missing_ok = expanded((given.get("data_dir") or defaults["data_dir"]) / "config.toml", home), True
    stated: dict[str, Any] = {}
    with _noting(troubles):
        stated = _from_text(_read(named, missing_ok=missing_ok), named, home, troubles)
    settings = Settings(**defaults | stated | given)
    with _noting(troubles):
        _refuse_contradictions(settings)
    return settings


def reread(old: Settings, new: Settings) -> tuple[Settings, list[Setting], list[Setting]]:
    """The settings with which a running daemon continues when its settings `old` are reread as `new`.

    Returns them, the settings that change, and those that wait for the next start. Raises `bad_setting` if the mixture
    of old and new would contradict itself.
    """
    changed = [setting for setting in SETTINGS if getattr(old, setting.attribute) != getattr(new, setting.attribute)]
    live = [setting for setting in changed if setting.live]
    settings = replace(old, **{setting.attribute: getattr(new, setting.attribute) for setting in live})
    try:
        _refuse_contradictions(settings)
    except MuxError as error:
        told = f"{error.message}, or restart the daemon, because one of them changes only then"
        raise MuxError(error.code, told, **error.facts) from None
    return settings, live, [setting for setting in changed if not setting.live]


def here() -> Path:
    """The working directory; "." if it was removed while in use, as happens with worktrees."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path()


def check_safe(settings: Settings) -> None:
    """Refuse to listen beyond loopback (127.0.0.0/8, ::1, localhost) without protection, with `unsafe_environment`.

    Tokens authenticate callers, and TLS keeps the tokens and all other traffic confidential.
    """
    if is_loopback(settings.host):
        return
    if settings.auth_tokens == "off":
        raise MuxError(
            "unsafe_environment",
            f"server.host is {shown(settings.host)}, which is not a loopback address, and auth.tokens is off: anyone "
            "who can reach it could act as any agent",
            remedy='set auth.tokens to "auto", or listen on 127.0.0.1, ::1 or localhost',
            setting="auth.tokens",
        )
    if not settings.tls_cert and not settings.insecure_http:
        raise MuxError(
            "unsafe_environment",
            f"server.host is {shown(settings.host)}, which is not a loopback address: anyone on the path could read "
            "and change the traffic",
            remedy="set server.tls_cert, or pass --insecure-http if something else encrypts",
            setting="server.host",
        )


def bracketed(host: str) -> str:
    """A host in URL syntax: an IPv6 address goes in brackets."""
    return f"[{host}]" if ":" in host else host


def authority(host: str, port: int) -> str:
    """Host and port in URL syntax."""
    return f"{bracketed(host)}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach this host."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address in ipaddress.ip_network("127.0.0.0/8") or address == ipaddress.ip_address("::1")


# --- from each source to checked values


Troubles = list[MuxError] | None
"""A list that collects errors; None means that the first one is raised."""


@contextmanager
def _noting(troubles: Troubles) -> Iterator[None]:
    """Collect or raise the error of a block that can fail independently of the others."""
    try:
        yield
    except MuxError as error:
        if troubles is None:
            raise
        troubles.append(error)


def _default(setting: Setting, home: str) -> Any:
    if setting.kind != "path":
        return setting.default
    return Given(setting, str(setting.default), f"the default of {setting.name}", here(), home).checked()


def _from_environment(environ: Mapping[str, str], home: str, troubles: Troubles) -> dict[str, Any]:
    values = {}
    for setting in SETTINGS:
        if setting.environment and (text := environ.get(setting.environment)):
            label = f"{setting.environment} ({setting.name})"
            with _noting(troubles):
                values[setting.attribute] = Given(setting, _typed(setting, text), label, here(), home).checked()
    return values


def _from_flags(flags: Mapping[str, Any], home: str) -> dict[str, Any]:
    values = {}
    for attribute, value in flags.items():
        setting = _BY_ATTRIBUTE.get(attribute)
        if setting is None:
            close = guess(attribute, _BY_ATTRIBUTE)
            flag = _BY_ATTRIBUTE[close].flag if close else ""
            raise MuxError("bad_setting", f"--{attribute} is not a setting{did_you_mean(flag)}")
        if value is not None:
            label = f"{setting.flag} ({setting.name})"
            values[attribute] = Given(setting, _typed(setting, value), label, here(), home).checked()
    return values


def _typed(setting: Setting, value: Any) -> Any:
    """The value of a text from the environment or a flag; nonsense is returned unchanged, for the check to refuse."""
    if isinstance(value, Path | tuple):
        return str(value) if isinstance(value, Path) else list(value)
    if not isinstance(value, str):
        return value
    if setting.kind == "integer" and re.fullmatch(r"-?[0-9]{1,19}", value):
        return int(value)
    if setting.kind == "boolean" and value in ("true", "false"):
        return value == "true"
    return value.split(",") if setting.kind == "hosts" else value


def _read(path: Path, *, missing_ok: bool) -> str:
    try:
        # Editors on some systems put a byte order mark first; it means nothing in UTF-8.
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise MuxError("bad_setting", f"{path}: line {line} is not UTF-8 text", file=str(path), line=line) from None
    except (FileNotFoundError, NotADirectoryError):
        if missing_ok:
            return ""
        raise MuxError("bad_setting", f"{path}: no such file", file=str(path)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MuxError("bad_setting", f"{path}: cannot be read: {reason}", file=str(path)) from None


def _from_text(text: str, path: Path, home: str, troubles: Troubles) -> dict[str, Any]:
    values = {}
    for section, table in _parsed(text, path).items():
        for key, value in _entries(path, section, table, troubles):
            with _noting(troubles):
                setting = _stated(path, section, key)
                label = f"{path}: {setting.name}"
                values[setting.attribute] = Given(setting, value, label, path.absolute().parent, home).checked()
    return values


def _parsed(text: str, path: Path) -> dict[str, Any]:
    if not text:
        return {}
    import tomllib  # most commands find no file, so they do not load the parser

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        told = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise MuxError("bad_setting", f"{path}: not valid TOML: {told}", file=str(path)) from None


def _entries(path: Path, section: str, table: Any, troubles: Troubles) -> list[tuple[str, Any]]:
    """The entries of a section by key; a section that is a single setting has the key ""."""
    with _noting(troubles):
        if section not in SECTIONS:
            raise _unknown_section(path, section)
        if type(table) is not dict:
            raise MuxError("bad_setting", f"{path}: {section} must be a section, written [{section}]", file=str(path))
        return [("", table)] if (section, "") in _BY_PLACE else list(table.items())
    return []


def _stated(path: Path, section: str, key: str) -> Setting:
    if (section, key) not in _BY_PLACE:
        raise _unknown_key(path, section, key, [setting.key for setting in SETTINGS if setting.section == section])
    return _BY_PLACE[section, key]


def _unknown_section(path: Path, name: str) -> MuxError:
    home = next((setting.name for setting in SETTINGS if setting.key == name), None)
    close = home or guess(name, SECTIONS)
    known = ", ".join(SECTIONS)
    meant = f"{close} (under [{close.partition('.')[0]}])" if home else f"[{close}]" if close else ""
    return MuxError(
        "bad_setting",
        f"{path}: unknown section {shown(name)}{did_you_mean(meant, f'Known: {known}')}",
        file=str(path),
        nearest=close or None,
    )


def _unknown_key(path: Path, section: str, key: str, known: list[str]) -> MuxError:
    elsewhere = next((setting.name for setting in SETTINGS if setting.key == key), None)
    here = ", ".join(known)
    near = guess(key, known)
    close = elsewhere or (f"{section}.{near}" if near else "")
    return MuxError(
        "bad_setting",
        f"{path}: [{section}] has no setting {shown(key)}{did_you_mean(close, f'It has: {here}')}",
        file=str(path),
        nearest=close or None,
    )


# --- checks of the whole

_ORDER = (
    ("max_waiters_per_agent", "max_waiters", "one agent cannot have more calls waiting than all agents together"),
    ("max_waiters", "max_connections", "each waiting call holds a connection"),
    ("heartbeat_interval", "stale_threshold", "an agent would go stale between two heartbeats"),
)


def _refuse_contradictions(settings: Settings) -> None:
    if settings.tls_key and not settings.tls_cert:
        raise MuxError(
            "bad_setting",
            "server.tls_key is set but server.tls_cert is not, so nothing would be encrypted; set both",
            setting="server.tls_key",
        )
    for small, large, why in _ORDER:
        low, high = getattr(settings, small), getattr(settings, large)
        if low > high:
            names = f"{_BY_ATTRIBUTE[small].name} ({low}) is more than {_BY_ATTRIBUTE[large].name} ({high})"
            raise MuxError("bad_setting", f"{names}: {why}; change one of them", setting=_BY_ATTRIBUTE[small].name)
