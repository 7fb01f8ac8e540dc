"""The architecture of the program: which module builds on which, and what only a single module may touch.

Read the layers from the bottom. A module imports only from lower layers, never from its own; imports for the type
checker do not count. Enter a new module here, in the lowest layer that works.
"""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path

from stonemux import tables

PACKAGE = Path(tables.__file__).parent
COMMANDS = {f"commands.{path.stem}" for path in (PACKAGE / "commands").glob("*.py") if path.stem != "__init__"}
MODULES = sorted({path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"} | COMMANDS)

LAYERS: tuple[set[str], ...] = (
    {"record"},
    # what everything may use
    {
        "errors",
        "clock",
        "vocabulary",
        "tables",
        "trays",
        "flights",
        "ballast",
        "readiness",
        "launch",
        "ed25519",
        "signals",
        "ears",
    },
    {"ground", "setting", "threads"},
    # one subject each, none knows of the program
    {
        "chain",
        "clients",
        "hub",
        "mentions",
        "excerpts",
        "presence",
        "datadir",
        "schema",
        "config",
        "logs",
        "jsonc",
        "tomltext",
        "probe",
        "local",
        "methods",
        "keeper",
        "parser",
        "addresses",
        "endpoints",
        "signature",
        "trust",
    },
    {
        "license",
        "licensekey",
        "transaction",
        "opening",
        "blotter",
        "payload",
        "pool",
        "setup",
        "operations",
        "flags",
        "screen",
        "configtext",
        "refusals",
        "oneshot",
    },
    # the Python client
    {"calls"},
    {"consume"},
    {"follow"},
    {"client"},
    # what is kept
    {
        "copies",
        "verbs",
        "remote",
        "openapi",
        "mcp",
        "pieces",
        "courier",
        "licenseclient",
        "bellcommand",
        "attempts",
        "throttle",
        "tokens",
        "entitlement",
    },
    {"migration", "reference", "issuer"},
    {"store", "tail", "progress", "output", "filing"},
    {"events", "directory", "wire", "starter", "methodtext"},
    # the program as one record
    {"mux", "channels", "documents", "doorbells", "taskrows"},
    {"audit"},
    # what it does
    {"tasks", "state", "door", "connection", "parking", "webhooks"},
    {"handoff", "claims"},
    {"messages"},
    {"agents", "auth", "licensing", "leases", "monitor", "history", "sending", "inbox", "backup"},
    {"polling", "dispatch", "search"},
    {"autodispatch"},
    # what runs by itself; streams; many calls at once
    {"together", "timekeeper", "telemetry", "sse", "outbound"},
    # faces
    {"exchange", "offer", "tls"},
    {"mcphttp", "stdio"},
    {"httpd"},
    # its life, and the command
    {"daemon", "upkeep", "owner", "licenseserver", "service", "runner", "findings"},
    {"surroundings"},
    {"doctor", "activation"},
    COMMANDS - {"commands.completion"},
    {"cli"},
    {"commands.completion"},  # it tells of all commands; the command line finds it by its name
    {"__main__", "onefile"},
    {"release"},
)

ONLY = {
    "time": {"clock"},
    # `clock` makes ids and tokens without them, see there
    "uuid": set(),
    "random": set(),
    "secrets": set(),
    # search catches what a SQLite without FTS5 raises
    "sqlite3": {
        "opening",
        "migration",
        "transaction",
        "store",
        "search",
        "copies",
        "doctor",
        "findings",
        "surroundings",
    },
    "socket": {
        "addresses",
        "connection",
        "doctor",
        "httpd",
        "local",
        "oneshot",
        "pool",
        "sse",
        "surroundings",
        "tls",
        "trust",
    },
    "ssl": {"oneshot", "tls", "trust"},
    "socketserver": {"httpd"},
    "select": {"logs", "pool", "readiness", "sse", "probe", "commands.top"},
    "http.server": {"httpd"},
    "http.client": set(),
    "urllib.request": set(),
    "subprocess": {"probe", "bellcommand", "service", "setup", "starter", "surroundings", "runner"},
    "signal": {
        "daemon",
        "licenseserver",
        "bellcommand",
        "stdio",
        "runner",
        "signals",
        "commands.run",
        "commands.serve",
        "commands.top",
    },
    "asyncio": set(),
    "dataclasses": set(),  # see `record`
    "multiprocessing": set(),
}
"""Modules of the standard library, and who imports them: nobody else may, and an entry without use goes."""

SHARED = {
    "agent": {"agents", "messages"},  # the purge keeps the highest id that an inbox ever had
    # a message's way, plain, leased and as its reader marks it; and where it is found
    "delivery": {"messages", "leases", "inbox", "filing"},
    # the leader writes what was emitted, with ids of its own; a restored database forgets them, and the old ones go
    "event": {"transaction", "opening", "events"},
    "webhook": {"doorbells", "webhooks"},  # doorbells, and endpoints that events are forwarded to
    "member": {"agents", "channels", "directory"},
    # what a database is; the time it has seen; what stands for purged records and messages; what is filed
    "meta": {"migration", "opening", "store", "audit", "messages", "filing"},
    "searched": {"search", "copies"},  # how far the index goes; a restore removes the index
    "audit": {"transaction", "opening", "audit"},  # the leader chains; a leap is recorded; old records go
}
"""Tables that more than one module writes."""


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))


