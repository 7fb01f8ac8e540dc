def test_a_message_reaches_its_inbox(face):
    face.call("agent.register", agent_id="ann")
    face.call("agent.register", agent_id="bob")
    sent = face.call("msg.send", from_="ann", to="bob", content="hi")
    got = face.call("msg.poll", agent_id="bob", timeout=0)
    assert [(m["id"], m["content"]) for m in got["messages"]] == [(sent["message_id"], "hi")]


def test_a_poll_ends_empty_at_its_timeout(face, clock, background):
    face.call("agent.register", agent_id="bob")
    waiting = background(face.call, "msg.poll", agent_id="bob", timeout=120)
    clock.until_parked(1)
    clock.advance(119_999)
    assert clock.parked == 1
    clock.advance(1)
    assert waiting.result(5) == {"messages": []}
