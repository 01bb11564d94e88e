"""The guard text: every version is scored on it, the gate compares, and with a margin it decides."""

import json
import re
import shutil
from html import unescape

import numpy as np
import pytest

from gorp.doctor import check_workspace
from gorp.errors import CheckpointError, ConfigError, DataError
from gorp.evaluation.text_loss import TextLoss, text_losses
from gorp.report import page_markdown, render_page
from gorp.storage import file_sha256
from gorp.workspace import Workspace, load_config, plan, run_sequence, status, validate
from gorp.workspace import guard as guard_module
from gorp.workspace import prepare as prepare_module
from gorp.workspace.diff import diff
from gorp.workspace.evaluate import evaluate_version
from gorp.workspace.gate import gate
from gorp.workspace.gate_words import guard_warnings
from gorp.workspace.guard_values import LEAST, compare_guard, guard_path, read_guard_values, write_guard
from gorp.workspace.overview import overview
from gorp.workspace.page import headline, workspace_page
from gorp.workspace.promote import promote
from gorp.workspace.scores import Scores
from gorp.workspace.seal import SEAL, sealed
from gorp.workspace.verify import verify
from tests.command import gorp
from tests.workspace.planted import KEPT, plant
from tests.workspace.project import make_project, task, write_config, write_rows
from tests.workspace.test_held import QUICK, Said


TEXTS = [f"The early market number {i} opened late, and the world of sports is good." for i in range(24)]
GUARD = {"guard": "general.txt"}


def write_guard_text(folder, texts=TEXTS):
    (folder / "general.txt").write_text("\n\n".join(texts) + "\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """v1 learned one, v2 learned two; all answers are kept, and the losses on the guard text are the model's."""
    folder = tmp_path_factory.mktemp("guard")
    write_guard_text(folder)
    path, loaded, original = make_project(folder, gate=GUARD, **QUICK), [], prepare_module.load_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "load_model", lambda *args: loaded.append(1) or original(*args))
        plant(patch, lambda version, name: KEPT)
        run_sequence(load_config(path), folder / "run")
    assert len(loaded) == 1
    return folder


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "p")
    return tmp_path / "p/run"


def planted(run, rise, *, rows=40, tokens=50, spread=0.1, base=None):
    """Record losses: the newer version's are higher by `rise`, and by `spread` more or less from text to text.

    Those of v0 are lower by `base` than those of v1; without it v0 keeps losses that cannot be compared with these.
    """
    for version, more in (("v1", 0.0), ("v2", rise), *((("v0", -base),) if base is not None else ())):
        texts = [
            {"index": i, "tokens": tokens, "nll": 2.0 + i / rows + (more + spread * (-1) ** i if more else 0.0)}
            for i in range(rows)
        ]
        facts = {
            "key": "a" * 64,
            "conditions": "b" * 64,
            "sha256": file_sha256(run.parent / "general.txt"),
            "texts": texts,
        }
        write_guard(run / "eval", version, facts)


def set_gate(run, **block):
    write_config(run.parent, gate=block, **QUICK)


def test_each_version_has_the_loss_of_each_text_and_the_evidence_their_difference(run):
    values = {version: read_guard_values(run / "eval", version) for version in ("v0", "v1", "v2")}
    assert {len(each["texts"]) for each in values.values()} == {24}
    nll = {version: [text["nll"] for text in each["texts"]] for version, each in values.items()}
    assert nll["v0"] != nll["v1"] != nll["v2"]
    tokens = [text["tokens"] for text in values["v0"]["texts"]]
    facts = gate(run)["guard"]
    assert (facts["rows"], facts["tokens"]) == (24, sum(tokens))
    assert facts["new"] == pytest.approx(np.average(nll["v2"], weights=tokens))
    assert facts["difference"] == pytest.approx(facts["new"] - facts["old"])
    low, high = facts["interval"]
    assert low <= facts["lower"] <= facts["difference"] <= high
    assert (facts["margin"], facts["verdict"]) == (None, None)
    assert verify(run / "eval/gate/v2-v1.json")["guard"] == facts
    since_the_base_model = gate(run, against="v0", dry_run=True)["guard"]
    assert since_the_base_model["old"] == pytest.approx(np.average(nll["v0"], weights=tokens))


