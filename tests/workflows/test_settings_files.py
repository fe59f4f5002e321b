"""Configuration files: what YAML may say, what is refused with its line, and older schemas."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.storage.errors import SettingsError
from stillroom.workflows.config import migrations_of, read_config
from stillroom.workflows.settings import settings_of
from stillroom.workflows.settings_words import as_config
from stillroom.workflows.yaml_text import as_yaml, parse_yaml

names = st.text(max_size=20)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | names,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None)
@given(plain)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert repr(parse_yaml(as_yaml(value), "x").value) == repr(value)
    assert len(as_yaml(value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: no\nb: on\nc: yes\nd: Off\n", {"a": "no", "b": "on", "c": "yes", "d": "Off"}),
        ("a: 010\nb: 0x10\nc: 1_000", {"a": 10, "b": "0x10", "c": "1_000"}),
        ("a: 1:30\nb: 2024-01-02", {"a": "1:30", "b": "2024-01-02"}),
        ("a: 1e-3\nb: .5\nc: 1.\nd: -.inf", {"a": 0.001, "b": 0.5, "c": 1.0, "d": -float("inf")}),
        (
            "a: true\nb: FALSE\nc: ~\nd:\ne: ''",
            {"a": True, "b": False, "c": None, "d": None, "e": ""},
        ),
        ("a: &x [1]\nb: 'null'\nc: !!str 5", {"a": [1], "b": "null", "c": "5"}),
        ("1: a\nnull: b\ntrue: c", {"1": "a", "null": "b", "true": "c"}),
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
        ("", None),
        ("# nothing\n", None),
        ('{"a": [1, 2.5, "x"]}', {"a": [1, 2.5, "x"]}),
    ],
)
def test_plain_values_mean_what_they_look_like(text: str, value: Any) -> None:
    assert parse_yaml(text, "x").value == value


BOMB = "a: &a [x, x, x]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}, *{before}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\na: 2\n",
            "f:5: b.c comes twice, first in line 3; drop one",
        ),
        ("a: 1\nb: 2\na: 2\n", "f:3: a comes twice, first in line 1"),
        ('a: 1\n"a": 2\n', "f:2: a comes twice"),
        (BOMB, r"f:2: not YAML that can be read: an alias \(\*a\); write out what it stands for"),
        ("a: &a [*a]", r"an alias \(\*a\)"),
        ("a: {<<: {b: 1}}\nb: *x", "an alias"),
        ("a: 1\n b: 2", "f:2: not YAML that can be read: mapping values are not allowed here"),
        ("a: [1", "not YAML that can be read"),
        ("a: \x07", "not YAML that can be read"),
        ("a: !!python/object/apply:os.system ['true']", "f:1: a: .*os.system is not read"),
        ("a: !!binary aGk=", "f:1: a: .*binary is not read"),
        ("a: !!set {x}", "is not read"),
        ("a: !!int x", "f:1: a: .*int is not read"),
        (f"a: {'9' * 5000}", "f:1: a: .*int is not read"),
        ("? [1, 2]\n: 3", "f:1: a key is a name, found a list or mapping"),
        ("a: 1\n---\nb: 2", "f:2: not YAML that can be read: but found another document"),
        ("a: " + "[" * 100_000, "f:1: not YAML that can be read: nested too deep to be settings"),
        ("".join(f"{' ' * n}a:\n" for n in range(900)), "f: nested too deep to be settings"),
    ],
)
def test_what_settings_cannot_be_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        parse_yaml(text, "f")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"- rows\n", "expected settings as `name: value` lines, found a list"),
        (b"rows", "expected settings as `name: value` lines, found a str"),
        (b"rows: \xff\xfe", "not a text in UTF-8"),
        (b"schema: 0\n", r"expected `schema: 1`.*\(1 to 1\); found 0"),
        (b"schema: true\n", "found True"),
        (b"schema: '1'\n", "found '1'"),
        (b"schema:\n", "found None"),
        (b"schema: 2\n", "its schema is 2, the workflow's is 1: it is for a newer version"),
    ],
)
def test_files_that_are_no_settings_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "flow.yaml"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=words) as error:
        read_config(file)
    assert str(file) in str(error.value)


def test_a_file_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text("")
    with pytest.raises(SettingsError, match=r"did you mean .*flow\.yaml"):
        read_config(tmp_path / "flwo.yaml")
    with pytest.raises(SettingsError, match="is a folder"):
        read_config(tmp_path)
    with pytest.raises(SettingsError, match="no file"):
        read_config(tmp_path / "none" / "flow.yaml")


def test_an_empty_file_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "flow.yaml"
    file.write_bytes(b"")
    assert read_config(file).settings == {}
    file.write_bytes(b"\xef\xbb\xbfschema: 1\r\nrows: 2\r\n")
    assert read_config(file).settings == {"rows": 2}


def size_to_rows(settings: dict[str, Any]) -> dict[str, Any]:
    settings["rows"] = settings.pop("size", 1)
    return settings


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    return {"fit": {"epochs": settings.pop("epochs", 1)}, **settings}


def flow(*, rows: int = 1, fit: dict[str, int] = {}) -> list[Any]:  # noqa: B006
    return []


@pytest.fixture
def migrating(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A flow whose settings are of schema 3."""
    monkeypatch.setattr(sys.modules[__name__], "MIGRATIONS", (size_to_rows, nested), raising=False)
    return flow


