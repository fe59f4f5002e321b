"""A connection to Ray that several maps share: who started it, and its workers without work."""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from stillroom.pipeline.ray_needs import Needs
from stillroom.pipeline.runner import RunnerError
from stillroom.pipeline.stopping import own_signals

_LOST_S = 10.0
"""For how long a Ray without a head may take to be shut down."""


_sessions: WeakSet[Session] = WeakSet()
"""Of all runners of this process; its connection to Ray is one, so their idle workers take each
other's room."""


@dataclass(eq=False)
class Session:
    """Whether we started Ray, who needs it to stay up, and idle workers by what they hold."""

    held: int = 0
    """Open `with` blocks."""
    maps: int = 0
    """Maps that run now, in whatever thread."""
    started: bool = False
    idle: list[tuple[Needs, Any]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        """Be known to the others."""
        _sessions.add(self)

    def enter(
        self, address: str | None, cpus: int, runtime_env: Mapping[str, Any] | None
    ) -> tuple[Any, Head]:
        """Connect for one map, if nobody did; (the ray module, the cluster's head)."""
        with self.lock:
            ray = _imported()
            if not ray.is_initialized():
                self.idle.clear()
                _connect(ray, address, cpus, runtime_env)
                self.started = True
            self.maps += 1
            return ray, Head.of(ray)

    def leave(self) -> None:
        """One map is over."""
        with self.lock:
            self.maps -= 1
            self.end_unless_needed()

    def end_unless_needed(self, lost: bool = False) -> None:
        """Shut down the Ray that was started, when nobody waits for it; `lost`: it is gone anyway."""
        with self.lock:
            if self.maps or (self.held and not lost) or not (self.started or self.idle):
                return
            ending = threading.Thread(target=self._end, args=(_imported(),), daemon=True)
            if lost:  # Ray would wait for what does not answer
                ending.start()
                ending.join(_LOST_S)
            else:
                ending.run()
            self.idle.clear()
            self.started = False

    def _end(self, ray: Any) -> None:
        if ray.is_initialized():
            for _, actor in self.idle:
                ray.kill(actor)
            if self.started:
                ray.shutdown()

    def taken(self, needs: Needs, ray: Any, most: int) -> list[Any]:
        """Idle workers that hold what is needed. Others are ended: what they hold may be wanted."""
        with self.lock:
            mine = [actor for held, actor in self.idle if held == needs][:most]
            for _, actor in self.idle:
                if not any(actor is one for one in mine):
                    ray.kill(actor)
            self.idle.clear()
            return mine

    def end_idle(self, ray: Any) -> None:
        """End the idle workers of all runners: somebody waits for what they hold. Also of this one,
        whose maps may run at the same time with other needs."""
        for other in list(_sessions):
            # A lock that is taken is that of a runner which is about to use its workers.
            if other.lock.acquire(blocking=False):
                try:
                    for _, actor in other.idle:
                        ray.kill(actor)
                    other.idle.clear()
                finally:
                    other.lock.release()


@dataclass
class Head:
    """The process that knows the cluster. Without it Ray ends every process within a minute."""

    address: str = ""
    """HOST:PORT; empty where it cannot be known (Ray's client)."""
    unanswered_since: float | None = None

    @classmethod
    def of(cls, ray: Any) -> Head:
        """That of the Ray which this process is connected to."""
        try:
            return cls(str(ray.get_runtime_context().gcs_address))
        except Exception:
            return cls()

    def answers(self) -> bool:
        """Whether something listens there; remembers since when nothing does."""
        match = _host_and_port(self.address)
        if match is None or listens(*match):
            self.unanswered_since = None
            return True
        self.unanswered_since = self.unanswered_since or time.monotonic()
        return False

    def silent_s(self) -> float:
        """For how many seconds it has not answered."""
        return time.monotonic() - self.unanswered_since if self.unanswered_since else 0.0


@dataclass
class Watch:
    """What the cluster has, asked for in a thread: Ray itself waits a minute for a head that is gone,
    and then ends the process."""

    ray: Any
    nodes: list[Any] = field(default_factory=list)
    """As `ray.nodes()` said last."""
    free: dict[str, float] = field(default_factory=dict)
    _asking: threading.Thread | None = None

    def ask(self, wait_s: float = 0.0) -> bool:
        """Ask, unless an answer is still awaited; whether one came within `wait_s`."""
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=self._answer, daemon=True)
            self._asking.start()
        self._asking.join(wait_s)
        return not self._asking.is_alive()

    def end(self) -> None:
        """Let an answer come before Ray is shut down."""
        if self._asking is not None:
            self._asking.join(2)

    def _answer(self) -> None:
        with suppress(Exception):  # Ray was shut down meanwhile; what was known stays
            self.nodes, self.free = self.ray.nodes(), self.ray.available_resources()


