"""What OpenAPI cannot say about stonemux, explained to schemathesis (`SCHEMATHESIS_HOOKS`).

* JSON Schema accepts 1.0 as an integer; stonemux requires it to be written as 1.
* Integers inside an object have at most 64 bits; expressed in a schema, that would forbid 1e300 as well.
* If header and body both carry an idempotency key, the two must be equal.
* A valid key is used only once, or else the second call is answered with 422 for its different body.
* The entries of a list are judged one by one, in an answer with status 200; `test_together.py` tests bad ones.

And a call that would wait does not, since nothing comes.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import schemathesis
from schemathesis import GenerationMode

from stonemux.schema import IDEMPOTENCY_KEY, MOST_INTEGER

HEADER, FIELD = "Idempotency-Key", "idempotency_key"
_numbers = itertools.count()


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Leave out bad lists."""
    bad = case.meta is not None and case.meta.generation.mode == GenerationMode.NEGATIVE
    return not (bad and isinstance(case.body, list))


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    """Make a generated call one that stonemux can take, without making a bad one good."""
    for place in (case.query, case.body):
        if isinstance(place, dict) and _waits(place.get("timeout")):
            place["timeout"] = 0
    if isinstance(case.body, dict):
        case.body = {name: _spelled(value) for name, value in case.body.items()}
        if FIELD in case.body and _is_key((case.headers or {}).get(HEADER)):
            del case.headers[HEADER]
        if _is_key(case.body.get(FIELD)):
            case.body[FIELD] = _fresh()
    if _is_key((case.headers or {}).get(HEADER)):
        case.headers[HEADER] = _fresh()
    return case


def _spelled(value: Any, *, inside: bool = False) -> Any:
    """`value` with whole numbers written as such and, `inside` an object, no integer beyond 64 bits."""
    if isinstance(value, dict):
        return {name: _spelled(inner, inside=True) for name, inner in value.items()}
    if isinstance(value, list):
        return [_spelled(entry, inside=inside) for entry in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= MOST_INTEGER:
        return int(value)
    if inside and isinstance(value, int) and abs(value) > MOST_INTEGER:
        return value % MOST_INTEGER
    return value


def _waits(timeout: Any) -> bool:
    """Whether this is a valid timeout, of the value in a body or a query."""
    if isinstance(timeout, str):
        return timeout.isdecimal() and timeout.isascii() and int(timeout) <= MOST_INTEGER
    return type(timeout) is int and 0 < timeout <= MOST_INTEGER


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(IDEMPOTENCY_KEY, value) is not None


def _fresh() -> str:
    return f"schemathesis-{next(_numbers)}"