def test_the_recorded_loss_is_that_of_the_served_version(run):
    from gorp.workspace.evaluate import present_configuration
    from gorp.workspace.prepare import prepare
    from gorp.workspace.scoring import load_version

    store = Workspace(run)
    session = prepare(present_configuration(store, Said()), store, Said(), scored=["one"])
    load_version(session, store.version("v1"))
    with session.method.serving(session.model) as model:
        found = text_losses(model, session.tokenizer, TEXTS)
    recorded = read_guard_values(run / "eval", "v1")["texts"]
    assert [each.nll for each in found] == pytest.approx([each["nll"] for each in recorded], abs=1e-5)


def test_without_a_margin_a_rise_informs_and_with_one_it_holds(run):
    planted(run, 0.5)
    found = gate(run)
    assert found["verdict"] == "ship" and found["guard"]["difference"] == pytest.approx(0.5)
    for margin, verdict in ((0.1, "hold"), (0.4, "hold"), (0.499, "ship"), (0.6, "ship")):
        set_gate(run, **GUARD, guard_margin=margin)
        found = gate(run)
        assert found["guard"]["verdict"] == found["verdict"] == verdict
        assert (found["guard"]["lower"] > margin) == (verdict == "hold")
        assert found["tasks"]["one"]["verdict"] == "ship"
    # 40 differences of 0.5 ± 0.1: a mean's standard error is 0.1 / √40, and 5 % lie below 1.645 of them
    assert found["guard"]["lower"] == pytest.approx(0.5 - 1.645 * 0.1 / 40**0.5, abs=0.004)


def test_a_version_that_has_no_finite_loss_any_more_is_held(run):
    planted(run, 0.5)
    path = guard_path(run / "eval", "v2")
    values = {key: value for key, value in json.loads(path.read_text()).items() if key != SEAL}
    values["texts"][3]["nll"] = None
    write_guard(run / "eval", "v2", values)
    facts = compare_guard(run / "eval", "v1", "v2", 5.0)
    assert (facts["new"], facts["difference"], facts["verdict"]) == (None, None, "hold")
    assert "perplexity 12.0 -> not finite, no finite loss to compare" in gorp("gate", run).stdout


def test_the_command_line_shows_it_and_the_exit_code_is_the_verdict(run):
    planted(run, 0.5)
    done = gorp("gate", run)
    line = "guard text (40 texts, 2,000 tokens): perplexity 12.0 -> 19.8, +0.500 nats per token (95 % interval"
    assert done.exit_code == 0 and line in done.stdout and "; this does not decide" in done.stdout
    set_gate(run, **GUARD, guard_margin=0.2)
    done = gorp("gate", run)
    assert done.exit_code == 3 and "margin of 0.2, and not by chance" in " ".join(done.stdout.split())
    assert json.loads(gorp("gate", run, "--json").stdout)["guard"]["verdict"] == "hold"
    assert gorp("gate", run, "--verify").exit_code == 3
    set_gate(run)
    assert gate(run)["guard"] is None and "guard text" not in gorp("gate", run).stdout


def test_evidence_is_computed_again_from_the_losses_and_damage_is_found(run):
    planted(run, 0.5)
    set_gate(run, **GUARD, guard_margin=0.2)
    path = run / "eval/gate/v2-v1.json"
    found = gate(run)
    set_gate(run)  # the YAML does not matter for what was found then
    assert verify(path)["guard"] == found["guard"]
    kept = json.loads(path.read_text())
    del kept[SEAL]
    path.write_text(json.dumps(sealed(kept | {"guard": kept["guard"] | {"difference": 0.1}})))
    with pytest.raises(CheckpointError, match="`guard` is not what the files"):
        verify(path)
    path.write_text(json.dumps(sealed({key: value for key, value in kept.items() if key != "guard"})))
    with pytest.raises(CheckpointError, match="`verdict` is not what the files"):
        verify(path)
    gate(run)
    values = guard_path(run / "eval", "v2")
    values.write_text(values.read_text().replace('"nll": 2.6', '"nll": 2.1', 1))
    set_gate(run, **GUARD, guard_margin=0.2)
    with pytest.raises(CheckpointError, match=r"v2\.json: damaged or changed.*gorp eval --version v2"):
        gate(run)
    set_gate(run, **GUARD)  # it informs only: the verdict is possible without it
    assert gate(run)["guard"] is None and "damaged or changed" in gate(run)["notes"][0]
    assert [item.says for item in check_workspace(run) if "guard" in item.says] == gate(run)["notes"]


