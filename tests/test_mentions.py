"""Which agents a text mentions."""

from __future__ import annotations

import pytest

from stonemux import mentions

KNOWN = {"writer", "writer-2", "e-worker-1", "Ann", "a.b", "two words", "名前", "agent@host"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("@writer", ["writer"]),
        ("@writer.", ["writer"]),
        ("@writer, please; (@Ann) and @e-worker-1's", ["writer", "Ann", "e-worker-1"]),
        ("@writer: done! @writer? @writer", ["writer"]),
        ("Well,@writer\n@Ann", ["writer", "Ann"]),
        ("@writer-2 and @writer- and @writer--", ["writer-2", "writer"]),
        ("@a.b. @a", ["a.b"]),
        ("ask @two words now", ["two words"]),
        ("@名前。", ["名前"]),
        ("@agent@host", ["agent@host"]),
        ("@Ann...", ["Ann"]),
        ("@Ann/@writer", ["Ann", "writer"]),
    ],
)
def test_a_known_name_behind_an_at_sign_is_a_mention(text, found):
    assert mentions.find(text, KNOWN) == found


@pytest.mark.parametrize(
    "text",
    [
        "writer",
        "",
        "@",
        "@ writer",
        "joe@writer and joe.@writer and joe+@writer and 1@writer and _@writer",
        "@@writer",
        "@writers @writer_ @writer3 @writer-3 @writer.example @writer@example",
        "@Writer @ann @nobody",
        "@two  words",
    ],
)
def test_other_signs_longer_words_and_unknown_names_mention_nobody(text):
    assert mentions.find(text, KNOWN) == []


def test_without_names_nobody_is_mentioned():
    assert mentions.find("@writer", set()) == []


def test_a_text_full_of_at_signs_costs_little_and_only_the_first_hundred_count():
    text = "@x " * mentions.MOST + "@writer"
    assert mentions.find(text, KNOWN) == []
    assert mentions.find(text[3:], KNOWN) == ["writer"]
    names = Counting({"n" * 120, "writer"})
    mentions.find("@nnn " * 13_000, names)
    assert names.looked_up <= 120 * mentions.MOST


class Counting(set):
    """Names, and how often one was looked for."""

    looked_up = 0

    def __contains__(self, name):
        self.looked_up += 1
        return super().__contains__(name)
