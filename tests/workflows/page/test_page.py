"""The page over HTTP, with a scheduler's state, real runs and a real cache behind it."""

from __future__ import annotations

import http.client
import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from typer.testing import CliRunner

from stillroom.pipeline.execute import StepFinished, StepStarted
from stillroom.stages.events import RowsTaught
from stillroom.storage.errors import BusyError, SettingsError
from stillroom.workflows.cli import app
from stillroom.workflows.page.curves import sparkline
from stillroom.workflows.page.door import VARIABLE
from stillroom.workflows.page.finding import Curve, curve_of
from stillroom.workflows.page.serving import Address, address_of, listening, shown
from stillroom.workflows.schedules.ledger import runs
from stillroom.workflows.schedules.recording import recorded
from stillroom.workflows.schedules.schedule import Trigger
from stillroom.workflows.schedules.state import State
from tests.stages.builders import plain, taught
from tests.workflows.schedules.builders import quick, quick_flow

EVIL = "<script>alert(1)</script>"
TOKEN = "correct-horse-battery"


def record_of(name: str, seed: int) -> dict[str, Any]:
    """What training writes of a student, as far as the page reads it; the slow test trains some."""
    curve = [{"epoch": epoch, "accuracy": 0.4 + epoch / 10 + seed / 100} for epoch in (1, 2)]
    metrics = {"accuracy": curve[-1]["accuracy"]}
    shape = {"terms": ["1 * kd"], "parameters": 99, "rows": 40, "snapshot": 1, "seconds": 0.1}
    said = {"student": name, "seed": seed, "recipe": "kd", "curve": curve, "metrics": metrics}
    return {**said, **shape}


@dataclass(frozen=True)
class Answer:
    """What came back, redirects not followed."""

    code: int
    headers: dict[str, str]
    text: str


@dataclass(frozen=True)
class Site:
    """A page that is being served, and the state behind it."""

    at: str
    state: State

    def get(
        self, path: str, method: str = "GET", body: str | None = None, **headers: str
    ) -> Answer:
        connection = http.client.HTTPConnection(self.at, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        said = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, said, text)

    def ok(self, path: str) -> str:
        answer = self.get(path)
        assert answer.code == 200, answer.text
        return answer.text


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Run 1 made a report; 2 failed; 3 taught and trained; 4 is a hostile name; 5 goes on."""
    home = tmp_path_factory.mktemp("page")
    state = State(home / "state")
    quick_flow(home)
    state.add(quick(home, "nightly", Trigger("cron", cron="0 2 * * *", timezone="Europe/Berlin")))
    state.add(quick(home, "late", Trigger("every", seconds=3600.0), added=time.time() - 4000))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(sys, "path", list(sys.path))
        patch.setenv("STILLROOM_STATE", str(state.folder))
        for more in ((), ("--fails", "9")):
            CliRunner().invoke(app, ["run", "quick.py", "--workers", "0", *more])
        cache = home / "out" / "real" / "real.cache"
        with recorded(state.folder, "real.py", [], home / "out" / "real") as record:
            record(StepStarted("teach", "it never ran here"))
            taught(cache, teacher=plain())
            record(RowsTaught("plain", 60, 60, 60))
            record(StepFinished("teach", False, 3.5, {}))
            for seed in (0, 1):
                place = home / "out" / "real" / "students" / f"soft-{seed}"
                place.mkdir(parents=True)
                (place / "record.json").write_text(json.dumps(record_of("soft", seed)))
        CliRunner().invoke(app, ["cache", "verify", str(cache)])
        with suppress(ValueError), recorded(state.folder, EVIL, [EVIL], home / "evil") as record:
            record(StepStarted(EVIL, EVIL))
            raise ValueError(EVIL)
        with recorded(state.folder, "real.py", [], home / "out" / "real") as record:
            record(StepStarted("teach", "12 rows are new"))
            with shown(state, Address(port=0)) as url:
                yield Site(urlsplit(url).netloc, state)


class _Links(HTMLParser):
    """Every address in a page, and its headings' levels."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.levels: list[int] = []
        self.scripts = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [v for n, v in attrs if n in ("href", "src", "action") and v]
        self.scripts += tag == "script" or any(n.startswith("on") for n, _ in attrs)
        assert not any(n == "style" for n, _ in attrs), "the page's own rules forbid it"
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))


