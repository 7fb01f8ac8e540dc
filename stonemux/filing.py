"""Filing: what was queued a moment ago goes into its recipient's part of the index, together with much else.

A send that put its delivery there at once would change a page of its own for each recipient, and pages are what a
commit costs. So a new delivery is only *fresh*: it stands behind the mark (`trays.FILED`), among all that came last,
and whoever looks into an inbox looks there, too. After `MOST_FRESH` of them, the next send files those that are
still queued, in one statement, and moves the mark. What was read until then never gets into that index at all.
"""

from __future__ import annotations

from stonemux import trays
from stonemux.transaction import Tx

FRESH = -1
"""The state of a delivery that is queued, and not filed yet."""

MOST_FRESH = 512
"""How many a look into an inbox goes through at most, unless a transaction was taken back; that takes 20 us."""

MOST_RECIPIENTS = 16
"""What goes to more of them is filed at once: each has a page of its own later, too."""


class Filing:
    """Counts what is fresh since the last start, which files what it finds (`timekeeper.boot`). The leader's."""

    def __init__(self) -> None:
        self._fresh = 0

    def takes(self, tx: Tx, recipients: int, priority: int) -> bool:
        """Whether a message to so many is delivered as fresh."""
        if priority or recipients > MOST_RECIPIENTS:
            return False
        self._fresh += recipients
        if self._fresh > MOST_FRESH:
            file(tx)
            self._fresh = recipients
        return True


def file(tx: Tx) -> None:
    """Put what is fresh and still queued where its recipients' other mail is."""
    tx.run(f"update delivery set state = 0 where message_id > {trays.FILED} and state = ?", FRESH)
    tx.run(
        "update meta set value = newest from (select max(message_id) as newest from delivery) "
        "where key = 'filed' and newest > cast(value as integer)"
    )
