"""`gorp report`: the verdict in one sentence, what the page is made of, and the three files."""

import csv
import io
import json
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from gorp.cli import app
from gorp.report import page_markdown, render_page
from gorp.report.page import MAX_SAMPLES
from gorp.storage import file_sha256
from gorp.workspace import Workspace, load_config, run_sequence
from gorp.workspace.gate import gate
from gorp.workspace.overview import distinct, overview
from gorp.workspace.page import workspace_page
from gorp.workspace.promote import promote
from gorp.workspace.rollback import rollback
from tests.command import gorp
from tests.report.browser import CHROMIUM, browser_tab
from tests.report.test_page import HOSTILE, Reader
from tests.workspace.planted import KEPT, LOST, UNSURE, plant
from tests.workspace.project import branched, make_project, tree_hash
from tests.workspace.test_diff import METHOD, answer
from tests.workspace.test_held import QUICK


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """v1 learned one; v2 learned two from it, lost 20 of 150 answers and is held. CURRENT is v1."""
    folder = tmp_path_factory.mktemp("report")
    path = make_project(folder, gate={"margin": 2.0}, **QUICK)
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, lambda version, name: LOST if (version, name) == ("v2", "one") else KEPT)
        run_sequence(load_config(path), folder / "run")
    return folder


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """v1 (one), v2 (two), a rollback to v1, v3 (three), with gorp; all answers as they were."""
    return branched(tmp_path_factory.mktemp("learned"), method=METHOD, gate={"margin": 2.0})


@pytest.fixture
def run(learned, tmp_path):
    shutil.copytree(learned, tmp_path / "p")
    return tmp_path / "p" / "run"


def page_of(folder):
    return workspace_page(overview(folder), folder.name)


def test_a_held_version_is_the_subject_and_the_current_one_is_named(held):
    page = page_of(held / "run")
    assert page.judged.verdict == "hold" and (page.judged.old, page.judged.new) == ("v1", "v2")
    assert page.headline == "v2 lost 13.3 points on one, and not by chance."
    assert page.about.startswith("v1 stays the current version; it has learned one.")
    assert "up to v2, which is held" in page.about
    [matrix] = page.runs["v2 (sequential_lora)"]
    assert matrix.tasks == ["one", "two"] and matrix.R[2, 0] == pytest.approx(100 * 130 / 150)
    assert any(note.startswith("two: held, because v2 lost points on one") for note in page.notes)
    assert [line[:3] for line in page.costs.lines] == [
        ["v0", "base model", "in use"],
        ["v1", "one", "current"],
        ["v2", "two", "held"],
    ]
    assert page.commands["See what changed in answers, weights and settings:"] == "gorp diff run v1 v2"
    assert {"current version": "v1", "tasks learned by v1": "1"}.items() <= page.figures.items()
    assert page.layers_heading == "Capacity of v1"


def test_every_number_says_which_version_it_is_of(held):
    page = page_of(held / "run")
    assert {name for name in page.figures if "v1" not in name} == {"current version"}
    assert list(page.runs) == ["v2 (sequential_lora)"]
    for text in (render_page(page), page_markdown(page)):
        assert "mean score of v1" in text and "v2 (sequential" in text


def test_a_version_that_was_promoted_anyway_is_the_subject_with_its_reason(held, tmp_path):
    shutil.copytree(held, tmp_path / "p")
    promote(tmp_path / "p/run", anyway="the <b>customer</b> knows")
    page = page_of(tmp_path / "p/run")
    assert page.judged.verdict == "hold" and page.about.startswith("v2 is the current version")
    assert "v2 was promoted although the gate did not accept it: the <b>customer</b> knows" in page.notes
    assert "the <b>customer" not in render_page(page)
    assert page.figures["largest loss of v2: one"] == "−13.3 points"


@pytest.mark.parametrize(
    ("right", "verdict", "sentence"),
    [
        (KEPT, "ship", "v3 is shown not to have lost more than 2 points on one."),
        (LOST, "hold", "v3 lost 13.3 points on one, and not by chance."),
        (KEPT[:40], "inconclusive", "Too few test rows to tell whether v3 lost more than 2 points on one. About 149"),
        (UNSURE, "inconclusive", "Too few test rows to tell whether v3 lost more than 2 points on one."),
    ],
)
def test_the_headline_is_the_verdict_in_one_sentence(run, right, verdict, sentence):
    answer(run, "v1", [True] * len(right))
    answer(run, "v3", right)
    page = page_of(run)
    assert page.judged.verdict == verdict and page.headline.startswith(sentence)
    assert page.judged.tasks[0].change == pytest.approx(100 * (sum(right) / len(right) - 1))


