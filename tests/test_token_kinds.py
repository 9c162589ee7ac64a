"""Which kind a token is, and that every id of a vocabulary has one."""

import pytest
import torch

from architecture.tokenizer import get_tokenizer
from training.monitor.token_kinds import FUNCTION_WORDS, KINDS, VERBS, kind_of, token_kinds


@pytest.mark.parametrize(
    "token, kind",
    [
        (" the", "function word"), (" The", "function word"), ("The", "function word"), (" went", "verb"),
        (" jumped", "verb"), (" hopped", "verb"), (" cries", "verb"), (" smiling", "verb"), (" Lily", "name"),
        ("Lily", "name"), (" kite", "other word"), (" happy", "other word"), ("ing", "word piece"),
        ("ter", "word piece"), (" s", "word piece"), (".", "punctuation"), (' "', "punctuation"),
        ("\n", "line break"), (" ", "punctuation"), ("7", "number"), (" 12", "number"), (".\n", "punctuation"),
    ],
)  # fmt: skip
def test_a_token_is_of_its_kind(token, kind):
    assert kind_of(token.encode()) == kind


def test_half_a_character_is_a_word_piece():
    assert kind_of("\u00e9".encode()[:1]) == "word piece"


def test_every_id_of_a_vocabulary_has_one_kind_and_padding_is_a_word_piece():
    tokenizer = get_tokenizer("stories4k")
    kinds = token_kinds(tokenizer, tokenizer.n_vocab + 3)
    assert kinds.shape == (tokenizer.n_vocab + 3,) and kinds.dtype == torch.int64
    assert set(kinds.tolist()) == set(range(len(KINDS)))
    assert (kinds == KINDS.index("end of text")).nonzero().tolist() == [[tokenizer.eot_token]]
    assert kinds[-3:].tolist() == [KINDS.index("word piece")] * 3


def test_the_lists_do_not_overlap():
    assert not FUNCTION_WORDS & VERBS, sorted(FUNCTION_WORDS & VERBS)
