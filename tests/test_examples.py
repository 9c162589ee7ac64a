"""Examples for post-training: records, conversations, rows of several examples, and tasks from the story world."""

import hashlib
import json
import re

import pyarrow
import pytest
import torch
from pyarrow import parquet

from architecture.interface import IGNORE_INDEX
from architecture.tokenizer import get_tokenizer
from data.examples import Example, ExampleSource, example_of, open_examples
from data.loader import TrainLoader
from data.rows import RowEncoder, packed
from data.stories import TRAIN_STORIES, phrases, tell, world
from data.stories.plots import PLOTS
from data.stories.tasks import (
    FEATURES,
    HELD_OUT,
    PLOT_WORDS,
    SUMMARIES,
    has_feature,
    is_held_out,
    tasks,
    words_used,
)
from training.post.sampling import end_tokens, prompt_encoder, text_of

TOKENIZER = get_tokenizer("bundled1536")
EOT = TOKENIZER.eot_token
BLOCK = 40


def examples(number: int = 23) -> list[Example]:
    """Examples of up to 44 ids; the longest do not fit into a row."""
    return [
        Example(f"{n} kites.", " It was red." + " Yes, it was." * (n % 6), name=f"line {n}")
        for n in range(number)
    ]


def ids_of(example: Example) -> tuple[list[int], list[int]]:
    return [EOT, *TOKENIZER.encode(example.prompt)], [*TOKENIZER.encode(example.response), EOT]


def loader(some: list[Example], state=None, **options) -> TrainLoader:
    return TrainLoader(ExampleSource("some", some, "some"), TOKENIZER, packing="examples", state=state,
                       **dict(batch_size=3, block_size=BLOCK) | options)  # fmt: skip


def apart(batch: dict[str, torch.Tensor]) -> list[tuple[list[int], list[int], int]]:
    """The examples of a batch: (inputs, targets, padding behind), with -100 as None."""
    found = []
    for inputs, targets, positions in zip(*(batch[name] for name in ("input_ids", "targets", "positions"))):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(inputs)]
        for start, end in zip(starts, starts[1:]):
            assert positions[start:end].tolist() == list(range(end - start))
            scored = (targets[start:end] != IGNORE_INDEX).nonzero().flatten()
            stop = start + int(scored[-1]) + 1
            found.append((inputs[start:stop].tolist(), targets[start:stop].tolist(), end - stop))
    return found


# ------------------------------------------------------------------------------------------------- rows
def test_rows_hold_whole_examples_in_order_and_only_responses_with_their_ends_are_targets():
    some = examples()
    held = apart(packed(map(RowEncoder(TOKENIZER, BLOCK, None), some), len(some), EOT, BLOCK)[0])
    assert len(held) == len(some)
    cut = 0
    for (inputs, targets, _), example in zip(held, some):
        first, rest = ids_of(example)  # tokenised apart
        ids = [*first, *rest][: BLOCK + 1]
        cut += len(ids) < len(first) + len(rest)
        assert inputs == ids[:-1]
        assert targets == [IGNORE_INDEX] * (len(first) - 1) + ids[len(first) :]
    assert cut == 3  # their last target is not the end


def test_a_row_ends_only_where_the_next_example_does_not_fit():
    with loader(examples()) as batches:
        held = [one for _ in range(7) for one in apart(next(batches))]
    ended = [(padding, following) for (_, _, padding), (following, _, _) in zip(held, held[1:]) if padding]
    assert len(ended) > 5 and all(len(following) > padding for padding, following in ended)


@pytest.mark.parametrize("batch_size", [3, 2])
def test_a_loader_goes_on_exactly_where_another_one_stopped(batch_size):
    with loader(examples()) as whole:
        order = [one for _ in range(12) for one in apart(next(whole))]
    with loader(examples()) as first:
        read = [one for _ in range(4) for one in apart(next(first))]
        state = first.state_dict()
    with loader(examples(), state, batch_size=batch_size) as second:
        read += [one for _ in range(6) for one in apart(next(second))]
    assert read == order[: len(read)] and len(read) > 23  # more than a pass
    per_pass = sorted(map(str, (one[0] for one in order[:23])))
    assert per_pass == sorted(str([*first, *rest][:-1][:BLOCK]) for first, rest in map(ids_of, examples()))


