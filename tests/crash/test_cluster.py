"""A real cluster of several raylets whose parts are killed while it teaches 100,000 rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.cluster import KINDS, main


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_nodes_actors_drivers_and_heads_die_and_the_cache_is_the_quiet_one(tmp_path: Path) -> None:
    found = main([str(tmp_path), "8", "1"])
    print(found)
    assert set(found["kills"]) == set(KINDS)
    assert sum(found["kills"].values()) == 8
