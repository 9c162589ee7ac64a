"""Story scores: the pairs are what they say, the measures are right, and each tells what it should tell apart."""

import contextlib
import itertools
import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from architecture import gptoss
from architecture.registry import load_model
from common.intervals import exact_interval
from data.stories import story
from data.stories.copies import RunIndex
from evaluation import context, stories
from evaluation.story_scores import minimal_pairs as mp
from evaluation.story_scores.generations import WORDS, Lexicon, distinct, measures, self_bleu
from evaluation.story_scores.intervals import difference, ratio
from evaluation.story_scores.likelihood import Reader
from evaluation.story_scores.references import END, Bigram, joined, openings, pieces, shuffled
from evaluation.story_scores.splitting import bare, sentences, whole_sentences, words_of
from evaluation.story_scores.work import Work
from evaluation.story_scores.written import completions, separation

FIXTURES = Path(__file__).parent / "fixtures"
TRUNK = FIXTURES / "trunk" / "checkpoint_6.pt"


@pytest.fixture(scope="module")
def held_out() -> list[str]:
    return [story(20_000 + number).text for number in range(160)]


@pytest.fixture(scope="module")
def sorter(held_out) -> mp.Sorter:
    return mp.Sorter(held_out)


@pytest.fixture(scope="module")
def pairs(held_out, sorter) -> list[mp.Pair]:
    return mp.grammar_pairs(held_out, 20, 1, sorter) + mp.consistency_pairs(held_out, 20, 1, sorter)


def edits(kind: str, sentence: str, before: str = "") -> set[str]:
    found = mp.RULES[kind](sentence, before)
    return {sentence[:start] + other + sentence[end:] for start, end, other in found}


def edited_words(one: str, other: str) -> set[str]:
    """The words of one text that the other lacks."""
    return set(map(bare, words_of(one))) - set(map(bare, words_of(other)))


# ---------------------------------------------------------------------------------------------- minimal pairs


@pytest.mark.parametrize(("kind", "sentence", "wrong"), [
    ("agreement", "Today she was sad.", {"Today she were sad."}),
    ("agreement", "Lily and the dog were sad.", {"Lily and the dog was sad."}),
    ("agreement", "The red ball is his.", {"The red ball are his."}),
    ("agreement", "If she was sad, he left.", set()),
    ("article", "Here is a hat.", {"Here is hat."}),  # an hat is odd, but some say so
    ("article", "He ate an egg and a pea.", {"He ate a egg and a pea.", "He ate an egg and an pea."}),
    ("article", "It was a unicorn for an hour.", {"It was an unicorn for an hour."}),
    ("article", "She gave her a kite by the rock.", {"She gave her an kite by the rock."}),  # "gave her kite" is right
    ("agreement", "The fish was big.", set()),
    ("tense", "She ran home.", {"She run home."}),
    ("tense", "Mom helped her friend find it.", {"Mom helped her friend found it."}),
    ("tense", "They ran home.", set()),  # they run home is right
    ("word_order", "He sat in the sun.", {"He sat the in sun."}),
    ("pronoun_case", "They were with him.", {"Them were with him.", "They were with he."}),
    ("pronoun_case", "He went to them and her.", {"Him went to them and her."}),
])  # fmt: skip
def test_a_rule_makes_the_wrong_sentences_and_no_others(kind, sentence, wrong):
    assert edits(kind, sentence) == wrong


def test_a_gender_is_swapped_only_where_one_person_is_there():
    assert edits("pronoun_gender", "She ran.", "There was a girl named Sue. ") == {"He ran."}
    assert not edits("pronoun_gender", "She ran.", "A girl named Sue and her dad sat. ")
    assert not edits("pronoun_gender", "She ran.", "A girl met Rex and then Tom. ")
    assert not edits("pronoun_gender", "He ran.", "There was a girl named Sue. ")


def test_grammar_pairs_have_one_edit_and_half_of_them_mislead_a_bigram_model(pairs, held_out, sorter):
    kinds = Counter(pair.kind for pair in pairs)
    assert kinds["article"] == 20 and kinds["pronoun_gender"] > 3
    for kind in set(kinds) & set(mp.GRAMMAR):
        of_kind = [pair for pair in pairs if pair.kind == kind]
        assert sum(map(sorter.is_right, of_kind)) * 2 == len(of_kind)
        assert len({pair.story for pair in of_kind}) == len(of_kind)
        for pair in of_kind:
            assert held_out[pair.story].startswith(pair.context + pair.good)
            assert pair.bad in edits(kind, pair.good, pair.context)


