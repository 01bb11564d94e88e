"""Draw figures as SVG text with matplotlib, without a display, for light and dark pages.

Text and lines take the colour of the surrounding page (`currentColor`), the background is transparent, and text is
stored as text, not as outlines. A figure does not depend on the time or the machine. matplotlib is imported when the
first figure is drawn.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from gorp.evaluation import AccuracyMatrix
from gorp.printable import printable
from gorp.report.comparison import Runs, check_runs, seen_over_tasks
from gorp.report.wording import number


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
"""Placeholder for the page's text colour while matplotlib draws; replaced by `currentColor` in the SVG."""

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Line colours that colour-blind readers can tell apart (Okabe and Ito); each line also has a marker."""

MARKERS = "osD^vPX"
"""7 markers for 6 colours: a pair of colour and marker repeats only after 42 methods."""

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "gorp",
}

PAPER, PAPER_INK = "#ffffff", "#1c1f23"
"""Background and text colour of a stand-alone picture."""

READING = "percent correct on each task; a frame marks each task just after it was learned"
"""Caption of a heat map that has a title."""

FONTS = "'DejaVu Sans', Verdana, Arial, sans-serif"
"""Font list with fallbacks for readers that do not have matplotlib's own font."""

CELL = 0.58  # side of a cell, inches

LETTER = 0.085  # approximate width of a letter, inches

TOGETHER = 6
"""Most tasks whose lines share a chart, and whose figures are scaled to fit a phone; wider ones scroll sideways."""

LONGEST = 28  # most letters of a name that are drawn; a longer name ends in an ellipsis

SHORTER = 16  # the same for the line chart, which has to fit on a phone


def heat_map(matrices: Mapping[str, AccuracyMatrix], *, title: str = "") -> str:
    """Draw score matrices side by side, on one scale from 0 to 100, with the number in every cell.

    A higher score is a more opaque blue. Only opacity varies, so colour-blind readers see the same map, on light and
    on dark pages. A frame marks R[j, j], each task just after it was learned. A cell that was not measured is empty.

    Args:
        matrices: Title of the panel -> matrix; at least one.
        title: Printed above all panels.

    Returns:
        An `<svg>` element.

    Raises:
        ValueError: If there is no matrix.
    """
    if not matrices:
        raise ValueError("matrices: got none; wanted at least one")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    widths = [_width(title, matrix) for title, matrix in matrices.items()]
    heights = [_height(matrix) for matrix in matrices.values()]
    with rc_context(STYLE), _ignore_missing_glyphs():
        figure = Figure(figsize=(sum(widths), max(heights)), layout="constrained")
        line = figure.subplots(1, len(matrices), squeeze=False, width_ratios=widths)[0]
        for axes, (panel, matrix) in zip(line, matrices.items(), strict=True):
            _draw_matrix(axes, panel, matrix)
        figure.supylabel("after learning", fontsize=9)
        if title:
            figure.suptitle(printable(title), fontsize=12, fontweight="bold")
            figure.supxlabel(READING, fontsize=9)
        return _svg(figure)


def picture(matrices: Mapping[str, AccuracyMatrix], *, title: str) -> str:
    """Draw the heat map as a stand-alone SVG file: dark text on a white background, with a title.

    Args:
        matrices: Title of the panel -> matrix; at least one.
        title: Printed above all panels.

    Returns:
        An SVG document.
    """
    svg = heat_map(matrices, title=title).replace("currentColor", PAPER_INK).replace("'DejaVu Sans'", FONTS)
    end = svg.index(">") + 1
    return f'{svg[:end]}\n <rect width="100%" height="100%" rx="6" fill="{PAPER}"/>{svg[end:]}'


