"""The guard of the whole suite: nothing may reach for a network."""

import socket
import urllib.error
import urllib.request

import pytest


def test_the_network_is_out_of_reach():
    with socket.socket() as one, pytest.raises(PermissionError, match="network"):
        one.connect(("192.0.2.1", 80))
    with pytest.raises(PermissionError, match=r"getaddrinfo 'example\.org'"):
        socket.getaddrinfo("example.org", 80)
    with pytest.raises((PermissionError, urllib.error.URLError)):
        urllib.request.urlopen("http://example.org", timeout=1)


def test_this_machine_is_within_reach():
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
