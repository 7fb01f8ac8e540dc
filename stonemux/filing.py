"""Filing: moves recently queued deliveries into their recipients' part of the index, in one batch.

If each send put its delivery there at once, it would change a separate page for each recipient, and the number of
changed pages determines what a commit costs. So a new delivery is only *fresh*: it lies beyond the mark
(`trays.FILED`), together with all other recent ones, where every query of an inbox looks, too. After `MOST_FRESH`
deliveries, the next send files those that are still queued, in one statement, and moves the mark. Mail that was read
before then never enters that index at all. Frequent polling makes filing happen sooner.
"""

from __future__ import annotations

from stonemux import trays
from stonemux.transaction import Tx
from stonemux.trays import FRESH, QUEUED

MOST_FRESH = 512
"""Maximum number of deliveries beyond the mark, or those of one message; a poll scans them in 20 us."""

MOST_SEARCHED = 1024
"""Once all polls together have scanned this many fresh deliveries, filing them is cheaper than more scans."""

MOST_RECIPIENTS = 16
"""A message to more recipients is filed at once: later, too, it would change a page for each."""

_BEHIND = ("deliveries behind the mark",)


def takes(tx: Tx, recipients: int, priority: int) -> bool:
    """Whether a message to this many recipients, about to be delivered, should be delivered as fresh.

    Deliveries that are filed at once count as well, since they also lie beyond the mark. A rollback discards the count
    together with the filing, and the next call counts again.
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
    """Move deliveries that are fresh and still queued to their recipients' other mail, and move the mark."""
    tx.run(f"update delivery set state = {QUEUED} where message_id > {trays.FILED} and state = ?", FRESH)
    tx.run(
        "update meta set value = newest from (select max(message_id) as newest from delivery) "
        "where key = 'filed' and newest > cast(value as integer)"
    )