def test_a_version_that_was_not_scored_on_it_cannot_be_judged_by_it(run):
    guard_path(run / "eval", "v1").unlink()
    assert gate(run)["guard"] is None and "v1 was not scored on the guard text" in gate(run)["notes"][0]
    set_gate(run, **GUARD, guard_margin=0.2)
    with pytest.raises(CheckpointError, match=r"v1 was not scored on the guard text. `gorp eval --version v1`"):
        gate(run)
    for version in ("v1", "v2"):
        evaluate_version(run, version=version)
    assert gate(run)["guard"]["verdict"] in ("ship", "hold")


@pytest.mark.parametrize("version", ["v0", "v1", "v2"])
def test_a_file_of_losses_that_is_gone_is_named(run, version):
    path = guard_path(run / "eval", version)
    path.unlink()
    message = f"{path}: not there: {version} was not scored on the guard text"
    assert [message in item.says for item in check_workspace(run) if "guard" in item.says] == [True]
    old, new = ("v0", "v1") if version == "v0" else ("v1", "v2")
    assert message in diff(run, old, new)["guard_problem"]
    assert f"guard text: not compared: {message}" in " ".join(gorp("diff", run, old, new).output.split())


@pytest.mark.parametrize("damage", [lambda path: path.write_text(""), lambda path: path.unlink()])
def test_evidence_whose_losses_of_the_base_model_are_damaged_names_their_file(run, damage):
    values = {version: read_guard_values(run / "eval", version) for version in ("v0", "v1")}
    conditions = values["v1"]["conditions"]
    write_guard(
        run / "eval", "v0", {key: values["v0"][key] for key in ("key", "sha256", "texts")} | {"conditions": conditions}
    )
    assert gate(run)["guard_base"] is not None
    damage(path := guard_path(run / "eval", "v0"))
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: ")):
        verify(run / "eval/gate/v2-v1.json")


def test_without_a_guard_text_nothing_is_said_about_it(run):
    for version in ("v0", "v1", "v2"):
        guard_path(run / "eval", version).unlink()
    assert diff(run)["guard_problem"] is None and "guard" not in gorp("diff", run).output


def test_fewer_texts_than_may_decide_do_not_decide_though_they_were_scored_to_inform(run):
    planted(run, 0.5, rows=LEAST - 1)
    assert gate(run)["guard"]["rows"] == LEAST - 1
    set_gate(run, **GUARD, guard_margin=0.2)
    words = f"scored on {LEAST - 1} texts; wanted at least {LEAST}.*Remove the margin"
    with pytest.raises(CheckpointError, match=words):
        gate(run)
    assert overview(run)["gate"]["guard"]["rows"] == LEAST - 1  # it was judged when there was no margin
    Workspace(run).move(Workspace(run).version("v1"), event="rollback", before="v2")
    with pytest.raises(CheckpointError, match=words):
        promote(run)
    planted(run, 0.5, rows=LEAST)
    assert gate(run, version="v2")["guard"]["verdict"] == "hold"


