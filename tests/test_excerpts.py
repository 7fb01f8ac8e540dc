"""Excerpts: the part of a text that matches a search."""

from __future__ import annotations

import time

import pytest

from stonemux.excerpts import SPAN, excerpt, tokens


@pytest.mark.parametrize(
    ("text", "wanted", "shown"),
    [
        ("a quick red fox", "red", "a quick **red** fox"),
        ("Red, RED and redder", "red", "**Red**, **RED** and redder"),
        ("un café noir", "CAFE", "un **café** noir"),
        ("ein Größenwahn", "größenwahn", "ein **Größenwahn**"),
        ("snake_case word", "case", "snake_**case** word"),
        ("the red fox", '"red fox"', "the **red** **fox**"),
        ("nothing here", "red", "nothing here"),
        ("", "red", ""),
        ("a+b (c)", "b", "a+**b** (c)"),
        ("日本 語", "語", "日本 **語**"),
        ("明日の会議は中止です", "会議", "明日の**会議**は中止です"),
        ("明日のGPT会議は中止", "gpt会議", "明日の**GPT会議**は中止"),
        ("GPT 会議", "GPT会議", "**GPT** **会議**"),
        ("GPTS会議", "GPT", "GPTS会議"),
        ("がか", "か", "が**か**"),
        ("회의는 내일", "회의", "**회의**는 내일"),
        ("x", '"', "x"),
    ],
)
def test_found_words_are_marked(text, wanted, shown):
    assert excerpt(text, wanted) == shown


def test_a_long_text_is_cut_around_what_was_found():
    shown = excerpt("lorem ipsum " * 50 + "the needle here " + "dolor sit " * 50, "needle")
    assert shown.startswith("… ")
    assert shown.endswith(" …")
    assert "the **needle** here dolor" in shown
    assert len(shown) < SPAN + 60
    assert set(shown.replace("**", "").split()) <= {"…", "lorem", "ipsum", "the", "needle", "here", "dolor", "sit"}


def test_the_place_with_the_most_different_words_is_shown():
    shown = excerpt("red " + "x " * 500 + "red fox " + "y " * 500 + "fox", "red fox")
    assert "**red** **fox**" in shown


def test_without_a_find_the_beginning_is_shown():
    assert excerpt("word " * 100, "other").startswith("word word")


@pytest.mark.parametrize(
    "text", ["word " * 200_000, "x" * 1_000_000, "wörd " * 200_000, "wordx" * 200_000, "会議x" * 330_000]
)
def test_the_longest_text_is_no_burden(text):
    began = time.monotonic()
    excerpt(text, "word wörd x 会議 " + " ".join(f"{chr(0x4E00 + n)}{n}" for n in range(150)))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Red", ("red",)),
        ("CAFÉ", ("cafe",)),
        ("cafe\u0301", ("cafe",)),
        ("snake_case", ("snake", "case")),
        ("weiß", ("weiß",)),
        ("...", ()),
        ("GPT会議は", ("gpt", "会", "議", "は")),
        ("か が 회희", ("か", "が", "회", "희")),
    ],
)
def test_words_are_told_apart_as_the_index_does(text, found):
    assert tokens(text) == found
