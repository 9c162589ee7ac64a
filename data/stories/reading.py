"""Text as the checker reads it: sentences of words, each word knowing whether it is spoken."""

import re
from typing import NamedTuple

# A sentence ends at . ! or ?, with the quotation mark behind it, before a blank or the end.
_SENTENCE = re.compile(r'.+?(?:[.!?]+"?(?=\s|$)|$)', re.DOTALL)
_TOKEN = re.compile(r"[A-Za-z]+(?:'(?!s\b)[a-z]+)?|'s\b|\"|[,;:.!?]")
_TYPOGRAPHIC = str.maketrans({"\u201c": '"', "\u201d": '"', "\u2019": "'", "\u2018": "'"})


class Word(NamedTuple):
    text: str
    lower: str
    spoken: bool  # inside quotation marks
    possessive: bool  # followed by 's
    break_before: str  # punctuation since the word before, such as "," or '."'


class Sentence(NamedTuple):
    text: str
    words: tuple[Word, ...]
    narrated: str  # what is not spoken, in lower case
    paragraph: int


def plain(text: str) -> str:
    """The text with straight quotation marks."""
    return text.translate(_TYPOGRAPHIC)


def sentences(text: str) -> list[Sentence]:
    """The sentences in order; a paragraph (line) starts outside quotation marks."""
    found = []
    for number, paragraph in enumerate(line for line in text.split("\n") if line.strip()):
        spoken = False
        for piece in _pieces(paragraph):
            if piece:
                words, narrated, spoken = _words(piece, spoken)
                found.append(Sentence(piece, words, narrated, number))
    return found


def _pieces(paragraph):
    """Sentences as text; `"Where is it?" asked Tom.` is one."""
    pieces = []
    for match in _SENTENCE.finditer(paragraph):
        piece = match[0].strip()
        if pieces and piece[:1].islower() and pieces[-1].endswith('"'):
            pieces[-1] += " " + piece
        else:
            pieces.append(piece)
    return pieces


def _words(text, spoken):
    words, narrated, between = [], [], ""
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
            if not spoken:
                narrated.append(token.lower())
        else:
            between += token
    return tuple(words), " ".join(narrated), spoken
