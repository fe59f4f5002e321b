"""An S3 server in a process of its own, and a proxy in front of it that misbehaves on demand."""

from __future__ import annotations

import http.client
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def s3_server() -> Iterator[int]:
    """moto's server with a bucket called `caches`; its port."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as process:  # type: ignore[call-overload]
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    request = urllib.request.Request(
                        f"http://127.0.0.1:{port}/caches", method="PUT"
                    )
                    urllib.request.urlopen(request).close()
                    break
                except OSError:
                    assert process.poll() is None, "the server ended"
                    assert time.monotonic() < until, "the server did not start"
                    time.sleep(0.1)
            yield port
        finally:
            process.kill()


class Proxy(ThreadingHTTPServer):
    """Passes requests on, counts them, and does to them what `fault` decides."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, target: int) -> None:
        """Listen on a free port for what is meant for the server at port `target`."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.seen: list[tuple[str, str]] = []
        """(method, path with query) of each request."""
        self.random = random.Random(0)
        self.rates: dict[str, float] = {}
        """How often each fault strikes: error, silence, slow, cut, lost."""
        self.struck: dict[str, int] = {}
        self.lock = threading.Lock()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def fault(self) -> str:
        """What happens to the next request; empty for nothing."""
        with self.lock:
            drawn = self.random.random()
            for name, rate in self.rates.items():
                drawn -= rate
                if drawn < 0:
                    self.struck[name] = self.struck.get(name, 0) + 1
                    return name
        return ""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that gave up are no news."""


@contextmanager
def proxy(target: int) -> Iterator[Proxy]:
    """A running proxy."""
    server = Proxy(target)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, self.path))
        fault = self.server.fault()
        if fault == "error":
            self._answer(500, [("Content-Type", "text/plain")], b"injected")
            return
        if fault == "silence":  # longer than the client waits
            time.sleep(2)
            self.close_connection = True
            return
        if fault == "slow":
            time.sleep(0.2)
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=30)
        upstream.request(self.command, self.path, body, dict(self.headers))
        got = upstream.getresponse()
        content = got.read()
        upstream.close()
        if fault == "lost":  # it was done, but the client never hears of it
            self._answer(500, [("Content-Type", "text/plain")], b"injected after the fact")
            return
        self._answer(got.status, got.getheaders(), content, cut=fault == "cut")

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool = False
    ) -> None:
        self.send_response(status)
        length = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value  # a HEAD states the size of what it does not send
            elif name.lower() not in ("transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass_on

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
