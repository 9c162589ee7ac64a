"""lm-evaluation-harness on our models: its own tasks over local rows, and its HFLM on the exported model."""

import json
import math
from pathlib import Path

import pytest
import torch
from test_open_gpt_oss import model_of, state_of

from architecture.generation.decode import generate
from architecture.open_gpt_oss import export
from architecture.registry import load_model
from evaluation import code_execution, harness_model, harness_tasks, lm_eval

pytestmark = pytest.mark.peer
FIXTURES = Path(__file__).parent / "fixtures"
ROWS = FIXTURES / "lm_eval"
TRUNK = FIXTURES / "trunk/checkpoint_6.pt"


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    """lm-eval is there, and the Hub is not."""
    monkeypatch.setattr(harness_tasks, "unreachable", lambda dataset: "the Hub cannot be reached (a test)")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def rows_of(name: str) -> list[dict]:
    return [json.loads(line) for line in (ROWS / f"{name}.jsonl").read_text().splitlines()]


def run(*flags, checkpoint=TRUNK) -> int:
    words = ["--checkpoint", checkpoint, "--task_folder", ROWS, "--device", "cpu", "--threads", 1, *flags]
    return lm_eval.main([str(word) for word in words])


def test_the_command_does_not_hide_the_package_of_its_name():
    import lm_eval as package

    assert package.simple_evaluate and Path(package.__file__) != Path(lm_eval.__file__)


# ------------------------------------------------------------------------------------ beside HFLM
def instances(kind: str, arguments: list[tuple]) -> list:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def test_hflm_on_the_exported_model_gives_the_same_numbers_for_every_request(tmp_path):
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    state = state_of(rope_scaling_factor=1.0, num_hidden_layers=4)  # reads 64 tokens
    export.write_folder(state, tmp_path / "out", layout="hf")
    model = model_of(state)
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", attn_implementation="eager")
    theirs = HFLM(
        peer, tokenizer=AutoTokenizer.from_pretrained(tmp_path / "out"), batch_size=3, max_length=64
    )
    ours = harness_model.harness_class()(model, batch_size=4)
    ids = model.tokenizer.encode_ordinary
    [greedy] = generate(model, [ids("Mia met the")], max_tokens=2, temperature=0)
    pairs = [(row["activity_label"], f" {end}") for row in rows_of("hellaswag") for end in row["endings"]]
    pairs += [
        (f"{row['question']} Answer:", f" {letter}") for row in rows_of("mmlu_anatomy") for letter in "ABCD"
    ]
    pairs += [("", "Once"), ("trailing ", "space"), ("a long prompt, " * 9, " and its end"), ("th", "e cat")]
    pairs += [("the \u00e9t\u00e9", " the \u4e2d"), ("Mia met the", model.tokenizer.decode(greedy))]
    found = ours.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    wanted = theirs.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    assert len({round(nats, 3) for nats, _ in wanted}) > 15
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in wanted], rel=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    assert sum(len(ids(a + b)) > 65 for a, b in pairs) == ours.counts.cut == 1
    texts = [(row["text"],) for row in rows_of("story_bytes")]
    found = ours.loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
    wanted = theirs.loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
    assert found == pytest.approx(wanted, rel=1e-5) and len(ids(texts[0][0])) > 64
    stops = {"until": ["\n", "q"], "max_gen_toks": 40, "do_sample": False}
    asked = [(row["prompt"], stops) for row in rows_of("humaneval")]
    # without merges of the tokenizer's own, bytes that are not UTF-8 decode alike
    assert ours.generate_until(
        instances("generate_until", asked), disable_tqdm=True
    ) == theirs.generate_until(instances("generate_until", asked), disable_tqdm=True)


