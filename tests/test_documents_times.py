"""No time and no speed in README, docs, configs and help texts without its record, and no record without a commit."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
import yaml
from test_documents import CLAIMS, DOCUMENTS, RESULTS, ROOT, record, text_of, written

from architecture.registry import build_config
from benchmarks.publish import require_clean_commits
from common import provenance
from common.device import PEAK_FLOPS
from common.provenance import CHANGES
from training.config import ContextTrainConfig

NUMBERS = "two|three|four|five|six|ten|fifteen|twenty|thirty|some"
UNITS = "ms|s|seconds?|minutes?|min|hours?|days?|tokens/s|tokens per (?:CPU )?second"
TIME = re.compile(
    rf"\b(?:(?:\d[\d.,]*|{NUMBERS})[ -](?:{UNITS})|(?:an?|half an) (?:minute|hour|day)|in (?:minutes|hours|seconds))(?![\w/'-])",
    re.I,
)
# Times that are rules of the code or of another program and no measurements, each with its place.
RULES = {
    "help of the training flags": ["length of the run in minutes"],  # a unit
    "benchmarks/gpu_check.py": ["in at most ten minutes", "two minutes of `medium`"],  # its --minutes
    "benchmarks/hub_stream.py": ["with 50 ms a request"],  # of its own server
    "Makefile": ["one CUDA device, ten minutes"],  # benchmarks/gpu_check.py --minutes
    "docs/claims.md": [  # what was said before and is withdrawn; the last is that of test_documents.py
        '"minutes on a laptop", "five minutes", "fourteen minutes"', "711 to 802 s", "4.5 s to the first step, 0.09 s",
        "711, 802 and 890 s",
    ],
    "docs/design.md": ["when it goes on for a minute"],  # training/monitor/pace.py
    "docs/recipes.md": [
        "plans any run for an hour",  # 60 minutes, in the same sentence
        "twice as long for a minute",  # training/monitor/pace.py
        "in at most ten minutes", "two minutes of `medium`",  # benchmarks/gpu_check.py
    ],
    "docs/scale.md": [
        "a step of more than 9.5 minutes",  # training/distributed/mesh.py
        "Two minutes before its time ends",  # --signal=TERM@120, in the script above it
    ],
    "docs/teaching.md": ["for at most 10 seconds"],  # CHECK_SECONDS of training/post/rollouts.py
}  # fmt: skip


def on_paper(size: str, card: str, share: float) -> tuple[float, float]:
    """FLOPs of a recipe, and its minutes at a share of the bfloat16 peak of a card."""
    recipe, config = yaml.safe_load((ROOT / f"configs/{size}.yaml").read_text()), build_config("gptoss", size)
    tokens = recipe["max_iters"] * recipe["batch_size"] * recipe["block_size"] * recipe.get("grad_accum", 1)
    flops = tokens * config.flops_per_token(recipe["block_size"])
    return flops, flops / (share * PEAK_FLOPS[card]["bfloat16"]) / 60


def claims_of_time() -> list[tuple[str, str, tuple]]:
    """(document, words, numbers) of the times that test_documents.py does not have."""
    quick, toy, light = record("quickstart"), record("tinystories_20_minutes"), record("light_5_minutes")
    seconds = [run["final"]["final/seconds"] for run in light["runs"]]
    lines = (RESULTS / "vision.jsonl").read_text(encoding="utf-8").splitlines()
    vision = {run["arm"]: run["minutes"] for run in map(json.loads, lines) if run["seed"] == 1337}
    official, rates = record("official_size"), record("engines")["tokens_per_second"]
    busy = record("busy_machine")["medians"]
    sample = {way: [busy["sample"][c][way] for c in busy["sample"]] for way in busy["sample"]["quiet"]}
    alone, spin = sample["one thread"], sample["unbounded spin"]
    medium, large = (
        on_paper("medium", "NVIDIA GeForce RTX 4090", 0.25),
        on_paper("large", "NVIDIA H100 80GB HBM3", 0.3),
    )
    found = [
        ("README.md", "took {:.0f} s on two cores in the recorded run", (quick["final"]["final/seconds"],)),
        ("README.md", "one GPU, {:.0f} minutes on paper", medium[1:]),
        ("README.md", "one large GPU, {:.0f} minutes on paper", large[1:]),
        ("Makefile", "The recorded run took {:.0f} s on two cores", (quick["final"]["final/seconds"],)),
        ("configs/quickstart.yaml", "took {:.0f} s with two threads", (quick["final"]["final/seconds"],)),
        ("configs/toy.yaml", "took {:,.0f} s with two threads", (toy["final"]["final/seconds"],)),
        ("configs/light.yaml", "took {:.0f} to {:.0f} s with one thread", (min(seconds), max(seconds))),
        ("docs/recipes.md", "`medium` is {:.2e} FLOPs, {:.0f} minutes", medium),
        ("docs/recipes.md", "`large` {:.2e} FLOPs, {:.0f} minutes", large),
        ("docs/recipes.md", "wrote {:.0f} tokens/s with one thread and {:.0f} with two", (alone[0], spin[0])),
        ("docs/recipes.md", "{:.0f} to {:,.0f} with one and {:.0f} to {:.0f} with two",
         (min(alone[1:]), max(alone[1:]), min(spin[1:]), max(spin[1:]))),
        ("docs/vision.md", "took {:.0f} minutes with its evaluations, the floor {:.0f}", (vision["toy"], vision["floor"])),
        ("docs/formats.md", "one thread: {:.0f} s to load", (official["ours"]["load_seconds"],)),
        ("docs/formats.md", "{:.0f} s for a prompt of {} tokens, {:.1f} s for each new",
         (official["ours"]["prompt_seconds"], official["prompt_tokens"], official["ours"]["seconds_per_token"])),
        ("docs/formats.md", "ended after {:.0f} s", (official["theirs"]["load_seconds"],)),
        ("docs/formats.md", "tokens/s: ours {:.0f} for one row and {:,.0f} for eight, llama.cpp {:,.0f} and {:,.0f}",
         tuple(rates[rows][who] for who in ("nano-gpt-oss", "llama.cpp") for rows in ("1", "8"))),
        ("docs/results.md", "{:,.0f} s of training without a pause", (record("soak")["final"]["final/seconds"],)),
        ("docs/results.md", "which first takes {:.0f} s to compile",
         (record("decode_peers")["compiled_one_row"]["compile_cpu_seconds"],)),
    ]  # fmt: skip
    rows = {"two threads, unbounded, as in other programs": "unbounded spin",
            "two threads, if the other work begins later": "spin 5000",
            "one thread, if it is there at the start": "one thread"}  # fmt: skip
    for row, way in rows.items():
        beside = [
            [busy["train"][f"{n} {kind}"][way] for kind in ("loop", "matmul", "training")] for n in (1, 2)
        ]
        values = [busy["train"]["quiet"][way], *(limit(rates) for rates in beside for limit in (min, max))]
        found.append(
            ("docs/recipes.md", row + " | {:,.0f} | {:,.0f} to {:,.0f} | {:,.0f} to {:,.0f} |", tuple(values))
        )
    return [(name, words, tuple(values)) for name, words, values in found]


TIMES = claims_of_time()


def texts() -> dict[str, str]:
    """What a user reads, by its place, with single spaces and without code."""
    paths = [*DOCUMENTS, ROOT / "Makefile", *sorted((ROOT / "configs").rglob("*.yaml"))]
    found = {str(path.relative_to(ROOT)): text_of(str(path.relative_to(ROOT))) for path in paths}
    scripts = [f"benchmarks/{path.stem}" for path in (ROOT / "benchmarks").glob("[!_]*.py")]
    for name in (*scripts, "train", "train_context", "sample", "ablate", "inference", "server", "evaluation/inference_cost",
                 "evaluation/context", "evaluation/check", "evaluation/ablation/spec", "examples/tiny_gpt_oss"):  # fmt: skip
        found[f"{name}.py"] = " ".join(
            (ROOT / f"{name}.py").read_text(encoding="utf-8").split('"""')[1].split()
        )
    fields = ContextTrainConfig.__dataclass_fields__.values()
    found["help of the training flags"] = " | ".join(f.metadata.get("help", "") for f in fields)
    return found


