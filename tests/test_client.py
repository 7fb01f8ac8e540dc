"""The Python client: what is generated is current, typed and whole; trying again; conveniences."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from faces import OverHttp, join

import stonemux
from stonemux import methods, methodtext, operations
from stonemux.client import WAITING, Client
from stonemux.errors import MuxError

CALLED = [operation for operation in operations.OPERATIONS if operation.kind != "stream"]


def refused(code, call, **given):
    """The refusal of a call, which must have this code."""
    with pytest.raises(MuxError) as caught:
        call(**given)
    assert caught.value.code == code
    return caught.value


@pytest.fixture
def client(http: OverHttp):
    with Client(f"http://127.0.0.1:{http.port}", environ={}) as client:
        yield client


# --- what is generated


def test_the_methods_are_current():
    written = Path(methods.__file__).read_text(encoding="utf-8")
    assert written == methodtext.text(operations.OPERATIONS, methodtext.named_shapes(operations)), "run `make docs`"


@pytest.mark.parametrize("operation", CALLED, ids=lambda operation: operation.name)
def test_every_operation_is_a_method_with_the_rows_parameters(operation):
    method = getattr(Client, operation.name.replace(".", "_"))
    arguments = dict(inspect.signature(method).parameters)
    del arguments["self"]
    if operation.changes:
        assert arguments.pop("idempotency_key").default is None
    assert list(arguments) == [param.argument for param in operation.params]
    for param in operation.params:
        argument = arguments[param.argument]
        assert argument.kind is inspect.Parameter.KEYWORD_ONLY
        must = param.required and param.name != operation.actor
        assert argument.default == (inspect.Parameter.empty if must else None if param.required else param.default)
        assert f"`{param.argument}`" in inspect.getdoc(method)


def test_the_calls_that_wait_are_those_with_a_timeout():
    assert set(WAITING) == {operation.name for operation in CALLED if "timeout" in operation.by_name}


def test_importing_the_package_imports_no_client():
    told = subprocess.run(
        [sys.executable, "-c", "import sys, stonemux; print(sorted(n for n in sys.modules if 'stonemux' in n))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "['stonemux']\n"
    assert stonemux.Client is Client
    assert stonemux.MuxError is MuxError
    with pytest.raises(AttributeError):
        stonemux.Nothing  # noqa: B018


# --- calls


def test_the_clients_agent_acts_where_a_call_does_not_say(http: OverHttp):
    join(http, "ann", "bob")
    with Client(f"127.0.0.1:{http.port}", agent="ann", environ={}) as client:
        client.msg_send(to="bob", content="hi")
        client.msg_send(sender="bob", to="ann", content="hello")
        assert [message["from"] for message in client.msg_poll(timeout=0)["messages"]] == ["bob"]
        assert client.state_set(key="k", value="v")["updated_by"] == "ann"


def test_a_refusal_has_code_message_facts_and_status(client: Client):
    error = refused("agent_not_found", client.agent_get, agent_id="nobody")
    assert error.status == 404
    assert "nobody" in error.message
    assert error.facts["request_id"]


def test_settings_come_from_the_environment_as_for_commands(tmp_path: Path):
    (tmp_path / "c.toml").write_text("[server]\nport = 4000\n")
    environ = {"HOME": str(tmp_path), "STONEMUX_CONFIG": str(tmp_path / "c.toml"), "STONEMUX_AGENT": "ann"}
    assert repr(Client(environ=environ)) == "Client('http://127.0.0.1:4000', agent='ann')"
    assert repr(Client(environ=environ | {"STONEMUX_PORT": "4001"})) == "Client('http://127.0.0.1:4001', agent='ann')"
    assert repr(Client("[::1]:5", agent="bob", environ=environ)) == "Client('http://[::1]:5', agent='bob')"


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://a:b", "http://h/path", "http://u@h", "http://h:99999", ""]
)
def test_an_address_that_is_none_is_refused(url):
    assert "127.0.0.1:3392" in refused("bad_setting", Client, url=url, environ={}).message
