"""The states of a delivery, and the trays of an inbox: partial indexes over `delivery`, and queries built from them.

An agent's unread mail is in `OPEN`, in the order of ids. The newest deliveries are still in `LATEST`, one range shared
by all agents, until they are filed (see `filing`). Mail with a priority is read in a different order, so it is in
`URGENT`; a poll merges the three. `REST` holds everything that is in neither of the first two, by id, whatever its
state; with it, a cursor finds all mail in order.

The indexes are covering: extra columns at their ends save a look-up in the table. So a query's cost depends on how much
it returns, not on how much is stored.
"""

FRESH, QUEUED, LEASED, SETTLED, DEAD = -1, 0, 1, 2, 3
"""The states of a delivery; one that is fresh is queued, but not yet filed. Their order makes `<= QUEUED` mean "waits
to be read", and `< SETTLED` "not settled"."""

FILED = "(select cast(value as integer) from meta where key = 'filed')"
"""The mark: no message up to this id is fresh."""

# In all of them, ?1 is the agent's id.
OPEN = f"delivery d indexed by delivery_open where d.agent_id = ?1 and d.state = {QUEUED} and d.priority = 0"
LATEST = f"delivery d where d.agent_id = ?1 and d.message_id > {FILED} and d.state = {FRESH} and d.priority = 0"
URGENT = f"delivery d indexed by delivery_urgent where d.agent_id = ?1 and d.state = {QUEUED} and d.priority <> 0"
ON_LEASE = f"delivery d indexed by delivery_leased where d.agent_id = ?1 and d.state = {LEASED}"
DEAD_LETTERS = f"delivery d indexed by delivery_dead where d.agent_id = ?1 and d.state = {DEAD}"
REST = f"delivery d indexed by delivery_rest where d.agent_id = ?1 and (d.state > {QUEUED} or d.priority <> 0)"

WAITING = (OPEN, LATEST, URGENT)
UNSETTLED = (*WAITING, ON_LEASE)
EVERYTHING = (OPEN, LATEST, REST)


def ids(*trays: str, narrowed: str = "true") -> str:
    """A query for the ids of the messages in these trays."""
    return " union all ".join(f"select d.message_id from {tray} and {narrowed}" for tray in trays)


def merged(*trays: str, fields: str, narrowed: str, order: str) -> str:
    """A query for messages in these trays, in an order (of `place`, the id, and `urgency`) that each tray provides."""
    return (
        " union all ".join(
            f"select {fields}, d.message_id as place, d.priority as urgency from message m, {tray} "
            f"and m.id = d.message_id and {narrowed}"
            for tray in trays
        )
        + f" order by {order}"
    )