# ------------------------------------------------------------------------------------ the real tasks
@torch.no_grad()
def bits_by_hand(model, text: str) -> tuple[float, int]:
    """Nats of a text after the end-of-text token, in windows of which only the last one overlaps; and its bytes."""
    ids, limit = (
        [model.tokenizer.eot_token, *model.tokenizer.encode_ordinary(text)],
        model.config.context_limit,
    )
    nats, scored = 0.0, 1
    while scored < len(ids):
        end = min(len(ids), scored + limit)
        logits = model(torch.tensor([ids[max(0, end - 1 - limit) : end - 1]])).logits[0, scored - end :]
        nats -= float(logits.log_softmax(-1).gather(1, torch.tensor(ids[scored:end])[:, None]).sum())
        scored = end
    return nats, len(text.encode())


def test_the_real_tasks_run_on_local_rows_and_what_needs_the_hub_is_told(tmp_path, capsys, monkeypatch):
    import datasets

    read, asked_for = datasets.load_dataset, []
    monkeypatch.setattr(datasets, "load_dataset", lambda **given: asked_for.append(given) or read(**given))
    out = tmp_path / "scores.json"
    flags = ("--tasks", "hellaswag,truthfulqa_mc2,arc_easy,mmlu_small,story_bytes", "--out", out)
    assert run(*flags) == 2
    said = capsys.readouterr()
    assert (
        "arc_easy left out: arc_easy needs the data set allenai/ai2_arc (arc_easy), which is not in the local cache, "
        "and the Hub cannot be reached (a test); run this where the Hub is, or write its rows to" in said.err
    )
    assert len(asked_for) == 6 and not any("trust_remote_code" in given for given in asked_for)
    found = json.loads(out.read_text())
    assert list(found["tasks"]) == ["hellaswag", "truthfulqa_mc2", "mmlu_small", "story_bytes"]
    assert list(found["failed"]) == ["arc_easy"] and found["lm_eval"] == "0.4.13"
    scores = {name: part["scores"][name] for name, part in found["tasks"].items()}
    acc, norm = scores["hellaswag"]["figures"]
    assert (acc["metric"], norm["metric"]) == ("acc", "acc_norm") and acc["chance"] == norm["chance"] == 0.25
    [mc2] = scores["truthfulqa_mc2"]["figures"]
    assert mc2["chance"] == pytest.approx((2 / 5 + 1 / 3 + 3 / 4) / 3)  # the share of right answers
    [pooled] = scores["mmlu_small"]["figures"]
    parts = [found["tasks"]["mmlu_small"]["scores"][name] for name in ("mmlu_anatomy", "mmlu_astronomy")]
    right = sum(part["figures"][0]["value"] * part["documents"] for part in parts)
    assert scores["mmlu_small"]["documents"] == 5 and pooled["value"] == pytest.approx(right / 5)
    assert pooled["interval"] == pytest.approx(
        harness_tasks.interval([1.0] * round(right) + [0.0] * (5 - round(right)), "acc")
    )
    model = load_model(TRUNK)
    nats, sizes = zip(*(bits_by_hand(model, row["text"]) for row in rows_of("story_bytes")))
    [bits] = [row for row in scores["story_bytes"]["figures"] if row["metric"] == "bits_per_byte"]
    assert bits["value"] == pytest.approx(sum(nats) / math.log(2) / sum(sizes), rel=1e-5)
    assert bits["interval"][0] < bits["value"] < bits["interval"][1] and bits["chance"] is None
    # the right answer of each row of hellaswag, by hand, with the rules of the task for its texts
    rows = [
        ("Baking bread: Mia mixes flour and water in a bowl. She", 0),
        ("Flying a kite: Tom runs up the hill with his kite. The wind", 1),
        ("Planting a tree: How to plant a tree. Dig a hole. Then", 3),
    ]
    asked = harness_model.HarnessModel(model)
    hits = 0
    for row, (prompt, gold) in zip(rows_of("hellaswag"), rows):
        ends = [end.replace(" [laughs]", "") for end in row["endings"]]
        pairs = instances("loglikelihood", [(prompt, f" {end}") for end in ends])
        nats = [nats for nats, _ in asked.loglikelihood(pairs, disable_tqdm=True)]
        hits += max(range(4), key=nats.__getitem__) == gold
    assert acc["value"] == pytest.approx(hits / 3)
    cut = found["tasks"]["hellaswag"]["prompts_cut"]
    assert cut == asked.counts.cut > 0 and f"hellaswag: {cut} of 12 prompts lost their beginning" in said.out
    assert "25.0%          3" in said.out and said.out.startswith("task ")