def said(words: str, values: tuple) -> str:
    return written(words, values).replace("e+", "e")


def unrecorded(name: str, text: str) -> list[str]:
    """The times in a text that are neither in a record nor rules."""
    told = [said(words, values) for place, words, values in (*CLAIMS, *TIMES) if place == name]
    for words in (*told, *RULES.get(name, ())):
        text = text.replace(words, " ")
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", " ", text)
    return [text[max(0, m.start() - 40) : m.end() + 20] for m in TIME.finditer(text)]


@pytest.mark.parametrize(("document", "words", "values"), TIMES, ids=[words[:50] for _, words, _ in TIMES])
def test_a_time_is_that_of_its_record(document, words, values):
    wanted = said(words, values)
    assert wanted in text_of(document), f"{document} should say: {wanted}"


def test_no_text_has_a_time_without_a_record():
    found = {name: times for name, text in texts().items() if (times := unrecorded(name, text))}
    assert found == {}, "give each its record (TIMES), say its rule (RULES), or leave it out"


def test_rules_about_time_are_still_said():
    found = texts()
    for name, rules in RULES.items():
        assert all(words in found[name] for words in rules), name


@pytest.mark.parametrize(
    "claim", ["about six minutes on two cores", "1,238 tokens/s", "takes 0.3 s", "in an hour", "trains in minutes",
              "half an hour", "12 ms a step", "7 tokens per CPU second"],
)  # fmt: skip
def test_a_new_time_is_noticed(claim):
    assert unrecorded("README.md", f"The toy: {claim}.")


