"""Wrong arguments, names, versions, places and workspaces for every command, and the words that each message must hold.

The project has a workspace `run` with versions v0 to v3, of which v2 is the current one and v3 is held.
"""

import json
import shutil
from pathlib import Path

from tests.durability.malformed import Case, Make


def nothing(folder: Path) -> None:
    """Change nothing: the arguments are wrong."""


def call(words: str, *command: str, make: Make = nothing, code: int = 2) -> Case:
    """A command, in which RUN is the workspace, YAML its YAML and PROJECT the folder of both."""
    places = {"RUN": "PROJECT/run", "YAML": "PROJECT/run.yaml"}
    shown = " ".join(command)[:60]
    how = "" if make is nothing else f", {make.__name__.replace('_', ' ')}"
    return f"{shown}{how}", make, tuple(places.get(word, word) for word in command), words, code


def a_foreign_folder(folder: Path) -> None:
    (folder / "theirs").mkdir()
    (folder / "theirs/thesis.txt").write_text("mine")
    (folder / "theirs/ledger.jsonl").write_text('{"event": "something else"}\n')
    (folder / "theirs/config.json").write_text("{}")


def an_empty_folder(folder: Path) -> None:
    (folder / "empty").mkdir()


def a_later_format(folder: Path) -> None:
    (folder / "run/gorp-workspace.json").write_text('{"format": 99}')


def a_changed_ledger(folder: Path) -> None:
    path = folder / "run/ledger.jsonl"
    path.write_text(path.read_text().replace('"task": "one"', '"task": "two"', 1))


def a_ledger_of_nonsense(folder: Path) -> None:
    (folder / "run/ledger.jsonl").write_bytes(b"\xff\xfe\n[1]\n")


def a_current_version_that_is_not_there(folder: Path) -> None:
    (folder / "run/CURRENT").write_text("v77\n")


def an_empty_current(folder: Path) -> None:
    (folder / "run/CURRENT").write_text("")


def a_current_with_a_path(folder: Path) -> None:
    (folder / "run/CURRENT").write_text("../../etc\n")


def a_link_in_the_workspace(folder: Path) -> None:
    (folder / "run/eval/away").symlink_to(folder / "model")


def a_link_as_ledger(folder: Path) -> None:
    path = folder / "run/ledger.jsonl"
    path.rename(folder / "elsewhere.jsonl")
    path.symlink_to(folder / "elsewhere.jsonl")


def a_version_that_is_a_list(folder: Path) -> None:
    (folder / "run/versions/v2/version.json").write_text("[]")


def scores_that_are_a_list(folder: Path) -> None:
    (folder / "run/eval/scores.json").write_text("[]")


def scores_of_text(folder: Path) -> None:
    path = folder / "run/eval/scores.json"
    scores = json.loads(path.read_text())
    scores["v1"]["one"]["score"] = "much"
    path.write_text(json.dumps(scores))


def evidence_that_is_a_list(folder: Path) -> None:
    (folder / "run/eval/gate/v2-v1.json").write_text("[]")


def evidence_of_another_verdict(folder: Path) -> None:
    path = folder / "run/eval/gate/v2-v1.json"
    path.write_text(path.read_text().replace("inconclusive", "ship"))


def a_configuration_of_text(folder: Path) -> None:
    (folder / "run/config.json").write_text('"text"')


def another_base_model(folder: Path) -> None:
    shutil.copytree(folder / "model", folder / "other")
    path = folder / "other/model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def a_yaml_of_another_run(folder: Path) -> None:
    path = folder / "run.yaml"
    path.write_text(path.read_text().replace("name: one", "name: eins"))


def a_yaml_of_one_line(folder: Path) -> None:
    (folder / "run.yaml").write_text(
        "{model: {path: model}, method: {name: gorp}, tasks: [{name: one, train: one.jsonl}]}"
    )


def an_unwritten_line(folder: Path) -> None:
    (folder / "new.jsonl").write_text('{"text": "x", "label": "true"}\n{"text": ')


