"""The parts of an inbox as the database holds them, partial indexes over `delivery`, and queries made of them.

What an agent has to read stands in `OPEN`, in the order of ids; what came last is still `FRESH`, among that of
all others, until it is filed (see `filing`). What has a priority would not be read in that order; it stands in `URGENT`
in its own, and a poll merges the three. `REST` is all that is neither open nor fresh, by id, whatever became of it:
with it, a cursor finds everything in order.

A delivery's `state`, here and in every statement: -1 fresh, 0 queued, 1 leased, 2 settled, 3 dead. The numbers are in
this order so that `<= 0` means "waits to be read" and `< 2` means "not settled".

Columns behind the order spare a look at the table. So what a query costs depends on what it hands out, and not on how
much is stored.
"""

FILED = "(select cast(value as integer) from meta where key = 'filed')"
"""The mark: nothing up to this message is fresh."""

# In all of them ?1 is the agent.
OPEN = "delivery d indexed by delivery_open where d.agent_id = ?1 and d.state = 0 and d.priority = 0"
FRESH = f"delivery d where d.agent_id = ?1 and d.message_id > {FILED} and d.state = -1 and d.priority = 0"
URGENT = "delivery d indexed by delivery_urgent where d.agent_id = ?1 and d.state = 0 and d.priority <> 0"
LEASED = "delivery d indexed by delivery_leased where d.agent_id = ?1 and d.state = 1"
DEAD = "delivery d indexed by delivery_dead where d.agent_id = ?1 and d.state = 3"
REST = "delivery d indexed by delivery_rest where d.agent_id = ?1 and (d.state > 0 or d.priority <> 0)"

QUEUED = (OPEN, FRESH, URGENT)
UNSETTLED = (*QUEUED, LEASED)
EVERYTHING = (OPEN, FRESH, REST)


def ids(*trays: str, narrowed: str = "true") -> str:
    """A query for the ids of messages in these trays."""
    return " union all ".join(f"select d.message_id from {tray} and {narrowed}" for tray in trays)


def merged(*trays: str, fields: str, narrowed: str, order: str) -> str:
    """A query for messages in these trays, in an order (of `place`, the id, and `urgency`) that each of them has."""
    return (
        " union all ".join(
            f"select {fields}, d.message_id as place, d.priority as urgency from message m, {tray} "
            f"and m.id = d.message_id and {narrowed}"
            for tray in trays
        )
        + f" order by {order}"
    )
