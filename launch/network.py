"""What torchrun and gloo have to know of this machine's network: `<is_host> <address> <interface>`.

torchrun compares host names to find out whether the rendezvous is here, and gloo looks up its own
to find its address; both go wrong where names are not set up for it (containers, 127.0.1.1).
The route to the rendezvous tells, whatever the names.
"""

from __future__ import annotations

import socket
import sys
import time

import psutil

PATIENCE = 300.0
"""Seconds to wait for a name to appear: that of a container exists once the container does."""


def main(endpoint: str) -> int:
    """Prints the three words for a rendezvous at `host:port`."""
    host, colon, port = endpoint.rpartition(":")
    if not colon or not port.isdecimal():
        return _refuse(f"RDZV_ENDPOINT={endpoint} is not host:port, e.g. 10.0.0.1:29400")
    try:
        family, target = _resolve(host.strip("[]"), int(port))
    except OSError as error:
        return _refuse(f"RDZV_ENDPOINT={endpoint}: {host} cannot be found ({error.strerror})")
    own = _route(family, target)
    loopback = target[0].startswith("127.") or target[0] == "::1"
    if loopback:  # a machine's own name often means that to itself, and nothing to others
        own = _route(socket.AF_INET, ("192.0.2.1", 9)) or own
    is_host = loopback or own == target[0]
    if own is None:
        return _refuse(f"RDZV_ENDPOINT={endpoint}: there is no route to {target[0]} from here")
    print(int(is_host), own, _interface(own))
    return 0


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
            return family, (str(target[0]), port)
        except socket.gaierror:
            if time.monotonic() > end:
                raise
            time.sleep(2)


def _route(family: socket.AddressFamily, target: tuple[str, int]) -> str | None:
    """Own address on the way to another; nothing is sent."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(target)
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _interface(address: str) -> str:
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.split("%")[0] == address for entry in addresses):
            return name
    return "lo"


def _refuse(message: str) -> int:
    print(f"lsp: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