def test_the_numbers_are_those_of_the_gate(run):
    answer(run, "v1", [True] * 90 + [False] * 10)
    answer(run, "v3", [False] * 12 + [True] * 80 + [False] * 8)
    facts, found = overview(run), gate(run)
    assert facts["gate"] == {key: value for key, value in found.items() if key != "path"}
    item, told = workspace_page(facts, "run").judged.tasks[0], found["tasks"]["one"]
    assert (item.old, item.new, item.lost, item.won, item.rows) == (90.0, 80.0, 12, 2, 100)
    assert (item.low, item.high) == (-told["interval"][1], -told["interval"][0])


def test_answers_that_turned_wrong_come_first_and_what_is_left_out_is_said(run):
    answer(run, "v1", [True] * 90 + [False] * 10)
    answer(run, "v3", [False] * 12 + [True] * 80 + [False] * 8)
    page = page_of(run)
    [shown] = page.samples
    assert shown.heading == "one: 12 turned wrong, 2 turned right"
    assert (len(shown.rows), shown.of) == (MAX_SAMPLES, 14)
    assert [(row.answers["v1"].correct, row.answers["v3"].correct) for row in shown.rows] == [(True, False)] * 8
    assert "8 of 14 rows are shown, those that turned wrong first." in render_page(page)


def test_the_first_task_has_nothing_to_lose_and_the_base_model_nothing_to_judge(run):
    rollback(run, version="v1")
    page = page_of(run)
    assert page.headline == "v1 has learned one; there was no earlier task to lose." and page.judged.verdict == "ship"
    rollback(run, version="v0")
    page = page_of(run)
    assert page.headline == "v0 is not judged: no task has been learned yet" and page.judged is None
    assert list(page.commands) == ["Check every digest and the base model:"]
    assert render_page(page) and page_markdown(page)


def test_what_cannot_be_judged_says_why_and_the_rest_is_there(run):
    (run / "eval/samples/v3-one.jsonl").unlink()
    page = page_of(run)
    assert page.judged is None and "v3 has no recorded answers on one" in page.headline
    assert page.runs and page.layers and page.samples == []


def test_layers_versions_and_evidence_are_those_of_the_files(run):
    facts, store = overview(run), Workspace(run)
    current = store.current()
    weights = current.record["weights"]
    assert {f"{item['name']}.weight" for item in facts["layers"]} == set(weights)
    for item in facts["layers"]:
        assert item["capacity"] == weights[f"{item['name']}.weight"]["capacity"]
    page = workspace_page(facts, "run")
    assert page.budget == METHOD["budget"]
    assert [line[2] for line in page.costs.lines] == ["in use", "in use", "another branch", "current"]
    assert page.facts["v3/version.json"].endswith(file_sha256(run / "versions/v3/version.json"))
    assert page.facts["v3/delta.safetensors"].endswith(file_sha256(run / "versions/v3/delta.safetensors"))
    assert page.facts["eval/gate/v3-v1.json"].endswith(file_sha256(run / "eval/gate/v3-v1.json"))
    assert page.commands["Compute the verdict again from the recorded answers:"] == (
        "gorp gate run --version v3 --verify"
    )
    for command in page.commands.values():  # each of them runs where the workspace is
        done = CliRunner().invoke(app, command.replace(" run", f" {run}", 1).split()[1:])
        assert done.exit_code in (0, 3, 4), done.output


def test_no_path_of_this_machine_is_on_the_page(run):
    page = page_of(run)
    assert str(run.parent) not in render_page(page) and str(run.parent) not in page_markdown(page)


def test_nothing_is_written_to_the_workspace(run):
    before = tree_hash(run)
    overview(run)
    assert tree_hash(run) == before