def scores_over_tasks(matrix: AccuracyMatrix, *, title: str = "") -> str:
    """Draw the score on each task over the sequence: one line for each task, or one small chart if they are many.

    The line of a task is solid from when it was learned on, and dotted before. Lines in one chart differ in colour and
    in marker.

    Args:
        matrix: R.
        title: Printed above all.

    Returns:
        An `<svg>` element.
    """
    from matplotlib import rc_context

    with rc_context(STYLE), _ignore_missing_glyphs():
        return _svg((_one_chart if len(matrix.tasks) <= TOGETHER else _small_charts)(matrix, title))


def _one_chart(matrix: AccuracyMatrix, title: str) -> "Figure":
    from matplotlib.figure import Figure

    rows, tasks = [_name(name, SHORTER) for name in matrix.row_names()], matrix.tasks
    columns = 2 if len(tasks) > 1 else 1
    figure = Figure(figsize=(4.4, 3.0 + 0.22 * -(-len(tasks) // columns)), layout="constrained")
    axes = figure.subplots()
    for j, task in enumerate(tasks):
        _draw_task(axes, matrix, j, colour=LINES[j % len(LINES)], marker=MARKERS[j % len(MARKERS)], label=task)
    axes.set_xticks(range(len(rows)), rows, **_slant(rows, room=int(3.5 / LETTER) // len(rows)))
    axes.set_ylim(0, 102)
    axes.set_ylabel("score, %")
    axes.set_xlabel("after learning")
    _finish(axes, columns=columns, title=title)
    return figure


def _small_charts(matrix: AccuracyMatrix, title: str) -> "Figure":
    from matplotlib.figure import Figure

    count, across = len(matrix.tasks), 4
    down = -(-count // across)
    figure = Figure(figsize=(1.9 * across, 1.35 * down + 0.6), layout="constrained")
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    for j, axes in enumerate(grid[:count]):
        _draw_task(axes, matrix, j, colour=LINES[0], marker=".", label=matrix.tasks[j])
        axes.set_title(_name(matrix.tasks[j], SHORTER), fontsize=9, loc="left")
        axes.tick_params(labelbottom=j + across >= count)
        axes.set_xticks([0, count], ["base", str(count)])
        axes.set_ylim(0, 102)
        axes.set_yticks([0, 50, 100])
        _draw_lines(axes)
    figure.supxlabel("number of tasks learned", fontsize=9)
    figure.supylabel("score, %", fontsize=9)
    if title:
        figure.suptitle(_name(title), fontsize=10, fontweight="bold")
    return figure


def _draw_task(axes: "Axes", matrix: AccuracyMatrix, j: int, *, colour: str, marker: str, label: str) -> None:
    """Draw column j of R, dotted up to the row in which the task was learned, solid and with markers from there on."""
    y, row = matrix.R[:, j], np.arange(len(matrix.R))
    axes.plot(row, np.where(row <= j + 1, y, np.nan), color=colour, linestyle=":", linewidth=1.0)
    since = np.where(row > j, y, np.nan)
    axes.plot(row, since, color=colour, marker=marker, markersize=5, label=_name(label, SHORTER))


def accuracy_over_tasks(runs: Runs) -> str:
    """Draw the mean score on the tasks learned so far, after each task, as one line for each method.

    A band shows one standard deviation over seeds above and below the line.

    Args:
        runs: Method -> its score matrices, one for each seed.

    Returns:
        An `<svg>` element.
    """
    check_runs(runs)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE), _ignore_missing_glyphs():
        tasks = max((matrices[0].tasks for matrices in runs.values()), key=len)
        width = max(4.8, 0.42 * len(tasks))
        figure = Figure(figsize=(width, 3.2 + 0.22 * len(runs)), layout="constrained")
        axes = figure.subplots()
        for position, (method, matrices) in enumerate(runs.items()):
            curve = seen_over_tasks(matrices)
            x = np.arange(1, len(curve) + 1)
            mean = np.array([np.nan if point is None else point.mean for point in curve])
            deviation = np.array([0.0 if point is None else point.deviation or 0.0 for point in curve])
            colour = LINES[position % len(LINES)]
            if deviation.any():
                axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.13, linewidth=0)
            axes.plot(x, mean, color=colour, marker=MARKERS[position % len(MARKERS)], markersize=5, label=_name(method))
        same = len({tuple(matrix.tasks) for matrices in runs.values() for matrix in matrices}) == 1
        names = [_name(task, SHORTER) for task in tasks] if same else [f"task {i + 1}" for i in range(len(tasks))]
        axes.set_xticks(range(1, len(tasks) + 1), names, **_slant(names, room=int(0.8 * width / LETTER) // len(names)))
        axes.set_ylim(0, 100)
        axes.set_ylabel("mean score on the tasks so far, %")
        axes.set_xlabel("after learning")
        _finish(axes)
        return _svg(figure)


def _finish(axes: "Axes", *, columns: int = 1, title: str = "") -> None:
    """Draw horizontal lines, remove the frame, and place the legend above, with a title over it."""
    from matplotlib.font_manager import FontProperties

    _draw_lines(axes)
    legend = axes.legend(
        *axes.get_legend_handles_labels(),
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        borderaxespad=0.2,
        ncols=columns,
        title=_name(title),
        title_fontproperties=FontProperties(weight="bold", size=10),
        alignment="left",
    )
    legend.get_title().set_visible(bool(title))


def _draw_lines(axes: "Axes") -> None:
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _name(text: str, longest: int = LONGEST) -> str:
    text = printable(text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _width(title: str, matrix: AccuracyMatrix) -> float:
    cells = max(len(matrix.tasks) * CELL, len(_name(title)) * LETTER)
    return cells + max(len(_name(name)) for name in matrix.row_names()) * LETTER + 0.5


def _height(matrix: AccuracyMatrix) -> float:
    names = [_name(task) for task in matrix.tasks]
    return (len(names) + 1) * CELL + 0.9 + (max(map(len, names)) * LETTER * 0.6 if _slant(names, room=8) else 0.0)


def _draw_matrix(axes: "Axes", title: str, matrix: AccuracyMatrix) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    count = len(matrix.tasks)
    for (i, j), score in np.ndenumerate(matrix.R):
        if not np.isnan(score):
            shade = (*to_rgb(LINES[0]), 0.04 + 0.7 * score / 100.0)
            frame = INK if i == j + 1 else "none"
            axes.add_patch(Rectangle((j + 0.03, i + 0.03), 0.94, 0.94, facecolor=shade, edgecolor=frame, linewidth=1.3))
            axes.text(j + 0.5, i + 0.5, number(score), ha="center", va="center")
    names = [_name(task) for task in matrix.tasks]
    axes.set_xticks(np.arange(count) + 0.5, names, **_slant(names, room=8))
    axes.set_yticks(np.arange(count + 1) + 0.5, [_name(name) for name in matrix.row_names()])
    axes.set_ylim(count + 1, 0)
    axes.set_xlim(0, count)
    axes.set_aspect("equal")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(_name(title), fontsize=10, fontweight="bold", loc="left")


@contextmanager
def _ignore_missing_glyphs() -> Iterator[None]:
    """Silence warnings about letters that matplotlib's font lacks: it only measures text, the browser draws it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        yield


def _slant(names: list[str], *, room: int) -> dict[str, Any]:
    """Return tick label options that rotate the names if one has more than `room` letters."""
    return {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > room else {}


def _svg(figure: "Figure") -> str:
    """Return the figure as an `<svg>` element that can be embedded in a page with other figures.

    Three things are removed: the XML prolog, the style sheet (it would apply to the whole page), and the numbered ids
    (all figures use the same ones).
    """
    text = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(text, format="svg", transparent=True, metadata=no_metadata)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)
    return svg.replace("<svg ", '<svg stroke-linejoin="round" stroke-linecap="butt" ', 1)
