"""Connections that say hello and nothing more, in a process of their own.

    python -m tests.live.idle_clients PORT COUNT

prints a line when all are open, and keeps them until its stdin ends.
"""

import resource
import socket
import sys

HELLO = b'{"type":"hello","request":1}\n'


def main(port: int, count: int) -> None:
    """Open them, wait, and leave."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    connections = []
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        connection.sendall(HELLO)
        assert b"welcome" in connection.recv(4096)
        connections.append(connection)
    sys.stdout.write(f"{len(connections)}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
