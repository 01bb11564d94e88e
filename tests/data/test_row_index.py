"""Findings from hashes equal those from the texts, in one part and in many."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gorp.data import row_index
from gorp.data.row_index import RowIndex, normal, text_hash
from gorp.data.sample import LONGEST, Sample
from gorp.data.split import dev_indices, row_hash


ROWS = st.lists(st.tuples(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), st.sampled_from("xyz")), max_size=60)


@pytest.fixture(params=[row_index.PART, 7], ids=["one part", "many parts"])
def part(request, monkeypatch):
    monkeypatch.setattr(row_index, "PART", request.param)
    monkeypatch.setattr(row_index, "BLOCK", 4)


def asked(rows, question, seed: int = 0):
    """Return `question(index)` for an index of `rows`, whose lines are counted from 1."""
    with RowIndex() as index:
        for number, (prompt, answer) in enumerate(rows, 1):
            index.add(text_hash(prompt), text_hash(answer), int(row_hash(seed, prompt, answer)[:16], 16), number)
        return question(index)


def test_rows_are_found_in_the_order_of_their_lines(part):
    rows = [("a", "x"), ("b", "y"), ("a", "x"), ("c", "x"), ("b", "z"), ("a", "x")]
    assert asked(rows, RowIndex.repeats) == {
        "duplicates": {"count": 2, "lines": [(3, 1), (6, 1)]},
        "conflicts": {"count": 1, "lines": [(2, 5)]},
    }


@given(rows=ROWS)
def test_duplicates_and_conflicts_are_those_of_the_texts(rows):
    for size in (row_index.PART, 5):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(row_index, "PART", size)
            patch.setattr(row_index, "EXAMPLES", 1000)
            found = asked(rows, RowIndex.repeats)
        first, pairs, answers = {}, [], defaultdict(dict)
        for number, row in enumerate(rows, 1):
            if row in first:
                pairs.append((number, first[row]))
            first.setdefault(row, number)
            answers[row[0]].setdefault(row[1], number)
        groups = sorted(tuple(sorted(of.values())) for of in answers.values() if len(of) > 1)
        assert found["duplicates"] == {"count": len(pairs), "lines": pairs}
        assert found["conflicts"]["count"] == len(groups)
        assert sorted(found["conflicts"]["lines"]) == groups  # at most three answers here


@given(rows=ROWS, wanted=st.integers(0, 12), seed=st.integers(0, 2))
def test_the_rows_of_the_split_are_those_that_the_texts_give(rows, wanted, seed):
    times = Counter(prompt for prompt, _ in rows)
    enough = sum(count == 1 for count in times.values()) >= min(wanted, len(rows) // 5)
    for size in (row_index.PART, 5):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(row_index, "PART", size)
            found = asked(rows, lambda index: index.drawn(wanted), seed)
        prompts, answers = [prompt for prompt, _ in rows], [answer for _, answer in rows]
        slow = sorted(index + 1 for index in dev_indices(prompts, answers, wanted, seed))
        assert found == (slow if enough else None)


@given(answers=st.lists(st.sampled_from(["x", "y", "z", "once", "more"]), min_size=10, max_size=80))
def test_free_text_and_labels_are_drawn_in_proportion_as_in_the_split(answers):
    rows = [(f"prompt {n}", f"{answer} {n}" if answer == "once" else answer) for n, answer in enumerate(answers)]
    slow = dev_indices([prompt for prompt, _ in rows], [answer for _, answer in rows], 1000, 0)
    assert asked(rows, lambda index: index.drawn(1000)) == sorted(index + 1 for index in slow)


def test_blanks_and_composed_letters_do_not_hide_a_copy():
    assert normal("Cafe\u0301  au\tlait\n") == normal("Caf\u00e9 au lait") == "Caf\u00e9 au lait"
    assert normal("Lait") != normal("lait")


def test_a_sample_has_every_row_if_they_fit_and_otherwise_some_and_the_longest():
    small, large = Sample(most_rows=50), Sample(most_rows=50)
    for number in range(1000):
        if number < 50:
            small.offer(number, 1, 1)
        large.offer(number, 100 if number == 777 else 1, 1)
    assert small.complete and small.rows() == list(range(50))
    assert not large.complete and large.drawn == 50 and 777 in large.rows()
    assert len(large.rows()) <= 50 + 2 * LONGEST and large.rows() == sorted(large.rows())


def test_every_row_has_the_same_chance_and_characters_are_limited():
    chosen = Counter()
    for shift in range(400):
        sample = Sample(most_rows=1000, most_characters=40)
        for number in range(20):
            sample.offer((number + shift) % 20, 2, 2)
        assert sample.drawn == 10
        chosen.update(row for _, _, row, _ in sample._kept)
    assert set(chosen.values()) == {200}  # the same draw for the same place, and each row was once in each place
