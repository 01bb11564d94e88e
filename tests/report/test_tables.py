import io
import re

import pytest
from rich.console import Console

from gorp.evaluation import FORMULAS
from gorp.report import comparison_markdown, comparison_table, matrix_table
from gorp.report.tables import escaped, forgetting_table, judged_table
from tests.report.matrices import FIRST, SECOND, judged, matrix


def shown(table):
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


class TestMarkdown:
    def test_the_comparison_has_the_hand_computed_numbers(self):
        runs = {"gorp": [matrix(FIRST), matrix(SECOND)], "sequential_lora": [matrix()]}
        lines = comparison_markdown(runs).split("\n")
        assert cells(lines[0]) == ["method", "AP", "BWT", "Forgetting", "LA", "FWT", "Weighted AP", "seeds"]
        assert cells(lines[2]) == [
            "gorp",
            "72.7 ± 5.7",
            "−8.5 ± 4.9",
            "11.0 ± 4.9",
            "78.3 ± 2.4",
            "5.5 ± 0.0",
            "72.7 ± 5.7",
            "2",
        ]
        assert cells(lines[3]) == ["sequential_lora", "68.7", "−12.0", "14.5", "76.7", "5.5", "68.7", "1"]

    def test_the_deviation_is_mentioned_only_with_several_seeds(self):
        spread = "± sample standard deviation over seeds"
        assert spread in comparison_markdown({"gorp": [matrix(FIRST), matrix(SECOND)], "olora": [matrix()]})
        alone = comparison_markdown({"gorp": [matrix()]})
        assert spread not in alone and "Percent; one seed." in alone

    def test_every_formula_is_printed_below(self):
        text = comparison_markdown({"gorp": [matrix()]})
        assert all(f"- `{formula}`\n" in text for formula in FORMULAS.values())

    @pytest.mark.parametrize(
        ("name", "written"),
        [
            ("a|b", r"a\|b"),
            ("<script>", r"\<script\>"),
            ("[x](y)", r"\[x\](y)"),
            ("two\nlines", "two lines"),
            ("`code`", r"\`code\`"),
            ("_soft_ sequential_lora", r"\_soft\_ sequential_lora"),
            ("$x$ \x1b[31m", r"\$x\$ �\[31m"),
        ],
    )
    def test_a_name_stays_one_cell_of_plain_text(self, name, written):
        assert f"| {written} | 68.7 |" in comparison_markdown({name: [matrix()]})

    @pytest.mark.parametrize("text", ["https://example.org/a", "WWW.example.org", "someone@example.org", "![x](//y)"])
    def test_an_address_does_not_become_a_link(self, text):
        assert not re.search(r"(?<!\\)://|www\.|(?<!\\)@|(?<!\\)\[", escaped(text), re.IGNORECASE)


def test_forgetting_by_hand():
    assert forgetting_table(matrix()).lines == [
        ["news", "90.0", "95.0", "70.0", "−20.0"],
        ["films", "80.0", "80.0", "76.0", "−4.0"],
        ["qa", "60.0", "60.0", "60.0", "–"],
    ]


def test_a_task_that_was_not_scored_again_has_no_change():
    nan = float("nan")
    late = matrix([[0, 0], [50, 0], [nan, 40]], ("a", "b"))
    assert forgetting_table(late).lines == [["a", "50.0", "50.0", "–", "–"], ["b", "40.0", "40.0", "40.0", "–"]]


def test_a_verdict_has_both_scores_and_the_change_with_its_interval():
    change = "−10.0 (−16.5 to −4.5)"
    assert judged_table(judged()).lines == [["news", "✗ hold", "90.0", "80.0", change, "12", "2", "100"]]


class TestTerminal:
    def test_has_the_same_cells_as_markdown(self):
        runs = {"gorp": [matrix(FIRST), matrix(SECOND)], "ewc": [matrix()]}
        text = shown(comparison_table(runs, title="Order 1"))
        for line in comparison_markdown(runs).split("\n")[:4]:
            if "---" not in line:
                assert all(cell in text for cell in cells(line))
        assert "Order 1" in text

    def test_every_formula_is_printed_below(self):
        text = shown(comparison_table({"gorp": [matrix()]}))
        assert all(formula in text for formula in FORMULAS.values())

    def test_the_matrix_has_the_hand_computed_numbers(self):
        lines = shown(matrix_table(matrix(), title="gorp")).split("\n")
        assert [line.split() for line in lines[1:6]] == [
            ["after", "news", "films", "qa"],
            ["base", "10.0", "20.0", "30.0"],
            ["news", "90.0", "25.0", "33.0"],
            ["films", "95.0", "80.0", "36.0"],
            ["qa", "70.0↓", "76.0↓", "60.0"],
        ]

    def test_a_score_that_dropped_is_red_and_what_was_not_measured_is_left_out(self):
        nan = float("nan")
        values = [[0, 0, nan], [50, 0, nan], [50, 40, nan], [nan, nan, nan]]
        console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
        console.print(matrix_table(matrix(values, ("a", "b", "c"))))
        text = re.sub(r"\x1b\S*?m", "", console.file.getvalue())
        assert "↓" not in text and text.split() == ["after", *"a b base 0.0 0.0 a 50.0 0.0 b 50.0 40.0".split()]
        values[2][0] = 49.9
        console.print(matrix_table(matrix(values, ("a", "b", "c"))))
        assert re.search(r"\x1b\[31m *49\.9↓", console.file.getvalue())

    def test_markup_and_escape_codes_in_names_are_printed_as_text(self):
        text = shown(matrix_table(matrix(tasks=("[red]a[/red]", "[/]", "b\x1b[2J")), title="[bold]t[/bold]"))
        assert "[red]a[/red]" in text and "[/]" in text and "[bold]t[/bold]" in text and "\x1b" not in text
