"""What the chat page needs of a model: checkpoints, conversations in files, prompts, answers and their pace."""

import os
import re

import pytest
from test_context_generation import build as build_with_state
from test_generation import build

from architecture.generation import chat
from architecture.generation.chat import Answer, Memory, prompt_of, put_turn, read_turns, text_of
from architecture.generation.decode import generate
from architecture.generation.lean import LeanDecoder
from architecture.generation.text import stream_text

NAME = "0123456789abcdef"
EMOJI = "\U0001f600"  # four bytes, so four tokens of the small tokenizer


@pytest.fixture(scope="module")
def model():
    return build(initial_context_length=64)


@pytest.fixture(scope="module")
def model_with_state():
    return build_with_state(segment_length=5, gated_update=True)


def user(text: str) -> dict:
    return {"role": "user", "text": text}


def told(text: str) -> dict:
    return {"role": "assistant", "text": text}


def answer_to(model, turns, memory=None, *, pieces=None, **options) -> Answer:
    """An answer that is stopped after some pieces, or complete."""
    options = dict(max_tokens=12, seed=3, temperature=1.0) | options
    prompt, answer = prompt_of(model, turns, options.pop("max_tokens")), Answer()
    stream = chat.stream_answer(model, prompt, answer, memory or Memory(), **options)
    for number, _ in enumerate(stream, start=1):
        if number == pieces:
            break
    stream.close()
    return answer


# ------------------------------------------------------------------------------------------ checkpoints


def test_checkpoints_of_a_folder_and_of_those_in_it_are_listed_newest_first(tmp_path):
    times = {"model/checkpoint_9.pt": 1, "model/checkpoint_10.pt": 3, "runs/a/checkpoint_5.pt": 2}
    others = ["runs/a/b/checkpoint_7.pt", "model/.checkpoint_11.pt.tmp", "model/.new/checkpoint_1.pt", "model/best.json",
              "elsewhere/checkpoint_3.pt"]  # fmt: skip
    for name in [*times, *others]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, times.get(name, 9)))
    found = chat.list_checkpoints([tmp_path / "model", tmp_path / "runs", tmp_path / "missing"])
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "model/checkpoint_10.pt", "runs/a/checkpoint_5.pt", "model/checkpoint_9.pt"
    ]  # fmt: skip


def test_a_folder_of_another_library_is_one_checkpoint_and_a_run_without_one_is_none(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"model": "gptoss"}')
    assert chat.list_checkpoints([tmp_path]) == [tmp_path / "weights"]


# ---------------------------------------------------------------------------------------- conversations


def test_turns_are_read_as_they_were_put(tmp_path):
    path = chat.conversation_file(tmp_path / "new", NAME)
    put_turn(path, 0, user(f"A {EMOJI} \ud83d <|endoftext|>"))
    put_turn(path, 1, told("half"))
    put_turn(path, 1, told("whole") | {"seed": 3})
    put_turn(path, 0, user("changed"))
    assert read_turns(path) == [user("changed"), told("whole") | {"seed": 3}]


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", NAME + "0", NAME.upper(), f"{NAME}\n", "/" + NAME[1:]]
)
def test_a_name_from_a_url_is_never_a_path(tmp_path, name):
    with pytest.raises(ValueError, match="names no conversation"):
        chat.conversation_file(tmp_path, name)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"turns": 3}', '{"turns": [{"role": "system", "text": ""}]}',
                                     '{"turns": [{"role": "user"}]}', '{"seal": "crc32 of the rest: 0", "turns": []}'])  # fmt: skip
def test_a_damaged_conversation_is_a_sentence(tmp_path, content):
    path = chat.conversation_file(tmp_path, NAME)
    path.write_text(content)
    with pytest.raises(ValueError, match="cannot be read as a conversation"):
        read_turns(path)
    path.unlink()
    with pytest.raises(ValueError, match="is not on this machine"):
        read_turns(path)


@pytest.mark.parametrize("turns, text", [
    ([], ""),
    ([user("Once"), told(" upon a time.")], "Once upon a time."),
    ([user("Once"), told(" upon."), user("Then")], "Once upon. Then"),
    ([user("Once"), told(" upon"), user(", then")], "Once upon, then"),
    ([user("Once"), told(" upon\n"), user("Then")], "Once upon\nThen"),
    ([told("One"), told("ly")], "Onely"),
])  # fmt: skip
def test_a_conversation_is_one_text(turns, text):
    assert text_of(turns) == text


# --------------------------------------------------------------------------------------------- prompts


