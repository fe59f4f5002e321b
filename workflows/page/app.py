"""The page as an ASGI application: addresses, and what each of them shows. Nothing here writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from stillroom.storage.errors import StillroomError
from stillroom.workflows.page import finding
from stillroom.workflows.page.door import REPORT_POLICY, App, Door
from stillroom.workflows.page.showing import HERE, templates
from stillroom.workflows.schedules.ledger import (
    RUNNING,
    STATES,
    WAITING,
    Run,
    coming,
    runs,
    ticks_ahead,
)
from stillroom.workflows.schedules.serving import serving
from stillroom.workflows.schedules.state import State

LOOK_AGAIN_S = 5
"""Seconds after which a page about something that runs is asked for again."""
_RECENT = 10
_MANY = 100
_TICKS = 5


def application(state: State, token: str = "", hosts: frozenset[str] = frozenset()) -> App:
    """The whole page of a state; see `Door` for token and hosts."""
    pages = _Pages(state, templates())

    def refused(problem: str, way_out: str) -> bytes:
        return pages.render("problem", problem=problem, way_out=way_out).encode()

    routes = [
        Route("/", pages.now),
        Route("/runs", pages.runs),
        Route("/runs/{number:int}", pages.run),
        Route("/runs/{number:int}/log", pages.log),
        Route("/runs/{number:int}/files/{path:path}", pages.file),
        Route("/schedules/{name}", pages.schedule),
        Route("/caches", pages.caches),
        Route("/caches/{name}", pages.cache),
        Route("/students", pages.students),
        Route("/reports", pages.reports),
        Route("/page.css", pages.style),
    ]
    handlers: dict[Any, Callable[..., Any]] = {
        HTTPException: pages.missing,
        StillroomError: pages.failed,
        Exception: pages.failed,
    }
    return Door(Starlette(routes=routes, exception_handlers=handlers), refused, token, hosts)


@dataclass(frozen=True)
class _Pages:
    """One method for each address; they run in threads, so that a slow disk holds up no other reader."""

    state: State
    environment: Any

    def render(self, template: str, **shown: Any) -> str:
        """A template of this folder, with what all of them show."""
        given = {"again": 0, "still": True, "here": "", "folder": str(self.state.folder.absolute())}
        zone = time.strftime("%Z")
        return str(
            self.environment.get_template(f"{template}.html.j2").render(
                **{**given, "zone": zone, "page": template, **shown}
            )
        )

    def _answer(
        self, request: Request, template: str, again: bool = False, **shown: Any
    ) -> Response:
        still = "still" in request.query_params
        every = LOOK_AGAIN_S if again and not still else 0
        more = {"again": every, "still": still or not again, "here": request.url.path}
        return HTMLResponse(self.render(template, **more, looking=again, **shown))

    def now(self, request: Request) -> Response:
        recent = runs(self.state, last=200)
        kept = coming(self.state, time.time())
        flows: dict[str, Run] = {}
        for run in recent:
            flows.setdefault(run.flow, run)
        following = {
            flow: min((c.next for c in kept if c.flow == flow and c.next is not None), default=None)
            for flow in flows
        }
        going = finding.going(self.state)
        return self._answer(
            request,
            "now",
            again=bool(going),
            server=serving(self.state),
            going=going,
            schedules=kept,
            flows=flows,
            following=following,
            recent=recent[:_RECENT],
        )

    def runs(self, request: Request) -> Response:
        asked = request.query_params
        of = {name: asked[name] for name in ("flow", "schedule") if asked.get(name)}
        found = runs(self.state, last=_MANY, **of)  # type: ignore[arg-type]
        return self._answer(request, "runs", found=found, of=of, many=_MANY)

    def run(self, request: Request) -> Response:
        run = self._run(request)
        going = run.state in (RUNNING, WAITING)
        now = [one for one in finding.going(self.state) if one.run.number == run.number]
        return self._answer(
            request,
            "run",
            again=going,
            run=run,
            now=now[0] if now else None,
            printed=finding.tail(run),
            report=finding.report_of(run),
        )

    def log(self, request: Request) -> Response:
        run = self._run(request)
        if run.log is None or not Path(run.log).is_file():
            raise HTTPException(404, f"no log of run {run.number} was kept")
        return FileResponse(run.log, media_type="text/plain; charset=utf-8")

    def file(self, request: Request) -> Response:
        run = self._run(request)
        found = finding.file_of(run, request.path_params["path"])
        if found is None:
            raise HTTPException(
                404, f"no page or picture of that name in the folder of run {run.number}"
            )
        policy = {"content-security-policy": REPORT_POLICY}
        return FileResponse(found, media_type=finding.SHOWN[found.suffix.lower()], headers=policy)

    def schedule(self, request: Request) -> Response:
        name = request.path_params["name"]
        found = next((c for c in coming(self.state, time.time()) if c.name == name), None)
        if found is None:
            if runs(self.state, schedule=name, last=1):
                return RedirectResponse(f"/runs?schedule={quote(name)}", 303)
            raise HTTPException(404, f"no schedule {name!r}")
        return self._answer(
            request,
            "schedule",
            one=found,
            kept=self.state.require(name),
            ticks=ticks_ahead(self.state, name, time.time(), _TICKS),
            recent=runs(self.state, schedule=name, last=_RECENT),
        )

    def caches(self, request: Request) -> Response:
        places = finding.caches(self.state)
        found = {name: finding.described(self.state, place) for name, place in places.items()}
        return self._answer(request, "caches", found=found)

    def cache(self, request: Request) -> Response:
        place = finding.caches(self.state).get(request.path_params["name"])
        if place is None:
            raise HTTPException(404, "no such cache in the folder of any run")
        return self._answer(request, "cache", cache=finding.described(self.state, place))

    def students(self, request: Request) -> Response:
        return self._answer(request, "students", classes=finding.classes(self.state))

    def reports(self, request: Request) -> Response:
        found: dict[str, tuple[Run, str | None]] = {}
        for run in runs(self.state, last=1000):
            if run.report and run.report not in found:
                found[run.report] = run, finding.report_of(run)
        return self._answer(request, "reports", found=list(found.values()))

    def style(self, request: Request) -> Response:
        return FileResponse(HERE / "page.css", media_type="text/css")

    def missing(self, request: Request, error: HTTPException) -> Response:
        words = "there is nothing at this address" if error.detail == "Not Found" else error.detail
        page = self.render("problem", problem=words, way_out="")
        return HTMLResponse(page, error.status_code, headers=error.headers)

    def failed(self, request: Request, error: Exception) -> Response:
        known = isinstance(error, StillroomError)
        words = (
            str(error) if known else f"{type(error).__name__}, whose traceback is with the server"
        )
        return HTMLResponse(self.render("problem", problem=words, way_out=""), 500)

    def _run(self, request: Request) -> Run:
        # A number that SQLite cannot hold is none of a run.
        number = request.path_params["number"]
        found = runs(self.state, number=number, last=1) if number < 2**63 else []
        if not found:
            raise HTTPException(404, f"no run {number}")
        assert found[0].state in STATES
        return found[0]