def test_stories_exchange_words_that_the_other_lacks_at_the_distance_that_is_told(pairs, held_out, sorter):
    twins = [pair for pair in pairs if pair.distance]
    assert len(twins) == 40 and {mp.bin_of(pair.distance) for pair in twins} >= {"1", "2-3", "4-7"}
    for one, two in zip(twins[::2], twins[1::2]):
        here, there = edited_words(one.good, one.bad), edited_words(one.bad, one.good)
        assert (there, here) == (edited_words(two.good, two.bad), edited_words(two.bad, two.good))
        assert len(here) == len(there) == 1 and sorter.is_right(one) != sorter.is_right(two)
        assert not any(word in held_out[one.story].lower() for word in there)
        assert not any(word in held_out[two.story].lower() for word in here)
        said = [here <= set(map(bare, words_of(one.context[a:b]))) for a, b in sentences(one.context)]
        assert said[::-1].index(True) + 1 == one.distance and any(said[: mp.EARLY])


def test_pairs_are_frozen_by_their_seed(pairs, held_out, sorter):
    again = mp.consistency_pairs(held_out, 20, 1, sorter)
    assert mp.fingerprint(again) == mp.fingerprint([pair for pair in pairs if pair.distance])
    assert mp.fingerprint(mp.consistency_pairs(held_out, 20, 2, sorter)) != mp.fingerprint(again)


def test_another_context_keeps_the_words_or_has_none_of_them(pairs, held_out):
    twins = [pair for pair in pairs if pair.distance]
    for pair, mixed in zip(twins, mp.with_other_context(twins, held_out, "shuffled", 0), strict=True):
        assert Counter(words_of(mixed.context)) == Counter(words_of(pair.context))
    others = mp.with_other_context(twins, held_out, "joined", 0)
    assert len(others) > 35
    for pair in others:
        edited = edited_words(pair.good, pair.bad) | edited_words(pair.bad, pair.good)
        assert not edited & set(map(bare, words_of(pair.context))) and pair.context[-1].isspace()


# ------------------------------------------------------------------------------------------------- references


def test_shuffled_and_joined_stories_have_the_sentences_of_real_ones():
    text, other = 'A one. "B two?" said C.\nD three! E four.', "F five. G six."
    told = [text[a:b] for a, b in sentences(text)]
    assert told == ["A one.", '"B two?" said C.', "D three!", "E four."]
    mixed = shuffled(text, random.Random(0))
    assert sorted(mixed[a:b] for a, b in sentences(mixed)) == sorted(told) and mixed != text
    assert mixed.count("\n") == 1 and shuffled(other, random.Random(0)) is None
    assert joined(text, other) == 'A one. "B two?" said C. G six.' and joined("One.", other) is None
    assert whole_sentences(text, 6) == 'A one. "B two?" said C.' and whole_sentences("No end", 9) == ""


def test_a_bigram_model_has_probabilities_and_writes_only_pairs_that_it_has_seen():
    texts = ["The cat sat. The dog sat.", 'A cat said, "No."']
    bigram = Bigram(texts)
    assert "".join(pieces(texts[1])) == texts[1]
    every = [*bigram.single, "never seen"]
    for before in (END, "The", " cat", "unknown"):
        assert sum(bigram.probability(before, piece) for piece in every) == pytest.approx(1)
    counts = Counter(piece for text in texts for piece in [*pieces(text), END])
    single = (counts["."] + 1) / (sum(counts.values()) + len(counts) + 1)
    assert bigram.probability(" sat", ".") == pytest.approx(0.9 + 0.1 * single)
    assert bigram.nats("The") == pytest.approx(-math.log(bigram.probability(END, "The")))
    seen = {pair for text in texts for pair in itertools.pairwise([END, *pieces(text), END])}
    for seed in range(20):
        written = pieces(bigram.continuation("The", 30, random.Random(seed)))
        assert set(itertools.pairwise(written)) <= seen


def test_openings_are_shared_and_a_lack_of_them_is_told(held_out):
    for words, numbers in openings(held_out, 4, 3):
        assert len(numbers) == 3 and all(held_out[number].startswith(f"{words} ") for number in numbers)
    with pytest.raises(ValueError, match=r"--prompts 4 needs .* that 300 held-out stories share, and 160"):
        openings(held_out, 4, 300)


