"""The gunicorn worker: small requests are answered at once, and slow clients hold nobody up.

gunicorn's threaded worker gives every connection to a thread, which costs more than the answer: two
workers answer a constant 3,700 times a second so, 5,300 times without (docs/performance.md). Its
plain worker has no threads, and one client that sends slowly blocks it. Here the main thread takes
in what clients send, without ever waiting for one of them, until a request is there:

- a small one for an address that answers in less than a millisecond is answered on the spot, and
  what its client does not read at once is sent when it does;
- any other goes to a thread once it is there as a whole;
- a file, or a body whose length is not said, is read by a thread of another pool, so that those who
  send one slowly wait for one another alone;
- one that is not there in time is answered 408.

It stands on `gunicorn.workers.gthread` of the version in requirements.txt; tests/integration/
test_predict_worker.py holds what it changes.
"""

from __future__ import annotations

import os
import re
import selectors
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

from predictor import protocol
from predictor.limits import body_timeout
from predictor.protocol import PatientUnreader

SMALL_BYTES = 16 * 1024  # of a body that is read on the spot; some sixty records
COLLECTED_BYTES = 64 * 1024 * 1024
"""Of all bodies that are not there as a whole; beyond that they are left to threads."""
STREAMS = 4  # requests whose bodies are read while they come
HEADER_BYTES = 64 * 1024
RECEIVE_BYTES = 64 * 1024
RECEIVE_SECONDS = body_timeout(os.environ)
"""For the headers and a body of little size; and for any next piece that a thread waits for."""
PART_SECONDS = 2.0  # a client has so long to read its last answer and close
LINGER_SECONDS = 2.0  # a worker that leaves keeps idle connections open, for requests on their way

# What is answered on the spot. All else may take long, or is rare.
_QUICK = (b"POST /predict ", b"GET /health ", b"GET /ready ")
_STREAMED = b"POST /predict/batch"
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([^\r\n]*)\r\n", re.IGNORECASE)
_DIGITS = re.compile(rb"\d{1,9}[ \t]*")
_NO_LENGTH = re.compile(rb"\r\n(transfer-encoding|expect|upgrade)[ \t]*:", re.IGNORECASE)

_WAIT, _QUICKLY, _BY_THREAD, _BY_STREAM = range(4)


