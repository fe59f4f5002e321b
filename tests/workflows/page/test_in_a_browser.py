"""`stillroom serve --page` in a headless Chromium, with a run that goes on: keyboard, phone, dark."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stillroom.workflows.schedules.ledger import runs
from stillroom.workflows.schedules.schedule import Trigger
from stillroom.workflows.schedules.state import State
from tests.workflows.page.browser import browser
from tests.workflows.schedules.builders import quick, quick_flow, until

STILLROOM = str(Path(sys.executable).with_name("stillroom"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="Debian's package chromium")
def test_a_person_looks_at_what_runs(tmp_path: Path) -> None:
    """Pictures of it are left in the folder of the variable PICTURES, if there is one."""
    pictures = Path(os.environ.get("PICTURES") or tmp_path)
    quick_flow(tmp_path)
    state = State(tmp_path / "state")
    every = Trigger("every", seconds=86_400.0)
    state.add(quick(tmp_path, "long", every, "--seconds", "300", added=time.time() - 86_401))
    state.add(quick(tmp_path, "nightly", Trigger("cron", cron="0 2 * * *", timezone="UTC")))
    where = {**os.environ, "STILLROOM_STATE": str(state.folder), "PYTHONUNBUFFERED": "1"}
    small = ["--workers", "0", "--epochs", "2", "--teacher-epochs", "1", "--seeds", "2"]
    for flow in (["quick.py", "--workers", "0"], ["digits", *small]):
        subprocess.run([STILLROOM, "run", *flow], cwd=tmp_path, env=where, check=True)
    log = tmp_path / "serve.log"
    with open(log, "wb") as said:
        served = subprocess.Popen(
            [STILLROOM, "serve", "--page-at", "0.0.0.0:0"],
            cwd=tmp_path,
            env=where,
            stdout=said,
            stderr=said,
        )
    try:
        found = until(lambda: re.search(r"http://0\.0\.0\.0(:\d+/)(\S+)", log.read_text()))
        home = f"http://127.0.0.1{found[1]}"
        until(lambda: [r for r in runs(state) if r.schedule == "long" and r.steps])
        (going,) = runs(state, schedule="long")
        looked_at(home, found[2], going.number, 2, pictures, tmp_path / "profile")
    finally:
        served.terminate()
        served.wait(60)
    assert served.returncode == 0, log.read_text()


def looked_at(
    home: str, entry: str, going: int, digits: int, pictures: Path, profile: Path
) -> None:
    """Go through the page at `home`, with the numbers of a run that goes on and of one of digits."""
    with browser(profile) as tab:
        tab.looks()
        tab.go(home)
        assert tab.ask("document.querySelector('h1').textContent") == "A token is needed"
        tab.complaints.clear()  # that it answered 401
        tab.go(home + entry)
        assert tab.ask("location.search") == ""
        assert tab.ask("document.cookie") == "", "no script can read it"
        assert f"run {going}" in tab.ask("document.querySelector('.card').innerText")

        # It looks again by itself, until that is stopped.
        tab.ask("window.here = true")
        until(lambda: tab.ask("document.readyState == 'complete' && !window.here"))
        tab.go(home + "?still")
        assert tab.ask("document.querySelector('meta[http-equiv=refresh]')") is None

        tab.press("Tab")
        assert tab.ask("document.activeElement.className") == "skip"
        assert tab.ask("document.activeElement.getBoundingClientRect().left") == 0
        tab.press("Enter")
        tab.press("Tab")
        assert tab.ask("document.activeElement.textContent") == f"run {going}"
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert tab.ask(outline) == "solid"
        tab.press("Enter")
        until(lambda: tab.ask("location.pathname") == f"/runs/{going}")

        for path in (
            "?still",
            "runs",
            "students",
            "caches",
            "reports",
            f"runs/{digits}",
            f"runs/{going}?still",
        ):
            for width, dark in ((1100, False), (1100, True), (390, False), (320, True)):
                tab.looks(width=width, dark=dark)
                tab.go(home + path)
                name = f"{path.replace('/', '-').replace('?', '')}-{width}-{'dark' if dark else 'light'}"
                tab.picture(pictures / f"{name}.png")
                wide = tab.ask("document.documentElement.scrollWidth")
                assert wide <= width, f"{name} is {wide} wide"
                ground = tab.ask("getComputedStyle(document.body).backgroundColor")
                assert (ground == "rgb(255, 255, 255)") != dark
        tab.go(home + "students")
        assert tab.ask("document.querySelectorAll('.spark polyline').length") > 4
        assert tab.complaints == []
        tab.go(home + f"runs/{digits}/files/report.html")
        assert "MNIST" in tab.ask("document.body.innerText")
        tab.picture(pictures / "report.png")
        assert tab.complaints == []
