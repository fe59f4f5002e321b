"""The README is true: its Python runs, its tree names real files, its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs_and_a_second_run_computes_nothing(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "own.py").write_text(code)

    def run() -> str:
        command = [sys.executable, "own.py"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run()
    assert first.count("small-kd") == 2 * 3  # the name and the path of three seeds
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert run() == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()} == made


def test_every_source_file_has_its_place_in_the_tree() -> None:
    tree = README.rpartition("## The tree")[2]
    for folder in ("storage", "stages", "pipeline", "workflows"):
        for path in (ROOT / folder).glob("*.py"):
            assert path.name == "__init__.py" or path.name in tree, path


@pytest.mark.parametrize(
    "name", re.findall(r"[\w./-]+\.(?:py|j2)\b", README.rpartition("## The tree")[2])
)
def test_every_file_that_the_tree_names_exists(name: str) -> None:
    assert list(ROOT.glob(f"*/{name}")), name


@pytest.mark.parametrize("link", re.findall(r"\]\(([\w./-]+)\)", README))
def test_every_link_of_the_readme_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists(), link
