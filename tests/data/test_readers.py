"""An entry of the configuration becomes a task, for every format and source; invalid entries are refused."""

import json

import datasets
import pytest
from pyarrow import parquet

from gorp.data import TaskSpec, load_task
from gorp.errors import ConfigError, DataError
from tests.tokenizers_small import llama_tokenizer, t5_tokenizer


REVIEWS = [{"text": f"review {i}", "label": ("good", "bad")[i % 2], "stars": "five"} for i in range(20)]
CHAT = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"Question {i}?"},
            {"role": "assistant", "content": f"Answer {i}."},
        ]
    }
    for i in range(10)
]


def write(path, rows: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def reviews(tmp_path) -> str:
    return write(tmp_path / "reviews.jsonl", REVIEWS)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> str:
    """A folder as `datasets.load_dataset` reads it, with the cache in the test's own folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "set" / "train.jsonl", REVIEWS)
    write(tmp_path / "set" / "test.jsonl", [{"text": "unseen", "label": "bad", "stars": "one"}])
    return str(tmp_path / "set")


def test_rows_of_prompt_and_completion_are_read(tmp_path):
    rows = [{"prompt": f"p{i}", "completion": f"c{i}", "extra": i} for i in range(10)]
    train, test = write(tmp_path / "train.jsonl", rows), write(tmp_path / "test.jsonl", rows[:1])
    task = load_task(TaskSpec(name="t", train=train, eval=test, dev_rows=0))
    assert task.train[3] == {"prompt": "p3", "completion": "c3"}
    assert (len(task.train), task.dev, len(task.eval), task.labels) == (10, None, 1, None)
    assert (task.metric, task.source) == ("exact_match", train)
    assert task.notes == ("1 of 1 eval prompts also occur in train",)


def test_rows_of_text_and_label_are_read(reviews):
    task = load_task(TaskSpec(name="t", train=reviews, labels=["good", "bad"], dev_rows=4))
    assert task.labels == ("good", "bad")
    assert (len(task.train), len(task.dev), len(task.eval)) == (13, 3, 4)
    assert "Option: good, bad\nreview 0\nAnswer:" in {*task.train["prompt"], *task.dev["prompt"], *task.eval["prompt"]}
    inferred = load_task(TaskSpec(name="t", train=reviews, metric="label_ranking"))
    assert inferred.labels == ("bad", "good")
    assert inferred.notes[0] == "the label set was taken from train: bad, good"


def test_a_note_names_twelve_labels_and_the_total(tmp_path):
    rows = [{"text": f"x{i}", "label": f"l{i:02}"} for i in range(15)]
    task = load_task(TaskSpec(name="t", train=write(tmp_path / "train.jsonl", rows), dev_rows=0))
    named = ", ".join(f"l{i:02}" for i in range(12))
    assert task.notes[0] == f"the label set was taken from train: {named}, … (15 in total)"
    assert len(task.labels) == 15


def test_a_template_may_name_columns_and_labels(reviews):
    template = "{{{labels}}} {stars}: {text} ="
    task = load_task(TaskSpec(name="t", train=reviews, template=template, dev_rows=0))
    assert task.eval["prompt"][0].startswith("{bad, good} five: review ")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{text", "expected '}'"),
        ("{text.__class__}", "not a column name"),
        ("{}", "not a column name"),
        ("{text!r}", "not a column name"),
        ("{text:>9}", "not a column name"),
    ],
)
def test_braces_of_a_template_hold_plain_names_only(template, message):
    with pytest.raises(ConfigError, match=message):
        TaskSpec(name="t", train="x.jsonl", template=template)


def test_a_template_without_columns_or_with_a_missing_one_is_refused(reviews):
    with pytest.raises(ConfigError, match="names no column"):
        load_task(TaskSpec(name="t", train=reviews, template="{labels}?"))
    with pytest.raises(DataError, match=r"line 1: no column `title`; found: text, label, stars"):
        load_task(TaskSpec(name="t", train=reviews, template="{title}"))


def test_columns_are_renamed(tmp_path):
    rows = [{"review": row["text"], "label": 7, "verdict": row["label"]} for row in REVIEWS]
    train = write(tmp_path / "train.jsonl", rows)
    task = load_task(TaskSpec(name="t", train=train, columns={"review": "text", "verdict": "label"}))
    assert task.labels == ("bad", "good")
    with pytest.raises(
        DataError, match=r"`columns` renames `reviews`.* found: review, label, verdict\. Did you mean `review`\?"
    ):
        load_task(TaskSpec(name="t", train=train, columns={"reviews": "text"}))


def test_messages_go_through_the_chat_template(tmp_path):
    train = write(tmp_path / "chat.jsonl", CHAT)
    task = load_task(TaskSpec(name="t", train=train, dev_rows=0), tokenizer=llama_tokenizer())
    pairs = dict(zip(task.train["prompt"], task.train["completion"], strict=True))
    pairs |= dict(zip(task.eval["prompt"], task.eval["completion"], strict=True))
    assert pairs["<|system|>\nBe brief.\n<|user|>\nQuestion 4?\n<|assistant|>\n"] == "Answer 4."
    with pytest.raises(DataError, match=r"line 1: .* the model's tokenizer has no chat template"):
        load_task(TaskSpec(name="t", train=train), tokenizer=t5_tokenizer())
    with pytest.raises(DataError, match="no tokenizer was given"):
        load_task(TaskSpec(name="t", train=train))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "non-empty list"),
        ([], "non-empty list"),
        (["hello"], "turn 1 of `messages` is text; wanted an object"),
        ([{"role": "user", "content": "hi"}], "is by `user`"),
        ([{"role": "assistant", "content": "hi"}], "only the answer"),
        ([{"role": "user"}, {"role": "assistant", "content": "x"}], "turn 1 of `messages`: no column `content`"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": None}], "turn 2 .* `content` is null"),
    ],
)
def test_the_error_names_the_line_of_invalid_messages(tmp_path, messages, message):
    train = write(tmp_path / "chat.jsonl", [*CHAT, {"messages": messages}])
    with pytest.raises(DataError, match=r"chat\.jsonl, line 11.*" + message):
        load_task(TaskSpec(name="t", train=train), tokenizer=llama_tokenizer())


def test_the_error_of_a_chat_template_is_quoted(tmp_path):
    tokenizer = llama_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"line 1: .* refused `messages`: roles must alternate"):
        load_task(TaskSpec(name="t", train=write(tmp_path / "chat.jsonl", CHAT)), tokenizer=tokenizer)


def test_a_label_outside_the_set_is_refused(tmp_path, reviews):
    with pytest.raises(
        DataError, match=r"reviews\.jsonl, line 2: label `bad` is not one of the task's labels: good, badly\. "
    ):
        load_task(TaskSpec(name="t", train=reviews, labels=["good", "badly"]))
    stray = write(tmp_path / "stray.jsonl", [{"text": "x", "label": "godo"}])
    with pytest.raises(DataError, match=r"stray\.jsonl, line 1: label `godo` .*Did you mean `good`\?"):
        load_task(TaskSpec(name="t", train=reviews, eval=stray))


def test_unknown_columns_are_refused_and_listed(tmp_path):
    train = write(tmp_path / "odd.jsonl", [{"question": "x", "answer": "y"}])
    with pytest.raises(DataError, match=r"odd\.jsonl, line 1: the columns question, answer fit no format"):
        load_task(TaskSpec(name="t", train=train))
    with pytest.raises(DataError, match="no column `prompt`; found: question, answer"):
        load_task(TaskSpec(name="t", train=train, format="prompt_completion"))
    later = write(tmp_path / "later.jsonl", [{"prompt": "x", "completion": "y"}, {"prompt": "x"}])
    with pytest.raises(DataError, match=r"later\.jsonl, line 2: no column `completion`; found: prompt"):
        load_task(TaskSpec(name="t", train=later))


def test_a_folder_goes_through_load_dataset(folder):
    task = load_task(TaskSpec(name="t", train=folder, eval_split="test"))
    assert (len(task.train), task.dev) == (20, None)
    assert task.eval["completion"][:] == ["bad"]
    assert task.eval["prompt"][:] == ["Option: bad, good\nunseen\nAnswer:"]
    assert task.source == folder
    swapped = load_task(
        TaskSpec(name="t", train=folder, split="test", eval=folder, eval_split="train", labels=["bad", "good"])
    )
    assert (len(swapped.train), len(swapped.eval), swapped.source) == (1, 20, f"{folder}[test]")


def test_files_of_a_folder_are_read_like_single_files(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.csv").write_text("text,label\n007,1\ntrue,0\n")
    (tmp_path / "set" / "test.csv").write_text("text,label\n2020-01-01,1\nx,\n")
    task = load_task(TaskSpec(name="t", train=str(tmp_path / "set"), eval=str(tmp_path / "set" / "train.csv")))
    assert (task.train["prompt"][0], task.labels) == ("Option: 0, 1\n007\nAnswer:", ("0", "1"))
    with pytest.raises(DataError, match=r"test\.csv, line 3: `label` is blank"):
        load_task(TaskSpec(name="t", train=str(tmp_path / "set"), eval_split="test"))


@pytest.mark.parametrize("outside", ["../secret.jsonl", "{root}/secret.jsonl", "https://example.org/x.jsonl"])
def test_a_folder_cannot_name_files_outside_it(folder, tmp_path, outside):
    write(tmp_path / "secret.jsonl", REVIEWS)
    named = outside.format(root=tmp_path)
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n- config_name: x\n  data_files: {named}\n---\n")
    with pytest.raises(DataError, match=r"names a file outside the folder: .*\.jsonl"):
        load_task(TaskSpec(name="t", train=folder))


def test_a_data_set_that_cannot_be_loaded_is_refused(folder):
    with pytest.raises(DataError, match="cannot load the split `validation`"):
        load_task(TaskSpec(name="t", train=folder, eval_split="validation"))
    with pytest.raises(DataError, match="no such file or folder, and not the id"):
        load_task(TaskSpec(name="t", train="data/reviews/2024"))


def test_label_numbers_become_label_names(tmp_path, monkeypatch):
    features = datasets.Features(text=datasets.Value("string"), kind=datasets.ClassLabel(names=["world", "sport"]))

    def load_dataset(path, name, *, split, keep_in_memory):
        assert (path, name, keep_in_memory) == ("someone/news", "plain", True)
        kinds = [0, 1, 1] if split == "train" else [-1]
        rows = {"text": [f"{split} {i}" for i in range(len(kinds))], "kind": kinds}
        return datasets.Dataset.from_dict(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    spec = {"name": "t", "train": "someone/news", "subset": "plain", "columns": {"kind": "label"}}
    task = load_task(TaskSpec(**spec, eval_split="train"))
    assert (task.labels, task.train["completion"][:]) == (("world", "sport"), ["world", "sport", "sport"])
    with pytest.raises(DataError, match=r"someone/news\[test\], row 0 .*label -1 has no name"):
        load_task(TaskSpec(**spec, eval_split="test"))


NEWS = {"text": [f"piece {i}" for i in range(9)], "label": [1, 0, 1] * 3}
TYPES = datasets.Features(
    text=datasets.Value("string"), label=datasets.ClassLabel(names=["world", "sport", "arts"])
)  # no row is about arts


@pytest.mark.parametrize(
    ("columns", "answer"), [({}, "label"), ({"label": "completion", "text": "prompt"}, "completion"),
                            ({"label": "intent", "text": "prompt"}, None)],
)  # fmt: skip
@pytest.mark.parametrize("name", ["set/train.parquet", "set", "hub"])
def test_declared_label_names_are_used_for_every_kind_of_source(tmp_path, monkeypatch, columns, answer, name):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = NEWS | ({} if answer else {"completion": ["yes"] * 9})
    types = datasets.Features(TYPES | ({} if answer else {"completion": datasets.Value("string")}))
    table = datasets.Dataset.from_dict(rows, features=types)
    (tmp_path / "set").mkdir()
    for shard in range(2):  # of nine rows, five and four
        part = "train.parquet" if name.endswith(".parquet") else f"train-{shard}-of-2.parquet"
        if not (tmp_path / "set" / part).exists():
            rows_of = table if part == "train.parquet" else table.shard(2, shard, contiguous=True)
            rows_of.to_parquet(tmp_path / "set" / part)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    train = "someone/news" if name == "hub" else str(tmp_path / name)
    task = load_task(TaskSpec(name="t", train=train, columns=columns))
    answers = sorted([*task.train["completion"], *task.eval["completion"]])
    assert answers == (["sport"] * 6 + ["world"] * 3 if answer else ["yes"] * 9)
    assert task.labels == (("world", "sport", "arts") if answer == "label" else None)
    assert any("`intent`" in note for note in task.notes) == (answer is None)


def test_different_or_unreadable_declared_labels_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    for shard, names in enumerate((["world", "sport"], ["sport", "world"])):
        types = datasets.Features(TYPES | {"label": datasets.ClassLabel(names=names)})
        table = datasets.Dataset.from_dict(NEWS, features=types)
        table.to_parquet(tmp_path / "set" / f"train-{shard}-of-2.parquet")
    with pytest.raises(
        DataError, match=r"train-1-of-2\.parquet: its labels differ from those of .*train-0-of-2\.parquet"
    ):
        load_task(TaskSpec(name="t", train=str(tmp_path / "set")))
    path = tmp_path / "odd.parquet"
    odd = table.data.table.replace_schema_metadata({"huggingface": '{"info": {"features": 3}}'})
    parquet.write_table(odd, path)
    with pytest.raises(DataError, match=r"odd\.parquet: its column types for `datasets` cannot be read"):
        load_task(TaskSpec(name="t", train=str(path)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset": "a"}, "`subset` is not used"),
        ({"split": "train"}, "`split` is not used"),
        ({"eval_split": "test"}, "`eval_split` is not used"),
        ({"task_name_in_prompt": True}, "`task_name_in_prompt` is not used for `text_label`"),
        ({"format": "prompt_completion", "template": "{text}"}, "`template` is not used for `prompt_completion`"),
        ({"format": "cl_benchmark", "labels": ["a"]}, "`labels` is not used for `cl_benchmark`"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(reviews, options, message):
    with pytest.raises(ConfigError, match=message):
        load_task(TaskSpec(name="t", train=reviews, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a/b"}, "becomes a file name"),
        ({"format": "prompt_completions"}, r"wanted one of auto, .* Did you mean `prompt_completion`\?"),
        ({"metric": "exact"}, r"metric `exact` is unknown; .* Did you mean `exact_match`\?"),
        ({"dev_rows": -1}, "dev_rows is -1; it must be at least 0"),
        ({"limit_train": 0}, "limit_train is 0; it must be at least 1"),
        ({"limit_eval": -5}, "limit_eval is -5"),
        ({"labels": []}, "at least one"),
        ({"labels": ["a", "a"]}, "no label twice"),
        ({"labels": ["a", " "]}, "is blank or not text"),
        ({"labels": [True, False]}, "label True is blank or not text. Write quotes"),
    ],
)
def test_an_invalid_spec_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TaskSpec(**({"name": "t", "train": "x.jsonl"} | options))


def test_label_ranking_without_labels_is_refused(tmp_path):
    train = write(tmp_path / "train.jsonl", [{"prompt": f"p{i}", "completion": "c"} for i in range(9)])
    with pytest.raises(ConfigError, match="ranks a closed label set"):
        load_task(TaskSpec(name="t", train=train, metric="label_ranking"))


def test_splits_do_not_depend_on_the_order_of_the_lines(tmp_path):
    first = load_task(TaskSpec(name="t", train=write(tmp_path / "a.jsonl", REVIEWS), limit_train=6, dev_rows=3))
    second = load_task(TaskSpec(name="t", train=write(tmp_path / "b.jsonl", REVIEWS[::-1]), limit_train=6, dev_rows=3))
    for part in ("train", "dev", "eval"):
        assert sorted(getattr(first, part)["prompt"]) == sorted(getattr(second, part)["prompt"])


def test_local_files_leave_no_cache_behind(reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    load_task(TaskSpec(name="t", train=reviews))
    assert [path.name for path in tmp_path.iterdir()] == ["reviews.jsonl"]
    assert load_task(TaskSpec(name="t", train=reviews)).train.cache_files == []