def test_special_tokens_that_a_user_types_are_text(model):
    prompt = prompt_of(model, [user("a <|endoftext|> b")], 10)
    assert prompt.ids.count(model.tokenizer.eot_token) == 1 and prompt.ids[0] == prompt.stop_tokens[0]
    assert model.tokenizer.decode(prompt.ids[1:]) == "a <|endoftext|> b"


def test_an_answer_gets_shorter_and_then_the_beginning_is_left_out(model):
    limit = model.config.context_limit  # 64
    fits = prompt_of(model, [user("x" * 20)], 10)
    assert (len(fits.ids), fits.max_tokens, fits.unread) == (21, 10, 0)
    shorter = prompt_of(model, [told("x" * 20)], 1000)
    assert (len(shorter.ids), shorter.max_tokens, shorter.unread) == (21, limit - 21, 0)
    cut = prompt_of(model, [user("x" * 50), told("y" * 30)], 1000)
    assert (len(cut.ids), cut.max_tokens, cut.unread) == (32, 32, 81 - 32)
    assert model.tokenizer.decode(cut.ids) == "<|endoftext|>" + "xxx"[:1] + "y" * 30
    assert cut.text == "x" * 50 + "y" * 30


def test_a_message_longer_than_the_context_is_a_sentence(model):
    prompt_of(model, [user("x" * 53)], 10)
    with pytest.raises(ValueError, match=re.escape("may have 54 tokens with this model (its context of 64")):
        prompt_of(model, [user("x" * 54)], 10)


# --------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_is_the_text_of_sample_py_with_the_same_seed(model, seed):
    answer = answer_to(model, [user("the cat")], seed=seed, top_k=200, top_p=0.95)
    options = dict(max_tokens=12, temperature=1.0, seed=seed, top_k=200, top_p=0.95)
    assert answer.text == "".join(piece for _, piece in stream_text(model, ["the cat"], **options))
    assert answer.end == ("max tokens" if answer.tokens == 12 else "ended")


def test_an_answer_that_is_stopped_keeps_what_was_written(model):
    whole = answer_to(model, [user("the cat")])
    part = answer_to(model, [user("the cat")], pieces=5)
    assert (part.tokens, part.end) == (5, "stopped") and whole.text.startswith(part.text) and part.text


class Spelling:
    """A model that spells a text byte by byte, then ends it."""

    def __init__(self, model, text: str):
        self.tokenizer, self.config = model.tokenizer, model.config
        self.ids = [*text.encode(), model.tokenizer.eot_token]
        self.new_decoder = lambda *_: None


def test_no_piece_has_a_part_of_a_character(model, monkeypatch):
    spelling = Spelling(model, f"a{EMOJI}b")
    monkeypatch.setattr(chat, "generate_steps", lambda *_, **__: ([token] for token in spelling.ids))
    prompt, answer = prompt_of(spelling, [user("a")], 20), Answer()
    pieces = list(chat.stream_answer(spelling, prompt, answer, Memory(), seed=0, temperature=0))
    assert pieces == ["a", "", "", "", EMOJI, "b", ""]
    assert (answer.text, answer.tokens, answer.end) == (f"a{EMOJI}b", 7, "ended")
    stopped = Answer()
    stream = chat.stream_answer(spelling, prompt, stopped, Memory(), seed=0, temperature=0)
    for _ in range(3):
        next(stream)
    stream.close()
    assert stopped.text == "a"


# ------------------------------------------------------------------------------- a state over the turns


def ids_of(model, text: str) -> list[int]:
    return model.tokenizer.encode(text, disallowed_special=())


def test_the_state_is_kept_over_the_turns(model_with_state):
    """The second turn reads only what is new, and its answer is that of one text read from the beginning."""
    model, memory, turns = model_with_state, Memory(), [user("the cat sat")]
    first = answer_to(model, turns, memory, seed=1, temperature=0)
    turns += [told(first.text), user("the dog")]
    decoder, fed = memory.decoder, []
    feed = decoder.feed
    decoder.feed = lambda ids: (fed.append(list(ids[0])), feed(ids))[1]
    second = answer_to(model, turns, memory, temperature=0)
    assert memory.decoder is decoder and fed[0][1:] == ids_of(model, " the dog")
    begun = generate(model, [[259, *ids_of(model, "the cat sat")]], max_tokens=12, temperature=0)[0]
    new = [259, *ids_of(model, "the cat sat"), *begun, *ids_of(model, " the dog")]
    again = generate(model, [new], max_tokens=12, temperature=0, stop_tokens=[259])[0]
    assert second.text == model.tokenizer.decode([token for token in again if token != 259])