# --------------------------------------------------------------------------------------------------- measures


@pytest.mark.parametrize(("hits", "number"), [(0, 7), (7, 7), (3, 11), (190, 200)])
def test_the_interval_of_a_share_is_that_of_scipy(hits, number):
    wanted = binomtest(hits, number).proportion_ci(method="exact")
    assert exact_interval(hits, number) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_the_bootstrap_agrees_with_the_ratio_estimator_and_pairs_its_prompts():
    draw = np.random.default_rng(1)
    size = draw.integers(20, 40, 60)
    good = size * np.clip(0.7 + 0.1 * draw.standard_normal(60), 0, 1)
    sums = list(zip(good, size))
    found, share = ratio(sums), good.sum() / size.sum()
    error = math.sqrt(((good - share * size) ** 2).sum() * 60 / 59) / size.sum()
    assert found["mean"] == pytest.approx(share)
    assert np.diff(found["interval"])[0] == pytest.approx(2 * 1.96 * error, rel=0.1)
    shifted = difference([(a + 0.1 * b, b) for a, b in sums], sums)
    assert shifted["interval"] == pytest.approx((0.1, 0.1))  # the same prompts are drawn for both
    assert ratio([(0, 0)] * 4)["mean"] is None and ratio(sums[:2])["interval"] is None


def test_self_bleu_and_distinct_are_what_counting_by_hand_gives():
    texts = ["the cat sat on the mat", "the cat sat on a red mat today", "a dog ran to the cat"]
    rows = [text.split() for text in texts]
    wanted = 0.0
    for place, row in enumerate(rows):
        others = rows[:place] + rows[place + 1 :]
        product = 1.0
        for n in (1, 2, 3, 4):
            own = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
            theirs = [[tuple(o[i : i + n]) for i in range(len(o) - n + 1)] for o in others]
            hits = sum(min(own.count(run), max(t.count(run) for t in theirs)) for run in set(own))
            product *= (hits or 0.1) / len(own)
        nearest = min((abs(len(o) - len(row)), len(o)) for o in others)[1]
        wanted += product**0.25 * (1 if len(row) >= nearest else math.exp(1 - nearest / len(row)))
    assert self_bleu(texts) == pytest.approx((wanted, 3))
    assert self_bleu(["one two three four five"] * 2)[0] == pytest.approx(2) and self_bleu(texts[:1]) == (
        0,
        0,
    )
    runs = [run for row in rows for run in itertools.pairwise(row)]
    assert distinct(texts, 2) == (len(set(runs)), len(runs)) == (13, 17)


def test_copied_runs_are_counted_as_in_a_set():
    training = [story(number).text for number in range(60)]
    text = story(20_003).text + " " + training[5][:300]

    def runs(of: str) -> list[str]:
        words = re.findall(r"[a-z0-9']+", of.lower())
        return [" ".join(words[i : i + 8]) for i in range(len(words) - 7)]

    known = {run for one in training for run in runs(one)}
    wanted = sum(run in known for run in runs(text)), len(runs(text))
    assert RunIndex(training, 8).copied_runs(text) == wanted and wanted[0] > 30


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return Lexicon(story(number).text for number in range(300))


def test_references_are_names_things_and_pronouns_that_the_text_has_introduced(lexicon):
    kept = "A girl named Lily had a kite. The kite was red. She ran. Lily fell."
    lost = "She had the kite. Lily ran. Tim fell. Then Sam fell."
    assert lexicon.names_kept(kept) == (1, 1) and lexicon.names_kept(lost) == (0, 2)
    assert lexicon.introduced(kept) == (1, 1) and lexicon.introduced(lost) == (0, 1)
    assert lexicon.pronouns_fit(kept) == (1, 1) and lexicon.pronouns_fit(lost) == (0, 1)
    assert lexicon.pronouns_fit('Tim said, "She ran." He sat. She fell.') == (1, 2)  # speech does not count
    assert lexicon.references(kept) == (3, 3)
    assert lexicon.well_formed('Lily had a red kite. "I am sad, she said.\nlily had a red kite.') == (1, 3)
    assert lexicon.well_formed("") == (0, 0)