def listens(host: str, port: int) -> bool:
    """Whether anything takes connections there."""
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


def _imported() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray runs workers at niceness 15, so that beside anything else they starve.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # The present meaning of "no GPUs asked for"; without it every start prints a warning.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise RunnerError("ray is not installed; install it, or use LocalRunner()") from error
    return ray


def _connect(
    ray: Any, address: str | None, cpus: int, runtime_env: Mapping[str, Any] | None
) -> None:
    # Ray names the cluster so inside `ray job submit`: another Ray beside it would be a trap.
    address = address or os.environ.get("RAY_ADDRESS") or None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if runtime_env:
        options["runtime_env"] = dict(runtime_env)
    if address is not None:
        options["address"] = address
    else:
        options |= {"num_cpus": cpus, "include_dashboard": False, "address": "local"}
    where = f"at {address}" if address else "on this machine"
    try:
        _require_open(address)
        with _import_paths(), own_signals():
            _in_a_lasting_thread(lambda: ray.init(**options))
    except Exception as error:
        mine = f"Ray {ray.__version__} and Python {sys.version.split()[0]}"
        if "Version mismatch" in str(error):
            theirs = re.findall(r"(?:Ray|Python): (\S+)", str(error))
            which = "Ray {} and Python {}".format(*theirs) if len(theirs) > 1 else "other versions"
            raise RunnerError(
                f"the cluster {where} runs {which}, this process {mine}; Ray needs the same Ray version "
                "and the same minor version of Python on both sides. Install the cluster's versions "
                "here, or start the run on the cluster with `ray job submit`"
            ) from error
        raise RunnerError(
            f"Ray could not be started {where}: {error}. Check the address and that the cluster runs "
            f"{mine} as this process does, or use LocalRunner(), which needs no Ray"
        ) from error


def _in_a_lasting_thread(start: Callable[[], object]) -> None:
    """Call it where the thread does not end before the process.

    The system kills what Ray starts as soon as the thread that started it ends (PR_SET_PDEATHSIG), and
    a map may run in a thread that has done its part before others have.
    """
    if threading.current_thread() is threading.main_thread():
        start()
        return
    outcome: Future[None] = Future()

    def last() -> None:
        try:
            start()
        except BaseException as error:
            outcome.set_exception(error)
            return
        outcome.set_result(None)
        threading.Event().wait()

    threading.Thread(target=last, name="stillroom-ray", daemon=True).start()
    outcome.result()


@contextmanager
def _import_paths() -> Iterator[None]:
    """Workers that start inside can import what this process can, such as a workflow's neighbours."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _host_and_port(address: str | None) -> tuple[str, int] | None:
    match = re.fullmatch(r"(?:ray://)?([^/\[\]:]+):(\d{1,5})", address or "")
    return (match[1], int(match[2])) if match else None


def _require_open(address: str | None) -> None:
    """Raise OSError soon where nothing answers as Ray does: Ray itself would try again for minutes."""
    if not (place := _host_and_port(address)):
        return
    with socket.create_connection(place, timeout=5) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return  # only Ray can ask
        connection.settimeout(20)
        # gRPC is HTTP/2: each side begins with its settings, a frame of type 4 (RFC 9113, 3.4).
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        answer = connection.recv(9)
        if len(answer) < 4 or answer[3] != 4:
            raise ConnectionError("what listens there is no Ray")
