"""What lm-eval asks of a model, against plain loops; programs in limited processes; intervals. Needs no lm-eval."""

import itertools
import math
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_generation import build, far_from_flat

from architecture.generation.decode import generate
from architecture.generation.sampling import row_generators
from architecture.gpt2 import GPT2
from architecture.gpt2 import ModelConfig as GPT2Config
from architecture.registry import load_model
from evaluation import code_execution, harness_model, harness_tasks, lm_eval
from evaluation.harness_model import HarnessModel, generation_arguments

LIMIT = 23
PAIRS = [
    ("the cat sat on", " the mat"),
    ("the cat sat on", " a hat and more"),
    ("the cat sat on", " x"),
    ("a dog ", "ran"),  # white space belongs to the continuation
    ("", "once"),
    ("   ", "twice"),
    ("t", "he"),  # one token has both
    ("a prompt that is far too long for this model to read as a whole", " yes"),
    ("short", " and a continuation beyond what the model reads in one piece"),
    ("same", ""),
]


def requests(arguments):
    return [SimpleNamespace(args=one) for one in arguments]


def gpt2_model():
    shape = dict(
        num_hidden_layers=2, vocab_size=320, used_vocab_size=260, hidden_size=21, num_attention_heads=3
    )
    config = GPT2Config(**shape, initial_context_length=LIMIT)
    return far_from_flat(GPT2(config).double(), torch.Generator().manual_seed(1))


MODELS = {
    "gptoss": lambda: build(initial_context_length=LIMIT, rope_scaling_factor=1.0),
    "gpt2": gpt2_model,
}


@torch.no_grad()
def by_hand(model, before, after):
    """Nats and greediness of `after`, with one forward pass over one row for each token or window."""
    ids, start, nats, greedy = [*before, *after], len(before), 0.0, True
    while start < len(ids):
        end = min(start + LIMIT, len(ids))
        inputs = ids[max(0, end - 1 - LIMIT) : end - 1]
        logits = model(torch.tensor([inputs])).logits[0, -(end - start) :]
        for row, token in zip(logits, ids[start:end]):
            nats += float(row.log_softmax(-1)[token])
            greedy &= int(row.argmax()) == token
        start = end
    return nats, greedy


@pytest.mark.parametrize("kind", MODELS)
def test_scores_are_those_of_plain_loops_for_every_size_of_batch(kind, monkeypatch):
    model = MODELS[kind]()
    eot, ids = model.tokenizer.eot_token, model.tokenizer.encode_ordinary
    wanted = []
    for prompt, continuation in PAIRS:
        kept = prompt.rstrip()
        both = ids(prompt + continuation)
        before = ids(kept)
        after = both[len(before) :]
        if prompt == "t":
            after = ids(continuation)
        wanted.append(by_hand(model, before or [eot], after))
    texts = ["", "short", "a text that is longer than what this model reads at once, by far, and again"]
    rolling = [by_hand(model, [eot], ids(text))[0] for text in texts]
    monkeypatch.setattr(harness_model, "LOGITS_AT_ONCE", 320 * 5)  # the tail is read in several parts
    for batch_size in (1, 4):
        asked = HarnessModel(model, batch_size=batch_size)
        found = asked.loglikelihood(requests(PAIRS), disable_tqdm=True)
        assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in wanted], abs=1e-9)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
        assert found[9] == (0, True)  # nothing is certain
        assert asked.counts.cut == 3 and asked.counts.requests == len(PAIRS)  # the second and both long ones
        found = asked.loglikelihood_rolling(requests([(text,) for text in texts]), disable_tqdm=True)
        assert found == pytest.approx(rolling, abs=1e-9)


def test_a_greedy_continuation_is_found_to_be_greedy():
    model = build(initial_context_length=LIMIT, rope_scaling_factor=1.0)
    asked = HarnessModel(model)
    start = model.tokenizer.encode_ordinary("the cat")
    [new] = generate(model, [start], max_tokens=4, temperature=0)
    (_, greedy), (_, other) = asked._scores([(start, new), (start, [*new[:-1], (new[-1] + 1) % 260])], True)
    assert greedy and not other


