"""Pictures of rollouts: what the evidence said over time, and what the weight was.

Only ``--plot`` loads this module's library, which is an extra; everything else works without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import exp, inf, log
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from canaryrollout.api.spec import Analysis
from canaryrollout.cli.advice import words
from canaryrollout.cli.imagined import ImaginedRollout, Moment, Outcome, gate_values
from canaryrollout.domain.gates import effective_analysis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES: Final = (5.6, 5.2)
"""Width and height of the picture of one rollout."""
DOTS_PER_INCH: Final = 110
_MINUTES_FROM: Final = 240.0
"""Seconds from which on a picture counts minutes."""
_LEAST_EVIDENCE: Final = log(1e-3)
_LINES: Final = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_ALARM: Final = "#D55E00"
_QUIET: Final = "#555555"
_MARKS: Final = ("o", "s", "^", "D", "v")


class NoPlot(RuntimeError):  # noqa: N818 - a state of affairs, not a mistake
    """Pictures cannot be drawn here; the message says what to install."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One rollout of a picture."""

    title: str
    rollout: ImaginedRollout


@dataclass(slots=True)
class _Series:
    """One line: what a limit is about, over time, and the value from which on it fails."""

    label: str
    fails_at: float
    points: list[tuple[float, float]]

    def parts(self, breaks: Sequence[float]) -> list[list[tuple[float, float]]]:
        """Return the points step by step, as every step counts anew."""
        bounds = [0.0, *breaks, inf]
        return [
            part
            for low, high in pairwise(bounds)
            if (part := [point for point in self.points if low < point[0] <= high])
        ]