def how_to_answer(received: bytes | bytearray) -> int:
    """Return whether to wait for more of a request, or who answers it."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return _WAIT if len(received) < HEADER_BYTES else _BY_THREAD
    head = bytes(received[: end + 4])
    lengths = _LENGTH.findall(head)
    unsure = len(lengths) > 1 or (lengths and not _DIGITS.fullmatch(lengths[0]))
    if unsure or _NO_LENGTH.search(head) or head.startswith(_STREAMED):
        return _BY_STREAM
    length = int(lengths[0]) if lengths else 0
    if length > COLLECTED_BYTES:
        return _BY_STREAM
    if len(received) < end + 4 + length:
        return _WAIT
    return _QUICKLY if length <= SMALL_BYTES and head.startswith(_QUICK) else _BY_THREAD


class Outbox:
    """Stands for a socket while a request is answered on the spot: keeps what is sent."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.content = b""

    def sendall(self, data: bytes) -> None:
        self.content += data

    send = sendall

    def setblocking(self, blocking: bool) -> None:
        """Do nothing: the socket itself stays as it is."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


class PredictWorker(ThreadWorker):
    """A threaded worker whose main thread receives, and answers what is quick."""

    def init_process(self) -> None:
        self.receiving: dict[TConn, bytearray] = {}
        self.sending: dict[TConn, tuple[bytes, bool]] = {}  # what is left, and whether to keep it
        self.parting: dict[TConn, float] = {}  # and until when
        self.leaves_at = 0.0
        self.streams = ThreadPoolExecutor(STREAMS, thread_name_prefix="stream")
        super().init_process()

    def accept(self, listener: socket.socket) -> None:
        try:
            client, address = listener.accept()
        except OSError:  # another worker took it, or it has gone
            return
        # The threads' reads and writes block; the kernel ends those that nothing comes of.
        stall = struct.pack("ll", max(1, round(RECEIVE_SECONDS)), 0)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, stall)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, stall)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.nr_conns += 1
        conn = TConn(self.cfg, client, address, listener.getsockname())
        conn.data_ready = True
        self.begin(conn, b"")

    def begin(self, conn: TConn, received: bytes) -> None:
        """Take in a request from its start; `received` is what came with the one before."""
        conn.timeout = time.monotonic() + RECEIVE_SECONDS
        conn.sock.setblocking(False)
        self.receiving[conn] = bytearray(received)
        how = how_to_answer(received) if received else _WAIT
        if how != _WAIT:
            self.dispatch(conn, how)
        elif not self.receive(conn):
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_more, conn))

    def on_more(self, conn: TConn, client: socket.socket) -> None:
        """More of a request has come, or its client has gone."""
        self.receive(conn, registered=True)

    def receive(self, conn: TConn, registered: bool = False) -> bool:
        """Take in what is there, and answer if that is enough. Return whether `conn` is done."""
        received = self.receiving[conn]
        try:
            data = conn.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        received += data
        conn.timeout += len(data) / protocol.LEAST_BYTES_A_SECOND
        how = how_to_answer(received) if data else _BY_THREAD
        if how == _WAIT and len(received) > RECEIVE_BYTES:
            collected = sum(map(len, self.receiving.values()))
            how = _WAIT if collected < COLLECTED_BYTES else _BY_STREAM
        if how == _WAIT:
            return False
        if registered:
            self.poller.unregister(conn.sock)
        if not data:  # it has gone, or will send no more, and what it sent is no request
            if received:
                self.refuse(conn, 400, "wrong_http", "the request broke off")
            else:
                self.drop(conn)
        elif how == _BY_THREAD and b"\r\n\r\n" not in received:
            size = f"the headers are over {HEADER_BYTES >> 10} kB"
            self.refuse(conn, 431, "headers_too_large", size)
        else:
            self.dispatch(conn, how)
        return True

    def refuse(self, conn: TConn, status: int, code: str, message: str) -> None:
        """Answer a request that is not there as a whole, and let its client go."""
        with suppress(OSError):  # it has gone meanwhile
            conn.sock.send(protocol.refusal(status, code, message))
        del self.receiving[conn]
        self.part(conn)

    def drop(self, conn: TConn) -> None:
        """Close a connection that has no request."""
        del self.receiving[conn]
        self.nr_conns -= 1
        conn.close()

    def part(self, conn: TConn) -> None:
        """Close a connection once its client has read the answer, as gunicorn's graceful close.

        What a client still sends is thrown away: if it were left, the kernel would cut the answer
        off. gunicorn waits here for two seconds, in which this thread answers nobody.
        """
        with suppress(OSError):  # it has gone
            conn.sock.shutdown(socket.SHUT_WR)
        closed = conn.sock.fileno() < 0  # as gunicorn does with an answer that broke off
        if not closed:
            conn.sock.setblocking(False)
        if closed or self.has_left(conn):
            self.nr_conns -= 1
            conn.close()
            return
        self.parting[conn] = time.monotonic() + PART_SECONDS
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_rest, conn))

    def on_rest(self, conn: TConn, client: socket.socket) -> None:
        """A client that was answered sends more, or has gone."""
        if self.has_left(conn):
            self.end(conn)

    def has_left(self, conn: TConn) -> bool:
        """Return whether the client of a connection has closed it; what it sends is thrown away."""
        try:
            return not conn.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def end(self, conn: TConn) -> None:
        """Close a connection that was parting."""
        del self.parting[conn]
        self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what gunicorn's parser refuses, and faults of this server, as the routes do."""
        answer = protocol.refusal_of(exc)
        if answer is None:
            self.log.exception("Error handling request")
            answer = protocol.fault_answer()
        else:
            # What it said stays out of the log: it may be the rest of a body.
            self.log.warning("no HTTP from %s (%s)", (addr or ("",))[0], type(exc).__name__)
        with suppress(OSError):
            client.send(answer)

    def dispatch(self, conn: TConn, how: int) -> None:
        """Answer a request, here or by a thread."""
        received = bytes(self.receiving.pop(conn))
        conn.sock.setblocking(how != _QUICKLY)
        sock = conn.sock
        if not conn.initialized:
            conn.init()
            conn.parser.unreader = PatientUnreader(sock, RECEIVE_SECONDS)
        conn.parser.unreader.begin(whole=how != _BY_STREAM)
        conn.parser.unreader.unread(received)
        if how != _QUICKLY:
            pool = self.streams if how == _BY_STREAM else self.tpool
            done = partial(self.method_queue.defer, self.finish_request, conn)
            pool.submit(self.handle, conn).add_done_callback(done)
            return
        sock.setblocking(False)
        conn.sock = outbox = Outbox(sock)
        try:
            keep = self.handle(conn)
        finally:
            conn.sock = sock
        self.send(conn, outbox.content, keep)

    def send(self, conn: TConn, content: bytes, keep: bool) -> None:
        """Send what the client takes now, and the rest when it takes it."""
        try:
            sent = conn.sock.send(content) if content else 0
        except BlockingIOError:
            sent = 0
        except OSError:  # it has gone
            sent, keep = len(content), False
        if sent == len(content):
            self.after(conn, keep)
            return
        conn.timeout = time.monotonic() + RECEIVE_SECONDS
        self.sending[conn] = content[sent:], keep
        self.poller.register(conn.sock, selectors.EVENT_WRITE, partial(self.on_room, conn))

    def on_room(self, conn: TConn, client: socket.socket) -> None:
        """A client takes more of its answer."""
        self.poller.unregister(conn.sock)
        self.send(conn, *self.sending.pop(conn))

    def finish_request(self, conn: TConn, fs: Any) -> None:
        """A thread has answered."""
        self.after(conn, not fs.cancelled() and fs.exception() is None and fs.result() is True)

    def after(self, conn: TConn, keep: bool) -> None:
        """Keep the connection for its next request, which may be there already, or close it."""
        if not keep or not self.alive:
            self.part(conn)
            return
        more = conn.parser.unreader.take_buffered()
        if more:
            # By way of the loop, so that a client that never pauses does not keep it to itself.
            self.method_queue.defer(self.begin, conn, more)
            return
        conn.sock.setblocking(False)
        conn.set_timeout()
        self.keepalived_conns.append(conn)
        readable = partial(self.on_client_socket_readable, conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, readable)

    def on_client_socket_readable(self, conn: TConn, client: socket.socket) -> None:
        """The next request of a connection begins."""
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self.begin(conn, b"")

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """As in gunicorn, but never so long that deadlines would pass unseen."""
        if not self.alive:
            self.leaves_at = self.leaves_at or time.monotonic() + LINGER_SECONDS
            timeout = min(timeout, 0.1)
            if time.monotonic() >= self.leaves_at:
                for conn in self.keepalived_conns:
                    conn.timeout = 0.0
                self.murder_keepalived()
        super().wait_for_and_dispatch_events(min(timeout, 1.0))

    def murder_pending(self) -> None:
        """Answer 408 to those whose request has not come in time, and end those that part."""
        now = time.monotonic()
        for conn, until in list(self.parting.items()):
            if until > now:
                break
            self.end(conn)
        for conn in [conn for conn in self.sending if conn.timeout <= now]:
            del self.sending[conn]
            self.poller.unregister(conn.sock)
            self.nr_conns -= 1
            conn.close()
        for conn in [conn for conn in self.receiving if conn.timeout <= now]:
            self.poller.unregister(conn.sock)
            if self.receiving[conn]:
                late = f"the request was not there after {RECEIVE_SECONDS:g} seconds"
                self.refuse(conn, 408, "too_slow", late)
            else:
                self.drop(conn)
