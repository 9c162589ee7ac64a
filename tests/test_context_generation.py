"""Generation with a state: calls may be cut anywhere, rows may have any lengths, nothing changes."""

import re
from dataclasses import asdict

import pytest
import torch
from test_generation import CONFIG, far_from_flat

import sample
from architecture.generation.decode import generate
from architecture.generation.sampling import row_generators
from architecture.generation.segments import read_from_the_beginning
from architecture.generation.text import generate_texts
from architecture.gptoss import ModelConfig, Transformer
from architecture.gptoss_context import ContextConfig, ContextTransformer, TokenGenerator
from architecture.tokenizer import tokenizer_state

SHAPE = asdict(CONFIG) | dict(sliding_window=3, initial_context_length=16)
LENGTH = 5
RAGGED = [[7, 3, 250, 9, 11, 2, 8, 100, 4, 5, 6, 1, 2, 3, 4, 9], [42], list(range(14)), [7] * 6]
PROMPT = [259, 7, 3, 250, 9, 11, 2, 8, 100]


def build(cls=ContextTransformer, config_class=ContextConfig, **more) -> Transformer:
    """In float64, far from flat, so that the text depends on the state."""
    generator = torch.Generator().manual_seed(0)
    model = cls(config_class(**SHAPE, **more), generator=generator).double()
    return far_from_flat(model, generator)


@pytest.fixture(scope="module")
def model() -> ContextTransformer:
    return build(segment_length=LENGTH, gated_update=True)


def save(model, path):
    state = {"model_name": model.name, "config": asdict(model.config), "model": model.state_dict()}
    torch.save(state | {"tokenizer": tokenizer_state(model.tokenizer), "step": 3}, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    return save(model, tmp_path_factory.mktemp("variant") / "checkpoint_3.pt")


# ------------------------------------------------------------------------------------ rows of a batch


def test_rows_of_any_lengths_continue_as_each_alone_and_as_reading_from_the_beginning(model):
    options = dict(max_tokens=2 * LENGTH + 2, temperature=1.0)
    together = generate(model, RAGGED, generators=row_generators(5, 4), **options)
    slow = generate(model, RAGGED, generators=row_generators(5, 4), use_cache=False, **options)
    assert together == slow
    for row, prompt in enumerate(RAGGED):
        alone = [row_generators(5, 4)[row]]
        assert generate(model, [prompt], generators=alone, **options) == [together[row]]
    assert len({tuple(row) for row in together}) == 4  # the rows differ


def test_the_logits_while_decoding_are_those_of_training(model):
    decoder, text = model.new_decoder(2, 0, True), list(PROMPT)
    got = decoder.feed([text, text[:3]])[0]
    for token in (5, 6, 250, 1, 2, 3, 4):
        expected, carry = None, None
        for start in range(0, len(text), LENGTH):
            out = model(torch.tensor([text[start : start + LENGTH]]), carry=carry)
            expected, carry = out.logits[0, -1], out.carry
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(read_from_the_beginning(model, text), expected)
        text.append(token)
        got = decoder.feed([[token], [9]])[0]


def test_a_text_may_be_longer_than_the_context_limit(model):
    (row,) = generate(model, [PROMPT], max_tokens=20, temperature=0)
    assert len(row) == 20 > model.config.context_limit


def test_the_state_carries_what_lies_before_the_current_segment(model):
    begun = [[1] * LENGTH + [5], [2] * LENGTH + [5]]
    one, other = (read_from_the_beginning(model, text)[:260] for text in begun)
    assert (one - other).abs().max() > 1e-3


# ---------------------------------------------------------------------------------------- TokenGenerator


def test_calls_cut_anywhere_equal_one_text_read_from_the_beginning(model, checkpoint):
    generator = TokenGenerator(checkpoint, "cpu", seed=3)
    text = []
    for prompt, count in (([259], 1), ([4, 5, 6], 4), (PROMPT, 2 * LENGTH), ([8], LENGTH), ([9], 3)):
        text += prompt
        for token, logprob in generator.generate(prompt, [], 1.0, count, return_logprobs=True):
            expected = read_from_the_beginning(model, text).log_softmax(-1)
            assert logprob == pytest.approx(float(expected[token]), abs=1e-9)
            text.append(token)
    assert len(text) > 5 * LENGTH


def test_the_text_has_every_prompt_and_token_even_if_the_caller_stops_early(model, checkpoint):
    generator = TokenGenerator(checkpoint, seed=3)
    steps = generator.generate(PROMPT, temperature=1.0)
    taken = [next(steps) for _ in range(4)]
    steps.close()
    generator.generate([8, 9], [], 0.0, 5)  # not iterated
    ((token, logprob),) = generator.generate([5], [], 0.0, 1, return_logprobs=True)
    logits = read_from_the_beginning(model, [*PROMPT, *taken, 8, 9, 5])
    assert token == int(logits.argmax())
    assert logprob == pytest.approx(float(logits.log_softmax(-1).max()), abs=1e-9)


def test_reset_begins_a_new_document_and_a_seed_repeats(checkpoint):
    generator = TokenGenerator(checkpoint, seed=3)
    first = list(generator.generate(PROMPT, [], 0.0, 8))
    carried_on = list(generator.generate(PROMPT, [], 0.0, 8))
    generator.reset()
    assert list(generator.generate(PROMPT, [], 0.0, 8)) == first != carried_on
    one, other = (list(TokenGenerator(checkpoint, seed=8).generate(PROMPT, [], 1.0, 8)) for _ in range(2))
    assert one == other


def test_a_text_that_was_reset_does_not_go_on(checkpoint):
    generator = TokenGenerator(checkpoint)
    steps = generator.generate(PROMPT, [], 0.0, 5)
    next(steps)
    generator.reset()
    with pytest.raises(ValueError, match=r"reset\(\) ended the text .*; call generate\(\) again"):
        next(steps)


def test_logits_that_are_not_finite_are_an_error(checkpoint):
    generator = TokenGenerator(checkpoint)
    with torch.no_grad():
        generator.model.unembedding.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="logits are not finite"):
        next(generator.generate(PROMPT))