def test_texts_end_before_the_first_stop_string_wherever_tokens_are_cut():
    model = build(initial_context_length=LIMIT, rope_scaling_factor=1.0)
    prompts = ["the cat", "a", "", "one two three four five six seven"]
    options = {"do_sample": True, "temperature": 0.9, "top_k": 200, "max_gen_toks": 12}
    whole = HarnessModel(model, batch_size=4, seed=3).generate_until(
        requests([(prompt, options) for prompt in prompts]), disable_tqdm=True
    )
    ids = [model.tokenizer.encode_ordinary(prompt)[-(LIMIT - 12) :] or [259] for prompt in prompts]
    drawn = generate(model, ids, max_tokens=12, temperature=0.9, top_k=200, stop_tokens=(259,),
                     generators=row_generators(3, 4))  # fmt: skip
    kept = [[token for token in row if token != 259] for row in drawn]
    assert whole == [model.tokenizer.decode_bytes(row).decode(errors="replace") for row in kept]
    stops = [text[3:6] for text in whole if len(text) > 6]
    assert len(stops) >= 2
    for batch_size in (1, 3):
        asked = HarnessModel(model, batch_size=batch_size, seed=3)
        found = asked.generate_until(
            requests([(prompt, options | {"until": [*stops, ""]}) for prompt in prompts]), disable_tqdm=True
        )
        assert found == [min((text.split(stop)[0] for stop in stops), key=len) for text in whole]
        assert asked.counts.cut == 1 and asked.counts.shortened == 0  # the last prompt
    greedy = {"until": "\n\n", "max_gen_toks": LIMIT + 5}
    asked = HarnessModel(model)
    [text] = asked.generate_until(requests([("the cat", greedy)]), disable_tqdm=True)
    [row] = generate(model, ids[:1], max_tokens=LIMIT // 2, temperature=0, stop_tokens=(259,))
    row = [token for token in row if token != 259]
    assert text == model.tokenizer.decode_bytes(row).decode(errors="replace").split("\n\n")[0]
    assert asked.counts.shortened == 1


def test_a_batch_ends_when_each_row_has_its_stop_string(monkeypatch):
    model = build(initial_context_length=LIMIT, rope_scaling_factor=1.0)
    steps, generate_steps = [], harness_model.generate_steps

    def counted(*given, **options):
        for new in generate_steps(*given, **options):
            steps.append(new)
            yield new

    monkeypatch.setattr(harness_model, "generate_steps", counted)
    options = {"do_sample": True, "max_gen_toks": 16}
    [text] = HarnessModel(model, seed=5).generate_until(requests([("the", options)]), disable_tqdm=True)
    assert len(text) > 9 and len(steps) == 16
    steps.clear()
    stop = {"until": [text[2:7]]}  # of several tokens
    [cut] = HarnessModel(model, seed=5).generate_until(requests([("the", options | stop)]), disable_tqdm=True)
    assert cut == text.split(text[2:7])[0] and len(steps) < 10


@pytest.mark.parametrize(
    "given, told",
    [
        ({"num_beams": 5}, "num_beams must be left out or be 1, got 5"),
        ({"typical_p": 0.2}, "typical_p must be left out, got 0.2"),
        ({"do_sample": True, "temperature": 0.0}, "contradict each other"),
        ({"max_gen_toks": 0}, "at least 1 token"),
        ({"temperature": math.inf}, "finite temperature"),
    ],
)
def test_an_argument_that_is_not_honoured_is_refused_in_one_sentence(given, told):
    with pytest.raises(ValueError, match=told):
        generation_arguments(given)


def test_arguments_of_generation_mean_what_they_mean_in_lm_eval():
    assert generation_arguments({}) == {"until": [], "max_tokens": 256, "temperature": 0.0}
    sampled = {"temperature": 0.7, "top_p": 0.9, "top_k": 0, "max_new_tokens": 9, "num_beams": 1}
    assert generation_arguments(sampled) == {"until": [], "max_tokens": 9, "temperature": 0.7, "top_p": 0.9}
    greedy = {"do_sample": False, "temperature": 0.7, "top_p": 0.9, "until": "a", "max_gen_toks": 3}
    assert generation_arguments(greedy) == {"until": ["a"], "max_tokens": 3, "temperature": 0.0}
    assert generation_arguments({"do_sample": True})["temperature"] == 1.0


def test_a_model_whose_logits_are_not_finite_is_told_in_one_sentence():
    model = build(initial_context_length=LIMIT, rope_scaling_factor=1.0)
    with torch.no_grad():
        model.norm.scale[0] = torch.nan
    with pytest.raises(ValueError, match="logits are not finite, so no text can be scored; use a checkpoint"):
        HarnessModel(model).loglikelihood(requests(PAIRS[:1]), disable_tqdm=True)
    with pytest.raises(ValueError, match="logits are not finite"):
        HarnessModel(model).generate_until(requests([("a", {})]), disable_tqdm=True)


# --------------------------------------------------------------------------------------------- programs
ADD = "def add(a, b):\n"
TESTS = "def check(candidate):\n    assert candidate(2, 3) == 5\ncheck(add)"


def test_a_program_passes_or_fails_or_is_stopped():
    programs = {
        "passes": "    return a + b",
        "fails": "    return a - b",
        "loops": "    while True:\n        pass",
    }
    judge = code_execution.CodeEval(cpu_seconds=1)
    share, outcomes = judge.compute(
        references=[TESTS] * 3, predictions=[[ADD + body] for body in programs.values()], k=[1, 2]
    )
    assert share == {"pass@1": pytest.approx(1 / 3)}  # one program each: no pass@2
    assert judge.unlimited == set()
    told = [one.told for [one] in outcomes]
    assert told[:2] == ["passed", "AssertionError: "] and told[2].startswith("stopped after 1 s of CPU time")


@pytest.mark.parametrize(
    "program, told",
    [
        ("import os\nos._exit(0)", "ended with 0"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("x = [0] * 2**28", "MemoryError"),
        ("open('big', 'wb').write(bytes(2**21))", "OSError: [Errno 27]"),
        (
            "import os\nassert not os.listdir('.') and not set(os.environ) - {'LC_CTYPE'}\nopen('a', 'w').write('b')",
            "passed",
        ),
        ("answer = {'token': 'x'}\nprint('passed')\nassert False", "AssertionError"),
    ],
)
def test_a_program_passes_only_at_its_end_and_within_its_limits(program, told):
    outcome = code_execution.run_program(program)
    assert outcome.told.startswith(told) and outcome.passed == (told == "passed")


def test_a_program_has_no_network_where_the_system_can_take_it_away():
    program = "import socket\nsocket.create_connection(('127.0.0.1', {}), 1)"
    with socket.create_server(("127.0.0.1", 0)) as server:
        outcome = code_execution.run_program(program.format(server.getsockname()[1]))
    assert outcome.network is not None and outcome.passed == outcome.network


MACOS = """
set_limit = resource.setrlimit
def setrlimit(name, limits):
    if name == resource.RLIMIT_AS:
        raise ValueError("current limit exceeds maximum limit")
    set_limit(name, limits)
resource.setrlimit = setrlimit
"""


def test_a_limit_that_the_system_does_not_set_is_told(monkeypatch):
    first = 'answer["unlimited"] = []\n'
    assert first in code_execution.RUNNER
    monkeypatch.setattr(code_execution, "RUNNER", code_execution.RUNNER.replace(first, first + MACOS))
    judge = code_execution.CodeEval()
    assert judge.compute(references=[""], predictions=[["pass"]], k=[1])[0] == {"pass@1": 1.0}
    assert judge.unlimited == {"RLIMIT_AS"}


def test_pass_at_k_is_the_share_of_all_draws_with_a_program_that_passes():
    for number, passed, k in ((5, 2, 3), (4, 0, 2), (6, 5, 2), (3, 3, 1)):
        draws = list(itertools.combinations(range(number), k))
        share = sum(min(draw) < passed for draw in draws) / len(draws)
        assert code_execution.pass_at(k, number, passed) == pytest.approx(share)


# --------------------------------------------------------------------------------------------- intervals
def test_intervals_are_those_of_scipy():
    from scipy import stats

    right = [1.0] * 4 + [0] * 7
    wilson = stats.binomtest(4, 11).proportion_ci(method="wilson")
    assert harness_tasks.interval(right, "acc") == pytest.approx(tuple(wilson), abs=1e-12)
    shares = [0.2, 0.9, 0.4, 0.7, 0.6, 0.1, 0.5, 0.6]
    wanted = stats.t.interval(0.95, 7, loc=0.5, scale=stats.sem(shares))
    assert harness_tasks.interval(shares, "acc") == pytest.approx(wanted, rel=1e-3)
    assert (
        harness_tasks.interval([1, 0], "acc") is None and harness_tasks.interval([(1, 2)] * 3, "f1") is None
    )
    pairs = [(-30.0, 20), (-12.0, 11), (-55.0, 31), (-20.0, 14), (-9.0, 5)]
    low, high = harness_tasks.interval(pairs, "word_perplexity")
    residuals = [-a - 126 / 81 * b for a, b in pairs]
    error = math.sqrt(sum(r * r for r in residuals) * 5 / 4) / 81
    half = stats.t.ppf(0.975, 4) * error
    assert (low, high) == pytest.approx((math.exp(126 / 81 - half), math.exp(126 / 81 + half)), rel=2e-3)


# ------------------------------------------------------------------------------------- chance and the Hub
def test_chance_is_the_mean_over_certain_models():
    def probability_of_right(doc, results):
        weights = [math.exp(nats) for nats, _ in results]
        best = max(range(len(weights)), key=weights.__getitem__)
        right = [weight for weight, label in zip(weights, doc["labels"]) if label]
        return {"acc": float(doc["labels"][best]), "mass": sum(right) / sum(weights), "pair": (1, 2)}

    task = SimpleNamespace(process_results=probability_of_right)
    doc = {"labels": [0, 1, 0, 1, 0]}
    for metric in ("acc", "mass"):
        assert harness_tasks.chance_of(task, doc, 5, metric) == pytest.approx(2 / 5)
    assert harness_tasks.chance_of(task, doc, 5, "pair") is None  # no number of one document


def test_only_a_hub_that_does_not_answer_is_unreachable(monkeypatch):
    import datasets
    import huggingface_hub

    def answer(error):
        def dataset_info(self, name, timeout):
            raise error

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
        return harness_tasks.unreachable("somebody/something")

    assert answer(ConnectionError("no route")) == "the Hub cannot be reached (no route)"
    missing = ValueError("404")
    missing.response = SimpleNamespace(status_code=404)
    assert answer(missing) == ""  # lm-eval says what is wrong with the name
    before = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(KeyError), harness_tasks.offline():
        assert datasets.config.HF_HUB_OFFLINE and huggingface_hub.constants.HF_HUB_OFFLINE
        raise KeyError
    assert datasets.config.HF_HUB_OFFLINE == before


def test_a_missing_lm_eval_is_told_in_one_sentence_with_the_line_that_installs_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert lm_eval.main(["--checkpoint", "model", "--tasks", "hellaswag"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs lm-eval" in line and line.endswith("run pip install -r requirements-eval.txt")


def test_a_model_that_reads_segments_is_refused_in_one_sentence():
    path = Path(__file__).parent / "fixtures/context/checkpoint_6.pt"
    with pytest.raises(ValueError, match="reads a text in segments, and lm-eval scores texts in one piece"):
        HarnessModel(load_model(path))
