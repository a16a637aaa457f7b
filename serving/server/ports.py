"""Ports, taken before anything slow happens, so that one in use is told at once and in one line."""

from __future__ import annotations

import socket

from pipelines.config import Failure


def bind(port: int, flag: str) -> socket.socket:
    """A socket that listens on this port of all interfaces.

    Raises:
        Failure: the port is in use or not allowed.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("0.0.0.0", port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise Failure(f"Expected a free port for {flag}. Received: {port} ({error.strerror})") from None
    listening.setblocking(False)
    return listening


def check(**ports: int) -> None:
    """Raises `Failure` unless each of these ports, named by its flag, can be taken; 0 stands for none."""
    for name, port in ports.items():
        if port:
            bind(port, f"--{name}").close()