def test_a_stop_token_ends_a_call_and_is_returned(checkpoint):
    generator = TokenGenerator(checkpoint)
    free = list(generator.generate(PROMPT, [], 0.0, 9))
    generator.reset()
    stop = free[4]
    assert list(generator.generate(PROMPT, [stop], 0.0, 0)) == free[: free.index(stop) + 1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([],), "a prompt must have at least one token"),
        (([300],), "token ids must be from 0 to 299"),
        (([1], [], -1.0), "temperature must be finite and at least 0"),
        (([1], [], 1.0, -1), "max_tokens must be at least 0, got -1"),
    ],
)
def test_wrong_arguments_raise_at_the_call(checkpoint, arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenGenerator(checkpoint).generate(*arguments)


def test_token_generator_refuses_a_trunk_and_names_load_model(tmp_path):
    path = save(build(Transformer, ModelConfig), tmp_path / "checkpoint_3.pt")
    told = "holds a 'gptoss' model, not 'gptoss_context'; load it with .*load_model"
    with pytest.raises(ValueError, match=told):
        TokenGenerator(path, "cpu")


def test_sample_knows_the_variant_by_its_checkpoint(model, checkpoint, capsys):
    flags = "--prompt ab the --max_tokens 30 --seed 5 --device cpu".split()
    assert sample.main(["--checkpoint", str(checkpoint), *flags]) == 0
    told = capsys.readouterr().out
    texts = generate_texts(model, ["ab", "the"], 30, 0.8, seed=5)
    assert [re.sub("\\s+", " ", text) in re.sub("\\s+", " ", told) for text in texts] == [True] * 2