@pytest.mark.parametrize("text", [*HOSTILE, "\u202eabc", "| a | b |", "שלום", "x" * 5000])
def test_answers_and_prompts_cannot_break_the_page(learned, text):
    facts = overview(learned / "run")

    def filled(text):
        row = {"index": 0, "prompt": text, "expected": text, "old": text, "new": text, "lost": True}
        gate = facts["gate"] | {"flipped": {"one": [row]}}
        return workspace_page(facts | {"gate": gate, "questions": {"one": {0: text}}, "notes": {"one": [text]}}, text)

    hostile, harmless = filled(text), filled("qqq")
    tags = [[tag for tag, _ in Reader(render_page(page)).elements] for page in (hostile, harmless)]
    assert tags[0] == tags[1]
    assert len({page_markdown(page).count("\n#") for page in (hostile, harmless)}) == 1
    assert len({page_markdown(page).count("\n|") for page in (hostile, harmless)}) == 1


class TestPromptsWithoutTheirTemplate:
    @given(st.lists(st.text("ab", min_size=1, max_size=5), min_size=2, max_size=5, unique=True))
    def test_the_lines_that_all_share_are_left_out(self, texts):
        assert distinct([f"Which?\n\n{text}\nAnswer:" for text in texts]) == texts

    def test_lines_of_one_prompt_that_are_like_the_template_stay(self):
        assert distinct(["q\nq\na\nz", "q\nb\nz"]) == ["q\na", "b"]

    @pytest.mark.parametrize("prompts", [["only\none"], ["the\nsame", "the\nsame"], []])
    def test_without_a_difference_they_stay_whole(self, prompts):
        assert distinct(prompts) == prompts

    @given(st.lists(st.text("a\n", max_size=6), max_size=4))
    def test_nothing_is_lost_of_any_prompts(self, prompts):
        found = distinct(prompts)
        assert len(found) == len(prompts)
        assert all(question in prompt for question, prompt in zip(found, prompts, strict=True))


def test_on_the_command_line_it_writes_the_page_markdown_and_csv(learned, tmp_path):
    files = [tmp_path / name for name in ("r.html", "r.md", "r.csv")]
    options = [part for pair in zip(("--out", "--markdown", "--csv"), files, strict=True) for part in pair]
    done = gorp("report", learned / "run.yaml", *options)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("INCONCLUSIVE: Too few test rows to tell whether v3 lost more than 2 points on one.")
    assert all(f"wrote {file}" in done.stdout for file in files)
    html, markdown, table = (file.read_text(encoding="utf-8") for file in files)
    headings = re.findall(r"<h2 id=.*?>(.*?)</h2>", html)
    assert headings[0] == "Verdict on each task" and headings[-2:] == ["Cost of each version", "Evidence"]
    assert set(re.findall(r"^## (.*)$", markdown, flags=re.M)) == set(headings)
    one, three = csv.DictReader(io.StringIO(table))
    assert (one["task"], one["verdict"], three["verdict"]) == ("one", "inconclusive", "")
    done = gorp("report", learned / "run", "--json", "--out", files[0])
    assert json.loads(done.stdout)["subject"] == "v3"


def test_a_file_that_cannot_be_written_is_named_before_anything_is_read(learned, tmp_path):
    done = gorp("report", learned / "run", "--out", tmp_path)
    assert done.exit_code == 2 and "this is a folder" in done.stderr


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
def test_in_a_browser_the_page_of_a_workspace_requests_nothing_logs_nothing_and_fits_a_phone(held, tmp_path):
    (tmp_path / "profile").mkdir()
    done = gorp("report", held / "run", "--out", tmp_path / "report.html")
    assert done.exit_code == 0, done.output
    with browser_tab(tmp_path / "profile") as tab:
        for width in (360, 1200):
            tab.emulate(width=width, scheme="dark")
            tab.open(tmp_path / "report.html")
            tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
            page = "document.documentElement"
            assert tab.evaluate(f"{page}.scrollWidth - {page}.clientWidth") == 0
            sent = [e["params"]["request"]["url"] for e in tab.events if e["method"] == "Network.requestWillBeSent"]
            assert sent == [(tmp_path / "report.html").as_uri()]
            logs = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
            assert [event for event in tab.events if event["method"] in logs] == []
        assert tab.pdf().startswith(b"%PDF")
