"""Split a text into sentences of words for the checker."""

import re
from typing import NamedTuple

# A sentence ends with . ! or ? and an optional quotation mark, before white space or the end.
_SENTENCE = re.compile(r'.+?(?:[.!?]+"?(?=\s|$)|$)', re.DOTALL)
_TOKEN = re.compile(r"[A-Za-z]+(?:'(?!s\b)[a-z]+)?|'s\b|\"|[,;:.!?]")
_TYPOGRAPHIC = str.maketrans({"\u201c": '"', "\u201d": '"', "\u2019": "'", "\u2018": "'"})


class Word(NamedTuple):
    text: str
    lower: str
    spoken: bool  # inside quotation marks
    possessive: bool  # whether 's follows
    break_before: str  # the punctuation after the word before, such as "," or '."'


class Sentence(NamedTuple):
    text: str
    words: tuple[Word, ...]
    narrated: str  # the words outside quotation marks, in lower case
    paragraph: int


def plain(text: str) -> str:
    """Replace typographic quotation marks by straight ones."""
    return text.translate(_TYPOGRAPHIC)


def sentences(text: str) -> list[Sentence]:
    """The sentences in order. Each paragraph (a line) begins outside quotation marks."""
    found = []
    for number, paragraph in enumerate(line for line in text.split("\n") if line.strip()):
        spoken = False
        for piece in _pieces(paragraph):
            if piece:
                words, spoken = _words(piece, spoken)
                narrated = " ".join(word.lower for word in words if not word.spoken)
                found.append(Sentence(piece, words, narrated, number))
    return found


def _pieces(paragraph):
    """The sentences of a paragraph as text. '"Where is it?" asked Tom.' is one sentence."""
    pieces = []
    for match in _SENTENCE.finditer(paragraph):
        piece = match[0].strip()
        if pieces and piece[:1].islower() and pieces[-1].endswith('"'):
            pieces[-1] += " " + piece
        else:
            pieces.append(piece)
    return pieces


def _words(text, spoken):
    """The words of a sentence, and whether a quotation is still open at its end."""
    words, between = [], ""
    for token in _TOKEN.findall(text):
        if token == '"':
            spoken = not spoken
            between += token
        elif token == "'s":
            if words:
                words[-1] = words[-1]._replace(possessive=True)
        elif token[0].isalpha():
            words.append(Word(token, token.lower(), spoken, False, between))
            between = ""
        else:
            between += token
    return tuple(words), spoken


def in_lower_case(sentence: Sentence) -> str:
    """The words of a sentence, spoken ones too, without punctuation."""
    return " ".join(word.lower for word in sentence.words)
