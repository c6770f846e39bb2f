"""A picture of a replay: which class flows to which zone, before and after. Needs matplotlib, and loads it only to draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gateway.config import CLASSES
from gateway.errors import ConfigError, Problem
from gateway.replay import NOBODY, Flow

_USUAL, _NEW, _REFUSED = "#4878a8", "#c8372d", "#b0b0b0"
_GAP = 0.04
"""Between two neighbours of a column, where the whole column without gaps is 1."""
_THIN = 0.004
"""Height of a flow that nobody's first choice takes."""


def check_drawable() -> None:
    """Raises ConfigError without matplotlib; to be asked before the replay whose flows are to be drawn."""
    if find_spec("matplotlib") is None:
        message = "a picture needs matplotlib: pip install 'gateway[plots]', or leave --png out"
        raise ConfigError([Problem("--png", message)])


def draw(flows: Iterable[Flow], path: Path) -> None:
    """Write a PNG: classes left, zones right, bands as wide as the requests whose first choice they are; new flows red.

    A flow that only a later candidate can take is a line. Raises ConfigError without matplotlib, and where the file cannot be
    written.
    """
    check_drawable()
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - heavy, and only pictures need it
    from matplotlib.figure import Figure  # noqa: PLC0415 - as above

    flows = list(flows)
    figure = Figure(figsize=(11, 5), layout="constrained")
    for axes, side, title in zip(figure.subplots(1, 2), ("before", "after"), ("as logged", "under this policy"), strict=True):
        _panel(axes, flows, side)
        axes.set_title(title)
    figure.suptitle("class → zone, by first choice; red: new")
    try:
        FigureCanvasAgg(figure).print_figure(path, format="png")
    except OSError as error:
        raise ConfigError([Problem(str(path), f"cannot be written: {error.strerror}")]) from None


class _Column:
    """The boxes of one side, stacked from the top; bands are taken off each from its top."""

    def __init__(self, names: Iterable[str], height_of: Callable[[str], float]) -> None:
        self.middles: dict[str, float] = {}
        self._tops: dict[str, float] = {}
        at = 1.0
        for name in names:
            self._tops[name] = at
            self.middles[name] = at - height_of(name) / 2
            at -= height_of(name) + _GAP

    def take(self, name: str, height: float) -> tuple[float, float]:
        """The next band of a box: its upper and lower edge."""
        top = self._tops[name]
        self._tops[name] = top - height
        return top, top - height


def _panel(axes: Any, flows: list[Flow], side: str) -> None:
    """One side of the comparison."""
    requests = {(flow.class_, flow.zone): getattr(flow, side).requests for flow in flows}
    total = sum(requests.values()) or 1
    heights = {
        (flow.class_, flow.zone): max(requests[flow.class_, flow.zone] / total, _THIN)
        for flow in flows
        if getattr(flow, side).may_reach or requests[flow.class_, flow.zone]
    }
    classes: list[str] = [name for name in reversed(CLASSES) if any(flow.class_ == name for flow in flows)]
    zones = sorted({flow.zone for flow in flows}, key=lambda zone: (zone == NOBODY, zone))
    left = _Column(classes, lambda name: sum(height for (class_, _), height in heights.items() if class_ == name))
    right = _Column(zones, lambda name: sum(height for (_, zone), height in heights.items() if zone == name))
    for flow in sorted(flows, key=lambda one: (classes.index(one.class_), zones.index(one.zone))):
        if height := heights.get((flow.class_, flow.zone)):
            color = _NEW if flow.is_new else _REFUSED if flow.zone == NOBODY else _USUAL
            _band(axes, left.take(flow.class_, height), right.take(flow.zone, height), color)
    for column, x, align in ((left, -0.03, "right"), (right, 1.03, "left")):
        for name, middle in column.middles.items():
            axes.text(x, middle, name, ha=align, va="center")
    axes.set_xlim(-0.4, 1.4)
    axes.axis("off")


def _band(axes: Any, left: tuple[float, float], right: tuple[float, float], color: str) -> None:
    """A smooth band from one edge to another."""
    steps = [step / 40 for step in range(41)]
    ease = [step * step * (3 - 2 * step) for step in steps]
    upper, lower = ([start + (end - start) * part for part in ease] for start, end in zip(left, right, strict=True))
    axes.fill_between(steps, lower, upper, color=color, alpha=0.75, linewidth=0)
