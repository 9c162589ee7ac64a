"""The kind of each token of a vocabulary, from its text alone, to see which experts take which kinds.

Lists of the commonest English words and the shape of a token decide; there is no tagger. A word that is in no
list is a name if it begins with a capital letter, otherwise another word, mostly a noun or an adjective.
"""

from __future__ import annotations

import re

import tiktoken
import torch

KINDS = (
    "end of text",
    "line break",
    "punctuation",
    "number",
    "function word",
    "verb",
    "name",
    "other word",
    "word piece",
    "image",
)

FUNCTION_WORDS = frozenset(
    """a about above across after again against all almost alone along already also although always am
    among an and another any anyone anything are around as at away back be because been before behind
    being below beside between both but by can can't could couldn't did didn't do does doesn't doing
    don't down during each either else enough even ever every everyone everything everywhere few first
    for from had hadn't has hasn't have haven't having he he's her here hers herself hey hi him himself
    his how however i i'll i'm i've if in inside instead into is isn't it it's its itself just last
    later let let's like many may maybe me might mine more most much must my myself near never next no
    nobody none nor not nothing now of off oh ok okay on once one only onto or other others our ours
    out outside over own perhaps please quite rather same shall she she's should since so some somebody
    someone something sometimes somewhere soon still such suddenly than thank thanks that that's the
    their theirs them themselves then there there's these they they're this those though through to
    today together tomorrow tonight too toward towards two under until up upon us very was wasn't we
    we're were weren't what what's when where which while who whom whose why will with within without
    won't would wouldn't wow yes yesterday yet you you're your yours yourself
    liked likes didn don couldn wasn wouldn isn doesn hadn weren""".split()
)

VERB_STEMS = (  # regular verbs; _regular_forms adds the endings
    """add agree answer ask bake bark believe borrow bounce bow brush call care carry change chase check
    cheer clap clean climb close color collect cook count cover crash crawl cry dance decide decorate
    disappear discover dress drop dry earn enjoy enter explain explore fetch fill finish fix float
    follow forgive frown gather giggle grab guess hand happen hate help hop hug hurry imagine invite
    join jump kick kiss knock land laugh learn lick lift listen live look love march marry measure
    mend miss mix move name need nod notice offer open order pack paint pass pat peek pick place
    plan plant play point polish pour practice pretend promise protect pull push rain reach relax
    remember remove repair repeat replace reply rescue rest return roar roll rub rush save scare scream
    search seem share shout show sigh slip smell smile sniff sparkle splash start stay step stir stop
    stretch study surprise talk taste tidy tie touch trade travel trip try tug turn use visit
    wag wait wake walk want warn wash watch water wave whisper wink wipe wish wonder work worry wrap
    yell"""
).split()

IRREGULAR_VERBS = frozenset(
    """ate beat became become began begin begun bent bit bite bitten blew blow blown bought break bring
    broke broken brought build built buy came catch caught choose chose come comes coming cut dig dug
    draw drawn drew drink drank drive drove eat eaten eats eating fall fallen fell feed fed feel feels
    feeling felt fight find finds finding flew fly flies flying flown forget forgot forgave found freeze
    froze gave get gets getting give gives giving given go goes going gone got grew grow grown growing
    hear heard held hid hide hiding hidden hit hold holding hurt keep keeping kept knew know knows knowing
    known lay lead leave leaving led left lend lent lie lose losing lost made make makes making mean meant
    meet meeting met paid pay put puts putting ran read reading rest ride riding ring rode run running
    runs said sang sank sat saw say saying says see seeing seen sees sell send sent shake shook shine
    shone shut sing singing sit sits sitting sleep sleeping slept slid slide sold speak spoke spend spent
    spin spun spread stand standing stick stood stuck sweep swept swim swimming swam swing swung take
    taken takes taking taught teach tear tell telling think thinking thought threw throw throwing thrown
    told took tore understand understood wear wearing went win winning woke won wore write writing
    written wrote""".split()
)


def _regular_forms(stem: str) -> set[str]:
    """Inflect a verb: walk -> walks walked walking; bake -> baked; cry -> cries cried; hop -> hopped."""
    forms = {stem, stem + "s", stem + "ed", stem + "ing", stem + "es"}
    if stem.endswith("e"):
        forms |= {stem + "d", stem[:-1] + "ing"}
    if re.search(r"[^aeiou]y$", stem):
        forms |= {stem[:-1] + "ies", stem[:-1] + "ied"}
    if re.search(r"[^aeiou][aeiou][bdgklmnprt]$", stem):
        forms |= {stem + stem[-1] + "ed", stem + stem[-1] + "ing"}
    return forms


VERBS = frozenset().union(*map(_regular_forms, VERB_STEMS)) | IRREGULAR_VERBS


def token_kinds(tokenizer: tiktoken.Encoding, vocab_size: int) -> torch.Tensor:
    """Return (vocab_size + 1,) int64, the index in KINDS of each id, and of image tokens in the last place.

    Padded ids count as word pieces.
    """
    kinds = torch.full((vocab_size + 1,), KINDS.index("word piece"))
    kinds[-1] = KINDS.index("image")
    special = {tokenizer.encode_single_token(name) for name in tokenizer.special_tokens_set}
    for token in range(tokenizer.n_vocab):
        if token in special:
            kind = "end of text"
        else:
            try:
                kind = kind_of(tokenizer.decode_single_token_bytes(token))
            except KeyError:  # o200k_harmony has gaps in its ids
                continue
        kinds[token] = KINDS.index(kind)
    return kinds


def kind_of(token: bytes) -> str:
    """Return the kind of a token that is not special. A word begins with a space."""
    text = token.decode("utf-8", errors="replace")
    word = text.strip()
    if not word:
        return "line break" if "\n" in text else "punctuation"
    if not re.search(r"\w", word) or word == "\ufffd":
        return "punctuation" if word != "\ufffd" else "word piece"
    if word.isdigit():
        return "number"
    lower = word.lower()
    capital = word[0].isupper()
    if not text[0].isspace() and not capital:
        return "word piece"  # such as "ing", but also a word after a quotation mark
    if lower in FUNCTION_WORDS:
        return "function word"
    if lower in VERBS:
        return "verb"
    if len(word) == 1:
        return "word piece"
    return "name" if capital else "other word"