def test_the_measures_tell_real_from_shuffled_from_joined_from_bigram(held_out, lexicon):
    draw, training = random.Random(3), [story(number).text for number in range(300)]
    bigram, copies = Bigram(training), RunIndex(training, 8)
    groups = [held_out[start : start + 6] for start in range(0, 72, 6)]
    texts = {
        "real": groups,
        "shuffled": [[shuffled(text, draw) for text in group] for group in groups],
        "joined": [[joined(text, draw.choice(held_out)) for text in group] for group in groups],
        "bigram": [[bigram.continuation("", 200, draw) for _ in group] for group in groups],
    }
    sums = {
        name: [measures(lexicon, copies, [whole_sentences(text, WORDS) for text in group]) for group in some]
        for name, some in texts.items()
    }
    found = separation(sums)
    for other in ("shuffled", "joined", "bigram"):
        assert found["references"][other]["interval"][0] > 0.05
    for measure in ("well_formed", "names_kept", "introduced", "pronouns_fit", "copied_8"):
        assert found[measure]["bigram"]["interval"][0] > 0
    assert found["names_kept"]["joined"]["interval"][0] > 0 < found["introduced"]["shuffled"]["interval"][0]
    assert ratio([one["well_formed"] for one in sums["real"]])["mean"] > 0.6  # false alarms of its rule


# --------------------------------------------------------------------------------------------------- a model


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader("trunk", load_model(TRUNK), 16, 4)


def test_a_text_has_the_probability_of_its_tokens_one_by_one_in_any_batch(reader, held_out):
    texts = ["", "Lily ran.", held_out[0][:60], held_out[1][:45]]
    found = reader.nats(texts)
    for text, nats in zip(texts, found):
        ids = [reader.model.tokenizer.eot_token, *reader.model.tokenizer.encode(text)]
        assert len(ids) <= 17
        with torch.no_grad():
            logits = reader.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        wanted = -sum(float(logits[place, id]) for place, id in enumerate(ids[1:]))
        assert nats == pytest.approx(wanted, abs=1e-4)
    long = held_out[2]
    alone, beside = reader.nats([long]), reader.nats([held_out[3], long, "Hi."])
    assert beside[1] == pytest.approx(alone[0], abs=1e-3)
    ids = [reader.model.tokenizer.eot_token, *reader.model.tokenizer.encode(long)]
    wanted, scored = 0.0, 0  # windows of 16 that repeat 8
    while scored < len(ids) - 1:
        start = max(0, scored - 8)
        with torch.no_grad():
            logits = reader.model(torch.tensor([ids[start : start + 16]])).logits[0].double().log_softmax(-1)
        for place in range(scored, min(start + 16, len(ids) - 1)):
            wanted -= float(logits[place - start, ids[place + 1]])
        scored = start + 16
    assert alone[0] == pytest.approx(wanted, abs=1e-3)


def test_a_model_with_a_state_carries_it_from_segment_to_segment(held_out):
    model = load_model(FIXTURES / "context" / "checkpoint_6.pt")
    length, eot = model.config.segment_length, model.tokenizer.eot_token
    texts = [text[:200] for text in held_out[:3]]
    documents = [[eot, *model.tokenizer.encode(text)] for text in texts]
    losses = context.document_losses(model, documents, length, length, 3, contextlib.nullcontext)
    wanted = sorted(sum(one.nats["carried"]) for one in losses)
    assert sorted(Reader("context", model, length, 2).nats(texts)) == pytest.approx(wanted, abs=1e-3)


def test_a_model_that_gives_nan_is_named(reader):
    broken = load_model(TRUNK)
    with torch.no_grad():
        broken.embedding.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="^broken gives losses that are not finite"):
        Reader("broken", broken, 16, 4).nats(["Lily ran."])
    options = SimpleNamespace(max_tokens=3, temperature=1.0, seed=0, completions=2)
    with pytest.raises(ValueError, match="^broken: the model's logits are not finite"):
        completions(Reader("broken", broken, 16, 4), ["Lily"], options, Work(None), "hash")


# ------------------------------------------------------------------------------------------------ the command

SMALL = "--pairs 6 --prompts 3 --completions 2 --max_tokens 9 --stories 90 --training_stories 60 --threads 1".split()


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scores") / "stories.json"
    other = FIXTURES / "context" / "checkpoint_6.pt"
    assert stories.main([str(TRUNK), "--second", str(other), "--out", str(out), *SMALL]) == 0
    return out


