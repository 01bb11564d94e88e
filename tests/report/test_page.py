import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gorp.evaluation import FORMULAS, MEANINGS
from gorp.report import Answer, Layer, Page, Sample, Samples, Table, evenly, render_page, write_page
from tests.report.browser import CHROMIUM, browser_tab
from tests.report.matrices import FIRST, SECOND, judged, matrix


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style></pre><iframe src='//example.org'></iframe>",
    "{{ 7 * 7 }}{% raw %}",
    "<!-- -->&lt;b&gt; ]]>",
]
SAMPLE = Sample(
    question="Is it red?", prompt="Is it red?\nAnswer:", expected="True", answers={"gorp": Answer("False", False)}
)


def samples(*rows, heading="news after qa"):
    return [Samples(heading=heading, rows=evenly(rows), of=len(rows), chosen="at even distances")]


def example(**changes):
    content = {
        "title": "Order 1",
        "headline": "gorp lost less.",
        "about": "gorp fine-tunes.",
        "runs": {"gorp": [matrix(FIRST), matrix(SECOND)], "sequential_lora": [matrix(FIRST)]},
        "facts": {"Model": "tiny", "Seeds": "0, 1"},
        "notes": ["2 of 100 eval inputs of qa also occur in train."],
        "samples": samples(SAMPLE),
    }
    return Page(**(content | changes))


def whole(**changes):
    """Return a page with every section, as that of a workspace, and very long names."""
    layers = [Layer(name=f"{'model.layers' * 20}.{i}", directions=10 * i, share=i / 20, released=i) for i in range(20)]
    content = {
        "judged": replace(judged(), guard="guard text (40 texts, 2,000 tokens): perplexity 12.0 -> 19.8"),
        "guard": Table(headings=["version", "nats per token", "perplexity", "texts"], lines=[["v1", "2", "7.4", "40"]]),
        "warnings": ["v2 predicts the guard text clearly worse than v1."],
        "figures": {"current version": "v2", "tasks learned": "3"},
        "layers": layers,
        "budget": 0.75,
        "costs": Table(headings=["version", "made", "on disk"], lines=[["v1", "2026-11-01", "1.0 MiB"]], left=2),
        "costs_note": "Times are of training alone.",
        "commands": {"Check every digest:": f"gorp doctor {'x' * 200}"},
        "facts": {"v1/version.json": "0" * 64},
    }
    return example(**(content | changes))


class Reader(HTMLParser):
    """Collect the elements, and the text outside style sheets and figures; fail on a tag closed out of order."""

    VOID = frozenset({"meta", "link", "img", "br", "input"})

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "svg"} & {*self.open}:
            self.texts.append(data)


def everywhere(text):
    """Return a page with `text` in every place that data or a model can fill."""
    sample = Sample(question=text, prompt=text, expected=text, answers={text: Answer(text, True)})
    return Page(
        title=text,
        headline=text,
        about=text,
        warnings=[text],
        judged=replace(judged(text, old=f"{text} a", new=f"{text} b"), guard=text, guard_since=text),
        guard=Table(headings=[text, text], lines=[[text, text]]),
        figures={text: text},
        runs={text: [matrix(tasks=(text, f"{text}2", f"{text}3"))]},
        samples=samples(sample, heading=text),
        samples_heading=text,
        layers=[Layer(name=text, directions=3, share=0.5, released=1)],
        layers_heading=text,
        budget=0.75,
        costs=Table(headings=[text, text], lines=[[text, text]]),
        costs_note=text,
        facts={text: text},
        commands={text: text},
        notes=[text],
    )


def test_the_page_has_the_configuration_and_every_number():
    text = "\n".join(Reader(render_page(example())).texts)
    for wanted in (
        "Order 1",
        "Model",
        "tiny",
        "2 of 100 eval inputs of qa also occur in train.",
        "72.7 ± 5.7",
        "−12.0",
    ):
        assert wanted in text
    for name in FORMULAS:
        assert FORMULAS[name] in text and MEANINGS[name] in text
    for wanted in ("gorp lost less.", "news after qa", "Is it red?\nAnswer:"):
        assert wanted in text
    assert "✗ <bdi>False</bdi>" in render_page(example())


