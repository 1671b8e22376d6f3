from __future__ import annotations

import socket

import pytest

from lab.errors import LabError
from lab.ports import EPHEMERAL, LOOPBACK, LOWEST, Reservation, port_range


def server(port: int, *options: int) -> socket.socket:
    listener = socket.socket()
    for option in options:
        listener.setsockopt(socket.SOL_SOCKET, option, 1)
    listener.bind((LOOPBACK, port))
    listener.listen()
    return listener


def test_range_lies_below_the_ephemeral_ports() -> None:
    assert port_range()[0] == LOWEST
    assert port_range()[-1] < EPHEMERAL


def test_held_port_is_not_given_twice() -> None:
    first = Reservation()
    port = first.take()
    with pytest.raises(LabError, match=r"no free port left on 127\.0\.0\.1"):
        Reservation(candidates=[port]).take()
    first.close()
    assert Reservation(candidates=[port]).take() == port


@pytest.mark.parametrize(
    "options",
    [(socket.SO_REUSEADDR,), (socket.SO_REUSEADDR, socket.SO_REUSEPORT)],
    ids=["as Go and Python servers", "as Envoy"],
)
def test_the_part_itself_can_listen_on_a_held_port(options: tuple[int, ...]) -> None:
    reservation = Reservation()
    port = reservation.take()
    with server(port, *options), socket.create_connection((LOOPBACK, port), timeout=5):
        assert Reservation(candidates=[port]).hold(port) is False
    reservation.close()


def test_port_of_a_listener_is_taken() -> None:
    reservation = Reservation()
    port = reservation.take()
    with server(port, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        reservation.close()
        assert not reservation.hold(port)