def test_two_processes_share_the_rows_of_a_batch():
    with loader(examples(), batch_size=4) as whole:
        both = [next(whole) for _ in range(3)]
    for part in (0, 1):
        with loader(examples(), batch_size=4, part=(part, 2)) as one:
            for batch in both:
                assert torch.equal(next(one)["targets"], batch["targets"].chunk(2)[part])


def test_a_prompt_without_room_for_a_response_is_refused_by_its_name():
    encode = RowEncoder(TOKENIZER, 6, None)
    fits = Example(" kite" * 5, " red")
    assert encode(fits).scored.sum() == 1  # the first token of the response
    with pytest.raises(
        ValueError, match="line 7: its prompt needs 7 tokens, but a row has block_size 6; raise"
    ):
        encode(fits._replace(prompt=" kite" * 6, name="line 7"))


# -------------------------------------------------------------------------------------------- conversations
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "Thanks"},
]


def test_a_conversation_is_its_last_answer_and_all_before_it():
    example = example_of({"messages": TALK, "words": ["a"]}, Example, "line 1")
    assert example.prompt == "system: Be brief.\nuser: Hi\nassistant: Hello!\nuser: 2+2?\nassistant:"
    assert example.response == " It is 4." and example.task == {"words": ["a"]} and len(example.messages) == 5
    row = RowEncoder(TOKENIZER, 200, None)(example)
    assert [*row.ids] == [part for parts in ids_of(example) for part in parts]


def test_a_conversation_without_a_last_answer_is_a_prompt_for_the_answers_of_the_model():
    example = example_of({"messages": TALK, "words": ["a"]}, Example, "line 1", answered=False)
    assert example.prompt.endswith("assistant: It is 4.\nuser: Thanks\nassistant:") and example.response == ""
    answered = example_of({"messages": TALK[:-1]}, Example, "line 1", answered=False)
    assert answered == example_of({"messages": TALK[:-1]}, Example, "line 1")
    with pytest.raises(
        ValueError, match="line 1: the last answer of the assistant must have text in it, got none"
    ):
        example_of({"messages": []}, Example, "line 1", answered=False)


@pytest.mark.parametrize(
    "messages, told",
    [
        ("Hi", "messages must be a list of objects with role"),
        ([{"role": "user"}], "and content, a text, got"),
        ([{"role": "tool", "content": "x"}], "role \\(system, developer, user, assistant\\)"),
        (TALK[:2], "the last answer of the assistant must have text in it, got none"),
        ([{"role": "assistant", "content": " "}], "must have text in it, got ' '; mend or remove it"),
    ],
)
def test_a_conversation_without_an_answer_or_a_role_is_refused_with_its_line(messages, told):
    with pytest.raises(ValueError, match=f"line 3: .*{told}"):
        example_of({"messages": messages}, Example, "line 3")


