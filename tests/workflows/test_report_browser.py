"""The report in a headless Chromium: a phone, both colour schemes, contrast, paper, no script."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stillroom.workflows.reporting.writing import write_page
from tests.workflows.page.browser import Browser, browser
from tests.workflows.report_builders import realistic, segment, student

STILLROOM = str(Path(sys.executable).with_name("stillroom"))
LOOKS = ((1100, False), (1100, True), (768, False), (360, False), (360, True), (320, False))
TOO_FAINT = """
(() => {
  const channels = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = channels(c).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor; const n = channels(c);
      if (n.length < 4 || n[3] > 0) return c; } return "rgb(255, 255, 255)"; };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || e.closest("style")) continue;
    const ink = getComputedStyle(e)[e.closest("svg") ? "fill" : "color"];
    const [a, b] = [light(ink), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${e.tagName} ${e.textContent.trim().slice(0, 40)}`);
  }
  return found; })()
"""
CUT_OFF = """
[...document.querySelectorAll("svg")].filter(s => [...s.querySelectorAll("text")].some(t => {
  const a = s.getBoundingClientRect(), b = t.getBoundingClientRect();
  return b.right > document.documentElement.clientWidth + 1 || b.left < -1; }))
  .map(s => s.getAttribute("aria-label"))
"""


def looked_at(tab: Browser, page: Path, pictures: Path) -> None:
    """What must hold of a page at every width, in both schemes and on paper."""
    for width, dark in LOOKS:
        tab.looks(width=width, dark=dark)
        tab.go(f"file://{page}")
        name = f"{page.stem}-{width}-{'dark' if dark else 'light'}"
        clip = {"x": 0, "y": 0, "width": width, "height": 2400, "scale": 1}
        shot = tab("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        (pictures / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))
        wide = tab.ask("document.documentElement.scrollWidth")
        assert wide <= width, f"{name} is {wide} wide"
        assert tab.ask(TOO_FAINT) == [], name
        assert tab.ask(CUT_OFF) == [], name
        ground = tab.ask("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") != dark
        small = "Math.min(...[...document.querySelectorAll('main p, td, dd, li')]"
        assert tab.ask(f"{small}.map(e => parseFloat(getComputedStyle(e).fontSize)))") >= 13
    assert tab.ask("document.scripts.length") == 0
    assert tab.ask("[...document.images].every(i => i.complete && i.naturalWidth > 0)")

    # On paper: light whatever the screen is, nothing cut off at the right, and not a page for each part.
    tab("Emulation.setEmulatedMedia", media="print", features=[
        {"name": "prefers-color-scheme", "value": "dark"}])  # fmt: skip
    tab(
        "Emulation.setDeviceMetricsOverride",
        width=690,
        height=1000,
        deviceScaleFactor=1,
        mobile=False,
    )
    assert tab.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.ask("document.documentElement.scrollWidth") <= 690
    assert tab.ask(TOO_FAINT) == []
    printed = tab("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"]
    paper = base64.b64decode(printed)
    (pictures / f"{page.stem}.pdf").write_bytes(paper)
    assert paper.startswith(b"%PDF-")
    sheets = len(re.findall(rb"/Type\s*/Page\b", paper))
    assert 2 <= sheets <= 12, sheets
    tab("Emulation.setEmulatedMedia", media="")
    assert tab.complaints == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("chromium") is None, reason="Debian's package chromium")
def test_people_look_at_reports(tmp_path: Path) -> None:
    """Pictures of them are left in the folder of the variable PICTURES, if there is one."""
    pictures = Path(os.environ.get("PICTURES") or tmp_path)
    # One of made-up numbers with long names, changes and every part that there is.
    results = realistic()
    results["differing"][0]["rows"][0]["inputs"] = []
    made = tmp_path / "made.html"
    write_page(results, made)
    name = "a student whose name is longer than anything that fits beside a number, " * 2
    results["students"][1] = student("MLP, soft targets", "mlp-64", "soft", True, 0.97, digest="b")
    results["students"].append(student(name, "unbrokenarchitecturename" * 4, "r", True, 0.9))
    results["cache"]["segments"].append(segment(2, why="a reason of many words " * 8, rows=12))
    write_page(results, made)
    # The demo's, with digits on which its student and its teacher differ.
    small = ["--workers", "0", "--epochs", "2", "--teacher-epochs", "1", "--seeds", "2"]
    out = tmp_path / "digits"
    command = [STILLROOM, "run", "digits", *small, "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    # A folder of students alone.
    alone = tmp_path / "alone.html"
    command = [STILLROOM, "report", str(out / "students"), "--out", str(alone)]
    subprocess.run(command, check=True, capture_output=True)
    with browser(tmp_path / "profile") as tab:
        for page in (made, out / "report.html", alone):
            looked_at(tab, page, pictures)
        tab.go(f"file://{out / 'report.html'}")
        assert tab.ask("document.images.length") == 12
        tab.go(f"file://{made}")
        assert "What changed since" in tab.ask("document.body.innerText")
