"""The metrics, read by the parser of Prometheus' own client."""

from __future__ import annotations

import pytest
from faces import join

from stonemux import VERSION, monitor

parser = pytest.importorskip("prometheus_client.parser")


def test_the_metrics_are_what_prometheus_reads(http):
    join(http, "ann", "bob")
    http.call("msg.send", from_="ann", to="bob", content="x")
    http.call("task.post", posted_by="ann", description="work")
    http.call("state.set", key="k", value="v")
    status, headers, body = http.request("GET", "/metrics")
    assert (status, headers["content-type"]) == (200, monitor.METRICS_TYPE)
    families = {family.name: family for family in parser.text_string_to_metric_families(body.decode())}
    assert all(family.documentation and family.type in ("gauge", "counter") for family in families.values())
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert found["stonemux_info", VERSION, "enterprise"] == 1
    assert found["stonemux_agents", "active"] == 2
    assert found["stonemux_messages_sent_total",] == 1
    assert found["stonemux_messages_unread",] == 1
    assert found["stonemux_tasks", "pending"] == 1
    assert found["stonemux_tasks", "complete"] == 0
    assert found["stonemux_state_keys",] == 1
    assert found["stonemux_events_total",] == http.mux.log.head
    assert found["stonemux_storage_bytes", "database_bytes"] > 0
    assert all(name[0].startswith("stonemux_") for name in found)


def test_counters_never_fall(http):
    join(http, "ann", "bob")

    def sent() -> float:
        families = parser.text_string_to_metric_families(http.call("metrics"))
        return next(s.value for f in families for s in f.samples if s.name == "stonemux_messages_sent_total")

    counts = [sent()]
    for n in range(3):
        http.call("msg.send", from_="ann", to="bob", content=f"{n}")
        counts.append(sent())
    assert counts == [0, 1, 2, 3]