def test_a_guard_file_that_changed_or_is_gone_is_named_beside_the_numbers_of_the_old_one(run):
    planted(run, 0.5)
    path = run.parent / "general.txt"
    before = file_sha256(path)
    assert gate(run)["notes"] == []
    write_guard_text(run.parent, TEXTS[:21])
    for margin in ({}, {"guard_margin": 9}):
        set_gate(run, **GUARD, **margin)
        (note,) = gate(run)["notes"]
        assert note.startswith(f"guard text: the numbers are of the text with the SHA-256 {before[:12]}…; {path} has")
    assert "has changed since" in " ".join(gorp("gate", run).stdout.split())
    path.unlink()
    assert gate(run)["notes"][0].endswith(f"{path} cannot be read")
    (run.parent / "run.yaml").unlink()  # the configuration of the last run names it, relative to the YAML
    assert gate(run)["notes"][0].endswith(f"{path} cannot be read")


def test_another_text_is_scored_by_all_versions_and_the_losses_moved_to_another_version_are_damaged(run, monkeypatch):
    plant(monkeypatch, lambda version, name: KEPT)
    write_guard_text(run.parent, TEXTS[:21])
    before = read_guard_values(run / "eval", "v1")
    run_sequence(load_config(run.parent / "run.yaml"), run)
    for version in ("v0", "v1", "v2"):
        now = read_guard_values(run / "eval", version)
        assert len(now["texts"]) == 21 and now["conditions"] != before["conditions"]
    shutil.copy(guard_path(run / "eval", "v1"), guard_path(run / "eval", "v2"))
    with pytest.raises(CheckpointError, match="damaged or changed"):
        read_guard_values(run / "eval", "v2")
    run_sequence(load_config(run.parent / "run.yaml"), run)
    assert read_guard_values(run / "eval", "v2")["texts"] == now["texts"]


def losing(monkeypatch, rises):
    """Let versions lose on the guard text: the loss of the n-th measurement is 2 nats and `rises[n]`."""
    count = iter(rises)

    def losses(model, tokenizer, texts, **_):
        rise = next(count)
        return [TextLoss(index=i, tokens=10, nll=2.0 + rise + 0.01 * (i % 3)) for i in range(len(texts))]

    monkeypatch.setattr(guard_module, "text_losses", losses)


def test_training_holds_a_version_that_lost_on_it_and_the_next_task_goes_on_without(tmp_path, monkeypatch):
    write_guard_text(tmp_path)
    tasks = [task("one"), task("two"), task("three")]
    path = make_project(tmp_path, tasks=tasks, gate=GUARD | {"guard_margin": 0.2}, **QUICK)
    write_rows(tmp_path / "three.jsonl", 3, 24)
    write_rows(tmp_path / "three_eval.jsonl", 3, 6)
    plant(monkeypatch, lambda version, name: KEPT)
    losing(monkeypatch, [0.0, 0.1, 0.5, 0.25])  # v0, v1, v2 (held), v3, which is trained from v1
    said = Said()
    held = run_sequence(load_config(path), tmp_path / "run", progress=said).held
    assert held is not None and held["new"]["version"] == "v2" and held["guard"]["verdict"] == "hold"
    assert held["tasks"]["one"]["verdict"] == "ship"
    assert [found["new"]["version"] for found in said.found] == ["v1", "v2"]  # the first task may lose here too
    assert said.found[0]["tasks"] == {} and said.found[0]["guard"]["difference"] == pytest.approx(0.1)
    assert "two: held, because v2 predicts the guard text worse; the current version is v1" in said.lines[-1]
    assert status(tmp_path / "run")["held"]["two"]["guard"] is True
    record = Workspace(tmp_path / "run").version("v2").record["gate"]
    assert record["guard"] == {"verdict": "hold", "margin": 0.2} and not record["accepted"]
    write_config(tmp_path, tasks=tasks, gate=GUARD | {"guard_margin": 9}, **QUICK)
    assert verify(tmp_path / "run/eval/gate/v2-v1.json")["verdict"] == "hold"
    assert run_sequence(load_config(path), tmp_path / "run").held is None
    assert Workspace(tmp_path / "run").current().name == "v3"


def test_a_removed_version_takes_its_losses_along(run):
    Scores(run / "eval").drop(["v1"])
    assert not guard_path(run / "eval", "v1").exists() and guard_path(run / "eval", "v2").exists()


