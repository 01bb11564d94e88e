"""Splits are deterministic, independent of the order of the lines, stratified, and disjoint."""

from collections import Counter

from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from gorp.data.split import conflicts, cut_dev, draw_balanced, draw_stratified, overlap, same_rows


ROWS = st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["yes", "no", "maybe"])), min_size=1, max_size=60)


def table(rows: list[tuple[object, str]]) -> Dataset:
    return Dataset.from_dict(
        {"prompt": [str(prompt) for prompt, _ in rows], "completion": [label for _, label in rows]}
    )


def rows_of(dataset: Dataset | None) -> Counter[tuple[str, str]]:
    return Counter() if dataset is None else Counter(zip(dataset["prompt"], dataset["completion"], strict=True))


@settings(max_examples=40)
@given(rows=ROWS, wanted=st.integers(0, 40), shuffle=st.randoms(use_true_random=False))
def test_a_split_is_a_partition_without_shared_prompts_for_any_order_of_rows(rows, wanted, shuffle):
    rest, dev = cut_dev(table(rows), wanted, seed=3)
    assert rows_of(rest) + rows_of(dev) == rows_of(table(rows))
    assert sum(rows_of(dev).values()) <= min(wanted, len(rows) // 5)
    if dev is not None:
        assert overlap(rest, dev) == 0
    shuffled = list(rows)
    shuffle.shuffle(shuffled)
    other_rest, other_dev = cut_dev(table(shuffled), wanted, seed=3)
    assert (rows_of(other_rest), rows_of(other_dev)) == (rows_of(rest), rows_of(dev))


@settings(max_examples=40)
@given(sizes=st.tuples(*[st.integers(2, 40)] * 3), part=st.integers(1, 100))
def test_each_completion_gets_its_rounded_share(sizes, part):
    data = table([(f"{label}{i}", label) for label, size in zip("abc", sizes, strict=True) for i in range(size)])
    wanted = max(1, len(data) * part // 100)
    drawn = Counter(data.select(draw_stratified(data, wanted, seed=0))["completion"])
    assert sum(drawn.values()) == wanted
    for label, size in zip("abc", sizes, strict=True):
        assert abs(drawn[label] - wanted * size / len(data)) <= 1


@settings(max_examples=40)
@given(sizes=st.tuples(*[st.integers(0, 20)] * 3), wanted=st.integers(0, 70))
def test_a_balanced_draw_has_equal_counts_unless_a_label_runs_out_of_rows(sizes, wanted):
    pairs = [(f"{label}{i}", label) for label, size in zip("abc", sizes, strict=True) for i in range(size)]
    data = table([*pairs, ("outsider", "-")])
    drawn = Counter(data.select(draw_balanced(data, wanted, labels=("a", "b", "c"), seed=0))["completion"])
    assert "-" not in drawn
    assert sum(drawn.values()) == min(wanted, sum(sizes))
    most = max(drawn.values(), default=0)
    for label, size in zip("abc", sizes, strict=True):
        assert drawn[label] >= most - 1 or drawn[label] == size


def test_a_larger_draw_contains_the_smaller_one():
    data = table([(i, "ab"[i % 2]) for i in range(50)])
    draws = [set(draw_stratified(data, rows, seed=1)) for rows in (4, 8, 30)]
    assert draws[0] < draws[1] < draws[2]


def test_another_seed_draws_other_rows():
    data = table([(i, "ab"[i % 2]) for i in range(200)])
    assert draw_stratified(data, 20, seed=0) != draw_stratified(data, 20, seed=1)


def test_free_text_and_a_frequent_answer_keep_their_shares():
    data = table([(i, "yes" if i % 2 else f"a sentence of its own {i}") for i in range(400)])
    drawn = data.select(draw_stratified(data, 40, seed=0))["completion"]
    assert list(drawn).count("yes") == 20


def test_the_only_row_of_a_label_stays_in_train():
    data = table([(i, "common") for i in range(99)] + [(99, "rare")])
    for seed in range(20):
        _, dev = cut_dev(data, 20, seed)
        assert "rare" not in list(dev["completion"])


def test_train_keeps_at_least_four_fifths():
    rest, dev = cut_dev(table([(i, "ab"[i % 2]) for i in range(50)]), 200, seed=0)
    assert (len(rest), len(dev)) == (40, 10)
    assert cut_dev(table([(i, "a") for i in range(4)]), 200, seed=0)[1] is None


def test_prompts_that_occur_once_are_drawn_first():
    pairs = [(f"single {i}", "ab"[i % 2]) for i in range(10)] + [(f"many {i % 10}", "ab"[i % 2]) for i in range(40)]
    _, few = cut_dev(table(pairs), 6, seed=0)
    assert {prompt.split()[0] for prompt in few["prompt"]} == {"single"}
    rest, dev = cut_dev(table(pairs + pairs), 20, seed=0)  # now every prompt occurs several times
    assert (len(rest), len(dev), overlap(rest, dev)) == (80, 20, 0)
    _, mixed = cut_dev(table(pairs + pairs[10:]), 18, seed=0)  # 10 alone, 10 with eight copies
    assert Counter(prompt.split()[0] for prompt in mixed["prompt"]) == {"single": 10, "many": 8}


def test_repeated_prompts_are_drawn_stratified_by_completion():
    data = table([(f"{answer}{i}", answer) for answer in "ab" for i in range(20) for _ in range(3)])
    _, dev = cut_dev(data, 24, seed=0)
    assert Counter(dev["completion"]) == {"a": 12, "b": 12}


def test_overlap_conflicts_and_same_rows_count_as_by_hand():
    train = table([("p", "a"), ("p", "b"), ("q", "a"), ("q", "a"), ("r", "a")])
    evaluation = table([("p", "a"), ("p", "a"), ("s", "a")])
    assert overlap(train, evaluation) == 2  # the two rows "p"
    assert conflicts(train) == 1  # only "p" has two answers
    assert same_rows(train, train.select([4, 3, 2, 1, 0]))
    assert not same_rows(train, train.select([0, 0, 2, 3, 4]))
    assert not same_rows(train, evaluation)
