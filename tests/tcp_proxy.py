"""A proxy in front of a database: it can go quiet, cut connections, and lose the answer to a commit."""

from __future__ import annotations

import contextlib
import select
import socket
import threading

# What psycopg sends to end a transaction well: a simple query of its own.
_COMMIT = b"Q\0\0\0\x0bCOMMIT\0"


class TcpProxy:
    """Forwards connections from a port of its own to a server on loopback, in threads."""

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._open = threading.Event()
        self._open.set()
        self.lose = ""
        """What is lost once, at the next commit: `commit` itself, or its `answer`."""
        self.lost = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Nothing gets through any more, and nobody is told: as when a cable is pulled."""
        self._open.clear()

    def mend(self) -> None:
        """New connections get through; those that were cut off learn it."""
        self._drop()
        self._open.set()

    def close(self) -> None:
        self._listener.close()
        self._open.set()
        self._drop()

    def _drop(self) -> None:
        for pair in self._pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        self._open.wait()
        with client, contextlib.suppress(OSError), socket.create_connection(self._to) as server:
            self._pairs.append((client, server))
            while True:
                ready, _, _ = select.select([client, server], [], [])
                self._open.wait()
                for source in ready:
                    data = source.recv(65536)
                    if not data or self._is_lost(data, source is client, server):
                        return
                    (server if source is client else client).sendall(data)

    def _is_lost(self, data: bytes, from_client: bool, server: socket.socket) -> bool:
        if not (from_client and self.lose and data.endswith(_COMMIT)):
            return False
        if self.lose == "answer":
            server.sendall(data)
            # It has answered: so it was written.
            server.recv(65536)
        self.lose = ""
        self.lost.set()
        return True
