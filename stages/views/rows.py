"""Views of rows for a teacher: a data set of pairs (key, view).

Every view has stored parameters and the hash of the tensor that the teacher saw, so that a student's
loader can make the same tensor again, and knows when it could not (see `view_replay`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.row_hashes import hash_rows
from stillroom.stages.data.rows import Batch, Rows, find_rows, require_columns
from stillroom.stages.views.numbers import Numbers, Ring, Words, key_words
from stillroom.stages.views.plan import ViewPlan
from stillroom.storage.errors import RowsError
from stillroom.storage.folder import Hashes
from stillroom.storage.identity import digest
from stillroom.storage.keys import KeyList, as_keys
from stillroom.storage.pairs import is_pairs, join_keys, pair_keys

Int64s = NDArray[np.int64]
PARAMETERS, SEEN, PARTNER = "view.parameters", "view.seen", "view.partner"
"""Columns of views; what begins with `view.` is no column of the rows themselves."""
SIGNALS = {"view": PARAMETERS, "seen": SEEN, "partner": PARTNER}
"""What of these is stored under which name."""
_TOGETHER = 1 << 15
"""Views whose parameters are drawn at once."""


def own_columns(columns: Sequence[str], plan: ViewPlan | None = None) -> tuple[str, ...]:
    """Those that the rows themselves have: not `view.` columns, nor what the plan adds."""
    made = ("mask",) if plan is not None and plan.masks else ()
    return tuple(c for c in columns if not c.startswith("view.") and c not in made)


class ViewedRows:
    """The views of a data set's rows: keys are pairs (key, view), images are transformed.

    View 0 is the row as it is; views 1 to `views` are drawn by the plan. Raising `views` adds rows and
    changes none. Editing a row changes its views and those that have it for a partner.
    """

    def __init__(
        self,
        rows: Rows,
        plan: ViewPlan,
        *,
        views: int,
        plain: bool = True,
        only: KeyList | None = None,
    ) -> None:
        """`only`: keys of the rows that have views, and so may be partners (None: all).

        `plain`: whether view 0 of every row belongs to the data set as well, which evaluation on rows as
        they are needs. RowsError for images that the plan cannot transform, and where `plain` would mix
        images of two sizes.
        """
        if type(views) is not int or not 1 <= views < 2**31 - 1:
            raise ValueError(f"views: expected a whole number of at least 1, found {views!r}")
        if is_pairs(rows.keys) or len(rows) == 0:
            raise RowsError("views are made of a data set of plain rows, and of at least one")
        require_columns(rows, [plan.column], "the view plan")
        self.rows, self.plan, self.views, self.plain = rows, plan, views, plain
        self._shape = plan.check(rows.read(np.zeros(1, np.int64), [plan.column])[plan.column])
        if plain and plan.after(self._shape) != self._shape:
            raise RowsError(
                f"rows are {self._shape}, their views {plan.after(self._shape)}: a batch cannot hold "
                "both. Pass plain=False to leave out the rows as they are"
            )
        if plan.masks and "mask" in rows.columns:
            raise RowsError("the view plan gives a column 'mask'; rename the data set's own")
        self._only = None if only is None else as_keys(only)
        self._chosen = (
            np.arange(len(rows))
            if self._only is None
            else find_rows(rows, self._only, "with views ")
        )
        if len(self._chosen) == 0:
            raise RowsError("no row was chosen to have views")
        whole = np.arange(len(rows)) if plain else np.zeros(0, np.int64)
        self._places = np.concatenate([whole, np.tile(self._chosen, views)])
        numbers = np.repeat(np.arange(1, views + 1, dtype=np.int32), len(self._chosen))
        self._views = np.concatenate([np.zeros(len(whole), np.int32), numbers])
        self._rings: dict[int, Ring] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """What it is made of: everything else is made again on the other side."""
        return _again, (self.rows, self.plan, self.views, self.plain, self._only)

    @property
    def skipped(self) -> dict[Any, str]:
        """What the rows themselves left out, and why."""
        return dict(getattr(self.rows, "skipped", {}))

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self._places)

    @cached_property
    def keys(self) -> pa.Array:
        """Pairs: first every row as it is, then view 1 of the chosen rows, then view 2."""
        pieces = [pair_keys(self.rows.keys, 0)] if self.plain else []
        chosen = self.rows.keys.take(pa.array(self._chosen))
        return join_keys([*pieces, *(pair_keys(chosen, v) for v in range(1, self.views + 1))])

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the rows, and what the plan adds."""
        more = [PARAMETERS, SEEN]
        more += [PARTNER] if self.plan.mixes else []
        more += ["mask"] if self.plan.masks else []
        return (*self.rows.columns, *more)

    def read(self, places: Int64s, columns: Sequence[str]) -> Batch:
        """The pairs at these places: the plan's column transformed, the others as they are."""
        own = own_columns(columns, self.plan)
        at, views = self._places[places], self._views[places]
        batch = self.rows.read(at, own)
        if self.plan.column not in own and len(own) == len(columns):
            return batch
        drawn, partners = self._draw(at, views)
        kept = self.plan.kept(drawn, self._shape)
        given = batch if self.plan.column in own else self.rows.read(at, [self.plan.column])
        image = self._images(np.asarray(given[self.plan.column]), views, drawn, partners)
        made: dict[str, Any] = {self.plan.column: image, PARAMETERS: drawn, "mask": kept}
        if SEEN in columns:
            made[SEEN] = self.plan.seen(image, kept).view(np.uint8).reshape(-1, 16)
        if PARTNER in columns:
            keys = self.rows.keys.take(pa.array(partners))
            texts = not pa.types.is_integer(keys.type)
            made[PARTNER] = keys.to_pylist() if texts else keys.to_numpy(zero_copy_only=False)
        return {name: made[name] if name in made else batch[name] for name in columns}

    def _images(
        self, image: NDArray[Any], views: Any, drawn: Any, partners: Int64s
    ) -> NDArray[Any]:
        some = np.flatnonzero(views)
        other = None
        if self.plan.mixes:
            other = np.asarray(self.rows.read(partners[some], [self.plan.column])[self.plan.column])
        made = self.plan.apply(image[some], drawn[some], other)
        if len(some) == len(image):
            return made
        image = image.copy()
        image[some] = made
        return image

    def _draw(self, at: Int64s, views: NDArray[np.int32]) -> tuple[NDArray[Any], Int64s]:
        """Parameters of pairs, and the place of each one's partner (its own where it has none)."""
        words = self._words[at]
        drawn = self.plan.draw(words, views, self._shape)
        partners = at.copy()
        if self.plan.mixes:
            mixed = self.plan.weight(drawn, self._shape) < 1
            points = Numbers.of(self.plan.seed, words, views).word("partner")
            for view in np.unique(views[mixed]).tolist():
                mine = np.flatnonzero(mixed & (views == view))
                own = self._place_among_chosen[at[mine]]
                partners[mine] = self._chosen[self._ring(view).behind(points[mine], own)]
        return drawn, partners

    @cached_property
    def _words(self) -> Words:
        return key_words(self.rows.keys)

    @cached_property
    def _place_among_chosen(self) -> Int64s:
        found = np.full(len(self.rows), -1, np.int64)
        found[self._chosen] = np.arange(len(self._chosen))
        return found

    def _ring(self, view: int) -> Ring:
        if view not in self._rings:
            self._rings[view] = Ring(self._words[self._chosen], self.plan.seed, view)
        return self._rings[view]

    def hashes(self, columns: Sequence[str]) -> Hashes:
        """Of each pair: of the row as it is, or of it, the view's parameters, and its partner."""
        own = self.rows.hashes(own_columns(columns, self.plan))
        if self.plan.column not in columns:
            return np.asarray(own[self._places])
        found = np.zeros(len(self), "V16")
        for start in range(0, len(self), _TOGETHER):
            some = slice(start, start + _TOGETHER)
            at, views = self._places[some], self._views[some]
            drawn, partners = self._draw(at, views)
            found[some] = view_hashes(
                own[at], views, drawn, own[partners], self._words[partners], self.plan.mixes
            )
        return found

    def fingerprint(self, columns: Sequence[str]) -> str:
        """Of the rows' own fingerprint, the plan, and which views there are."""
        only = None if self._only is None else self._only.to_pylist()
        own = self.rows.fingerprint(own_columns(columns, self.plan))
        return digest([own, self.plan.to_json(), self.views, self.plain, only])


def _again(rows: Rows, plan: ViewPlan, views: int, plain: bool, only: Any) -> ViewedRows:
    return ViewedRows(rows, plan, views=views, plain=plain, only=only)


def view_hashes(
    own: Hashes,
    views: NDArray[np.int32],
    drawn: NDArray[Any],
    partner: Hashes,
    partner_keys: Words,
    mixes: bool,
) -> Hashes:
    """(n,) content hashes of views, from those of the rows and of their partners; view 0: the row's."""
    parts = [own.view(np.uint8).reshape(-1, 16), _bytes(drawn)]
    if mixes:
        parts += [partner.view(np.uint8).reshape(-1, 16), _bytes(partner_keys)]
    made = hash_rows({"view": np.concatenate(parts, axis=1)})
    found: Hashes = np.where(views == 0, own, made)
    return found


def _bytes(items: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(items).view(np.uint8).reshape(len(items), -1)