@pytest.mark.parametrize(
    ("block", "content", "error", "message"),
    [
        ({"guard": "gone.txt"}, None, DataError, r"gate\.guard: .*gone\.txt: no such file"),
        (GUARD, "\n \n", DataError, r"gate\.guard: .*the file is empty"),
        (GUARD, b"\xff\xfe\x00a", DataError, r"gate\.guard: .*not UTF-8"),
        ({"guard": "general.jsonl"}, '{"prompt": "a"}\n', DataError, r"gate\.guard: .*no column `text`"),
        (GUARD | {"guard_margin": 0.1}, "one text\n\nanother one", ConfigError, f"2 texts; wanted at least {LEAST}"),
        ({"guard_margin": 0.1}, None, ConfigError, "there is no `gate.guard`"),
        ({"guard": " "}, None, ConfigError, "gate.guard is empty"),
        (GUARD | {"guard_margin": -1}, None, ConfigError, r"gate\.guard_margin is -1.*at least 0"),
        ({"guard": 3}, None, ConfigError, r"gate\.guard is 3"),
    ],
)
def test_a_guard_text_that_cannot_be_used_is_refused_before_training(tmp_path, block, content, error, message):
    path = make_project(tmp_path, gate=block, **QUICK)
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / block["guard"]).write_bytes(data)
    with pytest.raises(error, match=message):
        run_sequence(load_config(path), tmp_path / "run")
    with pytest.raises(error, match=message):
        plan(load_config(path), tmp_path / "run")
    assert validate(path)["problems"] and not (tmp_path / "run").exists()


def test_the_path_is_relative_to_the_yaml_and_the_project_may_move(run):
    config = load_config(run.parent / "run.yaml")
    assert config.gate.guard == str(run.parent / "general.txt")
    assert json.loads((run / "config.json").read_text())["config"]["gate"]["guard"] == "./general.txt"


def test_the_report_has_the_loss_of_each_version_and_one_sentence(run):
    planted(run, 0.5)
    gate(run)
    page = workspace_page(overview(run), "run")
    assert page.guard is not None and page.guard.lines == [["v1", "2.487", "12.0", "40"], ["v2", "2.987", "19.8", "40"]]
    assert page.judged is not None and "perplexity 12.0 -> 19.8" in page.judged.guard
    for text in (page_markdown(page), render_page(page)):
        assert "Guard text" in text and "19.8" in text and "this does not decide" in text
    set_gate(run, **GUARD, guard_margin=0.2)
    held = workspace_page(overview(run), "run")
    assert held.judged is not None and held.judged.verdict == "ship"  # as it was judged when it was trained


def test_the_report_compares_versions_on_a_text_that_was_named_after_they_were_trained(tmp_path, monkeypatch):
    path = make_project(tmp_path, gate={"enabled": True}, **QUICK)
    plant(monkeypatch, lambda version, name: KEPT)
    run_sequence(load_config(path), tmp_path / "run")
    assert overview(tmp_path / "run")["gate"]["guard"] is None
    write_guard_text(tmp_path)
    planted(tmp_path / "run", 0.5)
    write_config(tmp_path, gate=GUARD | {"guard_margin": 0.2}, **QUICK)
    found = overview(tmp_path / "run")["gate"]
    assert found["guard"]["difference"] == pytest.approx(0.5)
    assert (found["verdict"], found["guard"]["margin"], found["guard"]["verdict"]) == ("ship", None, None)
    write_config(tmp_path, gate={"guard_margin": 0.2}, **QUICK)  # not valid: as without a guard text
    assert overview(tmp_path / "run")["gate"]["guard"] is None


def test_a_headline_names_what_decided(run):
    planted(run, 0.5)
    set_gate(run, **GUARD, guard_margin=0.2)
    facts = overview(run) | {"gate": gate(run)}
    assert headline(facts) == "v2 predicts the guard text worse, by more than 0.2 nats per token, and not by chance."
    facts["gate"]["tasks"]["one"] |= {"verdict": "hold", "drop": 12.0}
    assert headline(facts).startswith("v2 lost 12.0 points on one and predicts the guard text worse, by more than 0.2")