def test_tables_hold_the_matrices_mean_over_seeds():
    rows = re.findall(
        r'<th scope="row">qa</th>\n((?:<td class="number" data-label="[^"]*">[^<]*</td>\n)+)', render_page(example())
    )
    assert [re.findall(r">([\d.]+)<", row) for row in rows] == [["76.0", "77.0", "65.0"], ["70.0", "76.0", "60.0"]]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_data_is_never_read_as_html(text):
    harmless, hostile = Reader(render_page(everywhere("qqq"))), Reader(render_page(everywhere(text)))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in harmless.elements]
    assert [sorted(names) for _, names in hostile.elements] == [sorted(names) for _, names in harmless.elements]
    assert "".join(hostile.texts).count(text) == "".join(harmless.texts).count("qqq")


@settings(max_examples=8, deadline=None)
@given(st.text(min_size=1, max_size=20))
def test_any_text_makes_a_page_that_can_be_written(text):
    page = render_page(everywhere(text)).encode()
    assert b"\x00" not in page


def test_the_page_loads_no_resource_and_runs_no_script():
    reader = Reader(render_page(example()))
    assert not {"script", "link", "img", "iframe", "object", "embed", "image"} & {tag for tag, _ in reader.elements}
    for _, attributes in reader.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert all((attributes.get(name) or "#").startswith("#") for name in ("href", "src", "xlink:href"))
    policy = next(a["content"] for tag, a in reader.elements if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_every_referenced_id_exists():
    reader = Reader(render_page(example()))
    ids = {attributes["id"] for _, attributes in reader.elements if "id" in attributes}
    referred = {a["aria-labelledby"] for _, a in reader.elements if "aria-labelledby" in a}
    referred |= {a["xlink:href"][1:] for _, a in reader.elements if "xlink:href" in a}
    assert referred and referred <= ids


def test_of_many_answers_a_part_is_shown_and_the_page_says_so():
    many = [replace(SAMPLE, question=f"question {index}") for index in range(100)]
    page = render_page(example(samples=samples(*many)))
    assert "8 of 100 rows are shown, at even distances." in page
    assert re.findall(r"<summary><bdi>question (\d+)</bdi></summary>", page) == [
        "0",
        "12",
        "25",
        "37",
        "50",
        "62",
        "75",
        "87",
    ]


def test_parts_without_content_are_left_out():
    page = render_page(example(facts={}, notes=[], samples=[]))
    for heading in ("Evidence", "Sample answers", "Verdict on each task", "Capacity", "Cost of each version"):
        assert f">{heading}<" not in page
    alone = render_page(example(runs={"gorp": [matrix()]}))
    assert "Mean score over the sequence" in page and "Mean score over the sequence" not in alone


def test_a_metric_that_no_method_has_is_left_out():
    late = matrix()
    late.R[1, 1:] = late.R[2, 2] = float("nan")
    page = render_page(example(runs={"gorp": [late]}))
    assert "<dt>AP</dt>" in page and "<dt>BWT</dt>" in page
    assert "<dt>Forgetting</dt>" not in page and "<dt>FWT</dt>" not in page


def test_the_result_comes_first_and_the_evidence_last():
    page = render_page(example())
    places = [page.index(text) for text in ("gorp lost less.", "<svg", "Sample answers", ">Summary<", ">Evidence<")]
    assert places == sorted(places)


def test_the_sections_of_a_workspace_come_in_the_order_in_which_they_are_asked_for():
    page = render_page(whole())
    headings = re.findall(r"<h2 id=.*?>(.*?)</h2>", page)
    assert headings == [
        "Verdict on each task",
        "Guard text",
        "Score on every task, after every task",
        "Forgetting",
        "Sample answers",
        "Summary",
        "Mean score over the sequence",
        "Capacity",
        "Cost of each version",
        "Evidence",
    ]
    assert page.index("gorp lost less.") < page.index("clearly worse than v1") < page.index("Verdict on each task")


def test_a_verdict_is_said_by_word_and_mark_and_not_by_colour_alone():
    page = render_page(whole())
    assert '<p class="badge hold"><span aria-hidden="true">✗</span> hold</p>' in page
    assert '<td class="verdict hold" data-label="verdict">✗ hold</td>' in page and "−10.0 (−16.5 to −4.5)" in page
    for word, mark in (("ship", "✓"), ("inconclusive", "?")):
        assert f'<td class="verdict {word}" data-label="verdict">{mark} {word}</td>' in render_page(
            whole(judged=judged(verdict=word))
        )


def test_the_fullest_layers_come_first_and_all_are_there_in_their_order():
    page = render_page(whole())
    first, _, every = page.partition("All 20 layers, in the order of the model")
    shares = [re.findall(r'class="fill" style="width: ([\d.]+)%"', part) for part in (first, every)]
    assert shares[0] == [f"{5.0 * i:.1f}" for i in range(19, 7, -1)]
    assert shares[1] == [f"{5.0 * i:.1f}" for i in range(20)]
    assert "The 12 fullest of 20 layers:" in page and 'class="budget" style="left: 75.0%"' in page
    few = render_page(whole(layers=whole().layers[:3], budget=None))
    assert "fullest of" not in few and 'class="budget"' not in few


def test_a_very_long_prompt_is_cut_in_the_middle_and_the_page_says_so():
    page = render_page(example(samples=samples(replace(SAMPLE, prompt=f"begin{'x' * 100_000}end"))))
    assert "begin" in page and "end</pre>" in page and "(98,008 characters left out)" in page
    assert len(page) < 200_000


def test_with_one_seed_no_deviation_is_shown():
    page = render_page(example(runs={"gorp": [matrix()]}))
    assert "deviation" not in page and "±" not in page


def test_the_page_is_written_as_utf8(tmp_path):
    write_page(example(title="Größe ≤ 1"), tmp_path / "out" / "page.html")
    assert "<h1>Größe ≤ 1</h1>" in (tmp_path / "out" / "page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser_tab(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
class TestInABrowser:
    @pytest.fixture
    def path(self, tmp_path):
        many = [matrix(tasks=("a task with a rather long name", "films", "qa"))]
        write_page(whole(runs={f"method {number}": many for number in range(5)}), tmp_path / "page.html")
        return tmp_path / "page.html"

    @pytest.mark.parametrize("text", [None, *HOSTILE])
    def test_the_browser_requests_nothing_else_and_logs_nothing(self, tab, tmp_path, text):
        path = tmp_path / "page.html"
        write_page(whole() if text is None else everywhere(text), path)
        tab.open(path)
        tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        tab.screenshot()
        requests = [
            event["params"]["request"]["url"] for event in tab.events if event["method"] == "Network.requestWillBeSent"
        ]
        logs = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Page.javascriptDialogOpening")
        assert requests == [path.as_uri()]
        assert [event for event in tab.events if event["method"] in logs] == []

    @pytest.mark.parametrize("width", [360, 1200])
    def test_never_scrolls_sideways(self, tab, path, width):
        tab.emulate(width=width, scheme="light")
        tab.open(path)
        tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        page = "document.documentElement"
        assert tab.evaluate(f"{page}.scrollWidth - {page}.clientWidth") == 0

    def test_on_a_phone_the_figures_and_the_answers_fit_the_screen(self, tab, path):
        tab.emulate(width=390, scheme="light")
        tab.open(path)
        right = "Math.max(...[...document.querySelectorAll('{}')].map(part => part.getBoundingClientRect().right))"
        for selector in ("figure svg", ".samples td"):
            assert 300 < tab.evaluate(right.format(selector)) <= 390, selector
        height = "Math.min(...[...document.querySelectorAll('.maps text')].map(t => t.getBoundingClientRect().height))"
        assert tab.evaluate(height) >= 9

    @pytest.mark.parametrize("width", [360, 600])
    def test_on_a_phone_no_table_is_cut_off_and_every_number_has_its_heading(self, tab, path, width):
        tab.emulate(width=width, scheme="light")
        tab.open(path)
        tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        cut = "[...document.querySelectorAll('.wide')].filter(part => part.scrollWidth > part.clientWidth)"
        assert tab.evaluate(f"{cut}.map(part => part.ariaLabel)") == []
        labels = "[...document.querySelectorAll('{} td')].map(cell => getComputedStyle(cell, '::before').content)"
        judged = tab.evaluate(labels.format('[aria-label="Verdict on each task"]'))
        assert judged[:4] == ['"verdict"', '"v1"', '"v2"', '"change (90 % interval)"'], judged
        assert '"change since learned"' in tab.evaluate(labels.format('[aria-label^="Forgetting of"]'))
        guard = tab.evaluate(labels.format('[aria-label="Guard text"]'))
        assert guard == ['"nats per token"', '"perplexity"', '"texts"']
        assert '"BWT"' in tab.evaluate(labels.format('[aria-label="Summary table"]'))
        assert tab.evaluate(labels.format('[aria-label="Cost of each version"]')) == ['"made"', '"on disk"']

    def test_text_has_enough_contrast_on_light_and_dark_pages(self, tab, path):
        for scheme in ("light", "dark"):
            tab.emulate(width=1000, scheme=scheme)
            tab.open(path)
            assert contrast(tab, "body") >= 7
            for selector in (
                "figcaption",
                "summary",
                ".wrong",
                "thead th",
                ".facts dt",
                "figure svg text",
                ".badge",
                ".figures dt",
            ):
                assert contrast(tab, selector) >= 4.5, (scheme, selector)

    def test_the_keyboard_reaches_every_scrolling_part_and_every_prompt(self, tab, path):
        tab.emulate(width=400, scheme="light")
        tab.open(path)
        reached = set()
        for _ in range(60):
            for kind in ("keyDown", "keyUp"):
                tab.send("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
            reached.add(tab.evaluate("document.activeElement.tagName + (document.activeElement.ariaLabel || '')"))
        assert {"SUMMARY", "DIVSummary table", "DIVSample answers: news after qa", "DIVVerdict on each task"} <= reached
        assert {"DIVCapacity of the fullest layers", "DIVCost of each version"} <= reached

    def test_every_verdict_and_bar_can_be_seen_on_light_and_dark_pages(self, tab, tmp_path):
        for word in ("ship", "hold", "inconclusive"):
            write_page(whole(judged=judged(verdict=word)), tmp_path / "page.html")
            for scheme in ("light", "dark"):
                tab.emulate(width=1000, scheme=scheme)
                tab.open(tmp_path / "page.html")
                assert contrast(tab, "td.verdict") >= 4.5, (word, scheme)
                assert contrast(tab, ".fill", "backgroundColor") >= 3, scheme

    def test_prints_black_on_white_in_either_colour_scheme(self, tab, path):
        tab.emulate(width=1000, scheme="dark")
        tab.open(path)
        tab.send("Emulation.setEmulatedMedia", media="print")
        assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert tab.pdf().startswith(b"%PDF")


def contrast(tab, selector, colour="color"):
    """Return the contrast ratio of WCAG 2, (L₁ + 0.05) / (L₂ + 0.05), of an element's text against the page."""
    found = tab.evaluate(
        f"[getComputedStyle(document.querySelector('{selector}')).{colour},"
        " getComputedStyle(document.body).backgroundColor].join(' ')"
    )
    channels = [int(part) / 255 for part in re.findall(r"\d+", found)]
    assert len(channels) == 6, found
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminances = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (linear[:3], linear[3:])]
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)