def test_every_link_leads_somewhere_and_nowhere_else(site: Site) -> None:
    waiting, seen = ["/"], set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        answer = site.get(path)
        assert answer.code in (200, 303), (path, answer.text)
        if not answer.headers["content-type"].startswith("text/html") or "/files/" in path:
            continue
        page = _Links(answer.text)
        assert page.scripts == 0
        assert page.levels[0] == 1
        assert page.levels.count(1) == 1
        assert all(b - a <= 1 for a, b in zip(page.levels, page.levels[1:], strict=False))
        assert page.found[2] == "#main", "the first thing that a keyboard reaches"
        assert 'id="main"' in answer.text
        for address in page.found:
            assert address.startswith(("/", "#", "data:,")), "no resource from elsewhere"
            if address.startswith("/") and address not in seen:
                waiting.append(address)
    assert {"/runs/5", "/schedules/nightly", "/students", "/reports", "/page.css"} <= seen
    assert any(path.startswith("/caches/") for path in seen)
    assert any("/files/page.html" in path for path in seen)


def test_now_says_what_runs_and_what_comes(site: Site) -> None:
    page = site.ok("/")
    assert "Nobody serves" in page
    going = page.partition("Schedules</h2>")[0]
    assert 'href="/runs/5"' in going
    assert "teach</strong>: 12 rows are new" in going
    assert "took 3.5 s the last time" in going
    assert 'http-equiv="refresh" content="5"' in page
    assert "refresh" not in site.ok("/?still").partition("<title>")[0]
    assert "cron 0 2 * * * (Europe/Berlin)" in page
    assert "overdue" in page
    run = site.ok("/runs/3")
    assert "refresh" not in run.partition("<title>")[0]
    assert "<dt>Rows taught</dt><dd>60</dd>" in run
    assert "RuntimeError: no luck" in site.ok("/runs/2")
    listed = site.ok("/runs?flow=quick.py")
    assert 'href="/runs/1"' in listed
    assert 'href="/runs/3"' not in listed
    assert site.ok("/schedules/nightly").count("<li><time") == 5


def test_caches_and_students_are_those_of_the_runs(site: Site) -> None:
    page = site.ok("/caches")
    assert "real.cache" in page
    assert "every byte was right" in page
    (name,) = set(re.findall(r"/caches/[0-9a-f]{16}", page))
    assert "plain" in site.ok(name)
    kept = next((site.state.folder / "verified").iterdir())
    text = kept.read_text()
    try:
        kept.write_text(re.sub(r'"problems": ?0', '"problems": 2', text))
        assert "2 problems</span> found" in site.ok("/caches")
        kept.unlink()
        assert "never verified here" in site.ok(name)
    finally:
        kept.write_text(text)
    marker = next(site.state.folder.parent.rglob("cache.json"))
    whole = marker.read_text()
    try:
        marker.write_text("{")
        assert 'class="bad"' in site.ok("/caches")
        assert site.get(name).code == 200
    finally:
        marker.write_text(whole)
    students = site.ok("/students")
    assert students.count('<th scope="row">soft</th>') == 1
    assert "<polyline" in students
    assert "after epoch 2</title>" in students


def test_what_flows_say_is_text(site: Site) -> None:
    for path in ("/", "/runs", "/runs/4", f"/runs?flow={quote(EVIL)}", "/schedules/%3Cscript%3E"):
        answer = site.get(path)
        assert "<script" not in answer.text
        assert "&lt;script&gt;" in answer.text
    for path in (
        "/",
        "/runs/999",
        "/runs/99999999999999999999",
        "/nothing",
        "/caches/..",
        "/runs/x",
    ):
        answer = site.get(path)
        assert answer.headers["content-security-policy"].startswith(
            "default-src 'none'; style-src 's"
        )
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.code == (200 if path == "/" else 404)
    assert site.get("/", "POST").code == 405


def test_reports_come_from_the_runs_folder_only(site: Site) -> None:
    run = runs(site.state, number=1)[0]
    folder = Path(run.folder)
    report = site.get("/runs/1/files/page.html")
    assert report.text == "a page"
    assert "sandbox" in report.headers["content-security-policy"]
    assert "script-src" not in report.headers["content-security-policy"]
    secret = folder.parent / "secret.html"
    secret.write_text("secret")
    (folder / "link.html").symlink_to(secret)
    (folder / "folder").symlink_to(folder.parent)
    (folder / "round.html").symlink_to(folder / "round.html")
    (folder / "inside.html").symlink_to(folder / "page.html")
    (folder / "key.pem").write_text("secret")
    assert site.ok("/runs/1/files/inside.html") == "a page"
    asked = [
        "../secret.html",
        "%2e%2e/secret.html",
        "..%2fsecret.html",
        str(secret),
        "/" + str(secret),
    ]
    asked += [
        "link.html",
        "folder/secret.html",
        "round.html",
        "key.pem",
        "",
        ".",
        "page.html%00",
        "a/" * 900,
    ]
    for path in asked:
        answer = site.get(f"/runs/1/files/{path}")
        assert answer.code == 404, path
        assert "secret" not in answer.text
    site.state.write("UPDATE runs SET report = ? WHERE number = ?", (str(secret), 3))
    try:
        assert "outside of the run" in site.ok("/runs/3")
        assert "outside of the run" in site.ok("/reports")
    finally:
        site.state.write("UPDATE runs SET report = NULL WHERE number = ?", (3,))


