"""What a row looks like on the page: pictures that are the row's own pixels, texts, numbers."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stillroom.workflows.reporting.inputs import (
    LARGEST_FILE_BYTES,
    LARGEST_PICTURE,
    LONGEST_TEXT,
    as_picture,
    png,
    shown_input,
    shown_inputs,
)


def pixels(source: str) -> Any:
    """What a browser shows of a data: URI."""
    kind, _, content = source.partition(";base64,")
    assert kind.startswith("data:image/")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_a_png_is_its_pixels(height: int, width: int, channels: int, seed: int) -> None:
    drawn = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    read = np.asarray(Image.open(io.BytesIO(png(drawn))))
    np.testing.assert_array_equal(read.reshape(drawn.shape), drawn)
    assert png(drawn) == png(drawn.copy())


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (28, 28, 1)])
def test_shares_of_brightness_are_shown_as_they_are(shape: tuple[int, ...]) -> None:
    grey = np.linspace(0, 1, 784, dtype=np.float32)
    shown = shown_input("image", grey.reshape(shape))
    assert (shown["kind"], shown["width"], shown["height"]) == ("picture", 28, 28)
    assert "note" not in shown
    np.testing.assert_array_equal(
        pixels(shown["source"]).reshape(-1), np.rint(grey * 255).astype(np.uint8)
    )


def test_colours_keep_their_order() -> None:
    red = np.zeros((3, 8, 6), np.uint8)
    red[0] = 200
    shown = shown_input("image", red)
    assert (shown["width"], shown["height"]) == (6, 8)
    assert (pixels(shown["source"]) == [200, 0, 0]).all()
    assert (pixels(shown_input("image", np.moveaxis(red, 0, -1))["source"]) == [200, 0, 0]).all()


def test_other_numbers_are_stretched_and_that_is_said() -> None:
    shown = shown_input("image", np.linspace(-2, 2, 64).reshape(8, 8))
    assert shown["note"] == "brightness from -2 to 2"
    assert pixels(shown["source"]).min() == 0
    assert pixels(shown["source"]).max() == 255
    flat = shown_input("image", np.full((8, 8), np.nan))
    assert (pixels(flat["source"]) == 0).all()


def test_a_large_picture_is_averaged_down() -> None:
    large = np.zeros((900, 601), np.uint8)
    large[:, ::2] = 100
    shown = shown_input("image", large)
    assert max(shown["width"], shown["height"]) <= LARGEST_PICTURE
    assert abs(pixels(shown["source"]).astype(int) - 50).max() <= 10


@pytest.mark.parametrize("shape", [(3,), (2, 2), (512, 20), (2, 8, 8), (8, 8, 4), (1, 2, 3, 4)])
def test_what_is_no_picture_is_shown_as_numbers(shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    assert as_picture(values) is None
    shown = shown_input("sound", values)
    assert shown["kind"] == "numbers"
    assert shown["text"].startswith("0, 1, 2")
    assert (values.size > 8) == (f"({values.size:,} numbers)" in shown["text"])


def test_texts_and_files() -> None:
    assert shown_input("text", "short")["text"] == "short"
    long = shown_input("text", "x" * 5000)["text"]
    assert len(long) == LONGEST_TEXT + 1
    file = io.BytesIO()
    Image.fromarray(np.full((5, 4), 9, np.uint8)).save(file, "JPEG")
    shown = shown_input("photo", file.getvalue())
    assert shown["source"].startswith("data:image/jpeg;base64,")
    assert pixels(shown["source"]).shape == (5, 4)
    assert shown_input("photo", b"\x00\x01")["text"] == "2 bytes"
    large = file.getvalue() + b"\x00" * LARGEST_FILE_BYTES
    assert shown_input("photo", large)["text"] == f"a JPEG of {len(large):,} bytes"
    batch: dict[str, Any] = {"text": ["a", "b"], "n": np.array([1, 2])}
    both = shown_inputs(batch, ("text", "n"), 2)
    assert [[one["text"] for one in row] for row in both] == [["a", "1"], ["b", "2"]]
