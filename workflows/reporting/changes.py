"""What changed since the page was last written: students, their metrics, teachers and taught rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.storage.errors import GARBLED, FormatError, StillroomError
from stillroom.storage.files import read_json
from stillroom.workflows.reporting.comparing import verdict
from stillroom.workflows.reporting.gathering import FORMAT
from stillroom.workflows.reporting.metrics import metrics_from

Results = Mapping[str, Any]


def results_beside(page: Path) -> Path:
    """Where a page's results are kept: results.json of report.html, NAME-results.json of NAME.html."""
    return page.with_name("results.json" if page.stem == "report" else f"{page.stem}-results.json")


def kept_results(place: Path) -> dict[str, Any] | None:
    """The results that were written with the last page; None where there are none to compare with.

    FormatError for a file of that name that is no page's, which must not be overwritten.
    """
    if not place.exists():
        return None
    kept = read_json(place)
    if kept.get("stillroom") != "report" and not {"title", "students"} <= kept.keys():
        raise FormatError(
            f"{place} is not the results file of a report and would be overwritten; move it, or write "
            "the page under another name"
        )
    return kept if kept.get("format") == FORMAT else None  # another version's are not compared


def with_changes(results: Results, before: Results | None) -> dict[str, Any]:
    """The results with their `changes` since `before`; None where there was nothing before.

    Where nothing differs these are the changes that `before` has: what is written twice is the same,
    and a page with another title still says what its run has changed.
    """
    now = {**results, "changes": None}
    if before is None:
        return now
    try:
        found = _changes(before, now)
        same = not any(v for name, v in found.items() if name not in ("since", "same"))
        return {**now, "changes": before.get("changes") if same else found}
    except (StillroomError, *GARBLED):
        return now  # somebody edited the file


def kept(results: Results) -> dict[str, Any]:
    """What of the results is written beside the page: all but the pictures of rows."""
    return {
        **results,
        "differing": [
            {
                **one,
                "rows": [{k: v for k, v in row.items() if k != "inputs"} for row in one["rows"]],
            }
            for one in results["differing"]
        ],
    }


def _changes(before: Results, now: Results) -> dict[str, Any]:
    old = {s["name"]: s for s in before["students"]}
    new = {s["name"]: s for s in now["students"]}
    moved = [_moved(old[name], new[name], now) for name in new if name in old]
    changed = [one for one in moved if one["retrained"] or one["added"] or one["removed"]]
    return {
        "since": before.get("when"),
        "new": [name for name in new if name not in old],
        "gone": [name for name in old if name not in new],
        "changed": changed,
        "same": len(moved) - len(changed),
        **_cache_changes(before.get("cache"), now.get("cache")),
    }


def _moved(old: Results, new: Results, now: Results) -> dict[str, Any]:
    before = {run["seed"]: run["digest"] for run in old["runs"]}
    after = {run["seed"]: run["digest"] for run in new["runs"]}
    metrics = {}
    for metric in metrics_from(now["metrics"]):
        found = verdict(new, old, metric)
        if found is not None:
            means = (side["metrics"][metric.name]["mean"] for side in (old, new))
            metrics[metric.name] = dict(zip(("before", "after"), means, strict=True)) | found
    return {
        "name": new["name"],
        "retrained": sorted(s for s in after if s in before and before[s] != after[s]),
        "added": sorted(after.keys() - before.keys()),
        "removed": sorted(before.keys() - after.keys()),
        "metrics": metrics,
    }


def _cache_changes(old: Results | None, new: Results | None) -> dict[str, Any]:
    if not old or not new:
        return {"taught": [], "teachers": [], "rows": None, "snapshot": None}
    known = {(s["name"], s["digest"]) for s in old["segments"]}
    before = {t["name"]: t for t in old["teachers"]}
    after = {t["name"]: t for t in new["teachers"]}
    return {
        "taught": [
            {k: s[k] for k in ("name", "teacher", "rows", "why", "seconds")}
            for s in new["segments"]
            if (s["name"], s["digest"]) not in known
        ],
        "teachers": [
            *({"name": n, "what": "new", "differs": []} for n in after if n not in before),
            *({"name": n, "what": "gone", "differs": []} for n in before if n not in after),
            *(
                {"name": n, "what": "another identity", "differs": after[n]["differs"]}
                for n in after
                if n in before and before[n]["digest"] != after[n]["digest"]
            ),
        ],
        "rows": _pair(old, new, "rows"),
        "snapshot": _pair(old, new, "snapshot"),
    }


def _pair(old: Results, new: Results, name: str) -> Sequence[Any] | None:
    return None if old[name] == new[name] else [old[name], new[name]]