def draw(file: Path, title: str, panels: Sequence[Panel]) -> None:
    """Draw rollouts side by side into a file.

    Args:
        file: A .png or .svg.
        title: What the picture is about.
        panels: One for each rollout, their moments judged.

    Raises:
        NoPlot: If matplotlib is not installed, or the file cannot be written.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise NoPlot("--plot needs matplotlib, which is not installed: pip install 'canaryrollout[plot]'") from None
    with mpl.rc_context(
        {
            "font.size": 9,
            "svg.hashsalt": "canaryrollout",
            "svg.fonttype": "none",
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        figure = Figure(figsize=(INCHES[0] * len(panels), INCHES[1]), dpi=DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(
            2, len(panels), squeeze=False, sharex="col", sharey="row", gridspec_kw={"height_ratios": (3, 2)}
        )
        figure.suptitle(title, fontsize=11)
        evidence = any(_evidence(panel.rollout.moments) for panel in panels)
        longest = max(_length(panel.rollout.moments) for panel in panels)
        lines: dict[str, Any] = {}
        for column, panel in enumerate(panels):
            _draw_panel(panel, axes[0][column], axes[1][column], evidence=evidence, longest=longest)
            handles, labels = axes[0][column].get_legend_handles_labels()
            lines |= dict(zip(labels, handles, strict=True))
        if lines:
            columns = min(len(lines), 2 * len(panels))
            figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=columns, fontsize=8)
        try:
            figure.savefig(file, metadata={"Date": None} if file.suffix.lower() == ".svg" else None)
        except OSError as error:
            raise NoPlot(f"{file} cannot be written: {error.strerror}") from None


def _draw_panel(panel: Panel, upper: Axes, lower: Axes, *, evidence: bool, longest: float) -> None:
    rollout = panel.rollout
    moments = rollout.moments
    length = _length(moments)
    unit, name = (60.0, "minutes") if longest >= _MINUTES_FROM else (1.0, "seconds")
    series = _evidence(moments) if evidence else _rates(moments, rollout.spec.analysis)
    raises = list(_raises(moments))
    for number, line in enumerate(series):
        color, mark = _LINES[number % len(_LINES)], _MARKS[number % len(_MARKS)]
        for part in line.parts(raises):
            times, values = [at / unit for at, _ in part], [value for _, value in part]
            label = line.label if part[0] == line.points[0] else None
            upper.plot(times, values, color=color, marker=mark, markersize=3.5, linewidth=1.4, label=label)
        if not evidence:
            label = f"limit of {line.label}: {line.fails_at:.3g} %"
            upper.axhline(line.fails_at, color=color, linestyle="--", linewidth=1.2, label=label)
    for limit in sorted({line.fails_at for line in series}) if evidence else ():
        label = f"taken back from {limit:.3g} on"
        upper.axhline(limit, color=_ALARM, linestyle="--", linewidth=1.2, label=label)
    upper.set_title(panel.title, fontsize=10)
    if evidence:
        upper.set_yscale("log")
    upper.set_ylabel("evidence against the canary (e-value)" if evidence else "share of the canary's requests (%)")
    lower.set_ylabel("weight of the canary (%)")
    upper.label_outer()
    lower.label_outer()
    upper.grid(True, which="major", color="#dddddd", linewidth=0.6)
    _draw_weight(rollout, lower, unit)
    lower.set_xlabel(f"{name} since the rollout began")
    lower.set_xlim(0, length / unit * 1.04)
    for at in raises:
        upper.axvline(at / unit, color=_QUIET, linewidth=0.7, linestyle=":")
    if rollout.outcome is Outcome.TAKEN_BACK:
        upper.axvline(length / unit, color=_ALARM, linewidth=1.2)


def _draw_weight(rollout: ImaginedRollout, lower: Axes, unit: float) -> None:
    moments = rollout.moments
    begin = moments[0].time
    times = [(moment.time - begin).total_seconds() / unit for moment in moments]
    weights = [moment.weight for moment in moments]
    lower.step(times, weights, where="post", color="#0072B2", linewidth=1.6)
    lower.fill_between(times, weights, step="post", color="#0072B2", alpha=0.15, linewidth=0)
    lower.set_ylim(0, 112)
    lower.set_yticks(sorted({0, *(step.weight for step in rollout.spec.steps)}))
    lower.grid(True, axis="y", color="#dddddd", linewidth=0.6)
    ended = rollout.ended
    if ended is None:
        return
    span = words(ended.time - begin)
    good = rollout.outcome is Outcome.PROMOTED
    how = {Outcome.PROMOTED: "promoted", Outcome.TAKEN_BACK: "taken back"}.get(rollout.outcome, "out of time")
    height = ended.weight or 0
    lower.plot([times[-1]], [height], marker="*" if good else "X", markersize=11, color="#009E73" if good else _ALARM)
    lower.annotate(
        f"{how} after {span}",
        (times[-1], height),
        xytext=(-10, -14 if height > 60 else 10),
        textcoords="offset points",
        ha="right",
        color="#00664b" if good else _ALARM,
        fontweight="bold",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
    )


def _length(moments: Sequence[Moment]) -> float:
    """Return how many seconds a rollout took, at least one."""
    return max((moments[-1].time - moments[0].time).total_seconds(), 1.0)


def _raises(moments: Sequence[Moment]) -> Iterator[float]:
    """Return when the weight changed, in seconds since the beginning."""
    for before, after in pairwise(moments):
        if before.weight != after.weight:
            yield (after.time - moments[0].time).total_seconds()


def _evidence(moments: Sequence[Moment]) -> list[_Series]:
    """Return the e-value of each limit over time, none where the rule has no e-values."""
    found: dict[str, _Series] = {}
    for moment in moments:
        if moment.judgement is None:
            continue
        at = (moment.time - moments[0].time).total_seconds()
        for label, (value, threshold) in gate_values(moment.judgement).items():
            most = threshold + log(1e3)
            line = found.setdefault(label, _Series(label, exp(threshold), []))
            line.points.append((at, exp(min(max(value, _LEAST_EVIDENCE), most))))
    return list(found.values())


def _rates(moments: Sequence[Moment], analysis: Analysis) -> list[_Series]:
    """Return the shares of failed and slow requests of the step, in percent, where the rule compares those."""
    analysis = effective_analysis(analysis)
    errors = _Series("failed", _limit(analysis.error_rate.max if analysis.error_rate else None), [])
    slow = _Series("slow", _limit(analysis.latency.max_slow if analysis.latency else None), [])
    for moment in moments:
        counts = moment.judgement.canary if moment.judgement is not None else None
        at = (moment.time - moments[0].time).total_seconds()
        if counts is not None and counts.requests:
            errors.points.append((at, 100 * counts.errors / counts.requests))
        if counts is not None and counts.timed:
            slow.points.append((at, 100 * counts.slow / counts.timed))
    return [line for line in (errors, slow) if line.fails_at < _NO_LIMIT]


def _limit(share: Fraction | None) -> float:
    return 100 * float(share) if share is not None else _NO_LIMIT


_NO_LIMIT: Final = 1e9
