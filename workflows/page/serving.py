"""The page over HTTP, in a thread beside the scheduler or alone."""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from stillroom.storage.errors import BusyError, MissingPackageError, SettingsError
from stillroom.workflows.page.door import chosen_token
from stillroom.workflows.schedules.state import State

HOST, PORT = "127.0.0.1", 8321
_END_S = 5.0


@dataclass(frozen=True)
class Address:
    """Where the page is shown."""

    host: str = HOST
    port: int = PORT
    """0: one that is free."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address_of(text: str) -> Address:
    """`8321`, `0.0.0.0:8321`, `[::1]:8321`; SettingsError for what is none.

    >>> str(address_of("8000")), str(address_of("[::1]:0")), address_of("0.0.0.0:80").loopback
    ('127.0.0.1:8000', '[::1]:0', False)
    """
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host != bare
    fits = port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < 2**16
    if not fits or bool(colon) != bool(bare) or (":" in bare) != bracketed:
        raise SettingsError(
            f"--page-at should be PORT or HOST:PORT, such as {PORT} or 0.0.0.0:{PORT}, found {text!r}"
        )
    return Address(bare or HOST, int(port))


def listening(address: Address) -> socket.socket:
    """A socket that listens there. BusyError when the port is in use, SettingsError when it cannot be."""
    try:
        family, kind, proto, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM
        )[0]
    except OSError as error:
        raise SettingsError(f"--page-at {address}: no such host ({error})") from error
    found = socket.socket(family, kind, proto)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(where)
        found.listen(64)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise BusyError(
                f"{address} is in use, perhaps by the page of another state; stop what listens there "
                f"(ss -ltnp 'sport = :{address.port}'), or choose another port: --page-at "
                f"{Address(address.host, (address.port + 1) % 2**16)}, or 0 for any that is free"
            ) from error
        raise SettingsError(
            f"the page cannot be shown at {address} ({error.strerror}); an address of this machine and "
            f"a port above 1023 is needed: --page-at {HOST}:{PORT}"
        ) from error
    return found


@contextmanager
def shown(state: State, address: Address) -> Iterator[str]:
    """Show the page of a state while the block runs; its URL, with the token when one was made.

    From this machine alone no token is asked for, unless STILLROOM_TOKEN is set; from elsewhere always.
    MissingPackageError without the extra `page`; BusyError and SettingsError as `listening` raises them.
    """
    try:
        import uvicorn

        from stillroom.workflows.page.app import application
    except ImportError as error:
        raise MissingPackageError(
            f"the page needs Starlette and uvicorn ({error}): pip install 'stillroom[page]'"
        ) from error
    token = chosen_token(address.loopback)
    with listening(address) as heard:
        at = Address(address.host, heard.getsockname()[1])
        hosts = frozenset({"localhost", "127.0.0.1", "[::1]", _bare(at)})
        config = uvicorn.Config(
            application(state, token, hosts),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,  # a token may be in an address
            server_header=False,
            limit_concurrency=64,
            timeout_graceful_shutdown=2,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([heard],), daemon=True, name="page")
        thread.start()
        try:
            yield f"http://{at}/" + (f"?token={token}" if token else "")
        finally:
            server.should_exit = True
            thread.join(_END_S)


def _bare(address: Address) -> str:
    return f"[{address.host}]" if ":" in address.host else address.host.lower()
