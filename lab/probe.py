"""Asking the lab's parts over HTTP, on loopback only: no proxy from the environment may come between."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import requests


def session() -> requests.Session:
    """A client that ignores proxy settings, netrc files and certificate bundles of the environment."""
    client = requests.Session()
    client.trust_env = False
    return client


def waiting_for(
    url: str, *, contains: str = "", ca: Path | None = None, headers: Mapping[str, str] | None = None
) -> str:
    """What keeps a URL from answering 200 (with ``contains`` in the body), in words; empty when it does."""
    if ca is not None and not ca.is_file():
        return f"there is no {ca.name} yet"
    try:
        with session() as client:
            answer = client.get(url, timeout=2.0, verify=str(ca) if ca else True, headers=headers)
    except requests.RequestException as error:
        return f"{url} does not answer: {type(error).__name__}"
    if answer.status_code != requests.codes.ok:
        return f"{url} answers {answer.status_code}: {answer.text[:200].strip()}"
    if contains not in answer.text:
        return f"{url} answers {answer.text[:200].strip()!r}, not {contains!r}"
    return ""


def number(url: str, headers: Mapping[str, str]) -> tuple[int | None, str]:
    """The number that a URL answers with; or None, and what came instead, in words."""
    try:
        with session() as client:
            answer = client.get(url, timeout=2.0, headers=headers)
    except requests.RequestException as error:
        return None, f"{url} does not answer: {type(error).__name__}"
    if answer.status_code == requests.codes.ok and answer.text.isdecimal():
        return int(answer.text), ""
    return None, f"{url} answers {answer.status_code}: {answer.text[:200].strip()}"


def unacknowledged(url: str) -> str:
    """What ``/debug/syncz`` counts as sent to a proxy but not acknowledged, in words; empty when nothing is."""
    try:
        with session() as client:
            proxies = client.get(url, timeout=2.0).json() or []
    except requests.RequestException as error:
        return f"{url} does not answer: {type(error).__name__}"
    late = [
        f"{proxy.get('proxy')}: {kind}"
        for proxy in proxies
        for kind in ("cluster", "listener", "route", "endpoint")
        if proxy.get(f"{kind}_sent") != proxy.get(f"{kind}_acked")
    ]
    return "" if not late else f"istiod awaits the acknowledgement of {', '.join(late)}"
