"""The one path by which every front end (HTTP, MCP) calls an operation.

In this order, it checks the tier, the token, the idempotency key and the parameters, runs the operation, and audits
it. Front ends only translate.

**Idempotency.** A change with an idempotency key is recorded in the same transaction as its effect. For 24 hours, the
same key with the same body returns the first answer again; with another body it is refused. Recorded are successes,
and refusals that a retry would only repeat.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from stonemux import audit, chain
from stonemux.clock import DAY_MS
from stonemux.datadir import OWNER_TOKEN
from stonemux.errors import MuxError, read_error
from stonemux.hub import Hangup
from stonemux.mux import Caller, Mux, Wait
from stonemux.payload import dumps
from stonemux.schema import IDEMPOTENCY_KEY, TIERS, Operation, bind, malformed_key, shown
from stonemux.tokens import OWNER, TOPIC, Principal
from stonemux.transaction import Done, Job, Tx, Work

IDEMPOTENCY_TTL_MS = DAY_MS
_KEY = re.compile(IDEMPOTENCY_KEY)


class Call:
    """An operation with checked arguments, ready to run.

    `answer` runs any call, blocking. Without blocking, `queue` the call if `work` is set, else `start` it.
    """

    __slots__ = ("_audited", "_caller", "_digest", "_done", "_mux", "args", "operation", "work")

    def __init__(
        self,
        mux: Mux,
        operation: Operation,
        given: Mapping[str, Any],
        caller: Caller,
        *,
        textual: bool = False,
        key: str | None = None,
    ) -> None:
        """Check tier, token, idempotency key and parameters; raises MuxError if the call is refused before it runs."""
        self._mux, self._caller, self.operation = mux, caller, operation
        self._audited = operation.changes and not mux.blotter.off
        self._digest = ""
        try:
            self._check(given, textual=textual, key=key)
        except MuxError as error:
            if (self._audited or error.failure.http in audit.GUARDED) and not mux.blotter.off:
                audit.note_unread(mux, operation, given, caller, error.code)
            raise

    def _check(self, given: Mapping[str, Any], *, textual: bool, key: str | None) -> None:
        mux, caller, operation = self._mux, self._caller, self.operation
        admit(mux, operation, caller)
        if operation.changes and ("idempotency_key" in given or key is not None):
            given = dict(given)
            key = _one_key(given.pop("idempotency_key", None), key)
        if caller.principal is not None and caller.principal.agent:
            agent = caller.principal.agent
            args = bind(operation, _signed(operation, given, agent), mux.settings, textual=textual)
            _check_agent(operation, args, agent)
        else:
            args = bind(operation, given, mux.settings, textual=textual)
        if operation.tiered:
            _check_params(mux, operation, args)
        self.args = args
        """The checked arguments."""
        self._heard_of()
        if key is not None or self._audited:
            self._digest = chain.sha256(audit.body_of(given))
        if self._audited:
            caller.enter = partial(audit.entered, operation, args, self._digest)
        if key is not None:
            caller.once = _once(operation, args, key, bytes.fromhex(self._digest), caller.principal)
        self.work: Work | None = None
        """The function to run in a write transaction, if this is a change that does not wait."""
        if operation.kind == "change" and (operation.wait is None or not args["timeout"]):
            self.work = caller.through(partial(operation.run, **args))

    def _heard_of(self) -> None:
        if self.operation.by:
            actor = self.args.get(self.operation.by)
            if actor is not None:
                self._mux.presence.beat(actor)

    @property
    def replayed(self) -> bool:
        """Whether the answer is that of an earlier call with the same idempotency key."""
        return self._caller.replayed

    def queue(self, done: Done) -> None:
        """Queue the work; the thread that leads its commit calls `done(answer, error)` afterward."""
        assert self.work is not None

        self._done = done
        self._mux.store.submit(Job(self.work, self._committed, not self.operation.frees))

    def _committed(self, value: Any, error: BaseException | None) -> None:
        self._done(*self.concluded(value, error))

    def concluded(self, value: Any, error: BaseException | None) -> tuple[Any, BaseException | None]:
        """Turn the work's outcome into the final answer or error; called after the commit."""
        if error is None:
            if type(value) is MuxError:  # a recorded refusal passes through the commit as a value
                value, error = None, value
            elif value is None:
                value = self.operation.nothing
        if error is not None or self._caller.replayed:
            self._noted(error)
        return value, error

    def _noted(self, error: BaseException | None) -> None:
        """Audit a call that had no effect: a refusal, or a replayed answer."""
        if error is not None:
            outcome = error.code if isinstance(error, MuxError) else "internal"
        elif self._caller.replayed:
            outcome = "replayed"
        else:
            return
        if self._audited and not isinstance(error, Hangup):
            audit.note(self._mux, self.operation, self.args, self._caller, outcome, self._digest)

    def start(self) -> Any:
        """Run a call that is not a queued change; returns its answer, or a `Wait` that has not been tried yet."""
        try:
            started = self._start()
        except Exception as error:
            self._noted(error)
            raise
        if not isinstance(started, Wait):
            self._noted(None)
        return started

    def _start(self) -> Any:
        operation = self.operation
        if operation.kind in ("read", "text"):
            with self._mux.store.read() as rx:
                told = operation.run(rx, **self.args)
            return self._caller.fitted(told, operation.pages) if self._caller.room and operation.pages else told
        if operation.kind == "lines":
            return operation.run(self._mux, **self.args)
        started = (operation.wait or operation.run)(self._mux, self._caller, **self.args)
        if operation.kind == "act" and self._audited and not self._caller.replayed:
            self._mux.store.write(audit.act(operation, self.args, started, self._caller, self._digest), grows=True)
        if self._caller.principal is not None and isinstance(started, Wait):
            return _while_good(self._mux, started, self._caller.principal)
        return started

    def waited(self, answer: Any, error: BaseException | None = None) -> Any:
        """The answer of a wait that has ended with this outcome; raises the error if it was refused."""
        if error is None:
            self._heard_of()
        return self._ended(answer, error)

    def _ended(self, answer: Any, error: BaseException | None) -> Any:
        if isinstance(answer, MuxError):  # a recorded refusal passes through the commit as a value
            error = answer
        self._noted(error)
        if error is not None:
            raise error
        return answer

    def answer(self) -> Any:
        """Run to completion, blocking."""
        if self.work is None:
            started = self.start()
            return self.waited(*_tried(self._mux.wait, self._caller, started)) if type(started) is Wait else started
        found = self._ended(*_tried(self._mux.store.write, self.work, grows=not self.operation.frees))
        return self.operation.nothing if found is None else found


