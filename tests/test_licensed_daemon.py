"""What the documents say about licenses and tokens, typed exactly as printed, with real daemons."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager

from children import BARE
from daemons import ROOT, running_daemon, tried
from raw import eventually
from sessions import Place

from stonemux.datadir import INSTALL


def typed(home, *words, data=None, **environ):
    """What `stonemux WORDS` said, and its status."""
    where = () if data is None else ("--data-dir", str(data))
    done = tried(*words, *where, home=home, **environ)
    return done.returncode, done.stdout, done.stderr


def curl(port, path, given=None, token=None):
    """Status and JSON of one request, as curl with -d and -H sends it."""
    request = urllib.request.Request(f"http://localhost:{port}{path}")
    if given is not None:
        request.data = json.dumps(given).encode()
        request.add_header("Content-Type", "application/json")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.load(refused)


def issued(home, *terms, data=None):
    status, key, said = typed(home, "license", "issue", *terms, data=data)
    assert status == 0, said
    assert re.fullmatch(r"SX(-[0-9A-Z]{4}){4}\n", key)
    return key.strip(), said


def test_the_documents_commands_from_a_key_to_a_message_with_a_token(tmp_path):
    data = tmp_path / ".stonemux"
    key, _ = issued(tmp_path, "--tier", "pro", "--require-tokens")
    status, said, _ = typed(tmp_path, "activate", "--key", key)
    assert (status, said.startswith("activated lic-")) == (0, True)
    status, said, _ = typed(tmp_path, "status", STONEMUX_PORT="1")
    assert (status, "license   pro; license lic-" in said) == (0, True)
    with running_daemon(data) as daemon:
        port = daemon.port
        status, said, _ = typed(tmp_path, "status", "--port", str(port))
        assert (status, "pro" in said) == (0, True)
        assert curl(port, "/agent/register", {"agent_id": "agent-1"})[0] == 401
        status, made = curl(port, "/token/obtain", {"license_key": key})
        assert (status, made["token"][:3]) == (200, "eyJ")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", made["expires_at"])
        for name in ("agent-1", "agent-2"):
            assert curl(port, "/agent/register", {"agent_id": name}, made["token"])[0] == 200
        message = {"from": "agent-1", "to": "agent-2", "content": "Hello"}
        status, sent = curl(port, "/msg/send", message, made["token"])
        assert (status, sent["message_id"] > 0) == (200, True)
        assert curl(port, "/msg/send", message)[0] == 401
        polled = curl(port, "/msg/poll?agent_id=agent-2&timeout=5", token=made["token"])[1]
        assert [one["content"] for one in polled["messages"]] == ["Hello"]
        typo = key[:-1] + ("0" if key[-1] != "0" else "1")
        assert curl(port, "/token/obtain", {"license_key": typo})[1]["error"]["code"] == "license_checksum"
        status, said, _ = typed(tmp_path, "deactivate", "--port", str(port))
        assert (status, said.endswith("the running daemon's tier is now enterprise\n")) == (0, True)


def test_an_mcp_session_hands_on_its_token(tmp_path):
    place = Place(tmp_path)
    try:
        place.data.mkdir(mode=0o700)
        (place.data / "config.toml").write_text('[auth]\ntokens = "required"\n')
        environ = {"STONEMUX_PORT": str(place.port)}
        token = typed(tmp_path, "token", "--agent", "ann", data=place.data, **environ)[1].strip()
        session = place.session(STONEMUX_TOKEN=token, STONEMUX_AGENT="ann")
        session.call("mux_register", agent_id="ann")
        assert session.call("mux_send", to="ann", content="x")["message_id"]
        assert [one["content"] for one in session.call("mux_poll", timeout=0)["messages"]] == ["x"]
        refused = session.answer(session.begin("mux_send", **{"from": "bob", "to": "ann", "content": "x"}))["result"]
        assert (refused["isError"], "agent_mismatch" in str(refused)) == (True, True)
        for code, shown in (("token_missing", {}), ("token_invalid", {"STONEMUX_TOKEN": token[:-2] + "xx"})):
            stranger = place.session(**shown)
            assert code in json.dumps(stranger.answer(stranger.begin("mux_discover")))
    finally:
        place.close()


@contextmanager
def license_server(home, data, log):
    process = subprocess.Popen(
        [sys.executable, "-m", "stonemux", "license", "server", "--port", "0", "--data-dir", str(data)],
        cwd=ROOT,
        env={**BARE, "HOME": str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    try:
        found = re.search(r"(http://\S+)", process.stdout.readline())
        assert found, process.poll()
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_license_from_a_server_holds_when_the_server_is_ended__L1(tmp_path):
    far, near = tmp_path / "far", tmp_path / "near"
    key, said = issued(tmp_path, "--tier", "pro", "--agents", "3", data=far)
    public = re.search(r"public key ([0-9a-f]{64})", said)[1]
    near.mkdir(mode=0o700)
    log = tmp_path / "log"
    with log.open("w") as file, license_server(tmp_path, far, file) as (server, url):
        (near / "config.toml").write_text(
            f'[license]\nlicense_server = "{url}"\ntrusted_issuers = ["{public}"]\nkey_file = "{near}/license.key"\n'
        )
        status, said, trouble = typed(tmp_path, "activate", "--key", key, data=near)
        assert (status, "pro, 3 agents" in said) == (0, True), trouble
        with running_daemon(near) as daemon:
            eventually(lambda: re.search(r"installation \S+ runs \S+ as pro with 0 agents", log.read_text()))
            server.terminate()
            assert server.wait(5) == 0
            assert curl(daemon.port, "/agent/register", {"agent_id": "ann"})[0] == 200
            assert curl(daemon.port, "/task/post", {"description": "x", "posted_by": "ann"})[0] == 200
            before = curl(daemon.port, "/license/status")[1]
    install = json.loads((near / INSTALL).read_bytes())
    (near / INSTALL).write_text(json.dumps(install | {"beat_at": 0}))  # so that the next one is due
    with running_daemon(near) as daemon:
        eventually(lambda: json.loads((near / INSTALL).read_bytes())["beat_at"] >= install["beat_at"])
        told = curl(daemon.port, "/license/status")[1]
        assert (told["tier"], told["seats"], told["license"]) == ("pro", 3, before["license"])
        answers = [curl(daemon.port, "/agent/register", {"agent_id": name})[0] for name in ("bob", "cat", "dan")]
        assert answers == [200, 200, 402]
