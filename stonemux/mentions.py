"""Which agents a text mentions: `@name`, for names that are known.

The exact rule, which callers may rely on:

* An `@` opens a mention unless a letter, a digit, or one of `_ . - + @` comes directly before it. So an e-mail address
  mentions nobody.
* The mention is the longest known name directly after the `@`, compared exactly. A name does not end where a letter, a
  digit, or `_` follows, nor where one of these follows after a single `.`, `-`, or `@`. So `@writer.` mentions writer,
  and neither `@writer-2` nor `@writer.example` does.
* At most `MOST` places are examined.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import islice

MOST = 100
"""How many possible mentions are examined in one text, so that a text full of `@` costs no more than others."""

_OPENS = re.compile(r"(?<![\w.+@-])@(?=\S)")
_GOES_ON = re.compile(r"\w|[.@-]\w")


def find(text: str, known: Collection[str]) -> list[str]:
    """The known names that the text mentions, in the order of their first mention."""
    if "@" not in text or not known:
        return []
    longest = max(map(len, known))
    found = (_name_at(text, place.end(), known, longest) for place in islice(_OPENS.finditer(text), MOST))
    return list(dict.fromkeys(name for name in found if name is not None))


def _name_at(text: str, start: int, known: Collection[str], longest: int) -> str | None:
    for end in range(min(len(text), start + longest), start, -1):
        if text[start:end] in known and not _GOES_ON.match(text, end):
            return text[start:end]
    return None