def _tried(run: Callable[..., Any], *args: Any, **named: Any) -> tuple[Any, BaseException | None]:
    """Run it, and return its value or its exception."""
    try:
        return run(*args, **named), None
    except Exception as error:
        return None, error


def call(mux: Mux, operation: Operation, given: Mapping[str, Any], caller: Caller, *, key: str | None = None) -> Any:
    """Run an operation and return its answer; raises MuxError, or Hangup when a waiting caller has gone away."""
    return Call(mux, operation, given, caller, key=key).answer()


def admit(mux: Mux, operation: Operation, caller: Caller) -> None:
    """Check that this caller may call this operation at all, and set `caller.principal` from the token.

    Raises `upgrade_required`, `owner_only`, and what `Tokens.admit` raises.
    """
    if operation.tier != "free":
        _check_tier(mux, operation.tier, operation.name)
    if caller.principal is None and not operation.open:
        if mux.tokens.asks:
            caller.principal = mux.tokens.admit(caller.bearer)
        elif operation.owner and mux.tokens.is_owner(caller.bearer):
            caller.principal = OWNER
    if operation.owner and caller.principal is not OWNER:
        raise MuxError(
            "owner_only",
            f"{operation.name} is for this machine's owner: call it with the stonemux command there, or with the "
            f"token in {OWNER_TOKEN} in the data directory",
        )


def _signed(operation: Operation, given: Mapping[str, Any], agent: str) -> Mapping[str, Any]:
    """The same call, with the token's agent filled in wherever the call does not say who acts."""
    return {**given, **{param.name: agent for param in operation.acting if given.get(param.name) is None}}


def _check_agent(operation: Operation, args: Mapping[str, Any], agent: str) -> None:
    """Refuse a call in which a token bound to one agent acts as another."""
    for param in operation.acting:
        if args[param.argument] != agent:
            raise mismatch(param.name, args[param.argument], agent)