@pytest.mark.parametrize("words", ["a second file", "8 steps", "2,048 tokens", "the second time", "5 models"])
def test_other_words_are_no_times(words):
    assert not unrecorded("README.md", f"The toy: {words}.")


# ------------------------------------------------------------------------------------------- clean commits

# Records from before the rule, to be measured again. The list may only become shorter.
WITH_CHANGES = {
    "compare_peers.json",
    "decode.json",
    "decode_peers.json",
    "instrument_cost.json",
    "muon_losses.jsonl",
}


def test_a_record_names_a_clean_commit():
    paths = [path for path in RESULTS.rglob("*.json*") if ".changes." not in path.name]
    assert len(paths) > 30
    found = {path.name for path in paths if CHANGES in path.read_text(encoding="utf-8")}
    assert found == WITH_CHANGES
    nameless = [path.name for path in RESULTS.glob("*.json*") if '"commit": "' not in path.read_text("utf-8")]
    assert nameless == []


def test_a_result_of_changed_code_is_kept_beside_the_record_and_says_so(tmp_path, monkeypatch, capsys):
    def git(*words: str) -> str:
        mine = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(
            ["git", *mine, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    record, code, text = (tmp_path / name for name in ("benchmarks/results/a.json", "train.py", "docs/a.md"))
    for path in (record, code, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    git("init", "-q"), git("add", "-A"), git("commit", "-qm", "one")
    commit = git("rev-parse", "--short=12", "HEAD").strip()
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "RECORDS", record.parent)
    look = provenance.git_commit.__wrapped__  # without its cache
    monkeypatch.setattr(provenance, "git_commit", look)
    for path in (record, text):  # no program reads them
        path.write_text("2")
    assert look() == commit and provenance.record_path(record) == record
    code.write_text("2")
    assert look() == f"{commit}+changes"
    assert provenance.record_path(record) == record.with_name("a.changes.json")
    assert f"files differ from {commit}; this result goes to a.changes.json" in capsys.readouterr().err
    assert provenance.record_path(tmp_path / "a.json") == tmp_path / "a.json"


def test_finished_runs_of_changed_code_are_not_published(tmp_path):
    require_clean_commits('{"commit": "06ec54869c39"}', tmp_path)
    with pytest.raises(ValueError, match="runs of a commit with changes"):
        require_clean_commits('{"commit": "06ec54869c39+changes"}', tmp_path)
