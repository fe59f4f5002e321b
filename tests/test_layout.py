"""The tree is the architecture: packages match folders, imports only point down, files stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT: dict[str, set[str]] = {
    "storage": set(),
    "stages": {"storage"},
    "pipeline": {"storage"},
    "workflows": {"storage", "stages", "pipeline"},
}
ONLY_IN = {
    "torch": ("stages/", "workflows/"),
    "safetensors": ("stages/", "workflows/"),
    "ray": ("pipeline/ray_",),
    "zarr": ("storage/zarr_shards.py", "stages/data/zarr_rows.py"),
    "dask": ("storage/lazy.py",),
    "onnxruntime": ("stages/teachers/onnx.py", "stages/exporting/forms.py"),
    "vllm": ("stages/teachers/vllm.py",),
    "transformers": ("stages/teachers/huggingface/",),
    "tokenizers": ("stages/teachers/huggingface/",),
    "timm": ("stages/teachers/timm.py",),
    "accelerate": (),
    "lightning": (),
    "typer": ("workflows/",),
    "rich": ("workflows/",),
    "matplotlib": ("workflows/",),
    "optuna": ("stages/rungs.py", "stages/race.py", "stages/halving.py"),
    "torchmetrics": ("stages/measures/",),
    "pycocotools": ("stages/measures/detection.py",),
    "tensorboardX": ("stages/listeners/tensor_board.py",),
    "pydantic": ("workflows/",),
    "yaml": ("workflows/yaml_text.py",),
    "dbos": ("workflows/schedules/engine.py",),
    "dagster": ("workflows/dagster_job.py",),
    "croniter": ("workflows/schedules/ticks.py",),
    "starlette": ("workflows/page/",),
    "uvicorn": ("workflows/page/serving.py",),
    "pytest": ("storage/testing.py",),
    "pickle": (),
    "cloudpickle": (),
    "dill": (),
    "joblib": (),
}
"""Where a package may be imported among ours, also inside a function."""
FILES = [path for top in MAY_IMPORT for path in sorted((ROOT / top).rglob("*.py"))]
EVERY = [
    path
    for top in (*MAY_IMPORT, "tests", "benchmarks", "examples")
    for path in sorted((ROOT / top).rglob("*.py"))
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
]
each = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions and for type checkers."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_package_is_declared_and_every_declared_one_is_there() -> None:
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(("stillroom", *path.parent.relative_to(ROOT).parts))
        for path in FILES
        if path.name == "__init__.py"
    }
    assert set(configured["packages"]) == found
    assert configured["package-dir"] == {f"stillroom.{top}": top for top in MAY_IMPORT}


def test_every_folder_with_code_is_a_package() -> None:
    assert {p.parent for p in FILES} == {p.parent for p in FILES if p.name == "__init__.py"}


@each
def test_imports_only_point_down(path: Path) -> None:
    top = path.relative_to(ROOT).parts[0]
    named = [name.split(".") for name in imports(path)]
    ours = {name[1] for name in named if name[0] == "stillroom"}
    assert ours <= MAY_IMPORT[top] | {top}
    # With the root as working directory these would be second copies of every class.
    assert not {name[0] for name in named} & MAY_IMPORT.keys()


@each
def test_heavy_packages_are_imported_where_they_belong(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    used = {name.split(".")[0] for name in imports(path)}
    strayed = {name for name in used & ONLY_IN.keys() if not place.startswith(ONLY_IN[name] or "-")}
    assert not strayed


@pytest.mark.parametrize("path", EVERY, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_short_and_say_what_they_are_for(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text))


LOADED = """
import sys
{code}
print(*sorted({{name.split(".")[0] for name in sys.modules}} & set({unwanted!r})))
"""
HELP = """
sys.argv = ["stillroom", "--help"]
from stillroom.workflows.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print()
"""


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import stillroom.storage", ("torch", "ray", "zarr", "dask")),
        ("import stillroom.stages", ("torch", "ray", "zarr", "dask", "safetensors")),
        ("import stillroom.pipeline", ("torch", "ray", "zarr", "dask")),
        ("from stillroom.stages import recipes; recipes.find('kd')", ("torch", "ray")),
        (
            HELP,
            ("torch", "ray", "pyarrow", "numpy", "zarr", "dask", "pydantic", "yaml", "matplotlib"),
        ),
    ],
    ids=["storage", "stages", "pipeline", "recipes", "help"],
)
def test_light_things_load_nothing_heavy(code: str, unwanted: tuple[str, ...]) -> None:
    script = LOADED.format(code=code, unwanted=unwanted)
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.splitlines()[-1] == ""
