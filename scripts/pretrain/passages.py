"""What a document of the corpus is: an encyclopedia article, a dialogue, a page of the dictionary, or running text."""

import random
import re
from dataclasses import dataclass


KINDS = ("article", "dialogue", "dictionary", "story", "manual")
"""Kinds of text; a story is running text with speech in it, a manual is running text with code or lists."""

ENTRY = re.compile(r"^([a-z][a-z' -]{2,30}) \((noun|verb|adjective|adverb)\): ([^.:;]{8,120})", re.MULTILINE)
SENTENCE_END = re.compile(r"(?<=[.!?])[\"”']?\s+(?=[A-Z\"“'])")
WORD = re.compile(r"[A-Za-z][a-z]{4,14}")

COMMON = frozenset(
    "about above after again against along already although always among another around became because become "
    "been before began being below between both called could doing during each either enough every first found "
    "from further given going great have having here herself himself however including itself known large "
    "later little made many might more most much must near never nothing often once only other others "
    "ourselves over part perhaps quite rather said same second several shall should since small some something "
    "soon still such than that their them themselves then there therefore these they thing things think this "
    "those though three through time together toward towards under until upon used very well went were what "
    "when where which while whom whose will with within without would year years yourself".split()
)
"""Words that say nothing of what a text is about."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A document, or the beginning of one, taken apart."""

    kind: str
    """One of `KINDS`."""
    title: str
    """Title of an article, else empty."""
    sentences: tuple[str, ...]
    """Its sentences, or the turns of a dialogue."""
    entries: tuple[tuple[str, str, str], ...]
    """Word, word class and definition of every dictionary entry."""

    def words(self) -> list[str]:
        """Content words in order, with repetitions, lower-cased."""
        found = (word.lower() for sentence in self.sentences for word in WORD.findall(sentence))
        return [word for word in found if word not in COMMON]


def passage(document: str, draw: random.Random, most: int = 12) -> Passage | None:
    """Take a document apart.

    Args:
        document: Text of one document.
        draw: Source of randomness: a long document is entered at a random sentence.
        most: Sentences kept.

    Returns:
        The passage, or none when the document has fewer than three usable sentences and no entry.
    """
    entries = tuple(ENTRY.findall(document))
    if len(entries) > 3:
        return Passage(kind="dictionary", title="", sentences=tuple(document.split("\n")[:most]), entries=entries)
    if document.startswith("User:"):
        return Passage(kind="dialogue", title="", sentences=tuple(document.split("\n")[:most]), entries=())
    title, _, body = document.partition("\n\n")
    titled = 2 < len(title) < 60 and "\n" not in title and not title.endswith((".", ",", ";", "?", "!", '"'))
    text = body if titled else document
    flat = " ".join(text[:20000].split())
    sentences = [sentence for sentence in SENTENCE_END.split(flat) if 20 < len(sentence) < 220]
    if len(sentences) < 3:
        return None
    start = 0 if titled and draw.random() < 0.6 else draw.randrange(max(1, len(sentences) - most))
    return Passage(
        kind=_kind(text, titled),
        title=title if titled else "",
        sentences=tuple(sentences[start : start + most]),
        entries=(),
    )


def _kind(text: str, titled: bool) -> str:
    head = text[:3000]
    if head.count("`") + head.count("\n- ") + head.count("::") + head.count("()") > 6:
        return "manual"
    return "article" if titled else "story"
