"""How a program that uses the client looks to mypy, which checks this file strictly; it is never run."""

from __future__ import annotations

import threading

from stonemux import Client, MuxError
from stonemux.follow import StreamedEvent
from stonemux.methods import Message, Task


def everything(stop: threading.Event) -> str:
    """Each kind of call, with the types of its answers."""
    with Client("127.0.0.1:3392", agent="writer", timeout=5) as client:
        client.agent_register(agent_id="writer", capabilities=["drafting"], metadata={"pid": 1})
        sent: int = client.msg_send(to="editor", content="hi", priority=3)["message_id"]
        mail: list[Message] = [*client.msg_list(after=sent)["messages"]]
        for message in client.messages(types=["question"], stop=stop):
            mail.append(message)
        with client.claimed(timeout=30) as task:
            if task is not None and not task.cancelled:
                task.result = task.description.upper()
        claim = client.task_claim()
        held: Task | None = claim["task"]
        known: dict[str, int] = {record["key"]: record["version"] for record in client.state_list()["keys"]}
        for version in client.watch("stage", after_version=known.get("stage", 0)):
            known["stage"] = version["version"]
        client.update("counter", lambda value: str(int(value or 0) + 1))
        seen: list[StreamedEvent] = list(client.events(types=("message",), timeout=1))
        try:
            client.state_set(key="stage", value="done", expected_version=known["stage"])
        except MuxError as error:
            return f"{error.code} {error.status} {error.facts.get('current_version')} {held} {seen}"
        return client.metrics()