@cache
def imports(module: str) -> frozenset[str]:
    """Full names of what a module imports when it runs, also inside functions; `stonemux.x` for our own."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively"
            assert node.module is not None
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):  # expressions import nothing
                visit(child)

    visit(tree(module))
    return frozenset(found)


def ours(module: str) -> set[str]:
    names = [name.removeprefix("stonemux.") for name in imports(module) if name.startswith("stonemux.")]
    return {".".join(name.split(".")[:depth]) for name in names for depth in (1, 2)} & set(MODULES)


def layer_of(module: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if module in layer)


def test_every_module_has_one_place_in_the_picture():
    placed = [module for layer in LAYERS for module in layer]
    assert len(placed) == len(set(placed))
    assert set(MODULES) <= set(placed), "enter the new module in LAYERS"


def test_imports_go_downwards():
    layers = {module: layer_of(module) for module in MODULES}
    upwards = {(module, other) for module in MODULES for other in ours(module) if layers[other] >= layers[module]}
    assert not upwards, "the first of each pair imports the second"


def test_only_the_standard_library_is_needed():
    known = sys.stdlib_module_names | {"stonemux", "__future__"}
    foreign = {(module, name) for module in MODULES for name in imports(module) if name.split(".")[0] not in known}
    assert not foreign


def test_what_only_some_may_touch():
    for name, allowed in ONLY.items():
        users = {
            module for module in MODULES if any(used == name or used.startswith(f"{name}.") for used in imports(module))
        }
        assert users == allowed, name


def test_each_table_is_written_by_one_module():
    names = set(re.findall(r"create (?:virtual )?table (\w+)\b(?! as )", str(tables.MIGRATIONS)))
    assert {"message", "delivery", "task", "state", "event", "idempotency"} <= names
    writes = re.compile(rf"(?:insert(?: or \w+)? into|update|delete from) ({'|'.join(names)})\b")
    writers: dict[str, set[str]] = {name: set() for name in names}
    for module in set(MODULES) - {"tables"}:
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and not _is_doc(node.value):
                for table in writes.findall(node.value):
                    writers[table].add(module)
            elif isinstance(node, ast.Call) and _calls(node, "tx.insert"):
                writers[ast.literal_eval(node.args[0])].add(module)
    writers["event"].add("transaction")
    writers["audit"].add("transaction")
    assert all(writers.values()), "somebody writes each table"
    assert {table: modules for table, modules in writers.items() if len(modules) > 1} == SHARED


def _calls(node: ast.Call, name: str) -> bool:
    whose, _, what = name.partition(".")
    match node.func:
        case ast.Attribute(ast.Name(id), attr):
            return (id, attr) == (whose, what)
        case ast.Name(id):
            return id == name
    return False


def _is_doc(text: str) -> bool:
    return not re.match(r"\s*(insert|update|delete)", text)


def test_no_module_has_the_name_of_one_of_the_standard_library():
    assert not set(MODULES) - {"__main__"} & sys.stdlib_module_names


def design(title: str) -> str:
    text = (PACKAGE.parent / "docs/design.md").read_text(encoding="utf-8")
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_design_says_once_where_each_module_belongs():
    told = sorted(re.findall(r"`([a-z0-9_]+)`", design("Where things are")))
    assert told == sorted({module.partition(".")[0] for module in MODULES})


def test_the_design_tells_of_each_thread_of_the_daemon():
    reached, new = set(), {"daemon"}
    while new:
        reached |= new
        new = {other for module in new for other in ours(module)} - reached
    calls = [node for module in reached for node in ast.walk(tree(module)) if isinstance(node, ast.Call)]
    threads = {
        keyword.value.value
        for call in calls
        if _calls(call, "threading.Thread")
        for keyword in call.keywords
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant)
    }
    threads |= {call.args[0].value for call in calls if _calls(call, "begin") or _calls(call, "threads.begin")}
    told = re.findall(r"^\| ([a-z-]+) \| ", design("Threads"), re.MULTILINE)
    assert set(told) - {"thread", "main"} == threads
