"""Excerpts of a text: its beginning, or the part that matches a search, with the found words between ** and **.

SQLite's own `snippet` takes time quadratic in the number of matches: seconds for one long text that repeats a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice

SPAN = 160
"""The approximate number of characters in an excerpt."""
BEFORE = 40
"""The approximate number of characters before the first found word."""
MOST = 200
"""How many found words are examined at most."""

_WORD = r"[^\W_]+"
_ACCENT = "[\u0300-\u0331]"
"""What the index takes for an accent behind a letter, and leaves out."""

_UNSPACED = (
    "\u3005-\u3007\u3040-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
"""The letters of Chinese, Japanese, and Korean. (Korean has spaces, but not before its particles.)"""
_SPACED = rf"[^\W_{_UNSPACED}]"
"""A letter of any other script."""


def shortened(text: str, most: int) -> str:
    """The text in at most `most` characters; the last one is … if something was cut off."""
    return text if len(text) <= most else text[: most - 1] + "…"


def apart(text: str) -> str:
    """A text for the index, with spaces around each letter of a script that puts none between words.

    So each such letter is a word to the index, several in a row are a phrase, and any part of a sentence is found.
    """
    return text if text.isascii() else re.sub(rf"[{_UNSPACED}]+", lambda run: f" {' '.join(run[0])} ", text)


def tokens(text: str) -> tuple[str, ...]:
    """The words of a short text the way the index compares them: without case and accents."""
    return tuple(re.findall(_WORD, apart(_bare(text.lower()))))


def excerpt(text: str, wanted: str) -> str:
    """The part of the text with the most of the wanted words; its beginning if it has none of them."""
    words = set(re.findall(rf"[{_UNSPACED}]+|{_SPACED}+", _fold(wanted)))
    found = re.finditer(_pattern(words), _fold(text)) if words else ()
    hits = [(hit.start(), hit.end(), hit[0]) for hit in islice(found, MOST)]
    begin = _word_after(text, _best(hits) - BEFORE) if hits else 0
    end = _word_before(text, begin + SPAN, max((hit[1] for hit in hits if hit[0] < begin + SPAN), default=0))
    shown = _marked(text, begin, end, hits)
    return ("… " if begin else "") + shown + (" …" if end < len(text) else "")


def _best(hits: list[tuple[int, int, str]]) -> int:
    """The place to begin at, so that the most different words follow."""

    def worth(at: int) -> int:
        return len({word for start, _, word in hits if at <= start < at + SPAN - BEFORE})

    return max((start for start, _, _ in hits), key=lambda at: (worth(at), -at))


def _word_after(text: str, at: int) -> int:
    """The beginning of the next word at or shortly after a place."""
    if at <= 0:
        return 0
    blank = re.compile(r"\s").search(text, at - 1, at + BEFORE)
    return blank.end() if blank is not None else at


def _word_before(text: str, at: int, least: int) -> int:
    """The end of a word at or before a place, but not before `least`."""
    if at >= len(text):
        return len(text)
    blank = max(text.rfind(" ", max(least, at - BEFORE), at + 1), text.rfind("\n", max(least, at - BEFORE), at + 1))
    return blank if blank > 0 else max(at, least)


def _marked(text: str, begin: int, end: int, hits: Iterable[tuple[int, int, str]]) -> str:
    parts: list[str] = []
    at = begin
    for start, stop, _ in hits:
        if begin <= start and stop <= end:
            if parts and start == at:  # marked together
                parts.pop()
            else:
                parts += [text[at:start], "**"]
            parts += [text[start:stop], "**"]
            at = stop
    return "".join((*parts, text[at:end]))


def _pattern(words: Iterable[str]) -> str:
    """A pattern for any of these words: whole words, or parts of a sentence that is written without spaces."""
    longest_first = sorted(words, key=len, reverse=True)
    whole = [word for word in longest_first if re.match(_SPACED, word)]
    parts = [word for word in longest_first if not re.match(_SPACED, word)]
    patterns = []
    if whole:
        patterns.append(rf"(?<!{_SPACED})(?:{'|'.join(whole)})(?!{_SPACED})")
    if parts:  # tried only where one of them may begin, or many of them would take seconds in a long text
        patterns.append(f"(?=[{''.join(word[0] for word in parts)}])(?:{'|'.join(parts)})")
    return "|".join(patterns)


def _fold(text: str) -> str:
    """The text without case and accents, character by character, the way the index compares it."""
    return text.lower() if text.isascii() else "".join(map(_base, text))


@lru_cache(maxsize=4096)
def _base(letter: str) -> str:
    return (_bare(letter) or letter)[0].lower()[0]


def _bare(text: str) -> str:
    """The text without accents."""
    return unicodedata.normalize("NFC", re.sub(_ACCENT, "", unicodedata.normalize("NFD", text)))
