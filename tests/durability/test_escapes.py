"""Text from rows, labels, names and reasons reaches no terminal as a command, and no secret reaches anything."""

import json
import os
import pty
import re
import shutil
import sys

import pytest

from gorp.cli import app
from tests.command import gorp
from tests.durability.workspace import files_of, must
from tests.report.browser import CHROMIUM, browser_tab
from tests.workspace.project import save_model, task, write_config


pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PAYLOADS = (
    "\x1b]0;PWNED\x07",  # the title
    "\x1b]8;;http://evil\x1b\\link",  # a link
    "\x1b]52;c;UFdORUQ=\x07",  # the clipboard
    "\x1b[31337m\x1b[2J",  # colour, and an empty screen
    "\x9b31337m\x9d0;PWNED\x9c",  # the same in one byte each
    "\u202eDENWP\u2066",  # from right to left
    "\rPWNED",  # over the line
    "<script>alert('PWNED')</script><img src=x onerror=alert(1)>",
    "[red]=HYPERLINK(1)|`*_{{7*7}}\\input{x}",
)
RAW = re.compile("\x1b\\]|\x1b\\[31337|\x9b|\x9d|\u202e|\u2066|\rPWNED|\x1b\\[2J")
"""What only a payload can put on the terminal: gorp itself colours, moves the cursor by lines, and clears lines."""

