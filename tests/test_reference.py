"""The reference as Markdown: everything is explained, and what is generated and committed is current."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from notes import LIST, POST, SETTINGS_HERE, STREAM, TABLE

from stonemux import VERSION, cli, reference
from stonemux.config import SETTINGS
from stonemux.errors import FAILURES
from stonemux.operations import OPERATIONS
from stonemux.refusals import own_errors
from stonemux.vocabulary import EVENT_KINDS

TOP = Path(__file__).parent.parent


def test_every_operation_parameter_and_error_is_explained() -> None:
    text = reference.markdown(TABLE, SETTINGS_HERE)
    for operation in TABLE:
        section = text.partition(f"\n### {operation.name}\n")[2].partition("\n### ")[0]
        assert f"{operation.method} `{operation.path}` · " in section
        assert operation.doc in section
        assert all(f"| `{param.name}` | " in section for param in operation.params)
        assert all(f"`{code}`: {FAILURES[code].doc}" in section for code in own_errors(operation))
        assert reference.curl(operation, SETTINGS_HERE) in section
    assert all(f"| `{code}` | " in text for code in FAILURES)
    assert all(f"| `{setting.section}.{setting.key or 'TYPE'}` | " in text for setting in SETTINGS)
    assert "| `note` | [note.post](#notepost) |" in text
    assert "| `shutdown` | the stream: " in text
    assert all(f"\n| `{kind}` | " in reference.markdown(OPERATIONS, SETTINGS_HERE) for kind in EVENT_KINDS)


def test_parameters_are_shown_with_default_and_limits() -> None:
    text = reference.markdown(TABLE, SETTINGS_HERE)
    assert "| `text` | text | required | up to 65536 (setting `max_message_size`) bytes | What to say. |" in text
    assert '| `color` | text | `"red"` | `red`, `blue` | Red \\| blue. |' in text
    assert "| `priority` | integer | `0` | needs tier pro |  |" in text
    assert "0 to 120 (setting `poll_timeout_max`); higher values are capped" in text
    assert "| `tags` | list of names |  | up to 256 entries |" in text


def test_tables_have_as_many_cells_in_each_row() -> None:
    rows: list[str] = []
    for line in [*reference.markdown(TABLE, SETTINGS_HERE).splitlines(), ""]:
        if line.startswith(("| ", "|-")):
            rows.append(line)
            continue
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1, rows
        rows = []


def test_links_lead_to_headings() -> None:
    text = reference.markdown(TABLE, SETTINGS_HERE)
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= headings


def test_shapes_are_sketched_on_one_line_where_they_fit() -> None:
    assert reference.sketch({"a?": "string|null", "b": [("integer", "null")]}) == (
        '{"a"?: string or null, "b": [integer or null]}'
    )
    wide = reference.sketch({"things": [{f"field_{n}": "string" for n in range(9)}]})
    assert wide.startswith('{\n  "things": [{\n    "field_0": string,\n')
    assert wide.endswith('"field_8": string\n  }]\n}')


def test_example_calls_carry_the_example() -> None:
    command = reference.curl(POST, SETTINGS_HERE)
    assert command.startswith("curl -s http://127.0.0.1:3392/note/post -H 'Content-Type: application/json' \\\n  -d '")
    assert '''"it'"'"'s done"''' in command
    url = reference.curl(LIST, SETTINGS_HERE).split("'")[1]
    assert parse_qsl(urlsplit(url).query) == [("agent_id", "a b"), ("tags", "x,y"), ("limit", "5")]
    assert reference.curl(STREAM, SETTINGS_HERE) == "curl -sN http://127.0.0.1:3392/events"


@pytest.mark.parametrize(
    ("words", "file"),
    [
        ((), "docs/reference.md"),
        (("--config",), "stonemux.toml.example"),
        (("--client",), "stonemux/methods.py"),
    ],
)
def test_what_is_generated_is_current(capsys: pytest.CaptureFixture[str], words: Sequence[str], file: str) -> None:
    assert cli.main(["reference", *words], {}) == 0
    assert capsys.readouterr().out == (TOP / file).read_text(encoding="utf-8"), "run `make docs`"


def test_the_openapi_document_is_printed_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stonemux.operations.OPERATIONS", OPERATIONS[:3])
    assert cli.main(["reference", "--openapi"], {}) == 0
    assert json.loads(capsys.readouterr().out)["info"]["version"] == VERSION