def test_another_name_for_this_machine_is_refused(site: Site) -> None:
    for host in ("localhost", "LOCALHOST:80", "[::1]:8321", "127.0.0.1"):
        assert site.get("/", Host=host).code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "", "[::1].evil.example"):
        answer = site.get("/", Host=host)
        assert answer.code == 421
        assert "quick.py" not in answer.text


def test_a_token_is_asked_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, TOKEN)
    with shown(site.state, Address(port=0)) as url:
        assert url.endswith(f"?token={TOKEN}")
        closed = Site(urlsplit(url).netloc, site.state)
        for path in ("/", "/runs/1", "/runs/1/files/page.html", "/caches", "/nothing"):
            answer = closed.get(path)
            assert answer.code == 401
            assert "quick.py" not in answer.text
            assert '<form method="post" action="/enter">' in answer.text
        wrong = {"Authorization": "Bearer " + TOKEN[:-1]}
        assert closed.get("/", **wrong).code == 401
        assert closed.get("/?token=" + TOKEN[:-1]).code == 401
        assert closed.get("/", Cookie="stillroom-80=x; ;=;\x01").code == 401
        assert closed.get("/enter", "POST", "token=nonsense").code == 401
        assert closed.get("/enter", "POST", "token=" + "x" * 10_000).code == 401
        assert closed.get("/", Authorization=f"Bearer {TOKEN}").code == 200
        entered = closed.get("/enter", "POST", f"token={TOKEN}")
        linked = closed.get(f"/runs?token={TOKEN}")
        away = closed.get(f"//evil.example/?token={TOKEN}")
        assert [a.headers["location"] for a in (entered, linked, away)] == [
            "/", "/runs", "/evil.example/"]  # fmt: skip
        cookie = entered.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert closed.get("/", Cookie=cookie.partition(";")[0]).code == 200
    monkeypatch.setenv(VARIABLE, "short")
    with pytest.raises(SettingsError, match="at least 16"), shown(site.state, Address(port=0)):
        pass
    monkeypatch.delenv(VARIABLE)
    with shown(site.state, Address("0.0.0.0", 0)) as url:
        assert len(urlsplit(url).query) > 30
        opened = Site(f"127.0.0.1:{urlsplit(url).port}", site.state)
        assert opened.get("/").code == 401
        assert opened.get("/?" + urlsplit(url).query).code == 303


@pytest.mark.parametrize(
    "text", ["", "x", ":80", "70000", "1.2.3.4:", "::1:80", "[]:80", "-1", "²"]
)
def test_addresses_that_are_none_are_said(text: str) -> None:
    with pytest.raises(SettingsError, match="PORT or HOST:PORT"):
        address_of(text)


def test_a_port_in_use_is_said_with_the_way_out() -> None:
    with listening(Address(port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BusyError, match=rf"127\.0\.0\.1:{port} is in use.*--page-at 127"):
            listening(Address(port=port))
    with pytest.raises(SettingsError, match="no such host"):
        listening(Address("no.such.host.invalid", 80))
    with pytest.raises(SettingsError, match="an address of this machine"):
        listening(Address("192.0.2.1", 8321))


def test_the_page_ends_with_its_block(tmp_path: Path) -> None:
    with shown(State(tmp_path / "none"), Address(port=0)) as url:
        where = urlsplit(url)
        empty = Site(where.netloc, State(tmp_path / "none"))
        for path in ("/", "/runs", "/caches", "/students", "/reports"):
            assert empty.get(path).code == 200
    assert not (tmp_path / "none").exists(), "looking makes nothing"
    assert where.port is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", where.port), timeout=5)


def test_a_curve_is_drawn_between_its_own_ends() -> None:
    drawn = sparkline(Curve('"<loss>', (1, 2, 4), (1.0, 3.0, 2.0)))
    assert 'points="3.0,29.0 41.0,3.0 117.0,16.0"' in drawn
    assert "<loss>" not in drawn
    assert 'points="3.0,16.0 117.0,16.0"' in sparkline(Curve("loss", (1, 2), (5.0, 5.0)))

    def record(*points: dict[str, Any]) -> Any:
        return type("Record", (), {"content": {"curve": list(points)}})()

    assert curve_of([]) is None
    assert curve_of([record({"epoch": 1, "loss": 1.0})]) is None
    two = [record({"epoch": 1, "loss": s}, {"epoch": 2, "loss": 2 * s}) for s in (1.0, 3.0)]
    assert curve_of(two) == Curve("loss", (1, 2), (2.0, 4.0))
