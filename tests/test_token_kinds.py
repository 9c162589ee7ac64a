"""Which kind a token is, and that every id of a vocabulary has one."""

import pytest
import torch

from architecture.tokenizer import get_tokenizer
from training.monitor.token_kinds import FUNCTION_WORDS, KINDS, VERBS, kind_of, token_kinds

TOKENS = {
    "function word": (" the", " The", "The"),
    "verb": (" went", " jumped", " hopped", " cries", " smiling"),
    "name": (" Lily", "Lily"),
    "other word": (" kite", " happy"),
    "word piece": ("ing", "ter", " s", b"\xc3"),  # the last is half of a character
    "punctuation": (".", ' "', " ", ".\n"),
    "line break": ("\n",),
    "number": ("7", " 12"),
}


@pytest.mark.parametrize("kind", TOKENS)
def test_a_token_is_of_its_kind(kind):
    tokens = [token if isinstance(token, bytes) else token.encode() for token in TOKENS[kind]]
    assert {token: kind_of(token) for token in tokens} == dict.fromkeys(tokens, kind)


def test_every_id_of_a_vocabulary_has_one_kind_padding_is_a_word_piece_and_images_come_last():
    tokenizer = get_tokenizer("stories4k")
    kinds = token_kinds(tokenizer, tokenizer.n_vocab + 3)
    assert kinds.shape == (tokenizer.n_vocab + 3 + 1,) and kinds.dtype == torch.int64
    assert set(kinds.tolist()) == set(range(len(KINDS)))
    assert (kinds == KINDS.index("end of text")).nonzero().tolist() == [[tokenizer.eot_token]]
    assert kinds[-4:].tolist() == [KINDS.index("word piece")] * 3 + [KINDS.index("image")]


def test_the_lists_do_not_overlap():
    assert not FUNCTION_WORDS & VERBS, sorted(FUNCTION_WORDS & VERBS)