def test_older_files_are_read_as_of_today_and_the_user_is_told(
    migrating: Any, tmp_path: Path
) -> None:
    file = tmp_path / "flow.yaml"
    for text, changes in [
        ("schema: 1\nsize: 5\nepochs: 7\n", "size gone, epochs gone, fit new, rows new"),
        ("schema: 2\nrows: 5\nepochs: 7\n", "epochs gone, fit new"),
    ]:
        file.write_text(text)
        settings = settings_of(migrating, ("--config", str(file)))
        assert settings.values == {"rows": 5, "fit": {"epochs": 7}}
        (notice,) = settings.notices
        assert f"is of schema {text[8]} and was read as schema 3 ({changes})" in notice
        assert file.read_text() == text
        current = tmp_path / "new.yaml"
        current.write_text(as_config(settings))
        again = settings_of(migrating, ("--config", str(current)))
        assert (again.values, again.notices) == (settings.values, ())


def test_set_and_flags_are_always_of_today(migrating: Any, tmp_path: Path) -> None:
    file = tmp_path / "flow.yaml"
    file.write_text("schema: 1\nsize: 5\n")
    values = settings_of(migrating, ("--config", str(file), "--set", "fit.epochs=2")).values
    assert values == {"rows": 5, "fit": {"epochs": 2}}
    with pytest.raises(SettingsError, match="--set size: unknown"):
        settings_of(migrating, ("--set", "size=5"))


def test_a_mistake_in_an_older_file_is_still_one(migrating: Any, tmp_path: Path) -> None:
    file = tmp_path / "flow.yaml"
    file.write_text("schema: 1\nsize: many\nepoch: 3\n")
    with pytest.raises(SettingsError) as error:
        settings_of(migrating, ("--config", str(file)))
    assert f"{file}:3: epoch: unknown" in str(error.value)
    assert f"{file}: rows: Input should be a valid integer" in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schema: 4\n", "its schema is 4, the workflow's is 3: .* stillroom config show FLOW"),
        ("rows: 1\n", r"expected `schema: 3`.*\(1 to 3\); found None"),
    ],
)
def test_once_there_are_two_schemas_a_file_says_which(
    migrating: Any, tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "flow.yaml").write_text(text)
    with pytest.raises(SettingsError, match=words):
        settings_of(migrating, ("--config", str(tmp_path / "flow.yaml")))


def broken(settings: dict[str, Any]) -> dict[str, Any]:
    return {"rows": settings["size"]}


def silent(settings: dict[str, Any]) -> Any:
    settings["rows"] = 2


@pytest.mark.parametrize(
    ("migration", "words"),
    [
        (broken, "broken, which brings settings from schema 1 to 2, failed: KeyError: 'size'"),
        (silent, "silent .schema 1 to 2. returned a NoneType; it should return the settings"),
    ],
)
def test_a_migration_that_fails_is_named(tmp_path: Path, migration: Any, words: str) -> None:
    (tmp_path / "flow.yaml").write_text("schema: 1\nrows: 1\n")
    with pytest.raises(SettingsError, match=words):
        read_config(tmp_path / "flow.yaml", (migration,))


def test_migrations_are_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("made_flow")
    monkeypatch.setitem(sys.modules, "made_flow", module)
    monkeypatch.setattr(flow, "__module__", "made_flow")
    assert migrations_of(flow) == ()
    module.MIGRATIONS = {1: size_to_rows}
    with pytest.raises(SettingsError, match="should be a tuple of functions"):
        migrations_of(flow)
