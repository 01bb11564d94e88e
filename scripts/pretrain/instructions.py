"""Prompt and completion pairs made from the corpus itself: no task is borrowed from a benchmark.

A prompt reads like the ones the models are fine-tuned on: a question, `Option: a, b, c `, a text, `Answer:`. The
completion is one of the options, spelled as in the list. Every pair is true by construction.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from scripts.pretrain.passages import KINDS, Passage, passage


Pair = tuple[str, str]
Maker = Callable[[Passage, Passage, random.Random], Pair | None]

YES_NO = (("yes", "no"), ("Yes", "No"), ("right", "wrong"), ("correct", "incorrect"))
"""Ways to say yes and no."""


def ask(question: str, options: Iterable[str], text: str, answer: str, draw: random.Random) -> Pair:
    """Write a prompt with its options in random order.

    Args:
        question: What is asked, without line end.
        options: Possible answers.
        text: What it is asked about.
        answer: The right one.
        draw: Source of the order.

    Returns:
        Prompt and completion.
    """
    shuffled = list(dict.fromkeys(options))
    draw.shuffle(shuffled)
    hint = draw.choice((" Choose one from the option.", " Choose one of the options.", ""))
    return f"{question}{hint}\nOption: {', '.join(shuffled)} \n{text}\nAnswer:", answer


def _excerpt(source: Passage, draw: random.Random, most: int = 4) -> str:
    size = draw.randint(1, min(most, len(source.sentences)))
    start = draw.randrange(len(source.sentences) - size + 1)
    return ("\n" if source.kind == "dialogue" else " ").join(source.sentences[start : start + size])


def _verdict(question: str, text: str, true: bool, draw: random.Random) -> Pair:
    yes, no = draw.choice(YES_NO)
    return ask(question, (yes, no), text, yes if true else no, draw)


def kind_of_text(source: Passage, other: Passage, draw: random.Random) -> Pair:
    """Ask which kind of text an excerpt is."""
    return ask("What kind of text is the following?", KINDS, _excerpt(source, draw, 3), source.kind, draw)


def cloze(source: Passage, other: Passage, draw: random.Random) -> Pair | None:
    """Ask for the word left out of a sentence, among words of the same text."""
    words = list(dict.fromkeys(source.words()))
    sentence = draw.choice(source.sentences)
    inside = [word for word in words if sentence.count(f" {word} ") == 1]
    if not inside or len(words) < 8:
        return None
    answer = draw.choice(inside)
    wrong = draw.sample([word for word in words if word not in sentence], k=min(3, len(words) - len(inside)))
    return ask("Which word was left out?", [answer, *wrong], sentence.replace(f" {answer} ", " ____ "), answer, draw)


def title(source: Passage, other: Passage, draw: random.Random) -> Pair | None:
    """Ask for the title of an article, against the title of another."""
    if not (source.title and other.title) or "," in source.title + other.title:
        return None
    return ask(
        "What is the title of the following paragraph?",
        (source.title, other.title),
        _excerpt(source, draw),
        source.title,
        draw,
    )


def topic_word(source: Passage, other: Passage, draw: random.Random) -> Pair | None:
    """Ask which word a paragraph uses most, against words of other texts."""
    counts = Counter(source.words()).most_common(2)
    strange = [word for word in dict.fromkeys(other.words()) if word not in dict(Counter(source.words()))]
    if len(counts) < 2 or counts[0][1] < 3 or counts[0][1] == counts[1][1] or len(strange) < 3:
        return None
    answer = counts[0][0]
    text = " ".join(sentence for sentence in source.sentences if answer in sentence.lower())[:500]
    return ask("Which word is the following paragraph about?", [answer, *draw.sample(strange, 3)], text, answer, draw)


def follows(source: Passage, other: Passage, draw: random.Random) -> Pair:
    """Ask whether one sentence goes on from another."""
    at = draw.randrange(len(source.sentences) - 1)
    true = draw.random() < 0.5
    second = source.sentences[at + 1] if true else draw.choice(other.sentences)
    return _verdict(
        "Does the second sentence continue the first?", f"first: {source.sentences[at]}\nsecond: {second}", true, draw
    )


def order(source: Passage, other: Passage, draw: random.Random) -> Pair:
    """Ask which of two neighbouring sentences comes first."""
    at = draw.randrange(len(source.sentences) - 1)
    pair = source.sentences[at : at + 2]
    swapped = draw.random() < 0.5
    text = f"A: {pair[swapped]}\nB: {pair[not swapped]}"
    return ask("Which sentence comes first in the text?", ("A", "B"), text, "B" if swapped else "A", draw)


def stated(source: Passage, other: Passage, draw: random.Random) -> Pair | None:
    """Ask how a claim relates to a text: a sentence of it, one with a word changed, one from another text."""
    words = draw.sample(source.sentences[:5], k=min(3, len(source.sentences)))
    answer = draw.choice(("stated", "changed", "not mentioned"))
    claim = draw.choice(other.sentences) if answer == "not mentioned" else draw.choice(words)
    if answer == "changed":
        strange = [word for word in other.words() if word not in claim]
        inside = [word for word in dict.fromkeys(source.words()) if f" {word} " in claim]
        if not inside or not strange:
            return None
        claim = claim.replace(f" {draw.choice(inside)} ", f" {draw.choice(strange)} ", 1)
    text = f"text: {' '.join(words)}\nclaim: {claim}"
    return ask("How does the claim relate to the text?", ("stated", "changed", "not mentioned"), text, answer, draw)


def define(source: Passage, other: Passage, draw: random.Random) -> Pair | None:
    """Ask for the word of a definition, for its class, or whether word and definition belong together."""
    if len(source.entries) < 4:
        return None
    entry, *rest = draw.sample(source.entries, 4)
    word, word_class, meaning = entry
    form = draw.randrange(3)
    if form == 0:
        return ask("Which word has the following definition?", [word, *(one[0] for one in rest)], meaning, word, draw)
    if form == 1:
        return ask(
            "Of which class is the following word?",
            ("noun", "verb", "adjective", "adverb"),
            f"{word}: {meaning}",
            word_class,
            draw,
        )
    wrong = [one for one in rest if one[0] != word]
    true = draw.random() < 0.5 or not wrong
    text = f"word: {word}\nmeaning: {meaning if true else wrong[0][2]}"
    return _verdict("Is this the meaning of the word?", text, true, draw)


def go_on(source: Passage, other: Passage, draw: random.Random) -> Pair:
    """Give the first words of the next sentence, without options."""
    at = draw.randrange(len(source.sentences) - 1)
    return f"{source.sentences[at]}\nNext:", " ".join(source.sentences[at + 1].split()[:6])


MAKERS: tuple[tuple[Maker, int], ...] = (
    (kind_of_text, 2),
    (cloze, 4),
    (title, 3),
    (topic_word, 3),
    (follows, 3),
    (order, 1),
    (stated, 3),
    (go_on, 1),
)
"""Makers for any passage, with their weights; `define` serves the dictionary."""


def pairs(documents: Iterable[str], seed: int, per_document: int = 2, pool: int = 256) -> Iterator[Pair]:
    """Make pairs of documents.

    Args:
        documents: Texts of the corpus.
        seed: Seed of all choices.
        per_document: Attempts per document; a dictionary page gets four times as many.
        pool: Passages among which the other text of a pair is drawn.

    Yields:
        Prompt and completion.
    """
    draw = random.Random(seed)
    makers, weights = zip(*MAKERS, strict=True)
    waiting: list[Passage] = []
    for document in documents:
        if (source := passage(document, draw)) is None or len(source.sentences) < 3:
            continue
        waiting.append(source)
        if len(waiting) > pool:
            waiting.pop(draw.randrange(pool))
        for _ in range(4 * per_document if source.kind == "dictionary" else per_document):
            lexical = source.kind == "dictionary" and draw.random() < 0.8
            maker = define if lexical else draw.choices(makers, weights)[0]
            if len(waiting) > 1 and (pair := maker(source, draw.choice(waiting[:-1]), draw)):
                yield pair