def _while_good(mux: Mux, wait: Wait, principal: Principal) -> Wait:
    """The same wait, but it ends when the caller's token does."""
    tokens, work = mux.tokens, wait.work

    def attempt() -> Any:
        tokens.check(principal)
        return wait.attempt()

    def checked_work(tx: Tx) -> Any:
        tokens.check(principal)
        assert work is not None
        return work(tx)

    def give_up() -> Any:
        tokens.check(principal)
        return wait.give_up()

    return wait._replace(
        topics=(*wait.topics, TOPIC),
        attempt=attempt if work is None else wait.attempt,  # once the work is committed, its answer must go out
        give_up=give_up,
        deadline=min(wait.deadline, mux.clock.ticks_ms() + principal.expires_at - mux.clock.now_ms()),
        work=None if work is None else checked_work,
    )


def mismatch(name: str, named: str, agent: str) -> MuxError:
    """The error for a call that names another agent than its token."""
    return MuxError(
        "agent_mismatch",
        f"{name} is {shown(named)}, but the token is bound to {shown(agent)}; act as that agent, or get a token for "
        "the other one",
        parameter=name,
        agent_id=agent,
    )


def _check_tier(mux: Mux, needed: str, what: str) -> None:
    if TIERS.index(needed) > TIERS.index(mux.tier):
        raise MuxError(
            "upgrade_required",
            f"{what} needs the {needed} tier; this daemon's tier is {mux.tier}. Activate a key, or see [license] in "
            "the settings",
            feature=what,
            tier=mux.tier,
            needed=needed,
        )


def _check_params(mux: Mux, operation: Operation, args: Mapping[str, Any]) -> None:
    for param in operation.tiered:
        if args[param.argument] not in (param.default, ""):  # every tier may remove a setting
            _check_tier(mux, param.tier, f"{param.name} in {operation.name}")


def _one_key(in_body: Any, in_header: str | None) -> str | None:
    if in_body is not None and in_header is not None and in_body != in_header:
        raise MuxError(
            "idempotency_key_conflict", "the Idempotency-Key header and the idempotency_key field differ; send one"
        )
    key = in_body if in_body is not None else in_header
    if key is not None and (not isinstance(key, str) or not _KEY.fullmatch(key)):
        raise malformed_key()
    return key


def _once(
    operation: Operation, args: Mapping[str, Any], key: str, digest: bytes, principal: Principal | None
) -> Callable[[Caller, Work], Work]:
    """A wrapper that makes work happen once for this key; it records the outcome in the work's own transaction."""
    actor = args.get(operation.by) if operation.by else None
    if principal is not None and principal.agent:
        actor = principal.agent
    scope = (actor or "", operation.path, key)

    def wrap(caller: Caller, work: Work) -> Work:
        def once(tx: Tx) -> Any:
            found = tx.one("select * from idempotency where scope = ? and path = ? and key = ?", *scope)
            if found is not None and found["at"] > tx.now - IDEMPOTENCY_TTL_MS:
                return _replay(found, digest, caller)
            caller.replayed = False  # a run that was rolled back may have found what is gone now
            changes = tx.changes
            try:
                answer = work(tx)
            except MuxError as refusal:
                if not refusal.failure.lasting or tx.changes != changes:
                    raise
                _remember(tx, scope, digest, refusal.failure.http, refusal.body())
                return refusal
            if answer is not None:  # a claim that found nothing has no effect to protect
                _remember(tx, scope, digest, 200, answer)
            return answer

        return once

    return wrap


def _remember(tx: Tx, scope: tuple[str, str, str], digest: bytes, status: int, answer: Any) -> None:
    tx.run(
        "insert or replace into idempotency values (?, ?, ?, ?, ?, ?, ?)", *scope, digest, status, dumps(answer), tx.now
    )


def _replay(found: Any, digest: bytes, caller: Caller) -> Any:
    if found["body"] != digest:
        raise MuxError(
            "idempotency_mismatch",
            f"the idempotency key {found['key']!r} was used before with another body; use a new key for a new call",
        )
    caller.replayed = True
    answer = json.loads(found["answer"])
    if found["status"] == 200:
        return answer
    return read_error(answer["error"])


def purge_idempotency(tx: Tx, most: int) -> int:
    """Delete up to `most` idempotency records older than a day; returns how many."""
    return tx.run(
        "delete from idempotency where (scope, path, key) in "
        "(select scope, path, key from idempotency where at < ? limit ?)",
        tx.now - IDEMPOTENCY_TTL_MS,
        most,
    ).rowcount