def good_rows(folder: Path) -> None:
    shutil.copy(folder / "one.jsonl", folder / "new.jsonl")


def an_export(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out/gorp-export.json").write_text("{}")
    (folder / "out/thesis.txt").write_text("mine")


READING = ("status", "eval", "gate", "promote", "rollback", "diff", "report", "log", "gc", "doctor")
"""Commands that take a workspace and nothing else."""

REPORT = ("report", "RUN", "--out")
INTO = ("--config", "YAML")
EXPORT = ("export", "RUN", "PROJECT/out")

NO_DOCTOR = tuple(verb for verb in READING if verb != "doctor")
THREE = ("status", "gate", "eval")
GONE = a_current_version_that_is_not_there

VERBS: list[Case] = [
    *(call("nowhere: (no CURRENT Name workspaces here:", verb, "PROJECT/nowhere", code=1) for verb in NO_DOCTOR),
    *(call("empty: (no CURRENT train", verb, "PROJECT/empty", make=an_empty_folder, code=1) for verb in NO_DOCTOR),
    *(call("name empty folder", verb, "") for verb in READING),
    *(call("one.jsonl file folder", verb, "PROJECT/one.jsonl", code=1) for verb in ("status", "log", "gate", "report")),
    *(call("CURRENT v77", verb, "RUN", make=GONE, code=1) for verb in READING if verb != "log"),
    *(call("CURRENT: does not name", verb, "RUN", make=an_empty_current, code=1) for verb in ("status", "gate")),
    *(call("ledger.jsonl, line 4: damaged", verb, "RUN", make=a_changed_ledger, code=1) for verb in READING),
    *(call("ledger.jsonl, line 1: damaged", verb, "RUN", make=a_ledger_of_nonsense, code=1) for verb in READING),
    *(call("version.json: damaged SHA", verb, "RUN", make=a_version_that_is_a_list, code=1) for verb in READING[:7]),
    *(call("scores.json damaged", verb, "RUN", make=scores_that_are_a_list, code=1) for verb in THREE),
    *(call("scores.json v1 one damaged", verb, "RUN", make=scores_of_text, code=1) for verb in THREE),
    *(call("config.json damaged", verb, "RUN", make=a_configuration_of_text, code=1) for verb in THREE),
    call("CURRENT: does not name `../../etc`;", "status", "RUN", make=a_current_with_a_path, code=1),
    call("CONFIG.yaml nothing.yaml", "train", "PROJECT/nothing.yaml"),
    call("model folder YAML", "train", "PROJECT/model"),
    call("model: contains input. --workspace.", "train", "YAML", "--workspace", "PROJECT/model"),
    call("contains input --workspace", "train", "YAML", "--workspace", "PROJECT"),
    call("theirs: thesis.txt). Nothing", "train", "YAML", "--workspace", "PROJECT/theirs", make=a_foreign_folder),
    call("empty folder", "train", "YAML", "--workspace", ""),
    call("one.jsonl file --workspace", "train", "YAML", "--workspace", "PROJECT/one.jsonl"),
    call("one.jsonl file --workspace", "train", "YAML", "--workspace", "PROJECT/one.jsonl/x"),
    call("/proc/x: No such file", "train", "YAML", "--workspace", "/proc/x", code=1),
    call("/dev/full file", "train", "YAML", "--workspace", "/dev/full/x"),
    call("format 99 newer", "train", "YAML", make=a_later_format, code=1),
    call("format 99 newer", "doctor", "RUN", make=a_later_format, code=1),
    call("away link", "train", "YAML", make=a_link_in_the_workspace, code=1),
    call("ledger.jsonl link", "promote", "RUN", "--anyway", "x", make=a_link_as_ledger, code=1),
    call("eins one", "train", "YAML", make=a_yaml_of_another_run),
    call("no version `v9`; v3.", "eval", "YAML", "--version", "v9"),
    call("no version `../v1`; v3.", "eval", "YAML", "--version", "../v1"),
    call("no task `nope` one,", "eval", "YAML", "--task", "nope"),
    call("no task `../one` `one`?", "eval", "YAML", "--task", "../one"),
    call("prompt empty", "ask", "YAML", ""),
    call("prompt empty", "ask", "YAML", " \n "),
    call("no version `v9`; v3.", "ask", "YAML", "x", "--version", "v9"),
    call("no learned task `nope`; two,", "ask", "YAML", "x", "--task", "nope"),
    call("two: labels, --max-new-tokens.", "ask", "YAML", "x", "--max-new-tokens", "0"),
    call("two: labels, --max-new-tokens.", "ask", "YAML", "x", "--max-new-tokens", "-5"),
    call("two: labels, --max-new-tokens.", "ask", "YAML", "x", "--max-new-tokens", str(10**9)),
    call("max-new-tokens integer", "ask", "YAML", "x", "--max-new-tokens", "many"),
    call("--base nowhere folder", "ask", "YAML", "x", "--base", "PROJECT/nowhere"),
    call("other base model SHA-256", "ask", "YAML", "x", "--base", "PROJECT/other", make=another_base_model, code=1),
    call("--margin 0 above", "gate", "YAML", "--margin", "0"),
    call("--margin 100 below", "gate", "YAML", "--margin", "100"),
    call("--margin nan; above below", "gate", "YAML", "--margin", "nan"),
    call("--margin number", "gate", "YAML", "--margin", "two"),
    call("v0 base model", "gate", "YAML", "--version", "v0"),
    call("no version `v9`; v3.", "gate", "YAML", "--against", "v9"),
    call("v2-v0.json: no such file.", "gate", "YAML", "--against", "v0", "--verify", code=1),
    call("--base --noise", "gate", "YAML", "--base", "PROJECT/model"),
    call("v2-v1.json evidence", "gate", "YAML", "--verify", make=evidence_that_is_a_list, code=1),
    call("v2-v1.json changed", "gate", "YAML", "--verify", make=evidence_of_another_verdict, code=1),
    call("v0 rollback", "promote", "YAML", "--version", "v0"),
    call("v2 current already", "promote", "YAML", "--version", "v2"),
    call("no version `v9`; v3.", "promote", "YAML", "--version", "v9"),
    call("--anyway empty reason", "promote", "YAML", "--anyway", " "),
    call("--anyway 501 500", "promote", "YAML", "--anyway", "x" * 501),
    call("--anyway UTF-8", "promote", "YAML", "--anyway", "x\udcff"),
    call("v2 current", "rollback", "YAML", "v2"),
    call("no version `v9`; v3.", "rollback", "YAML", "v9"),
    call("v3 trained from v1", "rollback", "YAML", "v3"),
    call("--base nowhere folder", "rollback", "YAML", "--base", "PROJECT/nowhere"),
    call("v1 two different", "diff", "YAML", "v1", "v1"),
    call("no version `v9`; v3.", "diff", "YAML", "v9"),
    call("no version `main`; v3.", "diff", "YAML", "v1", "main"),
    call("model folder file --out", *REPORT, "PROJECT/model"),
    call("--out CURRENT: inside workspace", *REPORT, "PROJECT/run/CURRENT"),
    call("--csv ledger.jsonl: inside workspace", *REPORT, "PROJECT/r.html", "--csv", "PROJECT/run/ledger.jsonl"),
    call("--markdown run/x.md: inside workspace", *REPORT, "PROJECT/r.html", "--markdown", "PROJECT/run/x.md"),
    call("one.jsonl --out .html", *REPORT, "PROJECT/one.jsonl"),
    call("run.yaml --markdown .md", *REPORT, "PROJECT/r.html", "--markdown", "PROJECT/run.yaml"),
    call("same file --out", *REPORT, "PROJECT/r.html", "--markdown", "PROJECT/r.html"),
    call("--out one.jsonl folder another", *REPORT, "PROJECT/one.jsonl/r.html"),
    call("model other files another folder", "export", "RUN", "PROJECT/model"),
    call("one.jsonl file folder", "export", "RUN", "PROJECT/one.jsonl"),
    call("run inside workspace", "export", "RUN", "PROJECT/run/out"),
    call("thesis.txt) export another", *EXPORT, "--force", make=an_export),
    call("onnx merged lora", *EXPORT, "--to", "onnx"),
    call("float16 bfloat16", *EXPORT, "--dtype", "float16"),
    call("--rank 7 8", *EXPORT, "--to", "lora", "--rank", "7"),
    call("--rank lora", *EXPORT, "--rank", "8"),
    call("--each lora", *EXPORT, "--each"),
    call("no version `v9`; v3.", *EXPORT, "--version", "v9"),
    call("--push-to-hub OWNER/NAME", *EXPORT, "--push-to-hub", "no owner"),
    call("--private --push-to-hub", *EXPORT, "--private"),
    call("--base nowhere folder", *EXPORT, "--base", "PROJECT/nowhere"),
    call("v0 no weight --to merged", *EXPORT, "--to", "lora", "--version", "v0"),
    call("name empty folder", "export", "RUN", ""),
    call("--tflops --gbps both", "estimate", "YAML", "--tflops", "5"),
    call("'--tflops': 0.001", "estimate", "YAML", "--tflops", "0", "--gbps", "5"),
    call("'--tflops': 0.001", "estimate", "YAML", "--tflops", "nan", "--gbps", "nan"),
    call("nothing.yaml: read", "estimate", "PROJECT/nothing.yaml"),
    call("'--epochs': equal 1", "demo", "--epochs", "0", "--out", "PROJECT/d.html"),
    call("'--train-rows': equal 1", "demo", "--train-rows", "0", "--out", "PROJECT/d.html"),
    call("model folder file", "demo", "--out", "PROJECT/model"),
    call("seed integer", "demo", "--seed", "x", "--out", "PROJECT/d.html"),
    call("run.yaml exists", "init", "PROJECT/model", "--out", "YAML"),
    call("one.jsonl exists --out", "init", "PROJECT/model", "--out", "PROJECT/one.jsonl"),
    call("nowhere no such folder hub id", "init", "PROJECT/nowhere", "--out", "PROJECT/b.yaml"),
    call("none.jsonl no such file", "init", "PROJECT/model", "PROJECT/none.jsonl", "--out", "PROJECT/b.yaml", code=1),
    call("new.jsonl no such file", "add", "new", "PROJECT/new.jsonl", *INTO, code=1),
    call("new.jsonl, line 2:", "add", "new", "PROJECT/new.jsonl", *INTO, make=an_unwritten_line, code=1),
    call("there task `one` already, name,", "add", "one", "PROJECT/new.jsonl", *INTO, make=good_rows),
    call("../x name", "add", "../x", "PROJECT/new.jsonl", *INTO, make=good_rows),
    call("task name `` letters", "add", "", "PROJECT/new.jsonl", *INTO, make=good_rows),
    call("none.jsonl no file", "add", "n", "PROJECT/new.jsonl", "--eval", "none.jsonl", *INTO, make=good_rows, code=1),
    call("nothing.yaml: read", "add", "n", "PROJECT/one.jsonl", "--config", "PROJECT/nothing.yaml"),
    call("tasks line", "add", "n", "PROJECT/one.jsonl", "--config", "YAML", make=a_yaml_of_one_line),
    call("nothing.yaml: read", "validate", "PROJECT/nothing.yaml"),
    call("one.jsonl: not YAML", "validate", "PROJECT/one.jsonl"),
    call("eins one", "validate", "YAML", make=a_yaml_of_another_run),
    call("No such command 'frobnicate'.", "frobnicate"),
    call("No such option: --frobnicate", "status", "--frobnicate"),
]  # fmt: skip
