"""Telling people and programs how a run ended: a webhook, and a command of theirs."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from stillroom.workflows.schedules.ledger import Run
from stillroom.workflows.schedules.schedule import ScheduleError

_TRIES, _WAIT_S, _TIMEOUT_S, _COMMAND_S = 3, 2.0, 10.0, 60.0


def require_webhook(url: str) -> str:
    """The URL; ScheduleError when nothing can be posted to it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ScheduleError(f"--webhook {url}: expected http:// or https:// and a host")
    return url


def tell(run: Run, webhook: str, command: str) -> list[str]:
    """Send the run's JSON to both; in words, what came of each. Nothing is raised."""
    told = []
    body = json.dumps(run.to_json()).encode()
    if webhook:
        told.append(f"webhook: {_post(webhook, body)}")
    if command:
        told.append(f"command: {_call(command, body)}")
    return told


def _post(url: str, body: bytes) -> str:
    said = ""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_WAIT_S)
        try:
            asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(asked, timeout=_TIMEOUT_S) as answer:
                return f"sent ({answer.status})"
        except urllib.error.HTTPError as error:
            said = f"refused ({error.code} {error.reason})"
            if error.code < 500:
                break  # asking again would not help
        except Exception as error:
            said = f"failed ({error})"
    return said


def _call(command: str, body: bytes) -> str:
    try:
        done = subprocess.run(
            command, shell=True, input=body, capture_output=True, timeout=_COMMAND_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"failed ({error})"
    if done.returncode == 0:
        return "done"
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    return f"exit code {done.returncode}{': ' if last else ''}{''.join(last)}"
