"""Records: given by position or by name, checked, and never changed."""

from __future__ import annotations

from typing import Any

import pytest

from stonemux.record import Record, field, replace


class Point(Record):
    x: int
    y: int = field(default=2, metadata={"axis": "up"})
    name: str = "p"
    sum: int = field(init=False)

    def derive(self) -> None:
        self.__dict__["sum"] = self.x + self.y


def told(point: Point) -> tuple[int, int, str, int]:
    return (point.x, point.y, point.name, point.sum)


def test_fields_are_given_by_place_or_by_name_and_have_defaults():
    assert told(Point(1)) == (1, 2, "p", 3)
    assert told(Point(1, 5, name="q")) == (1, 5, "q", 6)
    assert Point.fields["y"] == {"axis": "up"}
    assert list(Point.fields) == ["x", "y", "name"]


@pytest.mark.parametrize(
    ("values", "named"), [((), {}), ((1, 2, "p", 3), {}), ((1,), {"z": 1}), ((1,), {"sum": 3}), ((1,), {"x": 2})]
)
def test_what_is_missing_or_unknown_or_given_twice_is_refused(values: Any, named: Any):
    with pytest.raises(TypeError, match="Point takes x, y, name"):
        Point(*values, **named)


def test_a_record_never_changes_and_another_one_is_made_like_it():
    point = Point(1)
    with pytest.raises(AttributeError, match=r"Point\.x cannot change"):
        point.x = 2  # type: ignore[misc]
    assert told(replace(point, x=4)) == (4, 2, "p", 6)
    assert told(point) == (1, 2, "p", 3)


def test_records_of_a_kind_that_hold_the_same_are_equal():
    assert Point(1, name="q") == Point(1, 2, "q")
    assert Point(1) != Point(2)
    assert Point(1) != (1, 2, "p")
    assert repr(Point(1)) == "Point(x=1, y=2, name='p')"
