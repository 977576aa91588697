"""Asking the judge: one HTTP request with its retries, and the SQLite file of what it said before.

Not here: what is asked and how a verdict is read (`judge.py`).
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import sqlite3
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fovea.rewards.judge import Judge, read_verdict
from fovea.rewards.loading import Fault
from fovea.types import RunFailed

LONGEST_WAIT = 30.0
"""Seconds between two tries, whatever `Retry-After` says."""

REPLY_LIMIT = 1_000_000
"""Bytes of a reply that are read; a longer one is not JSON then, and a failure."""


# --- one request ------------------------------------------------------------------------------------------


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would carry the key to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_Stay)


def ask(one: Judge, prompt: str) -> float | Fault:
    """One verdict, with retries. Raises nothing."""
    fault = Fault(kind="unanswered", detail="was not asked")
    for attempt in range(one.retries + 1):
        found = _try(one, prompt)
        if not isinstance(found, _Later):
            return found
        fault = found.fault
        if attempt < one.retries:
            # Spread by up to a quarter, or all requests of a group would come back in the same instant.
            pause = found.wait if found.wait is not None else 0.5 * 2**attempt
            time.sleep(min(pause, LONGEST_WAIT) * random.uniform(1.0, 1.25))
    return fault


@dataclass(frozen=True, kw_only=True, slots=True)
class _Later:
    """A try that failed in a way that may pass."""

    fault: Fault
    wait: float | None = None


def _try(one: Judge, prompt: str) -> float | Fault | _Later:
    body = {"model": one.model, "temperature": 0, "messages": [{"role": "user", "content": prompt}]}
    headers = {"Content-Type": "application/json"}
    if one.api_key_env is not None:
        headers["Authorization"] = f"Bearer {os.environ.get(one.api_key_env, '')}"
    request = urllib.request.Request(one.address, json.dumps(body).encode("ascii"), headers)
    try:
        with _OPENER.open(request, timeout=one.timeout) as response:
            return _read(response.read(REPLY_LIMIT))
    except urllib.error.HTTPError as error:
        with error:
            detail = f"got HTTP {error.code} from {_host(one)}"
            fault = Fault(kind="unanswered", detail=detail, fix=_fix(error.code))
            if error.code != 429 and error.code < 500:
                return fault
            return _Later(fault=fault, wait=_seconds(error.headers.get("Retry-After")))
    except TimeoutError:
        return _late(one)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return _late(one)
        # A ValueError of http.client quotes the header that it refuses, and there the key is.
        said = "" if isinstance(reason, ValueError) else f": {' '.join(str(reason).split())[:200]}"
        detail = f"could not ask {_host(one)} ({type(reason).__name__}{said})"
        fix = "check reward_options.judge.url and that its server runs"
        return _Later(fault=Fault(kind="unanswered", detail=detail, fix=fix))


def _fix(code: int) -> str | None:
    """What a user can do about an HTTP status; None where only the server can."""
    if code in (401, 403):
        return "check that reward_options.judge.api_key_env names the variable with the right key"
    if code == 404:
        return "check reward_options.judge.url (it ends with /v1, say) and the name in reward_options.judge.model"
    if 300 <= code < 500 and code not in (408, 425, 429):
        return "check reward_options.judge.url and reward_options.judge.model"
    return None


def _late(one: Judge) -> Fault:
    return Fault(kind="timeout", detail=f"had no reply from {_host(one)} within {one.timeout:g} s")


def _read(data: bytes) -> float | Fault:
    """The verdict in a chat completion."""
    try:
        said = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        fix = "check that reward_options.judge.url is an OpenAI-compatible address, which ends with /v1, say"
        return Fault(kind="type", detail=f"got no chat completion but {data[:60]!r}", fix=fix)
    verdict = read_verdict(said) if isinstance(said, str) else None
    if verdict is None:
        return Fault(
            kind="type", detail=f"got {str(said)[:60]!r}, which is not a number from 0 to 1, yes or no"
        )
    return verdict


def _host(one: Judge) -> str:
    return urllib.parse.urlsplit(one.url).netloc


def _seconds(value: str | None) -> float | None:
    """`Retry-After` in seconds; None for none and for a date."""
    return float(value) if value is not None and re.fullmatch(r"[0-9]{1,6}", value.strip()) else None


# --- what it said before ----------------------------------------------------------------------------------


class Cache:
    """Verdicts by key in a SQLite file that several workers share; without a path there is none."""

    def __init__(self, path: str | None) -> None:
        self._base: sqlite3.Connection | None = None
        if path is None:
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            self._base = sqlite3.connect(path, timeout=30.0, isolation_level=None)
            self._base.execute(
                "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, value REAL NOT NULL)"
            )
        except sqlite3.Error as error:
            raise RunFailed(f"The cache of the judge, {path}, cannot be used ({error}).") from None

    def find(self, key: str) -> float | None:
        """The verdict under a key, or None."""
        if self._base is None:
            return None
        row = self._base.execute("SELECT value FROM verdicts WHERE key = ?", (key,)).fetchone()
        return None if row is None else float(row[0])

    def add(self, key: str, value: float) -> None:
        """Keep a verdict; the first one under a key stays."""
        if self._base is not None:
            self._base.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", (key, value))

    def close(self) -> None:
        """Close the file."""
        if self._base is not None:
            self._base.close()