def test_an_answer_that_was_stopped_continues_as_if_it_had_not(model_with_state):
    tokens = generate(
        model_with_state, [[259, *ids_of(model_with_state, "the cat")]], max_tokens=12, temperature=0
    )[0]
    continued = 0
    for stopped in range(1, 8):
        memory = Memory()
        part = answer_to(model_with_state, [user("the cat")], memory, pieces=stopped, temperature=0)
        if memory.text is None:  # stopped in the middle of a character, so the text is read again
            continue
        turns, rest = [user("the cat"), told(part.text)], 12 - stopped
        answer = answer_to(model_with_state, turns, memory, temperature=0, max_tokens=rest)
        assert part.text + answer.text == model_with_state.tokenizer.decode(tokens)
        continued += 1
    assert continued > 2


def test_what_is_told_anew_or_by_another_model_is_read_from_the_beginning(model_with_state):
    memory, turns = Memory(), [user("the cat")]
    first = answer_to(model_with_state, turns, memory)
    assert answer_to(model_with_state, turns, memory).text == first.text  # regenerate
    assert (
        answer_to(model_with_state, [user("the dog")], memory).text
        == answer_to(model_with_state, [user("the dog")]).text
    )
    other = build_with_state(segment_length=4)
    turns.append(told(answer_to(model_with_state, turns, memory).text))
    assert answer_to(other, turns, memory).text == answer_to(other, turns).text


def test_a_step_that_fails_leaves_no_state_to_continue(model_with_state, monkeypatch):
    memory, turns = Memory(), [user("the cat")]
    expected = answer_to(model_with_state, turns).text
    calls = iter(range(100))
    forward = model_with_state.forward

    def failing(*args, **kwargs):
        if next(calls) == 4:
            raise MemoryError("full")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model_with_state, "forward", failing)
    with pytest.raises(MemoryError):
        answer_to(model_with_state, turns, memory)
    assert memory.text is None and answer_to(model_with_state, turns, memory).text == expected


# ---------------------------------------------------------------------------- a decoder over the turns


def test_a_turn_reads_only_what_is_new_and_answers_as_if_it_had_read_all(monkeypatch):
    model = build(initial_context_length=80, used_vocab_size=128)  # ASCII: a text has the ids that were drawn
    memory, turns, fed, feed = Memory(), [], [], LeanDecoder.feed
    monkeypatch.setattr(LeanDecoder, "feed", lambda self, ids: (fed.append(len(ids[0])), feed(self, ids))[1])
    turns_read = [
        ("abc", 4),
        (",d", 3),
        (",f", 32),
    ]  # the decoder has room for two turns, then all is read again
    for number, (said, new) in enumerate(turns_read):
        turns.append(user(said))
        del fed[:]
        answer = answer_to(model, turns, memory, seed=number)
        assert fed == [new, *[1] * 11]
        assert answer.text == answer_to(model, turns, seed=number).text
        turns.append(told(answer.text))


def test_a_conversation_that_was_changed_or_cut_or_stopped_is_answered_as_if_read_again():
    model, memory = build(initial_context_length=64, used_vocab_size=128), Memory()
    first = answer_to(model, [user("abc")], memory, pieces=5)
    conversations = [
        [user("abc"), told(first.text), user("d")],  # stopped in the middle
        [user("abc"), told(first.text), user("e")],  # the last message was edited
        [user("abc"), told("x" + first.text[1:]), user("d")],
        [user("x" * 50), told("y" * 30)],  # too long, so the beginning is left out
        [user("x" * 50), told("y" * 31)],
        [user("a")],
    ]
    for turns in conversations:
        assert answer_to(model, turns, memory).text == answer_to(model, turns).text


# ------------------------------------------------------------------------------------------------- pace


def test_pieces_are_joined_to_about_twenty_a_second():
    time = iter(x / 1000 for x in range(0, 100_000, 5)).__next__  # 5 ms between two looks at the clock
    pieces = [f"{number} " for number in range(400)]
    joined = list(chat.paced(pieces, time))
    assert "".join(joined) == "".join(pieces) and joined[0] == "0 "
    assert 20 < len(joined) < 60


def test_a_slow_model_is_not_held_back_and_empty_pieces_are_not_shown():
    time = iter(range(100)).__next__
    assert list(chat.paced(["", "a", "", "b", "c"], time)) == ["a", "b", "c"]
    assert list(chat.paced([])) == []