def test_diff_compares_two_versions_on_it(run):
    planted(run, 0.5)
    found = diff(run)
    assert found["guard"]["difference"] == pytest.approx(0.5)
    assert "perplexity 12.0 -> 19.8, +0.500 nats per token" in " ".join(gorp("diff", run).stdout.split())
    assert diff(run, old="v0")["guard"] is None  # scored on the model's own losses, under other conditions


CLEARLY = "v2 predicts the guard text clearly worse than "


@pytest.mark.parametrize(
    ("rise", "base", "warning"),
    [
        (0.05, 0.02, None),
        (0.12, None, None),  # the interval begins at 0.09
        (0.5, None, "v1: perplexity 12.0 -> 19.8; `gate: {guard_margin: 0.1}` would hold it"),
        (
            0.5,
            0.5,
            "v1: perplexity 12.0 -> 19.8, and than v0: perplexity 7.3 -> 19.8; `gate: {guard_margin: 0.1}` would",
        ),
        (
            0.05,
            0.5,
            "v0: perplexity 7.3 -> 12.6; `gate: {guard_margin: 0.1}` holds a version whose own rise is clearly",
        ),
    ],
)
def test_a_clear_rise_without_a_margin_is_a_warning_everywhere(run, rise, base, warning):
    planted(run, rise, base=base)
    said = gorp("gate", run)
    page = workspace_page(overview(run), "run")
    places = [said.stdout, gorp("status", run).stdout, gorp("gate", run, "--verify").stdout, page_markdown(page)]
    places += [unescape(render_page(page)).partition("<h2")[0]]
    for text in places:
        plain = " ".join(text.replace("\\", "").split())
        assert (CLEARLY in plain) is (warning is not None)
        assert warning is None or CLEARLY + warning in plain
    assert sum(CLEARLY in line for line in [*page.notes, *page.warnings]) == (warning is not None)
    assert page.judged is not None and bool(page.judged.guard_since) == (base is not None)
    assert page.judged.guard_since in page_markdown(page).replace("\\", "")


def test_with_a_margin_that_did_not_hold_it_nobody_is_warned(run):
    planted(run, 0.5, base=0.5)
    set_gate(run, **GUARD, guard_margin=9)
    assert CLEARLY not in gorp("gate", run).stdout and status(run)["remarks"] == []


def test_a_version_that_has_no_finite_loss_any_more_and_few_texts_are_named_in_the_warning(run):
    planted(run, 0.5, rows=LEAST - 1)
    [line] = guard_warnings(gate(run))
    assert line.endswith(f"{{guard_margin: 0.1}}`, with at least {LEAST} texts, would hold it")
    planted(run, 0.5)
    path = guard_path(run / "eval", "v2")
    values = {key: value for key, value in read_guard_values(run / "eval", "v2").items() if key != SEAL}
    values["texts"][0]["nll"] = None
    write_guard(path.parent.parent, "v2", values)
    assert "perplexity 12.0 -> not finite" in guard_warnings(gate(run))[0]


def test_evidence_from_before_it_was_compared_with_the_base_model_is_still_verified(run):
    planted(run, 0.5, base=0.5)
    path = run / "eval/gate/v2-v1.json"
    assert gate(run)["guard_base"]["difference"] == pytest.approx(1.0)
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in (SEAL, "guard_base")}
    path.write_text(json.dumps(sealed(kept)))
    assert verify(path)["verdict"] == "ship" and len(guard_warnings(kept)) == 1


def test_training_prints_the_warning_below_a_verdict_of_ship(tmp_path, monkeypatch):
    write_guard_text(tmp_path)
    path = make_project(tmp_path, gate=GUARD, **QUICK)
    plant(monkeypatch, lambda version, name: KEPT)
    losing(monkeypatch, [0.0, 0.0, 0.5])
    done = gorp("train", path)
    assert done.exit_code == 0, done.output
    before, _, after = done.stderr.partition("v2 against v1: SHIP")
    assert CLEARLY + "v1: perplexity" in after and "clearly worse" not in before
    assert CLEARLY + "v1: perplexity" in done.stdout