@pytest.mark.peer
def test_a_conversation_is_trained_in_the_format_in_which_a_chat_asks(shared_data, monkeypatch):
    pytest.importorskip("openai_harmony")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data / "tiktoken_cache"))
    monkeypatch.delenv("TIKTOKEN_RS_CACHE_DIR", raising=False)
    from architecture.open_gpt_oss.harmony import Harmony

    tokenizer = get_tokenizer("o200k_harmony")
    row = RowEncoder(tokenizer, 500, None)(example_of({"messages": TALK}, Example, "line 1"))
    chat = Harmony(tokenizer, instructions="Be brief.")
    asked = chat.encode([{"role": m["role"], "text": m["content"]} for m in TALK[1:4]])
    assert row.ids[: len(asked)].tolist() == asked and not row.scored[: len(asked)].any()
    answer = row.ids[len(asked) :].tolist()
    assert row.scored[len(asked) :].all() and answer[-1] in chat.stop_tokens
    assert tokenizer.decode(answer) == "<|channel|>final<|message|>It is 4.<|return|>"
    # GRPO and PPO ask in the same form, also without an answer, and rewards read the answer alone
    prompts = [TALK[:5], TALK[:4]]
    examples = [example_of({"messages": talk}, Example, "line 1", answered=False) for talk in prompts]
    assert [prompt_encoder(tokenizer)(example) for example in examples] == [asked, asked]
    assert {*chat.stop_tokens} < {*end_tokens(tokenizer)}
    thought = tokenizer.encode(
        "<|channel|>analysis<|message|>2+2<|end|><|start|>assistant", allowed_special="all"
    )
    assert text_of(tokenizer, examples[1], [*thought, *answer[:-1]]) == "It is 4."
    assert text_of(tokenizer, Example("a", "b"), tokenizer.encode("It is 4.")) == "It is 4."


# ------------------------------------------------------------------------------------------ bundled tasks
THINGS = (*world.OBJECTS, *world.FOODS)
OF_PLOTS = sorted(set().union(*PLOT_WORDS.values()))


def test_a_task_is_about_a_story_with_its_words_and_its_feature():
    (train, identity), (held_out, other) = tasks("train"), tasks("validation")
    assert len(train) == TRAIN_STORIES and identity != other
    some = [[train[n] for n in range(40)], held_out]
    assert len({example.prompt for example in held_out}) == len(held_out) > 60  # each prompt once
    assert {(example.task["words"][0], example.task["words"][2]) for example in held_out} == HELD_OUT
    for source, held in zip(some, (False, True)):
        for example in source:
            words = example.task["words"]
            assert words[0] in THINGS and words[1] in world.PLACES
            assert words[2] in OF_PLOTS or not held  # or the look of the thing
            assert words_used(example.response, words) == 1
            assert is_held_out(words) == held
            assert has_feature(example.response, example.task["feature"])
            assert example.response[0] == "\n" and all(word in example.prompt for word in words)
            assert FEATURES[example.task["feature"]] in example.prompt
        assert len({example.response for example in source}) > 20
    assert len(OF_PLOTS) == sum(map(len, PLOT_WORDS.values()))  # no two plots share a word
    assert {example.task["feature"] for source in some for example in source} == set(FEATURES)
    # TASKS_VERSION changes with the tasks
    told = hashlib.sha256(json.dumps([e[:3] for source in some for e in source]).encode()).hexdigest()
    assert (identity.split()[3], told[:12]) == ("8", "be8fcd4e575b")


def test_tasks_are_short_and_each_of_their_words_is_one_token():
    assert SUMMARIES.keys() == {plot.name for plot in PLOTS}
    train, _ = tasks("train")
    asked = [tuple(train[n].task["words"]) for n in range(2000)]
    assert sum(words[2] in OF_PLOTS for words in asked) > 0.8 * len(asked) and len(set(asked)) > 120
    some = [train[n] for n in range(0, 3000, 100)]
    for name in ("stories4k", "bundled1536"):
        encode = get_tokenizer(name).encode
        assert all(len(encode(f" {word}")) == 1 for word in (*THINGS, *world.PLACES, *OF_PLOTS))
        assert max(len(encode(e.prompt)) for e in some) < 45
        assert max(len(encode(e.prompt)) + len(encode(e.response)) + 2 for e in some) < 340


def test_the_rules_of_features_find_what_the_stories_were_told_with(monkeypatch):
    stories = [tell.story(number) for number in range(120)]
    for told in stories:
        assert has_feature(told.text, "first person") == (told.facts.voice == "first person")
        assert has_feature(told.text, "frame") == (told.facts.order == "in a frame")
    monkeypatch.setattr(tell, "MORAL_SHARE", 1.0)
    assert all(has_feature(tell.story(number).text, "lesson") for number in range(40))
    monkeypatch.setattr(tell, "MORAL_SHARE", 0.0)
    assert sum(has_feature(tell.story(number).text, "lesson") for number in range(40)) < 3
    assert phrases.MORAL and has_feature('"a" ' * 5, "dialogue") and not has_feature('"a" ' * 4, "dialogue")