def test_humaneval_runs_programs_only_when_allowed(tmp_path, monkeypatch, capsys):
    assert run("--tasks", "hellaswag,humaneval") == 2
    said = capsys.readouterr()
    assert (
        said.out == ""
        and "humaneval runs programs that the model writes; --allow_code_execution runs them" in said.err
    )
    told = {
        "add_all": "    return sum(numbers)\n",
        "first_word": "    return text\n",
        "count_down": "    while True: pass\n",
    }

    def answers(self, requests, disable_tqdm=False):
        assert all(request.args[1]["max_gen_toks"] == 1024 for request in requests)
        return [next(body for name, body in told.items() if name in request.args[0]) for request in requests]

    monkeypatch.setattr(harness_model.HarnessModel, "generate_until", answers)
    monkeypatch.setattr(code_execution.CodeEval.__init__, "__defaults__", (1,))
    out = tmp_path / "scores.json"
    assert run("--tasks", "humaneval", "--allow_code_execution", "--out", out) == 0
    [row] = json.loads(out.read_text())["tasks"]["humaneval"]["scores"]["humaneval"]["figures"]
    assert row["metric"] == "pass@1" and row["value"] == pytest.approx(1 / 3) and row["chance"] == 0


@pytest.mark.parametrize(
    "flags, told",
    [
        (
            "--tasks hellaswag --num_fewshot 2",
            "hellaswag.fewshot.jsonl, which would hold them, does not exist; write it",
        ),
        ("--tasks ,", "--tasks must name at least one task"),
        ("--tasks hellaswag --limit 0", "--limit must be at least 1"),
        ("--tasks hellaswag --task_folder nowhere", "--task_folder must be a folder, got nowhere"),
    ],
)
def test_bad_input_is_told_in_one_sentence(flags, told, capsys):
    assert run(*flags.split()) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ['{"ctx": "no other column"}\n', "no JSON\n", ""], ids=["columns", "text", "empty"]
)
def test_a_file_of_other_rows_is_told_and_the_next_task_runs(tmp_path, capsys, text):
    (tmp_path / "mmlu_anatomy.jsonl").write_text(text)
    (tmp_path / "hellaswag.jsonl").write_text((ROWS / "hellaswag.jsonl").read_text())
    assert run("--tasks", "mmlu_anatomy,hellaswag", "--task_folder", tmp_path) == 2
    said = capsys.readouterr()
    [line] = [line for line in said.err.splitlines() if "mmlu_anatomy left out" in line]
    assert (
        f"{tmp_path}/mmlu_anatomy.jsonl must hold one JSON object a line, with the columns of the task"
        in line
    )
    assert "hellaswag" in said.out


def test_an_unknown_task_is_told_with_the_nearest_name(capsys, monkeypatch):
    monkeypatch.setattr("lm_eval.tasks.__file__", str(ROWS / "__init__.py"))  # instead of 14,000 tasks
    assert run("--tasks", "story_byte") == 2
    told = "--tasks has no task, group or tag 'story_byte'; did you mean 'story_bytes'?"
    assert told in capsys.readouterr().err


def test_a_model_of_nan_is_told_and_what_was_done_is_kept(tmp_path, capsys, monkeypatch):
    out, read = tmp_path / "scores.json", lm_eval.read_model

    def breaking(args):
        model = read(args)
        ask, asked = model.loglikelihood, []

        def once(*given, **options):
            if asked:
                model.network.norm.scale.data.fill_(torch.nan)
            asked.append(1)
            return ask(*given, **options)

        model.loglikelihood = once
        return model

    monkeypatch.setattr(lm_eval, "read_model", breaking)
    assert run("--tasks", "mmlu_anatomy,hellaswag", "--out", out) == 2
    assert "logits are not finite, so no text can be scored" in capsys.readouterr().err
    assert list(json.loads(out.read_text())["tasks"]) == ["mmlu_anatomy"]
