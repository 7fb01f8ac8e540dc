"""Where a webhook may go."""

from __future__ import annotations

import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stonemux import addresses
from stonemux.addresses import ForbiddenURL, Policy

OWN = Policy(own_host="127.0.0.1", own_port=3392)
OPEN = Policy(allow_private=True, own_host="127.0.0.1", own_port=3392)


def refused(url: str, policy: Policy = OWN) -> str:
    with pytest.raises(ForbiddenURL) as caught:
        addresses.check(url, policy)
    return str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hook",
        "//127.0.0.1/x",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "http:127.0.0.1/",
        "http:///x",
        "http://",
        "http://:80/",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:65536/",
        "http://127.0.0.1:/",
        "http://127.0.0.1:+80/",
        "http://127.0.0.1:8 0/",
        "http://user@127.0.0.1/",
        "http://user:secret@127.0.0.1/",
        "http://127.0.0.1@169.254.169.254/",
        "http://127.0.0.1\\@example.com/",
        "http://127.0.0.1/\tx",
        "http://127.0.0.1/\r\nX: y",
        "http://exa\nmple.com/",
        "http://exämple.com/",
        "http://①②⑦.⓪.⓪.①/",
        "http://127.0.0.1/#fragment",
        "http://[::1/",
        "http://::1/",
        "http://[fe80::1%25eth0]/",
        "http://[::1%lo]/",
        "http://127.0.0.1,example.com/",
        "http://127.0.0.1/".ljust(2049, "x"),
        " http://127.0.0.1/",
        "http://127.0.0.1/ ",
        "http://127.0.0.1/\x7f",
    ],
)
def test_what_is_not_plainly_a_url_is_refused(url):
    told = refused(url)
    assert ("user name" in told) == bool(re.match(r"http://[\w:.]+@", url))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080/a?b=c",
        "https://example.com",
        "HTTP://[::1]:9/",
        "http://localhost:1/",
        "http://a_b.c",
        "http://127.0.0.1/".ljust(2048, "x"),
    ],
)
def test_plain_urls_pass(url):
    addresses.check(url, OWN)


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("http://[::1]:9/", "[::1]:9"),
        ("https://[::1]:443/", "[::1]"),
        ("http://Example.com:80/", "Example.com"),
        ("https://a.b:80/", "a.b:80"),
    ],
)
def test_the_host_header_names_the_port_only_where_it_is_not_the_usual_one(url, authority):
    assert addresses.parse(url).authority == authority


def test_only_a_delivery_asks_a_name_server(monkeypatch):
    asked = []

    def answer(host, port, *, type, flags):
        asked.append(flags)
        return [(0, 0, 0, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    target = addresses.check("http://agent.example/", OWN)
    assert addresses.resolve(target) == ["127.0.0.1"]
    assert asked == [socket.AI_NUMERICHOST, 0]


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::ffff:127.0.0.1]", "[::1]"])
def test_every_spelling_of_the_own_port_is_refused__fault_39(host):
    assert "own port" in refused(f"http://{host}:3392/")
    addresses.check(f"http://{host}:3393/", OWN)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "mux.localhost"])
@pytest.mark.parametrize("own_host", ["127.0.0.1", "localhost"])
def test_names_of_this_machine_are_no_way_to_the_own_port(host, own_host):
    policy = Policy(own_host=own_host, own_port=3392)
    assert "own port" in refused(f"http://{host}:3392/", policy)
    addresses.check(f"http://{host}:3393/", policy)
    addresses.check("http://8.8.8.8:3392/", policy)


@pytest.mark.parametrize("host", ["0", "0.0.0.0", "[::]", "[::ffff:0.0.0.0]"])
def test_the_unspecified_address_is_never_called(host):
    refused(f"http://{host}:3392/", OPEN)
    refused(f"http://{host}:80/", OPEN)


def test_an_own_address_beyond_loopback_is_refused_with_the_own_port():
    policy = Policy(allow_private=True, own_host="192.168.1.5", own_port=3392)
    assert "own port" in refused("http://192.168.1.5:3392/", policy)
    addresses.check("http://192.168.1.5:3393/", policy)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b::7f00:1]",
        "[2002:a9fe:a9fe::1]",
        "[2002:7f00:1::]",
        "[2001:0:a9fe:a9fe::1]",
        "[2001:0:808:808:0:0:5601:5601]",  # Teredo: a public server, and 169.254.169.254 behind it
        "[fe80::1]",
        "[fec0::1]",
        "[fd00:ec2::254]",
        "[fd00:ec2::23]",
        "[fd20:ce::254]",
        "100.100.100.200",
        "168.63.129.16",
        "224.0.0.1",
        "239.255.255.250",
        "255.255.255.255",
        "240.0.0.1",
        "192.0.0.8",
        "192.0.2.1",
        "198.18.0.1",
        "[ff02::1]",
        "[::127.0.0.1]",
        "[::2]",
        "[64:ff9b:1::1]",
        "[2001:db8::1]",
        "[4000::1]",
        "metadata.google.internal",
        "METADATA.google.internal.",
    ],
)
def test_what_no_setting_allows__fault_39(host):
    refused(f"http://{host}/", OPEN)


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "100.64.0.1", "[fd00::1]", "[::ffff:10.0.0.1]"]
)
def test_private_networks_need_the_setting(host):
    assert "allow_private" in refused(f"http://{host}/")
    addresses.check(f"http://{host}/", OPEN)


def test_a_list_of_networks_allows_just_those():
    policy = Policy(cidrs=("10.1.0.5/16", "fd00:1::/32"))
    addresses.check("http://10.1.2.3/", policy)
    addresses.check("http://[fd00:1::5]/", policy)
    refused("http://10.2.0.1/", policy)
    refused("http://[fd00:2::5]/", policy)
    refused("http://169.254.169.254/", Policy(cidrs=("0.0.0.0/0", "169.254.0.0/16")))


@pytest.mark.parametrize("host", ["8.8.8.8", "172.32.0.1", "100.128.0.1", "[2606:4700::1]", "[64:ff9b::808:808]"])
def test_public_addresses_pass(host):
    addresses.check(f"http://{host}/", Policy())


def test_one_bad_address_among_several_refuses_the_name():
    target = addresses.parse("http://example.com/")
    addresses.judge_all(target, ["93.184.215.14"], OWN)
    with pytest.raises(ForbiddenURL, match=r"which is 169\.254\.169\.254"):
        addresses.judge_all(target, ["93.184.215.14", "169.254.169.254"], OWN)


@given(st.text(max_size=60) | st.text("htps:/.@[]0127x#?% \\", max_size=60).map(lambda text: "http://" + text))
def test_whatever_is_given_is_taken_apart_or_refused(url):
    try:
        target = addresses.check(url, OWN)
    except ForbiddenURL:
        return
    assert 1 <= target.port <= 65535
    assert target.path.startswith("/")
    assert target.path.isascii()
    assert target.path.isprintable()
    assert target.authority


@given(st.integers(0, 2**32 - 1))
def test_a_mapped_address_is_judged_as_what_it_is(number):
    plain = socket.inet_ntoa(number.to_bytes(4, "big"))
    assert bool(addresses.judge(plain, 80, OWN)) == bool(addresses.judge(f"::ffff:{plain}", 80, OWN))
    if addresses.judge(plain, 80, OPEN):
        assert addresses.judge(f"64:ff9b::{plain}", 80, OPEN)
