"""Reading the CanaryRollout that an offline tool is asked about, as strictly as the API server would.

The operator ignores fields it does not know, because the API server has pruned them; a file has not been there yet, and
a misspelled limit that is silently no limit would make every figure about it wrong.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from canaryrollout.api.resource import read_rollout
from canaryrollout.api.spec import CanaryRolloutSpec

_KIND = "CanaryRollout"


class ManifestError(ValueError):
    """A manifest cannot be used; the message names file, field and value, and what would be right."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A CanaryRollout as its author wrote it."""

    name: str
    namespace: str
    spec: CanaryRolloutSpec

    @property
    def key(self) -> str:
        """Return ``namespace/name``."""
        return f"{self.namespace}/{self.name}"


def read_manifest(file: str, name: str = "") -> Manifest:
    """Read a CanaryRollout from a file, which may hold other objects as well.

    Args:
        file: Path of a YAML or JSON file; ``-`` for standard input.
        name: Which one, where the file holds several.

    Raises:
        ManifestError: If there is none, more than one, or one with mistakes.
    """
    place = "standard input" if file == "-" else file
    found = [body for body in _documents(file, place) if isinstance(body, Mapping) and body.get("kind") == _KIND]
    body = _choose(found, name, place)
    metadata = body.get("metadata") or {}
    read = read_rollout(body)
    mistakes = [*read.problems, *_unknown(body.get("spec"), read.spec)]
    if mistakes or read.spec is None:
        raise ManifestError("\n".join(f"{place}: {mistake}" for mistake in mistakes))
    return Manifest(str(metadata.get("name") or "rollout"), str(metadata.get("namespace") or "default"), read.spec)


def _documents(file: str, place: str) -> list[Any]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        documents = list(yaml.safe_load_all(text))
    except OSError as error:
        raise ManifestError(f"{place} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ManifestError(f"{place} is not text in UTF-8") from None
    except yaml.YAMLError as error:
        raise ManifestError(f"{place} is not YAML: {error}") from None
    lists = [body["items"] for body in documents if isinstance(body, Mapping) and body.get("kind") == "List"]
    return [*documents, *(item for items in lists if isinstance(items, list) for item in items)]


def _choose(found: Sequence[Mapping[str, Any]], name: str, place: str) -> Mapping[str, Any]:
    names = [_name(body) for body in found]
    if not found:
        raise ManifestError(f"{place} holds no {_KIND}: an object with kind: {_KIND} is needed")
    if name and name not in names:
        raise ManifestError(f"{place} holds no {_KIND} {name}, only {', '.join(names)}")
    chosen = [body for body in found if not name or _name(body) == name]
    if len(chosen) > 1:
        raise ManifestError(f"{place} holds several {_KIND}s ({', '.join(names)}): choose one with --name")
    return chosen[0]


def _name(body: Mapping[str, Any]) -> str:
    metadata = body.get("metadata")
    return str(metadata.get("name") or "without a name") if isinstance(metadata, Mapping) else "without a name"


def _unknown(raw: Any, spec: CanaryRolloutSpec | None) -> list[str]:
    """Name fields that no model has: those that are gone once the spec was read and written again."""
    if spec is None or not isinstance(raw, Mapping):
        return []
    known = spec.model_dump(mode="json", by_alias=True)
    return list(_missing(raw, known, "spec"))


def _missing(raw: Any, known: Any, path: str) -> Iterator[str]:
    if isinstance(raw, Mapping) and isinstance(known, Mapping):
        for key, value in raw.items():
            if key in known:
                yield from _missing(value, known[key], f"{path}.{key}")
            else:
                close = difflib.get_close_matches(str(key), list(known), 1)
                yield f"{path}.{key} is no field" + (f"; {close[0]} is" if close else f" of {path}")
    elif isinstance(raw, Sequence) and isinstance(known, Sequence) and not isinstance(raw, str):
        for index, (value, other) in enumerate(zip(raw, known, strict=False)):
            yield from _missing(value, other, f"{path}[{index}]")
