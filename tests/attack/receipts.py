"""Abandoned polls: before, during, and right after the answer, by reset and by orderly close, half read.

Every message sent must be read completely by someone; and one that was read completely, followed by an orderly close or
another request, must never come again.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time

from attack.calls import Client
from attack.crash import Outcome
from attack.raw import Half

SMALL = 200
"""Fewer bytes than any complete answer."""


class Abandoner(threading.Thread):
    """One inbox, and polls of it, most of which are abandoned."""

    def __init__(self, port: int, name: str, seed: int, polls: int, *, tls: bool) -> None:
        super().__init__(name=name, daemon=True)
        self.port, self.polls, self.tls = port, polls, tls
        self.chance = random.Random(f"{seed}/{name}")
        self.client = Client(port, tls=tls)
        self.sent: list[int] = []
        self.read: dict[int, bool] = {}
        """The ids that were read completely, and whether the daemon must know that."""
        self.violations: list[str] = []
        self.abandoned = 0
        self.target = f"/msg/poll?agent_id={name}&limit=3&timeout="
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self.client.must("/agent/register", agent_id=self.name)
            while self.abandoned < self.polls:
                way = self.chance.choice(
                    (self.before, self.during, self.right_after, self.half_read, self.read_and_reset, self.half_close)
                )
                way()
                self.abandoned += 1
                if self.chance.random() < 0.3:
                    self.honest(0)
            while set(self.sent) - self.read.keys():
                if not self.honest(1):
                    break
            lost = sorted(set(self.sent) - self.read.keys())
            self.violations += [f"lost_message: {self.name} was never given {message_id}" for message_id in lost]
        except BaseException as failure:
            self.failure = failure
        finally:
            self.client.close()

    def poll(self, timeout: int) -> Half:
        """Start a poll of this inbox."""
        return Half(self.port, f"{self.target}{timeout}", self.chance.choice(("gulps", "sips")) if self.tls else "")

    # -- ways to abandon a poll

    def before(self) -> None:
        """Leave while the poll waits; the mail arrives afterwards."""
        poll = self.poll(2)
        self.pause(2)
        self.leave(poll)
        self.pause(0.3)
        self.send()

    def during(self) -> None:
        """Leave at the moment when the mail arrives."""
        poll = self.poll(2)
        self.pause(2)
        sending = threading.Thread(target=self.send)
        sending.start()
        self.pause(1.5)
        self.leave(poll)
        sending.join()

    def right_after(self) -> None:
        """Leave just after asking, when the answer is ready."""
        self.send()
        poll = self.poll(0)
        self.pause(1.5)
        self.leave(poll)

    def half_read(self) -> None:
        """Read only a part."""
        self.send()
        poll = self.poll(1)
        poll.read_some(self.chance.randrange(1, SMALL))
        self.leave(poll)

    def read_and_reset(self) -> None:
        """Read all of it, and then close with a reset: the daemon may or may not count that as received."""
        self.send()
        poll = self.poll(1)
        messages = poll.read_all()
        poll.reset()
        self.note([message["id"] for message in messages], certain=False)

    def half_close(self) -> None:
        """Announce at once that nothing more will be sent; whether an answer comes is the daemon's choice."""
        self.send()
        poll = self.poll(1)
        self.pause(0.5)
        poll.half_close()
        try:
            messages = poll.read_all()
        except OSError:
            messages = []
        poll.end()
        self.note([message["id"] for message in messages], certain=False)

    def leave(self, poll: Half) -> None:
        if self.tls and self.chance.random() < 0.5:
            with contextlib.suppress(OSError):  # the daemon was faster
                poll.goodbye()
        if self.chance.random() < 0.5:
            poll.reset()
        else:
            poll.end()

    # -- polls that are read properly

    def honest(self, timeout: int) -> bool:
        """Read until nothing comes; returns whether anything came."""
        poll = self.poll(timeout)
        ids = [message["id"] for message in poll.read_all()]
        self.note(ids, certain=True)
        if self.chance.random() < 0.5:  # another request is a receipt, and so is an orderly close
            poll.ask("/health")
            poll.read_all()
        if self.tls and self.chance.random() < 0.5:
            poll.goodbye()
        poll.end()
        return bool(ids)

    def note(self, ids: list[int], *, certain: bool) -> None:
        for message_id in ids:
            if self.read.get(message_id):
                self.violations.append(f"delivered_twice: {message_id} came to {self.name} again")
            self.read[message_id] = certain or self.read.get(message_id, False)

    def send(self) -> None:
        for _ in range(self.chance.choice((1, 1, 1, 3))):
            answer = self.client.must("/msg/send", from_=self.name, to=self.name, content="x")
            self.sent.append(answer["message_id"])

    def pause(self, most_ms: float) -> None:
        """Wait a random time; short waits spin, since a sleep would take longer."""
        until = time.perf_counter() + self.chance.random() * most_ms / 1000
        while time.perf_counter() < until:
            pass


def attack(port: int, *, seed: int, polls: int, agents: int = 4, tls: bool = False) -> Outcome:
    """Abandon `polls` polls, on several inboxes at once."""
    abandoners = [Abandoner(port, f"left{seed}-{number}", seed, polls // agents, tls=tls) for number in range(agents)]
    for abandoner in abandoners:
        abandoner.start()
    for abandoner in abandoners:
        abandoner.join(600)
        if abandoner.failure is not None:
            raise abandoner.failure
    return Outcome(
        [violation for abandoner in abandoners for violation in abandoner.violations],
        {
            "abandoned": sum(abandoner.abandoned for abandoner in abandoners),
            "sent": sum(len(abandoner.sent) for abandoner in abandoners),
        },
    )
