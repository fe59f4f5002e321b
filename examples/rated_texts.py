"""Real texts that real people rated: the data of Hutto and Gilbert's VADER paper (ICWSM 2014).

Sentences of film reviews, product reviews and newspaper editorials, and tweets; each was rated by
about twenty people (some tweets by about 97) from -4, extremely negative, to 4, extremely positive.
The files lie in the sdist of vaderSentiment 0.5; a plain installation leaves them out.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from lessons import shuffled
from numpy.typing import NDArray

from stillroom.storage.errors import MissingPackageError

INSIDE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
KINDS = {
    "film": "movieReviewSnippets",
    "product": "amazonReviewSnippets",
    "editorial": "nytEditorialSnippets",
    "tweet": "tweets",
}
BUCKETS, IDS, WORDS = 2**13, 96, 48
"""Hash buckets of a bag of words (0 is padding), ids of a text, and the words they are made of."""


@dataclass(frozen=True)
class Text:
    """A text and what people said of it."""

    key: str
    source: str
    """The review or article that it is of; of films and tweets, which name none, its key."""
    text: str
    ratings: tuple[int, ...]
    """In the order of the file, which says nothing about who they are from."""


def archive(data: str) -> Path:
    """The sdist's file, or where it is put when nothing is said: build/packages of this repository.

    MissingPackageError says how to download it.
    """
    place = Path(data or Path(__file__).parent.parent / "build/packages/vaderSentiment-0.5.zip")
    if not place.is_file():
        raise MissingPackageError(
            f"no texts at {place}: pip download --no-deps --no-binary vaderSentiment "
            f"--dest {place.parent} vaderSentiment==0.5, or say --data FILE where the sdist lies already"
        )
    return place


@cache
def rated_texts(place: Path, kinds: Sequence[str] = tuple(KINDS)) -> list[Text]:
    """All texts of these kinds, ordered by a hash of their keys.

    Left out are 199 tweets whose stated mean is not that of the ratings under their number, which are
    then of another tweet, and one sentence about a product that has no ratings.
    """
    with zipfile.ZipFile(place) as outer, tarfile.open(fileobj=_opened(outer)) as files:
        return shuffled((t for kind in kinds for t in _read(files, kind)), key=lambda t: t.key)


def _opened(outer: zipfile.ZipFile) -> io.BytesIO:
    return io.BytesIO(outer.read(INSIDE))


def _read(files: tarfile.TarFile, kind: str) -> Iterator[Text]:
    def lines(file: str) -> dict[str, list[str]]:
        member = files.extractfile(f"hutto_ICWSM_2014/{KINDS[kind]}_{file}.txt")
        assert member is not None
        split = [line.split("\t") for line in member.read().decode("latin1").split("\n")]
        return {fields[0]: fields for fields in split if len(fields) > 2}

    said = lines("anonDataRatings")
    for number, (_, mean, text) in lines("GroundTruth").items():
        ratings = json.loads(said[number][3]) if number in said else []
        if ratings and abs(sum(ratings) / len(ratings) - float(mean)) < 1e-3:
            source = number.partition("_")[0] if "_" in number else number
            yield Text(f"{kind}/{number}", f"{kind}/{source}", text.strip(), tuple(ratings))


def hashed(texts: Sequence[str]) -> NDArray[np.int64]:
    """(n, 96) buckets of the first 48 words or signs of each text and of their pairs; 0 is padding."""
    ids = np.zeros((len(texts), IDS), np.int64)
    for row, text in enumerate(texts):
        words = re.findall(r"[a-z']+|[0-9]+|[^\sa-z0-9]+", text.lower())[:WORDS]
        both = [*words, *map(" ".join, pairwise(words))]
        ids[row, : len(both)] = [zlib.crc32(w.encode()) % (BUCKETS - 1) + 1 for w in both]
    return ids
