"""Filing: what was queued a moment ago goes into its recipient's part of the index, together with much else.

A send that put its delivery there at once would change a page of its own for each recipient, and pages are what a
commit costs. So a new delivery is only *fresh*: it stands behind the mark (`trays.FILED`), among all that came last,
and whoever looks into an inbox looks there, too. After `MOST_FRESH` deliveries, the next send files those that are
still queued, in one statement, and moves the mark. What was read until then never gets into that index at all. Where
there is much looking, it does so sooner.
"""

from __future__ import annotations

from stonemux import trays
from stonemux.transaction import Tx

FRESH = -1
"""The state of a delivery that is queued, and not filed yet."""

MOST_FRESH = 512
"""How many deliveries stand behind the mark at most, or those of one message: a look goes through them, in 20 us."""

MOST_SEARCHED = 1024
"""After all looks together have gone through so many of them, they are filed: from then on that is cheaper."""

MOST_RECIPIENTS = 16
"""What goes to more of them is filed at once: each has a page of its own later, too."""

_BEHIND = ("deliveries behind the mark",)


def takes(tx: Tx, recipients: int, priority: int) -> bool:
    """Whether a message to so many, which is about to be delivered, is delivered as fresh.

    What is filed at once is counted, too, since it stands behind the mark like all that came last. The count goes with
    a transaction that is taken back, as what it filed does, and is taken anew then.
    """
    behind = tx.cache.get(_BEHIND)
    if behind is None:
        behind = tx.one(f"select count(*) from delivery where message_id > {trays.FILED}")[0]
    if behind + recipients > MOST_FRESH or tx.mux.looks * behind > MOST_SEARCHED:
        file(tx)
        behind = tx.mux.looks = 0
    tx.cache[_BEHIND] = behind + recipients
    return not priority and recipients <= MOST_RECIPIENTS


def file(tx: Tx) -> None:
    """Put what is fresh and still queued where its recipients' other mail is."""
    tx.run(f"update delivery set state = 0 where message_id > {trays.FILED} and state = ?", FRESH)
    tx.run(
        "update meta set value = newest from (select max(message_id) as newest from delivery) "
        "where key = 'filed' and newest > cast(value as integer)"
    )
