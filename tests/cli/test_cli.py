"""The command line: exit codes, stdout and stderr, and that an error changes no file."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from gorp.cli import app
from gorp.demo import DemoResult
from gorp.storage import file_sha256, read_tensors, write_json, write_tensors
from gorp.termination import Terminated
from tests.command import gorp
from tests.report.matrices import SECOND, matrix
from tests.workspace.project import make_project, save_model, task, tree_hash, weights, without_digests, write_config


def start(*arguments: object, cwd: Path | None = None) -> subprocess.Popen:
    command = [sys.executable, "-m", "gorp", *map(str, arguments)]

    def accept_ctrl_c() -> None:  # background jobs of a shell, and their children, ignore SIGINT
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=accept_ctrl_c
    )


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two tasks by the command line, in the default workspace."""
    folder = tmp_path_factory.mktemp("finished")
    path = make_project(folder)
    result = gorp("train", path, "--json")
    assert result.exit_code == 0, result.stderr
    return path, folder / "run", result


HEAVY = {"torch", "transformers", "datasets", "matplotlib", "peft", "accelerate"}


@pytest.mark.parametrize(
    "command",
    [
        *("--help", "--version", "train --help", "methods --help", "status WORKSPACE", "status YAML"),
        *("log WORKSPACE", "gc WORKSPACE --unlisted"),
    ],
)
def test_commands_that_only_read_import_no_heavy_library(finished, command):
    path, work, _ = finished
    arguments = [{"WORKSPACE": str(work), "YAML": str(path)}.get(word, word) for word in command.split()]
    code = f"""
import sys
from gorp.cli import app
try:
    app({arguments}, prog_name="gorp")
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", sorted({HEAVY} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nloaded: []\n")


def test_every_command_has_exactly_these_options():
    flags = {}
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        text = plain(gorp(name, "--help").output)
        flags[name] = set(re.findall(r"--[a-z-]+", text)) - {"--help", "--workspace."}
    assert flags == {
        "demo": {"--json", "--seed", "--out", "--picture", "--model", "--train-rows", "--eval-rows", "--epochs"},
        "init": {"--out", "--dry-run", "--json"},
        "add": {"--eval", "--config", "--subset", "--split", "--eval-split", "--dry-run", "--json"},
        "validate": {"--workspace", "--json"},
        "train": {"--workspace", "--restart", "--dry-run", "--json"},
        "status": {"--explain", "--json"},
        "eval": {"--version", "--task", "--trust-remote-code", "--json"},
        "ask": {"--version", "--task", "--max-new-tokens", "--base", "--trust-remote-code", "--json"},
        "gate": {
            *("--version", "--against", "--margin", "--noise", "--base", "--trust-remote-code"),
            *("--verify", "--dry-run", "--explain", "--json"),
        },
        "diff": {"--json"},
        "report": {"--out", "--markdown", "--csv", "--json"},
        "promote": {"--version", "--anyway", "--dry-run", "--json"},
        "rollback": {"--base", "--trust-remote-code", "--dry-run", "--json"},
        "export": {
            *("--to", "--version", "--dtype", "--rank", "--each", "--base", "--force", "--dry-run", "--push-to-hub"),
            *("--private", "--trust-remote-code", "--json"),
        },
        "log": {"--json"},
        "gc": {"--unlisted", "--dry-run", "--json"},
        "doctor": {"--json"},
        "methods": {"--json"},
        "estimate": {"--tflops", "--gbps", "--json"},
    }


@pytest.mark.parametrize(
    "arguments", [["trian"], ["train"], ["train", "x.yaml", "--rank", "8"], ["demo", "--epochs", "0"]]
)
def test_wrong_usage_exits_with_2(arguments):
    assert gorp(*arguments).exit_code == 2


def test_methods_lists_every_method_of_the_package(monkeypatch):
    from gorp.cli.look import ABOUT
    from gorp.methods import METHODS
    from tests.methods.per_task import PerTaskLora

    monkeypatch.setitem(METHODS, "per_task_lora", PerTaskLora)  # an entry of METHODS is enough
    listed = json.loads(gorp("methods", "--json").stdout)
    assert list(listed) == list(METHODS)
    for name, about in listed.items():
        assert about == {field: getattr(METHODS[name], field) for field in ABOUT}
    table = gorp("methods").stdout
    assert all(re.search(rf"^ {name} ", table, re.MULTILINE) for name in METHODS)
    assert "the task that a question belongs to" in PerTaskLora.requirements() and "question belongs" in table


def test_train_prints_one_json_object_and_logs_elsewhere(finished):
    _, work, result = finished
    state = json.loads(result.stdout)
    assert (state["current"], state["pending"], state["workspace"]) == ("v2", [], str(work))
    assert "trainable parameters" in result.stderr and re.search(r"^ q +LoRA", result.stderr, re.M)
    assert "task two is saved as version v2" in result.stderr


def test_status_has_a_line_for_each_task_and_explains_the_numbers_when_asked(finished):
    path, work, result = finished
    state = json.loads(result.stdout)
    assert json.loads(gorp("status", work, "--json").stdout) == state
    text = gorp("status", work).stdout
    assert text == gorp("status", path).stdout
    R = state["matrix"]["R"]
    assert re.search(rf"^  one: {R[2][0]:.1f}, (lost|gained|unchanged)", text, re.M) and "two: " in text
    assert re.search(r"\* v2 +two", text) and "pending tasks: none" in text and "Leak covers only inputs in S" in text
    assert "AP = " not in text and "R[i, j]" not in text
    explained = gorp("status", path, "--explain").stdout
    assert "AP = " in explained and "R[i, j]" in explained and "capacity: share of the input space" in explained


def test_export_writes_a_folder_says_what_was_measured_and_replaces_it_only_with_force(finished, tmp_path):
    path, work, _ = finished
    out = tmp_path / "out"
    text = gorp("export", path, out, "--dry-run").stdout
    assert re.search(r"would write v2 to .*out: merged, float32, [\d.]+ kB", text) and not out.exists()
    done = gorp("export", work, out)
    assert done.exit_code == 0, done.stderr
    assert "every weight is equal bit for bit" in done.stdout and "served leak on one" in done.stdout
    assert f"written to {out}" in done.stdout and "writing the weights" in done.stderr
    again = gorp("export", work, out, "--to", "lora")
    assert again.exit_code == 2 and "Replace it with --force" in again.stderr
    facts = json.loads(gorp("export", work, out, "--to", "lora", "--version", "v1", "--force", "--json").stdout)
    assert (facts["form"], facts["version"], facts["folder"]) == ("lora", "v1", str(out))
    assert set(facts["files"]) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert gorp("export", work, work / "x").exit_code == 2
    assert gorp("export", work, out, "--version", "v9").exit_code == 2


def test_status_reads_the_current_yaml(finished, tmp_path):
    path, work = copied(finished, tmp_path)
    assert gorp("train", path).exit_code == 0  # trains nothing, but records in the copy where its YAML is
    write_config(tmp_path, tasks=[task("one"), task("two"), task("three")])
    for place in (path, work):
        assert "pending tasks: three" in gorp("status", place).stdout
    write_config(tmp_path, tasks=[task("two"), task("one")])
    text = gorp("status", path).stdout
    assert "pending tasks: none" in text and "does not begin with the learned tasks, one, two" in text
    path.write_text("tasks: [")
    text = gorp("status", path).stdout
    assert "pending tasks: none" in text and "the YAML is not used" in text and "not YAML" in text


def test_train_ends_with_a_line_for_each_task(finished, tmp_path):
    path, work = copied(finished, tmp_path)
    result = gorp("train", path)
    assert result.stdout.splitlines()[:1] == gorp("status", work).stdout.splitlines()[:1]
    assert {line.split(":")[0] for line in result.stdout.splitlines()[2:4]} == {"  one", "  two"}
    assert "\npending tasks: none\n" in result.stdout and "\n base " not in result.stdout
    assert result.stdout.splitlines()[-1] == f"`gorp status {work}` shows all scores and versions"


def test_eval_scores_one_version_and_task(finished):
    _, work, result = finished
    R = json.loads(result.stdout)["matrix"]["R"]
    scored = json.loads(gorp("eval", work, "--version", "v1", "--task", "two", "--json").stdout)
    assert scored["version"] == "v1" and scored["scores"]["two"]["score"] == R[1][1]
    assert gorp("eval", work, "--version", "v9").exit_code == 2


def test_a_dry_run_writes_nothing(tmp_path):
    path = make_project(tmp_path)
    before = tree_hash(tmp_path)
    result = gorp("train", path, "--dry-run", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "pending": ["one", "two"],
        "trainable": 19968 + 4 * 16,
        "parameters": 56448,
    }
    assert "trainable parameters" in result.stderr
    assert tree_hash(tmp_path) == before


def test_a_dry_run_refuses_an_optimizer_whose_moments_cannot_be_reset_at_a_refresh(tmp_path):
    path = make_project(
        tmp_path,
        method={"name": "gorp", "rank": 4, "moments": "reset"},
        training={"optim": "rmsprop", "per_device_train_batch_size": 4},
    )
    result = gorp("train", path, "--dry-run")
    assert result.exit_code == 2
    assert "torch's RMSprop has no bias correction" in " ".join(result.stderr.split())


def lines(*rows: str) -> str:
    return "".join(row + "\n" for row in rows)


GOOD = '{"text": "green", "label": "true"}'
TOO_LONG = lines(*[GOOD] * 3, GOOD.replace("true", "one two three four five six seven"))
FREE = {"labels": None, "metric": None, "eval": "one.jsonl"}

# fmt: off
BAD = {
    "unknown key": ({"traning": {}}, {}, 2, ["run.yaml: traning: unknown key", "Did you mean `training`?"]),
    "unknown method": ({"method": {"name": "grop"}}, {}, 2, ["unknown method `grop`", "Did you mean `gorp`?"]),
    "unknown mode": ({"method": {"name": "gorp", "mode": "exact"}}, {}, 2, ["method.mode is 'exact'"]),
    "two tasks of one name": ({"tasks": [task("one"), task("one")]}, {}, 2, ["two tasks are called `one` and `one`"]),
    "label outside the set": ({}, {"one.jsonl": lines(GOOD, GOOD.replace("true", "treu"))}, 1,
                              ["one.jsonl, line 2: label `treu`", "Did you mean `true`?"]),
    "empty file": ({}, {"two.jsonl": ""}, 1, ["two.jsonl"]),
    "empty line": ({}, {"two.jsonl": lines(GOOD, "", GOOD)}, 1, ["two.jsonl, line 2: empty"]),
    "malformed line": ({}, {"two_eval.jsonl": lines(GOOD, GOOD, "{")}, 1, ["two_eval.jsonl, line 3: not JSON"]),
    "completion too long": ({"tasks": [task("one", **FREE)]}, {"one.jsonl": TOO_LONG}, 1,
                            ["task one, row 3 (counted from 0) of the training rows", "max_completion_tokens = 8"]),
    "pattern matches nothing": ({"lora": {"target_modules": ["q_proj"]}}, {}, 1, ["`q_proj` matches no linear layer"]),
    "no such model": ({"model": {"path": "./modle"}}, {}, 1, ["modle: there is no such folder"]),
    "no such file": ({"tasks": [task("three")]}, {}, 1, ["three.jsonl"]),
    "wrong optimizer": ({"training": {"optim": "adamm"}}, {}, 2, ["training"]),
    "rate is no number": ({"training": {"learning_rate": float("nan")}}, {}, 2, ["training.learning_rate is nan"]),
    "empty batches": ({"training": {"per_device_train_batch_size": 0}}, {}, 2, ["per_device_train_batch_size is 0"]),
}
# fmt: on


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_changes_no_file(tmp_path, case):
    changes, files, code, messages = BAD[case]
    path = make_project(tmp_path, **changes)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    before = tree_hash(tmp_path)
    result = gorp("train", path)
    assert result.exit_code == code, result.output
    assert result.stdout == "" and "Traceback" not in result.stderr
    for message in messages:
        assert message in result.stderr
    assert tree_hash(tmp_path) == before


def copied(finished, folder: Path) -> tuple[Path, Path]:
    path, work, _ = finished
    shutil.copytree(path.parent, folder, dirs_exist_ok=True)
    return folder / path.name, folder / work.name


def assert_refused(path: Path, message: str, *, code: int = 1) -> None:
    before = tree_hash(path.parent)
    result = gorp("train", path)
    assert result.exit_code == code and message in result.stderr and result.stdout == ""
    assert tree_hash(path.parent) == before


@pytest.mark.parametrize("change", [{"side": "output"}, {"base_sha256": "c" * 64}])
def test_a_memory_of_another_side_or_model_is_refused(finished, tmp_path, change):
    path, work = copied(finished, tmp_path)
    folder = work / "versions/v2"
    tensors, header = read_tensors(folder / "memory.safetensors")
    write_tensors(folder / "memory.safetensors", tensors, header | change)
    record = json.loads((folder / "version.json").read_text())
    record["sha256"]["memory.safetensors"] = file_sha256(folder / "memory.safetensors")
    write_json(folder / "version.json", record)
    without_digests(work)
    assert_refused(path, "memory.safetensors: the protected subspace was computed for")


def test_a_workspace_of_another_model_is_refused(finished, tmp_path):
    path, _ = copied(finished, tmp_path)
    save_model(tmp_path / "model", seed=1)
    assert_refused(path, "belongs to another base model")


def test_a_damaged_version_is_refused_and_the_file_named(finished, tmp_path):
    path, work = copied(finished, tmp_path)
    delta = work / "versions/v1/delta.safetensors"
    delta.write_bytes(delta.read_bytes()[:-1] + b"\x00")
    assert_refused(path, str(delta))


def test_a_changed_configuration_is_refused_and_the_field_named(finished, tmp_path):
    copied(finished, tmp_path)
    assert_refused(
        write_config(tmp_path, seed=5), "seed is 5, but the learned tasks of this workspace were trained with 0", code=2
    )


def test_the_learning_rate_may_be_lowered_after_a_loss_that_is_not_finite(tmp_path):
    hopeless = {"per_device_train_batch_size": 4, "learning_rate": 1e30, "max_grad_norm": 0, "save_strategy": "no"}
    method = {"name": "sequential_full"}
    result = gorp("train", make_project(tmp_path, training=hopeless, method=method))
    assert result.exit_code == 1 and "Try a lower learning rate" in result.stderr
    path = write_config(tmp_path, training=hopeless | {"learning_rate": 1e-3}, method=method)
    result = gorp("train", path, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["current"] == "v2"


def test_eval_uses_the_current_yaml(finished, tmp_path):
    """The copied workspace records the path of the original YAML; `gorp train` records that of the copy."""
    copied(finished, tmp_path)
    path = write_config(tmp_path, eval={"max_new_tokens": 4, "limit": 2})
    assert gorp("train", path).exit_code == 0
    write_config(tmp_path, eval={"max_new_tokens": 4, "limit": 5})
    scored = json.loads(gorp("eval", tmp_path / "run", "--task", "two", "--json").stdout)
    assert scored["scores"]["two"]["rows"] == 5


def test_train_and_status_print_the_notes_on_the_data(tmp_path):
    path = make_project(tmp_path, tasks=[task("one", eval="one.jsonl", labels=None)])
    result = gorp("train", path)
    assert "2 notes on the data: see --explain" in gorp("status", tmp_path / "run").stdout
    for text in (result.stderr, gorp("status", tmp_path / "run", "--explain").stdout):
        assert "one: eval has the same rows as train: its score is a training score" in text
        assert "one: the label set was taken from train: false, true" in text


def test_a_loss_that_is_not_finite_exits_with_1_and_leaves_versions_alone(tmp_path):
    hopeless = {"per_device_train_batch_size": 4, "learning_rate": 1e30, "max_grad_norm": 0, "save_strategy": "no"}
    path = make_project(tmp_path, training=hopeless, method={"name": "sequential_full"})
    result = gorp("train", path)
    assert result.exit_code == 1 and "the loss is" in result.stderr and "Traceback" not in result.stderr
    assert_refused(path, "the loss is")
    assert json.loads(gorp("status", tmp_path / "run", "--json").stdout)["pending"] == ["one", "two"]


def test_no_workspace_exits_with_1(tmp_path):
    for command in ("status", "eval"):
        result = gorp(command, tmp_path)
        assert result.exit_code == 1 and "not a gorp workspace" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_message_for_a_missing_workspace_gives_a_command_to_type(tmp_path, monkeypatch):
    path = make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    for place, message in {
        path: f"`gorp train {path}` creates one",
        "run": "`gorp train run.yaml` creates it",
        ".": "`gorp train run.yaml` creates one",
        "one.jsonl": "one.jsonl: this is a file; wanted the folder of a workspace, or its YAML",
        "nowhere/at/all": "`gorp train CONFIG.yaml` creates one",
    }.items():
        for command in ("status", "eval"):
            result = gorp(command, place)
            assert result.exit_code == 1 and message in result.stderr, result.stderr
    for name in ("bot", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "CURRENT").touch()
    assert "Did you mean `bot`?" in gorp("status", "bto").stderr
    assert "Name one of the workspaces here: bot, other." in gorp("status").stderr


def test_a_workspace_that_is_a_file_exits_with_2(tmp_path):
    path = make_project(tmp_path)
    assert gorp("train", path, "--workspace", path).exit_code == 2


def wait_until(condition, process: subprocess.Popen) -> None:
    """Wait until `condition()` holds; `process` must not end before that."""
    limit = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.002)


@pytest.mark.parametrize("command", ["log", "diff", "gate", "report"])
def test_an_interruption_while_the_result_is_printed_is_said_too(finished, tmp_path, monkeypatch, command):
    path, *_ = finished
    monkeypatch.chdir(tmp_path)
    printed, echo = [], typer.echo

    def interrupted(*args, **options):
        if not printed:
            printed.append(args)
            raise Terminated
        echo(*args, **options)

    monkeypatch.setattr(typer, "echo", interrupted)
    done = gorp(command, path)
    assert (done.exit_code, done.stderr) == (143, "gorp: terminated.\n"), done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_was_interrupted_and_killed_ends_with_the_same_bits_as_an_unbroken_one(tmp_path):
    """SIGINT in the first task, SIGKILL in the second; the third run finishes."""
    training = {"per_device_train_batch_size": 2, "learning_rate": 5e-3, "save_steps": 2, "num_train_epochs": 16}
    path = make_project(tmp_path, training=training)
    whole = start("train", path, "--workspace", tmp_path / "whole", "--json")
    stdout, stderr = whole.communicate()
    assert whole.returncode == 0, stderr
    for name, number in (("one", signal.SIGINT), ("two", signal.SIGKILL)):
        process = start("train", path, "--workspace", tmp_path / "work")
        wait_until(lambda n=name: list((tmp_path / "work/run" / n).glob("checkpoint-*/complete.json")), process)
        os.kill(process.pid, number)
        error = process.communicate()[1]
        assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), error
        assert "Traceback" not in error
        if number == signal.SIGINT:
            left = re.search(
                r"interrupted\. Step (\d+) of 192 of task one is saved\. Run the same command to continue\.", error
            )
            assert left, error
        else:
            assert f"task one resumes from step {left[1]} of 192\n" in error
            assert "task two starts from the beginning: 192 steps\n" in error
    last = start("train", path, "--workspace", tmp_path / "work", "--json")
    again, stderr = last.communicate()
    assert last.returncode == 0, stderr
    for version in ("v1", "v2"):
        assert weights(tmp_path / "work", version) == weights(tmp_path / "whole", version)
        resumed = json.loads((tmp_path / f"work/versions/{version}/training.json").read_text())["resumed_at"]
        assert 0 < resumed < 192
    assert json.loads(again)["matrix"] == json.loads(stdout)["matrix"]


def test_sigterm_ends_scoring_cleanly_and_saves_the_running_step_of_training(tmp_path):
    """SIGTERM, as Slurm and Kubernetes send it: once during or just after scoring the base model, once in a task."""
    path = make_project(tmp_path, training={"per_device_train_batch_size": 2, "save_steps": 2, "num_train_epochs": 40})
    work = tmp_path / "work"
    for sign in ("eval/scores.json", "run/one/checkpoint-*/complete.json"):
        process = start("train", path, "--workspace", work)
        wait_until(lambda s=sign: list(work.glob(s)), process)
        process.terminate()
        error = process.communicate()[1]
        assert process.returncode == 143 and "Traceback" not in error, error
        assert re.search(r"gorp: terminated\..* Run the same command to continue\.", error), error
    assert re.search(r"terminated\. Step \d+ of 480 of task one is saved\.", error), error
    assert not list(work.rglob("*.tmp"))


def test_the_demo_ends_with_a_sentence_for_each_method(tmp_path, monkeypatch):
    found = {
        "sequential_lora": DemoResult(matrix=matrix(), seconds=1.0, samples=[]),
        "gorp": DemoResult(matrix=matrix(SECOND), seconds=2.0, samples=[]),
    }
    monkeypatch.setattr("gorp.demo.run_demo", lambda *_, **__: found)
    result = gorp("demo", "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-2:] == [
        "ordinary LoRA fine-tuning: lost 12.0 points on the earlier tasks; 68.7 % on average at the end.",
        "gorp: lost 5.0 points on the earlier tasks; 76.7 % on average at the end.",
    ]


def test_the_demo_prints_one_json_object_and_writes_a_page(tmp_path):
    save_model(tmp_path / "model")
    page = tmp_path / "page.html"
    options = ["--train-rows", 8, "--eval-rows", 2, "--epochs", 1, "--seed", 7, "--out", page]
    options += ["--picture", tmp_path / "picture.svg"]
    result = gorp("demo", "--model", tmp_path / "model", "--json", *options)
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    assert set(value) == {"gorp", "sequential_lora"}
    assert all(set(item) == {"matrix", "ap", "bwt", "la", "seconds"} for item in value.values())
    assert "seed 7" in result.stderr
    text = page.read_text()
    assert "ordinary LoRA fine-tuning" in text and 'http-equiv="refresh' not in text and "<script" not in text
    assert (tmp_path / "picture.svg").read_text().startswith("<svg ")


@pytest.mark.parametrize("option", ["--out", "--picture"])
def test_a_demo_whose_page_cannot_be_written_is_refused_before_training(tmp_path, option, monkeypatch):
    monkeypatch.setattr("gorp.demo.run_demo", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "file").touch()
    for place, message in (tmp_path, "Give the name of a file"), (tmp_path / "file/x", "is not a folder"):
        result = gorp("demo", option, place)
        assert result.exit_code == 2 and message in result.stderr


EVIL = "\x1b]0;PWNED\x07\x1b[2J\x9b31m\u202e\r"


def harmless(text: str) -> bool:
    return not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


@pytest.mark.parametrize("where", ["column", "label", "yaml", "folder"])
def test_error_messages_contain_no_terminal_control_characters(tmp_path, where):
    """Names and text from data, the YAML or a file name are quoted in an error message."""
    path = make_project(tmp_path)
    if where == "column":
        (tmp_path / "one.jsonl").write_text(json.dumps({EVIL: "x", "label": "true"}) + "\n")
    elif where == "label":
        (tmp_path / "one.jsonl").write_text(json.dumps({"text": "x", "label": EVIL}) + "\n")
    elif where == "yaml":
        path = write_config(tmp_path, **{EVIL: 1})
    else:
        path = path.rename(tmp_path / f"{EVIL}.yaml")
        (tmp_path / EVIL).mkdir()
        (tmp_path / EVIL / "mine").write_text("")
    result = gorp("train", path)
    assert result.exit_code in (1, 2) and "PWNED" in result.stderr and harmless(result.stderr), result.stderr


def test_json_output_escapes_control_characters():
    from gorp.printable import json_printable, printable

    text = json_printable(json.dumps({EVIL: "grün 中"}, ensure_ascii=False))
    assert harmless(text) and json.loads(text) == {EVIL: "grün 中"} and "grün 中" in text
    assert harmless(printable(EVIL + "\ud800\u2066")) and printable("tab\tline\nä") == "tab\tline\nä"


def test_an_empty_folder_name_is_refused(tmp_path, monkeypatch):
    """`--workspace "$UNSET"` must not mean the current folder."""
    path = make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = tree_hash(tmp_path)
    for arguments in (("train", path, "--workspace", ""), ("status", ""), ("eval", " ")):
        result = gorp(*arguments)
        assert result.exit_code == 2 and "is empty" in result.stderr
    assert tree_hash(tmp_path) == before


def test_a_folder_of_other_files_exits_with_2_and_stays_unchanged(tmp_path):
    path = make_project(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text('{"model_type": "llama"}')
    for extra in ([], ["--dry-run"], ["--workspace", tmp_path / "model"], ["--workspace", path / "x"]):
        before = tree_hash(tmp_path)
        result = gorp("train", path, *extra)
        assert result.exit_code == 2 and "--workspace" in result.stderr and "Traceback" not in result.stderr
        assert tree_hash(tmp_path) == before


def test_a_full_disk_exits_with_1_and_a_short_message(tmp_path, monkeypatch):
    from gorp import storage

    path = make_project(tmp_path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "fsync", full)
        result = gorp("train", path)
    assert result.exit_code == 1 and "No space left on device (disk /" in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and gorp("train", path, "--json").exit_code == 0


def test_a_second_writer_is_refused_and_told_the_process_of_the_first(tmp_path):
    path = make_project(tmp_path)
    code = "import pathlib, sys\nfrom gorp.workspace.mark import writing\nwith writing(pathlib.Path(sys.argv[1])):\n"
    code += "    print('held', flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        result = gorp("train", path)
        assert result.exit_code == 1 and f"another gorp process writes there (process {holder.pid} on " in result.stderr
        holder.stdin.close()
    assert not (tmp_path / "run").exists()
