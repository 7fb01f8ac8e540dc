"""The programs that users compare stonemux with: how each is started, and what its clients send.

A `Contender` represents one program. `put` makes one thing durable; `cycle` puts, takes, and acknowledges it; `wait`
and `wake` are a client that waits for something and one that delivers it. All start on loopback, in an empty directory,
with the strictest flushing that the program offers (nats-server 2.9 cannot flush each message, as the report says).
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.load import HttpPeer, Peer, Refused, excerpt
from bench.rows import CONTENT, RECIPIENTS, TaskCycle, send_peer
from bench.servers import (
    START_S,
    FastApi,
    Server,
    ServerFailed,
    Stonemux,
    free_port,
    get,
    missing_for_fastapi,
    post,
    register,
    scratch,
)

PAYLOAD = CONTENT.encode()


class Contender:
    """One program; `flushes` says how durable an answered put is."""

    name = ""
    package = ""
    """Its source: a Debian package, or the extra `bench`."""
    flushes = "each put is flushed before it is answered"

    greetings = 0
    """How many requests a waking client makes before its first put."""

    def version(self) -> str:
        """The installed version, or an empty string."""
        raise NotImplementedError

    def server(self, directory: Path) -> Server:
        """The program running on this directory."""
        raise NotImplementedError

    def prepare(self, server: Server, names: Sequence[str]) -> None:
        """Set up what the clients with these names need."""

    def put(self, index: int) -> Peer:
        """A client that puts, forever."""
        raise NotImplementedError

    def cycle(self, index: int) -> Peer:
        """A client that puts, takes, and acknowledges, forever."""
        raise NotImplementedError

    def wait(self, name: str) -> bytes:
        """The bytes that a new connection sends to wait for something under this name."""
        raise NotImplementedError

    def wake(self, name: str) -> Peer:
        """A client that puts something under this name with each request."""
        raise NotImplementedError

    def woken(self, heard: bytes) -> bool:
        """Whether the waiting connection has received the thing completely."""
        raise NotImplementedError


@contextmanager
def running(contender: Contender) -> Iterator[Server]:
    """The program, started and answering."""
    with scratch() as directory, contender.server(directory) as server:
        yield server


def _first_line(*command: str) -> str:
    path = shutil.which(command[0]) or shutil.which(command[0], path="/usr/sbin:/usr/local/sbin")
    if path is None:
        return ""
    told = subprocess.run([path, *command[1:]], capture_output=True, text=True, timeout=10, check=False)
    lines = (told.stdout or told.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"


class _Native(Server):
    """A server that counts as ready when it answers a greeting in its own protocol."""

    def __init__(self, directory: Path, argv: Callable[[int], list[str]], greeting: bytes, reply: bytes) -> None:
        super().__init__(argv(0)[0], directory)
        self._argv, self._greeting, self._reply = argv, greeting, reply

    def command(self, port: int) -> list[str]:
        return self._argv(port)

    def await_health(self, pause: float = 0.01) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                with socket.create_connection(self.address, timeout=2) as sock:
                    sock.sendall(self._greeting)
                    heard = b""
                    while self._reply not in heard:
                        if not (more := sock.recv(4096)):
                            raise EOFError
                        heard += more
                return
            except (OSError, EOFError):
                self.check()
                if time.monotonic() > deadline:
                    raise ServerFailed(f"{self.name} gave no answer for {START_S:.0f} s: {self._output()}") from None
                time.sleep(pause)


class _Lines:
    """A client that sends requests in turn; `measure` returns the length of a reply, or 0 while it is incomplete."""

    def __init__(self, requests: Sequence[bytes], measure: Callable[[bytes], int]) -> None:
        self.steps = len(requests)
        self.last = False
        self.requests = itertools.cycle(requests).__next__
        self._measure = measure

    def request(self) -> bytes:
        """The next of the requests."""
        return self.requests()

    def complete(self, buffer: bytes) -> int:
        """The length of the reply."""
        return self._measure(buffer)


# --- stonemux, and the service that one would otherwise write


class Ours(Contender):
    """The daemon."""

    name = "stonemux"
    package = "this tree"

    def version(self) -> str:
        from stonemux import VERSION

        return VERSION

    def server(self, directory: Path) -> Server:
        return Stonemux(directory)

    def prepare(self, server: Server, names: Sequence[str]) -> None:
        register(server.address, ["sender", *RECIPIENTS, *names])

    def put(self, index: int) -> Peer:
        return send_peer()(index)

    def cycle(self, index: int) -> Peer:
        return TaskCycle(RECIPIENTS[index % len(RECIPIENTS)])

    def wait(self, name: str) -> bytes:
        return get("/msg/poll", agent_id=name, timeout=120)

    def wake(self, name: str) -> Peer:
        return HttpPeer([post("/msg/send", {"from": "sender", "to": name, "content": CONTENT})])

    def woken(self, heard: bytes) -> bool:
        return bool(HttpPeer([b""]).complete(heard)) and b'"content"' in heard


class Service(Ours):
    """FastAPI, uvicorn, and aiosqlite with one connection that all requests share."""

    name = "FastAPI"
    package = "the extra `bench`"
    flushes = "each put is flushed before it is answered (WAL, synchronous=FULL)"

    def version(self) -> str:
        if missing_for_fastapi():
            return ""
        from importlib.metadata import version

        return f"{version('fastapi')}, uvicorn {version('uvicorn')}, aiosqlite {version('aiosqlite')}"

    def server(self, directory: Path) -> Server:
        return FastApi(directory, "shared")

    def prepare(self, server: Server, names: Sequence[str]) -> None:
        pass


# --- redis


def _resp(*words: str | bytes) -> bytes:
    parts = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def _resp_end(heard: bytes, at: int = 0) -> int:
    """The end of the value that begins at `at`, or 0 while it is incomplete (RESP2)."""
    line = heard.find(b"\r\n", at)
    if line < 0:
        return 0
    kind, count = heard[at : at + 1], heard[at + 1 : line]
    if kind == b"-":
        raise Refused(excerpt(heard[at:line]))
    after = line + 2
    if kind in b"+:" or count == b"-1":
        return after
    if kind == b"$":
        end = after + int(count) + 2
        return end if len(heard) >= end else 0
    for _ in range(int(count)):
        after = _resp_end(heard, after)
        if not after:
            return 0
    return after


class _StreamCycle(_Lines):
    """Adds to a stream, reads as a member of its group, and acknowledges."""

    _ID = re.compile(rb"\$[0-9]+\r\n([0-9]+-[0-9]+)\r\n")

    def __init__(self, consumer: str) -> None:
        super().__init__([b"", b"", b""], _resp_end)
        self._add = _resp("XADD", "work", "*", "m", PAYLOAD)
        self._read = _resp("XREADGROUP", "GROUP", "workers", consumer, "COUNT", "1", "STREAMS", "work", ">")
        self._turn, self._id = 0, b""

    def request(self) -> bytes:
        self._turn = self._turn % 3 + 1
        if self._turn < 3:
            return self._add if self._turn == 1 else self._read
        return _resp("XACK", "work", "workers", self._id)

    def complete(self, buffer: bytes) -> int:
        end = _resp_end(buffer)
        if end and self._turn == 2:
            found = self._ID.search(buffer)
            if found is None:
                raise Refused(f"nothing was read from the stream: {excerpt(buffer)}")
            self._id = found[1]
        return end


class Redis(Contender):
    """redis with `appendfsync always`: LPUSH and BRPOP."""

    name = "redis list"
    package = "redis-server"

    def version(self) -> str:
        found = re.search(r"v=(\S+)", _first_line("redis-server", "--version"))
        return found[1] if found else ""

    def server(self, directory: Path) -> Server:
        def argv(port: int) -> list[str]:
            return [
                *("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""),
                *("--appendonly", "yes", "--appendfsync", "always", "--maxclients", "5000"),
            ]

        return _Native(directory, argv, _resp("PING"), b"+PONG")

    def put(self, index: int) -> Peer:
        return _Lines([_resp("LPUSH", RECIPIENTS[index % len(RECIPIENTS)], PAYLOAD)], _resp_end)

    def cycle(self, index: int) -> Peer:
        """Without an acknowledgement, because lists have none: what is taken is gone."""
        return _Lines([_resp("LPUSH", "work", PAYLOAD), _resp("BRPOP", "work", "0")], _resp_end)

    def wait(self, name: str) -> bytes:
        return _resp("BRPOP", name, "0")

    def wake(self, name: str) -> Peer:
        return _Lines([_resp("LPUSH", name, PAYLOAD)], _resp_end)

    def woken(self, heard: bytes) -> bool:
        return bool(_resp_end(heard))


class RedisStream(Redis):
    """The same with streams: XADD, XREADGROUP, XACK."""

    name = "redis stream"

    def prepare(self, server: Server, names: Sequence[str]) -> None:
        with socket.create_connection(server.address, timeout=5) as sock:
            sock.sendall(_resp("XGROUP", "CREATE", "work", "workers", "$", "MKSTREAM"))
            if not sock.recv(100).startswith(b"+OK"):
                raise ServerFailed("redis made no group")

    def put(self, index: int) -> Peer:
        return _Lines([_resp("XADD", RECIPIENTS[index % len(RECIPIENTS)], "*", "m", PAYLOAD)], _resp_end)

    def cycle(self, index: int) -> Peer:
        return _StreamCycle(f"worker-{index}")

    def wait(self, name: str) -> bytes:
        return _resp("XREAD", "BLOCK", "0", "STREAMS", name, "$")

    def wake(self, name: str) -> Peer:
        return _Lines([_resp("XADD", name, "*", "m", PAYLOAD)], _resp_end)


# --- beanstalkd


def _bean_end(heard: bytes) -> int:
    line = heard.find(b"\r\n")
    if line < 0:
        return 0
    words = heard[:line].split(b" ")
    if words[0] in (b"INSERTED", b"DELETED", b"USING", b"WATCHING"):
        return line + 2
    if words[0] == b"RESERVED":
        end = line + 2 + int(words[2]) + 2
        return end if len(heard) >= end else 0
    raise Refused(excerpt(heard))


class _BeanCycle(_Lines):
    """Puts, reserves, and deletes."""

    def __init__(self) -> None:
        super().__init__([b"", b"", b""], _bean_end)
        self._turn, self._id = 0, b""

    def request(self) -> bytes:
        self._turn = self._turn % 3 + 1
        if self._turn == 3:
            return b"delete %b\r\n" % self._id
        return _bean_put() if self._turn == 1 else b"reserve\r\n"

    def complete(self, buffer: bytes) -> int:
        end = _bean_end(buffer)
        if end and self._turn == 2:
            self._id = buffer.split(b" ", 2)[1]
        return end


def _bean_put() -> bytes:
    return b"put 0 0 60 %d\r\n%b\r\n" % (len(PAYLOAD), PAYLOAD)


class Beanstalkd(Contender):
    """beanstalkd with `-f0`: put, reserve, delete."""

    name = "beanstalkd"
    package = "beanstalkd"
    greetings = 1

    def version(self) -> str:
        return _first_line("beanstalkd", "-v").removeprefix("beanstalkd ")

    def server(self, directory: Path) -> Server:
        def argv(port: int) -> list[str]:
            return ["beanstalkd", "-l", "127.0.0.1", "-p", str(port), "-b", str(directory), "-f0"]

        return _Native(directory, argv, b"stats\r\n", b"OK ")

    def put(self, index: int) -> Peer:
        return _Lines([_bean_put()], _bean_end)

    def cycle(self, index: int) -> Peer:
        return _BeanCycle()

    def wait(self, name: str) -> bytes:
        return b"watch %b\r\nignore default\r\nreserve\r\n" % name.encode()

    def wake(self, name: str) -> Peer:
        peer = _Lines([_bean_put()], _bean_end)
        peer.requests = itertools.chain([b"use %b\r\n" % name.encode()], itertools.repeat(_bean_put())).__next__
        return peer

    def woken(self, heard: bytes) -> bool:
        return b"RESERVED " in heard and heard.endswith(PAYLOAD + b"\r\n")


# --- etcd


def _text(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def _compared(key: str, version: int, *then: dict[str, Any]) -> bytes:
    compare = {"key": _text(key), "target": "VERSION", "result": "EQUAL", "version": str(version)}
    return post("/v3/kv/txn", {"compare": [compare], "success": list(then)})


def _stored(key: str, value: bytes) -> dict[str, Any]:
    return {"requestPut": {"key": _text(key), "value": _text(value)}}


class _EtcdWriter(HttpPeer):
    """Puts new keys, each only if it does not exist; with `cycle`, also claims it by compare-and-set and deletes it."""

    def __init__(self, index: int, *, cycle: bool) -> None:
        super().__init__([])
        self._next = self._say(index, cycle=cycle).__next__
        self.steps = 3 if cycle else 1

    def _say(self, index: int, *, cycle: bool) -> Iterator[bytes]:
        run = time.monotonic_ns()
        for number in itertools.count():
            key = f"work/{run}/{index}/{number}"
            yield _compared(key, 0, _stored(key, PAYLOAD))
            if cycle:
                yield _compared(key, 1, _stored(key, b"claimed"))
                yield _compared(key, 2, {"requestDeleteRange": {"key": _text(key)}})

    def answered(self, buffer: bytes, start: int, end: int) -> None:
        if b'"succeeded":true' not in buffer[start:end]:
            raise Refused(f"a comparison failed: {excerpt(buffer[start:end])}")


class Etcd(Contender):
    """etcd through its JSON gateway: put with compare, watch."""

    name = "etcd"
    package = "etcd-server"

    def version(self) -> str:
        return _first_line("etcd", "--version").removeprefix("etcd Version: ")

    def server(self, directory: Path) -> Server:
        def argv(port: int) -> list[str]:
            here, peers = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"
            return [
                *("etcd", "--data-dir", str(directory / "etcd"), "--log-level", "error", "--name", "one"),
                *("--listen-client-urls", here, "--advertise-client-urls", here, "--listen-peer-urls", peers),
                *("--initial-advertise-peer-urls", peers, "--initial-cluster", f"one={peers}"),
            ]

        return _Native(directory, argv, get("/health"), b'"health":"true"')

    def put(self, index: int) -> Peer:
        return _EtcdWriter(index, cycle=False)

    def cycle(self, index: int) -> Peer:
        return _EtcdWriter(index, cycle=True)

    def wait(self, name: str) -> bytes:
        return post("/v3/watch", {"create_request": {"key": _text(name)}})

    def wake(self, name: str) -> Peer:
        return HttpPeer([post("/v3/kv/put", {"key": _text(name), "value": _text(PAYLOAD)})])

    def woken(self, heard: bytes) -> bool:
        return b'"events"' in heard and heard.endswith(b"}\n\r\n")


# --- nats-server


class _NatsAsker:
    """Sends requests by publishing, and receives the answers in its own inbox."""

    _HEAD = re.compile(rb"MSG (\S+) [0-9]+ +(?:(\S+) )?([0-9]+)\r\n")

    def __init__(self, index: int, turns: int) -> None:
        self.steps = turns
        self.last = False
        self._inbox = b"answers.%d.%d" % (index, time.monotonic_ns())
        self._greeting = b'CONNECT {"verbose":false}\r\nSUB %b 1\r\n' % self._inbox
        self._turn = 0
        self._reply = b""

    def request(self) -> bytes:
        self._turn = self._turn % self.steps + 1
        greeting, self._greeting = self._greeting, b""
        return greeting + self.asked(self._turn)

    def asked(self, turn: int) -> bytes:
        """The message to publish in one turn."""
        if turn == 1:
            return _publish(b"work.all", PAYLOAD, self._inbox)
        if turn == 2:
            return _publish(b"$JS.API.CONSUMER.MSG.NEXT.WORK.takers", b"", self._inbox)
        return _publish(self._reply, b"+ACK", self._inbox)

    def complete(self, buffer: bytes) -> int:
        head = self._HEAD.search(buffer)
        if head is None:
            if b"-ERR" in buffer:
                raise Refused(excerpt(buffer))
            return 0
        end = head.end() + int(head[3]) + 2
        if len(buffer) < end:
            return 0
        if b'"error"' in buffer[head.end() : end]:
            raise Refused(excerpt(buffer[head.end() : end]))
        self._reply = head[2] or b""
        rest = buffer[end:]
        if rest == b"PING\r\n":
            self._greeting = b"PONG\r\n"
            return len(buffer)
        if buffer.startswith(b"PING\r\n"):
            self._greeting = b"PONG\r\n"
        return end


def _publish(subject: bytes, data: bytes, reply: bytes) -> bytes:
    return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(data), data)


class Nats(Contender):
    """nats-server with JetStream: publish, pull, acknowledge."""

    name = "nats JetStream"
    package = "nats-server"
    flushes = "puts are written, and flushed on a timer: this version cannot flush each one"

    def version(self) -> str:
        return _first_line("nats-server", "--version").removeprefix("nats-server: ")

    def server(self, directory: Path) -> Server:
        def argv(port: int) -> list[str]:
            program = shutil.which("nats-server") or "/usr/sbin/nats-server"
            return [program, "-js", "-sd", str(directory), "-p", str(port), "-a", "127.0.0.1"]

        return _Native(directory, argv, b"", b"INFO ")

    def prepare(self, server: Server, names: Sequence[str]) -> None:
        stream = {"name": "WORK", "subjects": ["work.>"], "storage": "file"}
        asked = [(b"$JS.API.STREAM.CREATE.WORK", stream)]
        for name, subject in [("takers", "work.all"), *((name, f"work.{name}") for name in names)]:
            config = {"durable_name": name, "ack_policy": "explicit", "filter_subject": subject, "max_ack_pending": -1}
            asked.append((
                f"$JS.API.CONSUMER.DURABLE.CREATE.WORK.{name}".encode(), {"stream_name": "WORK", "config": config}
            ))  # fmt: skip
        with socket.create_connection(server.address, timeout=10) as sock:
            sock.sendall(b'CONNECT {"verbose":false}\r\nSUB answers 1\r\n')
            for subject, body in asked:
                sock.sendall(_publish(subject, json.dumps(body).encode(), b"answers"))
                heard = b""
                while b"}\r\n" not in heard.partition(b"MSG answers")[2]:
                    heard += sock.recv(65536)
                if b'"error"' in heard:
                    raise ServerFailed(f"nats-server: {excerpt(heard)}")

    def put(self, index: int) -> Peer:
        return _NatsAsker(index, 1)

    def cycle(self, index: int) -> Peer:
        return _NatsAsker(index, 3)

    def wait(self, name: str) -> bytes:
        asked = b'{"batch":1,"expires":120000000000}'
        inbox = b"waits.%b" % name.encode()
        return b'CONNECT {"verbose":false}\r\nSUB %b 1\r\n' % inbox + _publish(
            b"$JS.API.CONSUMER.MSG.NEXT.WORK.%b" % name.encode(), asked, inbox
        )

    def wake(self, name: str) -> Peer:
        peer = _NatsAsker(hash(name) % 1000, 1)
        peer.asked = lambda turn: _publish(b"work.%b" % name.encode(), PAYLOAD, peer._inbox)  # type: ignore[method-assign]
        return peer

    def woken(self, heard: bytes) -> bool:
        return heard.endswith(PAYLOAD + b"\r\n")


CONTENDERS: tuple[Contender, ...] = (Ours(), Service(), Redis(), RedisStream(), Beanstalkd(), Etcd(), Nats())