def test_the_command_writes_scores_beside_their_references(scored):
    found = json.loads(scored.read_text())
    scores, texts = found["pairs"]["scores"], found["texts"]
    assert set(scores) == {"bigram", str(TRUNK)} and scores["bigram"]["consistency"]["number"] == 12
    assert set(texts) == {"real", "shuffled", "joined", "bigram", str(TRUNK)}
    assert {"well_formed", "references", "self_bleu", "bits_per_byte", "context_gain"} <= set(texts["real"])
    # a model of 6 steps knows no words: it is near a uniform distribution over 1,536 tokens
    assert 2 < texts["real"]["bits_per_byte"]["mean"] < 6
    assert set(found["separation"]["references"]) == {"shuffled", "joined", "bigram"}


def test_a_stopped_command_continues_from_its_finished_pieces(scored, monkeypatch, capsys):
    before = json.loads(scored.read_text())
    work = scored.with_name("stories.json.work.jsonl")
    lines = work.read_bytes().split(b"\n")
    work.write_bytes(b"\n".join(lines[:-2]) + b'\n{"key": "ab')  # killed while it wrote the last piece
    asked, nats = [], Reader.nats
    monkeypatch.setattr(Reader, "nats", lambda self, texts: asked.append(len(texts)) or nats(self, texts))
    other = str(FIXTURES / "context" / "checkpoint_6.pt")
    command = [str(TRUNK), "--second", other, "--out", str(scored), *SMALL]
    assert stories.main(command) == 0 and len(asked) == 1
    told = capsys.readouterr().err
    assert (
        "reading held-out and training stories ...\n" in told and "texts to write, then pairs to read" in told
    )
    after = json.loads(scored.read_text())
    assert {**after, "seal": 0, "command": 0} == {**before, "seal": 0, "command": 0}
    work.write_bytes(b"[]\n")
    assert stories.main(command) == 2
    assert f"{work}, line 1, is no finished piece of work; delete" in capsys.readouterr().err


def test_a_second_model_with_a_leak_is_refused_before_it_reads(monkeypatch, capsys):
    visible, asked = gptoss.visible_keys, []
    monkeypatch.setattr(gptoss, "visible_keys", lambda q, k, w: visible(q + 1, k, w))
    monkeypatch.setattr(Reader, "nats", lambda self, *more: asked.append(self.name))
    other = str(FIXTURES / "context" / "checkpoint_6.pt")
    assert stories.main([str(TRUNK), "--second", other, *SMALL]) == 2
    printed = capsys.readouterr()
    assert "the model is not causal, so it is not scored" in printed.err
    assert printed.out == "" and "bits_per_byte" not in printed.err and not asked


@pytest.mark.parametrize(("flags", "told"), [
    (["--second", str(TRUNK)], "is one of the models to score"),
    (["--prompts", "2"], "--prompts must be at least 3, got 2"),
    (["--judge", "http://127.0.0.1:1"], "--judge URL and --judge_model NAME go together"),
    (["--out", "no_such_folder/x.json"], "is in a folder that does not exist"),
    (["--max_tokens", "99"], "a sequence may have 32 tokens"),
])  # fmt: skip
def test_a_wrong_flag_is_told_in_a_sentence(flags, told, capsys):
    assert stories.main([str(TRUNK), *SMALL, *flags]) == 2
    assert told in capsys.readouterr().err


def test_held_out_stories_are_needed_that_are_not_in_training(tmp_path, capsys):
    file, empty = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    file.write_text("".join(json.dumps({"text": story(n).text}) + "\n" for n in range(20)))
    empty.write_text('{"text": " "}\n')
    command = [str(TRUNK), *SMALL, "--training_data", str(file)]
    assert stories.main([*command, "--data", str(file)]) == 2
    assert "all held-out stories of a.jsonl are in the training stories" in capsys.readouterr().err
    assert stories.main([*command, "--data", str(empty)]) == 2
    assert "b.jsonl" in capsys.readouterr().err


def test_empty_completions_are_counted_and_no_measure_is_made_up(lexicon, tmp_path):
    nothing = measures(lexicon, RunIndex(["a b c d e f g h"], 8), [])
    assert all(ratio([sums])["mean"] is None for sums in nothing.values())
    work = Work(tmp_path / "w.jsonl")
    assert work.once(lambda: 1, "a", 2) == work.once(lambda: 3, "a", 2) == 1 and not work.done("a", 3)
