import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gorp.evaluation import FORMULAS, MEANINGS
from gorp.report import Answer, Page, Sample, render_page, write_page
from tests.report.browser import CHROMIUM, browser_tab
from tests.report.matrices import FIRST, SECOND, matrix


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


def example(**changes):
    content = {
        "title": "Order 1",
        "headline": "gorp lost less.",
        "about": "gorp fine-tunes.",
        "runs": {"gorp": [matrix(FIRST), matrix(SECOND)], "sequential_lora": [matrix(FIRST)]},
        "facts": {"Model": "tiny", "Seeds": "0, 1"},
        "notes": ["2 of 100 eval inputs of qa also occur in train."],
        "samples": {"news after qa": [SAMPLE]},
    }
    return Page(**(content | changes))


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
        runs={text: [matrix(tasks=(text, f"{text}2", f"{text}3"))]},
        facts={text: text},
        notes=[text],
        samples={text: [sample]},
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
    for wanted in ("gorp lost less.", "news after qa", "Is it red?\nAnswer:", "✗ False"):
        assert wanted in text


def test_tables_hold_the_matrices_mean_over_seeds():
    rows = re.findall(r'<th scope="row">qa</th>\n((?:<td class="number">[^<]*</td>\n)+)', render_page(example()))
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
    samples = [replace(SAMPLE, question=f"question {index}") for index in range(100)]
    page = render_page(example(samples={"news after qa": samples}))
    assert "8 of 100 rows are shown, at even distances." in page
    assert re.findall(r"<summary>question (\d+)</summary>", page) == ["0", "12", "25", "37", "50", "62", "75", "87"]


def test_parts_without_content_are_left_out():
    page = render_page(example(facts={}, notes=[], samples={}))
    assert "What was run" not in page and "Sample answers" not in page


def test_a_metric_that_no_method_has_is_left_out():
    late = matrix()
    late.R[1, 1:] = late.R[2, 2] = float("nan")
    page = render_page(example(runs={"gorp": [late]}))
    assert ">AP<" in page and ">BWT<" in page and ">Forgetting<" not in page and ">FWT<" not in page


def test_the_result_comes_first_and_the_configuration_last():
    page = render_page(example())
    places = [page.index(text) for text in ("gorp lost less.", "<svg", "Sample answers", ">Summary<", "What was run")]
    assert places == sorted(places)


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
        write_page(example(runs={f"method {number}": many for number in range(5)}), tmp_path / "page.html")
        return tmp_path / "page.html"

    @pytest.mark.parametrize("text", [None, *HOSTILE])
    def test_the_browser_requests_nothing_else_and_logs_nothing(self, tab, tmp_path, text):
        path = tmp_path / "page.html"
        write_page(example() if text is None else everywhere(text), path)
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

    def test_text_has_enough_contrast_on_light_and_dark_pages(self, tab, path):
        for scheme in ("light", "dark"):
            tab.emulate(width=1000, scheme=scheme)
            tab.open(path)
            assert contrast(tab, "body") >= 7
            for selector in ("figcaption", "summary", ".wrong", "thead th", ".facts dt", "figure svg text"):
                assert contrast(tab, selector) >= 4.5, (scheme, selector)

    def test_the_keyboard_reaches_every_scrolling_part_and_every_prompt(self, tab, path):
        tab.emulate(width=400, scheme="light")
        tab.open(path)
        reached = set()
        for _ in range(40):
            for kind in ("keyDown", "keyUp"):
                tab.send("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
            reached.add(tab.evaluate("document.activeElement.tagName + (document.activeElement.ariaLabel || '')"))
        assert {"SUMMARY", "DIVSummary table", "DIVSample answers: news after qa"} <= reached

    def test_prints_black_on_white_in_either_colour_scheme(self, tab, path):
        tab.emulate(width=1000, scheme="dark")
        tab.open(path)
        tab.send("Emulation.setEmulatedMedia", media="print")
        assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert tab.pdf().startswith(b"%PDF")


def contrast(tab, selector):
    """Return the contrast ratio of WCAG 2, (L₁ + 0.05) / (L₂ + 0.05), of an element's text against the page."""
    found = tab.evaluate(
        f"[getComputedStyle(document.querySelector('{selector}')).color,"
        " getComputedStyle(document.body).backgroundColor].join(' ')"
    )
    channels = [int(part) / 255 for part in re.findall(r"\d+", found)]
    assert len(channels) == 6, found
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminances = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (linear[:3], linear[3:])]
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)
