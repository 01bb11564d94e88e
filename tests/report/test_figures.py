import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from gorp.report import accuracy_over_tasks, heat_map, scores_over_tasks
from gorp.report.figures import INK, LINES
from tests.report.matrices import FIRST, SECOND, matrix


SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</g><script>& $\\pi$ \x00\ud800"


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_every_measured_cell_shows_its_number():
    values = matrix()
    values.R[1, 2] = np.nan
    found = texts(heat_map({"gorp": values}))
    expected = [f"{score:.1f}" for score in values.R.ravel() if not np.isnan(score)]
    assert sorted(text for text in found if re.fullmatch(r"\d+\.\d", text)) == sorted(expected)
    assert {"gorp", "base", "news", "films", "qa", "after learning"} <= set(found)


def test_a_higher_score_is_more_opaque_on_one_scale_for_all_panels():
    svg = heat_map({"one": matrix([[0.0], [50.0]], ("a",)), "other": matrix([[50.0], [100.0]], ("a",))})
    opacities = [float(found) for found in re.findall(r"fill: #0072b2; opacity: ([\d.]+)", svg)] or [
        float(found) for found in re.findall(r"fill: #0072b2; fill-opacity: ([\d.]+)", svg)
    ]
    assert opacities == pytest.approx([0.04, 0.39, 0.39, 0.74])


def test_panels_are_placed_side_by_side():
    one, two = (
        ElementTree.fromstring(heat_map(dict.fromkeys(names, matrix()))).get("viewBox").split()
        for names in (["a"], ["a", "b"])
    )
    assert float(two[2]) > 1.8 * float(one[2]) and two[3] == one[3]


def test_every_method_has_a_line_at_the_height_of_its_score():
    svg = accuracy_over_tasks({"gorp": [matrix([[0.0], [100.0]], ("a",))], "ewc": [matrix([[0.0], [0.0]], ("a",))]})
    marks = [re.search(rf'y="([\d.]+)" style="fill: {colour}', svg) for colour in LINES[:2]]
    heights = [float(mark.group(1)) for mark in marks]
    assert heights[0] < 40 < 200 < heights[1]
    assert {"gorp", "ewc", "a", "after learning"} <= set(texts(svg))


def test_the_line_of_a_task_is_dotted_before_it_was_learned_and_has_marks_at_its_scores_since():
    svg = scores_over_tasks(matrix([[0.0, 0.0], [100.0, 0.0], [100.0, 50.0]], ("a", "b")))
    first, second = (re.findall(rf'<use [^>]*y="([\d.]+)" style="fill: {colour}', svg) for colour in LINES[:2])
    in_legend = 1
    assert len(first) == 2 + in_legend and len(second) == 1 + in_legend
    assert svg.count("stroke-dasharray") == 2  # a line each
    assert {"base", "a", "b", "after learning", "score, %"} <= set(texts(svg))


def test_many_tasks_have_a_small_chart_each():
    names = [f"task {i}" for i in range(9)]
    svg = scores_over_tasks(matrix(np.full((10, 9), 50.0), names), title="gorp")
    found = texts(svg)
    assert {*names, "gorp", "number of tasks learned"} <= set(found) and svg.count("stroke-dasharray") == 9
    assert found.count("base") == found.count("9") == 4  # under the last chart of each column


def test_tasks_are_numbered_when_runs_learned_them_in_different_orders():
    svg = accuracy_over_tasks({"gorp": [matrix(FIRST), matrix(SECOND, ("qa", "films", "news"))]})
    assert {"task 1", "task 2", "task 3"} <= set(texts(svg)) and "news" not in texts(svg)


def a_heat_map(name):
    return heat_map({name: matrix(tasks=(name, "b", "c"))})


def a_line_chart(name):
    return accuracy_over_tasks({name: [matrix(tasks=(name, "b", "c"))]})


def lines_of_tasks(name):
    return scores_over_tasks(matrix(tasks=(name, "b", "c")), title=name)


@pytest.mark.parametrize("draw", [a_heat_map, a_line_chart, lines_of_tasks])
class TestEveryFigure:
    def test_names_are_escaped(self, draw):
        svg = draw(HOSTILE)
        assert "<script" not in svg
        assert "</g><script>& $\\pi$ ��" in texts(svg)

    def test_names_in_any_script_are_drawn_without_a_warning(self, draw):
        assert "大連 ߨ" in texts(draw("大連 ߨ"))

    def test_a_very_long_name_is_shortened(self, draw):
        shown = [text for text in texts(draw("W" * 200)) if "W" in text]
        assert shown and all(text in (f"{'W' * 27}…", f"{'W' * 15}…") for text in shown)

    def test_the_same_numbers_give_the_same_svg(self, draw):
        assert draw("news") == draw("news")

    def test_colours_follow_the_page_and_nothing_is_loaded(self, draw):
        svg = draw("news")
        assert svg.startswith("<svg ") and "<style" not in svg and "<image" not in svg
        assert INK not in svg and "currentColor" in svg
        assert re.findall(r'(?:href|src)="(?!#)[^"]*"', svg) == [] and "url(http" not in svg


def test_no_matrix_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        heat_map({})


def test_matplotlib_is_imported_only_when_a_figure_is_drawn_and_without_pyplot():
    code = """
import sys, gorp.report as report
from tests.report.matrices import matrix
assert "matplotlib" not in sys.modules
report.heat_map({"gorp": matrix()})
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