LABELS = ["true " + "".join(PAYLOADS), "false " + "".join(reversed(PAYLOADS))]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two tasks whose prompts, labels and answers are hostile, in a folder with a hostile name; v2 is held."""
    folder = tmp_path_factory.mktemp("escapes") / "p\x1b]0;PWNED\x07\u202e"
    save_model(folder / "model")
    for name, words in (("one", ("green", "red")), ("two", ("World", "Sports"))):
        for path, count in ((f"{name}.jsonl", 12), (f"{name}_eval.jsonl", 6)):
            rows = [{"text": f"{words[i % 2]} {i} {PAYLOADS[i % 9]}", "label": LABELS[i % 2]} for i in range(count)]
            (folder / path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    lengths = {"max_prompt_tokens": 400, "max_completion_tokens": 400}
    gate = {"margin": 2.0, "inconclusive": "hold"}
    tasks = [task(name, labels=LABELS) for name in ("one", "two")]
    path = write_config(folder, tasks=tasks, encoding=lengths, gate=gate)
    assert gorp("train", path).exit_code in (0, 3, 4)
    gorp("promote", path, "--anyway", f"because {''.join(PAYLOADS)}")
    return folder


def on_a_terminal(*arguments: object) -> str:
    """Run a command in a process of its own on a pseudo-terminal; return all that reaches it."""
    process, terminal = pty.fork()
    if process == 0:
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # those of pytest are elsewhere
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": "200"}
        try:
            app([str(argument) for argument in arguments], standalone_mode=True)
        except BaseException as error:
            os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 70)
        os._exit(0)
    parts = []
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the process has ended
            break
        if not part:
            break
        parts.append(part)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != 70
    return b"".join(parts).decode(errors="replace").replace("\r\n", "\n")


VERBS = (
    *("status", "status --explain", "log", "diff", "gate --version v2", "gate --version v2 --explain", "doctor"),
    *("gc --dry-run", "eval --task two", "rollback --dry-run", "promote --dry-run", "report --out page.html"),
    *("ask QUESTION", "ask --version PAYLOAD", "ask --task PAYLOAD", "gate --against PAYLOAD", "diff PAYLOAD"),
    *("train", "train --workspace PAYLOAD/nothing", "validate", "estimate", "export out", "export --base PAYLOAD out"),
    *("eval --task PAYLOAD", "status PAYLOAD", "frobnicate PAYLOAD", "init PAYLOAD", "add PAYLOAD one.jsonl"),
)


@pytest.mark.parametrize("verb", VERBS)
def test_nothing_raw_reaches_a_terminal(project, tmp_path, verb, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a relative path of a command, `--workspace` for one, leads here
    name, *options = verb.split()
    payload = "".join(PAYLOADS[:7])
    words = [word.replace("PAYLOAD", payload).replace("QUESTION", f"green {payload}") for word in options]
    copy = tmp_path / project.name
    shutil.copytree(project, copy)
    words = [str(copy / word) if word in ("page.html", "out", "one.jsonl") else word for word in words]
    if name in ("train", "estimate", "validate"):
        words = [copy / "run.yaml", *words]
    elif name == "init":
        words = [*words, "--out", copy / "new.yaml"]
    elif name == "add":
        words = [*words, "--config", copy / "run.yaml"]
    elif (name != "frobnicate" and options[:1] != ["PAYLOAD"]) or name == "diff":
        words = [copy / "run", *words]
    said = on_a_terminal(name, *words)
    assert "PWNED" in said or name not in ("log", "status", "report")
    raw = RAW.search(said)
    assert said and raw is None, repr(raw and said[max(0, raw.start() - 200) :][:400])


def append(path, text):
    path.write_text(path.read_text() + text)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("columns", lambda p: (p / "one.jsonl").write_text(json.dumps({PAYLOADS[0] + "a": 1, PAYLOADS[3]: 2}) + "\n")),
        ("label", lambda p: (p / "one.jsonl").write_text(json.dumps({"text": "x", "label": PAYLOADS[1]}) + "\n")),
        ("key of the YAML", lambda p: append(p / "run.yaml", json.dumps({"".join(PAYLOADS): 1})[1:-1])),
        ("kind of the model", lambda p: (p / "model/config.json").write_text(json.dumps({"model_type": PAYLOADS[3]}))),
    ],
)
def test_nothing_raw_is_in_a_message_about_a_malformed_input(project, tmp_path, what, change):
    copy = tmp_path / "p"
    shutil.copytree(project, copy)
    shutil.rmtree(copy / "run")
    change(copy)
    said = on_a_terminal("train", copy / "run.yaml")
    assert "gorp: " in said and RAW.search(said) is None, repr(said[-500:])


def test_pages_and_tables_hold_the_texts_and_run_nothing(project, tmp_path):
    pages = [tmp_path / name for name in ("p.html", "p.md", "p.csv")]
    must("report", project / "run", "--out", pages[0], "--markdown", pages[1], "--csv", pages[2])
    html, markdown, csv = (page.read_text() for page in pages)
    assert "PWNED" in html and "PWNED" in markdown
    for text in (html, markdown, csv):
        assert RAW.search(text) is None
    assert "<script" not in html and "onerror=alert(1)>" not in html.replace("&gt;", "")
    assert not re.search(r"(?<!\\)<(script|img)", markdown)
    assert not re.search(r"(?m)(^|,)\"?=", csv)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
def test_the_page_of_a_hostile_workspace_runs_nothing_in_a_browser(project, tmp_path):
    page = tmp_path / "p.html"
    must("report", project / "run", "--out", page)
    (tmp_path / "profile").mkdir()
    with browser_tab(tmp_path / "profile") as tab:
        tab.open(page)
        tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        tab.screenshot()
        assert tab.evaluate("document.querySelectorAll('script, img, iframe').length") == 0
        bad = ("Log.entryAdded", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening")
        assert [event for event in tab.events if event["method"] in bad] == []


SECRET = "hf_SECRETSECRETSECRETSECRET"


def test_no_token_is_written_or_printed(project, tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    copy = tmp_path / "p"
    shutil.copytree(project, copy)
    shutil.rmtree(copy / "run")
    said = [gorp("train", copy / "run.yaml").output]
    for verb in ("status", "log", "diff", "gate", "doctor", "eval", "rollback", "promote"):
        said.append(gorp(verb, copy / "run").output)
    said.append(gorp("report", copy / "run", "--out", copy / "p.html").output)
    said.append(gorp("export", copy / "run", copy / "out").output)
    yaml = (copy / "run.yaml").read_text()
    for old, new in (
        ("path: model", f"path: https://me:{SECRET}@huggingface.co/a/b"),
        ("train: one.jsonl", f"train: https://me:{SECRET}@huggingface.co/one.jsonl"),
        ("learning_rate:", f"hub_token: {SECRET}\n  learning_rate:"),
    ):
        other = tmp_path / "other.yaml"
        other.write_text(yaml.replace(old, new).replace(" model", f" {copy}/model"))
        done = gorp("train", other)
        assert done.exit_code in (1, 2), done.output
        said.append(done.output)
        other.unlink()
    assert [text for text in said if SECRET in text] == []
    assert [path for path in files_of(tmp_path) if SECRET.encode() in path.read_bytes()] == []
