"""A real Prometheus that is told exactly which sample it scraped when, by remote write.

Rules about new series, resets and failed scrapes are rules about samples, and those of a live proxy fall where they
fall. Remote write puts them where a test wants them, in the past, without waiting.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import requests

from lab import Lab, probe
from lab.site import Command, Part, Site

STALE = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))[0]
"""The value by which Prometheus marks that a series ended."""

Series = tuple[Mapping[str, str], Iterable[tuple[datetime, float]]]


def _command(site: Site) -> Command:
    config = site.directory / "empty.yaml"
    config.write_text("global: {}\n")
    return Command(
        (
            str(site.tools["prometheus"]),
            f"--config.file={config}",
            f"--storage.tsdb.path={site.data('recorded')}",
            f"--web.listen-address={site.address('recorded.http')}",
            "--web.enable-remote-write-receiver",
            "--log.level=warn",
        )
    )


def _waiting_for(site: Site) -> str:
    return probe.waiting_for(f"http://{site.address('recorded.http')}/-/ready")


RECORDED = Part("recorded", "prometheus", _command, _waiting_for, ("http",), deadline=30, grace=3.0)


class Recorded:
    """A Prometheus that scrapes nothing and knows what it was told."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.directory = directory

    def write(self, series: Iterable[Series]) -> None:
        """Store samples; each series' in order of time."""
        body = _snappy(b"".join(_field(1, _series(labels, samples)) for labels, samples in series))
        headers = {
            "Content-Encoding": "snappy",
            "Content-Type": "application/x-protobuf",
            "X-Prometheus-Remote-Write-Version": "0.1.0",
        }
        with probe.session() as client:
            answer = client.post(f"{self.url}/api/v1/write", data=body, headers=headers, timeout=10)
        if answer.status_code != requests.codes.no_content:
            raise RuntimeError(f"Prometheus does not take the samples: {answer.status_code} {answer.text.strip()}")


@contextmanager
def recorded_prometheus() -> Iterator[Recorded]:
    """Run such a Prometheus, empty."""
    with Lab(f"recorded-{uuid4().hex[:8]}", (), extra=(RECORDED,)) as lab:
        yield Recorded(f"http://{lab.site.address('recorded.http')}", lab.dir)
    lab.forget()


def _series(labels: Mapping[str, str], samples: Iterable[tuple[datetime, float]]) -> bytes:
    """Encode a TimeSeries message of prometheus' remote.proto (labels sorted by name, as it demands)."""
    parts = [_field(1, _field(1, k.encode()) + _field(2, v.encode())) for k, v in sorted(labels.items())]
    for time, value in samples:
        milliseconds = round(time.timestamp() * 1000)
        parts.append(_field(2, b"\x09" + struct.pack("<d", value) + b"\x10" + _varint(milliseconds)))
    return b"".join(parts)


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _snappy(data: bytes) -> bytes:
    """Frame data in snappy's block format, as literals: valid, if not compressed."""
    chunks = (data[i : i + 65536] for i in range(0, len(data), 65536))
    return _varint(len(data)) + b"".join(b"\xf4" + struct.pack("<H", len(chunk) - 1) + chunk for chunk in chunks)