def test_a_word_counts_only_whole_and_in_its_form():
    assert words_used("The sunny tree LAUGHED.", ["sun", "laughed", "tree", "calm"]) == 0.5


@pytest.mark.parametrize(
    "prompts, told",
    [
        ([], "has no example; add some"),
        (["A", "B"], "all 2 examples would be trained on; name held-out ones with --val_dataset FILE"),
        (["kite 123"], "all 1 examples would be held out; name"),
    ],
    ids=["none", "none held out", "none to train on"],
)
def test_a_set_without_examples_on_one_side_is_refused(tmp_path, prompts, told):
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps(dict(prompt=p, response="x")) + "\n" for p in prompts))
    with pytest.raises(ValueError, match=told):
        for split in ("train", "validation"):
            open_examples(str(path), Example, split=split, bundled=tasks)


def test_rows_of_parquet_are_the_examples_of_the_same_lines_and_a_damaged_file_is_refused(tmp_path):
    records = [dict(prompt=f"{n} kites.", response=" Red.", words=["kite", "red"]) for n in range(3)]
    del records[1]["words"]  # null in the table
    path, lines = tmp_path / "some.parquet", tmp_path / "some.jsonl"
    parquet.write_table(pyarrow.Table.from_pylist(records), path)
    lines.write_text("".join(json.dumps(record) + "\n" for record in records))
    by_row, by_line = (
        open_examples(str(one), Example, split="train", val_dataset="other", bundled=tasks)
        for one in (path, lines)
    )
    assert [by_row[n][:3] for n in range(3)] == [by_line[n][:3] for n in range(3)]
    assert by_row.identity == by_line.identity and by_row[2].name == f"{path}, row 3"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="some.parquet is not a whole parquet file: .*magic bytes"):
        open_examples(str(path), Example, split="train", bundled=tasks)


@pytest.mark.parametrize(
    "name, told",
    [
        ("bundeld", "no such file; did you mean 'bundled'"),
        ("auto", "no such file; use bundled, a .jsonl or .parquet file, or ORG/NAME on the Hub"),
        ("data/tasks.jsonl", "there is no such file; name a .jsonl or .parquet file, or bundled"),
        ("data/tasks.txt", "no such file; use bundled"),
    ],
)
def test_a_name_that_is_no_set_is_refused_without_asking_the_hub(name, told):
    with pytest.raises(ValueError, match=told):
        open_examples(name, Example, split="train", bundled=tasks)


@pytest.mark.parametrize("name", ["tasks.txt", "tasks.csv", "TASKS.TSV"])
def test_a_file_of_another_kind_is_refused_in_one_sentence_that_names_what_is_read(tmp_path, name):
    path = tmp_path / name
    path.write_text("prompt,response\nA kite.,It flew.\n")
    told = f"a {path.suffix} file is not read here; give a .jsonl or .parquet file, ORG/NAME on the Hub, or bundled"
    with pytest.raises(ValueError, match=re.escape(told)):
        open_examples(str(path), Example, split="train", bundled=tasks)


def test_a_prompt_that_is_answered_by_the_model_needs_no_response():
    record = dict(prompt="A kite.", words=["red"])
    assert example_of(record | {"prompt": "\ud83d"}, Example, "line 1", answered=False).prompt == "\ufffd"
    assert example_of(record, Example, "line 1", answered=False)[:3] == ("A kite.", "", {"words": ["red"]})
    with pytest.raises(
        ValueError, match="line 1: must have .* there is no response, only prompt, words; mend"
    ):
        example_of(record, Example, "line 1")


def test_a_prompt_without_a_response_needs_one_column_only():
    told = r"must have a column prompt, a text \(a response is optional\), and there is no prompt, only text"
    with pytest.raises(ValueError, match=told):
        example_of({"text": "A kite."}, Example, "line 1", answered=False)
