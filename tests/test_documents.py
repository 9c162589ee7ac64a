"""README and docs say what the records and the files say."""

from __future__ import annotations

import json
import re
import shlex
import statistics
from pathlib import Path

import pytest

from evaluation.ablation.statistics import summary
from training.command_line import parse_command_line
from training.config import ContextTrainConfig, TrainConfig
from training.train_command import model_fields

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OURS = {
    "architecture",
    "benchmarks",
    "common",
    "configs",
    "data",
    "docs",
    "evaluation",
    "examples",
    "tests",
    "training",
}
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def text_of(name: str) -> str:
    """A document with every run of white space as one space."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def record(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------ numbers of an ablation


def runs(ablation: str, phase: str = "verdict") -> dict[str, dict[int, dict]]:
    """The runs of a verdict by arm and seed."""
    found: dict[str, dict[int, dict]] = {}
    for line in (RESULTS / "ablations" / ablation / "results.jsonl").read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        if run["phase"] == phase:
            found.setdefault(run["arm"], {})[run.get("seed", 0)] = run
    return found


def mean(ablation: str, arm: str, key: str = "bits_per_byte", phase: str = "verdict") -> float:
    return statistics.fmean(run[key] for run in runs(ablation, phase)[arm].values())


def seconds(ablation: str, arm: str) -> float:
    return statistics.median(run["seconds"] for run in runs(ablation)[arm].values())


def judged(ablation: str) -> list[dict]:
    """The pairs of an ablation, judged again."""
    return [line for line in record("judged_again")["pairs"] if line["ablation"] == ablation]


def pair(ablation: str, first: str, second: str) -> tuple[float, float]:
    """first - second, and half of its 95 % interval for all pairs together."""
    (line,) = (line for line in judged(ablation) if (line["first"], line["second"]) == (first, second))
    return line["difference"], line["half_width"]


def size(ablation: str, first: str, second: str) -> tuple[float, float]:
    """The same without its sign."""
    difference, half_width = pair(ablation, first, second)
    return abs(difference), half_width


def positions(first: str, second: str) -> tuple[float, float]:
    """The size of a difference of gpt2_vs_gptoss on its test set, and half of its 95 % interval."""
    pairs = record("gpt2_positions")["pairs"]
    (line,) = (line for line in pairs if (line["first"], line["second"]) == (first, second))
    return abs(line["difference"]), line["half_width"]


def contract(name: str) -> list[float]:
    """A row of the contracts in the report of gpt2_vs_gptoss: difference, +-, worth in compute and on the clock."""
    text = (RESULTS / "ablations/gpt2_vs_gptoss/report.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {name} +\|.*", text, re.MULTILINE)
    cells = row.split("|")
    return [abs(float(x)) for cell in (*cells[8:10], *cells[12:14]) for x in re.findall(r"-?\d+\.\d+", cell)]


def span(values) -> str:
    """The lowest and the highest of some values."""
    low, high = (f"{bound(values):.4f}" for bound in (min, max))
    return low if low == high else f"{low} to {high}"


def judged_row(ablation: str) -> tuple:
    """Number of pairs of the report, of changed verdicts, half widths then and now, and what is resolved now."""
    lines = [line for line in judged(ablation) if line["verdict_then"]]
    columns = [[line[key] for line in lines] for key in ("half_width_then", "half_width", "resolves")]
    changed = sum(line["verdict_then"] != line["verdict_now"] for line in lines)
    return len(lines), changed, *map(span, columns)


def planted_row(scenario: str) -> tuple:
    """Family error and power for equal spreads, and the largest family error for unequal ones; in per cent."""
    lines = [
        line
        for line in record("planted_differences")["lines"]
        if line["scenario"] == scenario and line["rule"] == "the wider interval" and len(line["seeds"]) == 2
    ]
    equal = {line["planted"]: line for line in lines if line["spreads"] == "equal"}
    unequal = [line["family_error"] for line in lines if line["spreads"] != "equal"]
    return tuple(
        100 * x for x in (equal[0]["family_error"], equal[0.5]["power"], equal[1]["power"], max(unequal))
    )


def planted(scenario: str, spreads: str = "equal", key: str = "family_error", **wanted) -> float:
    """A figure of a simulated ablation in per cent."""
    lines = [
        line[key]
        for line in record("planted_differences")["lines"]
        if (line["scenario"], line["spreads"]) == (scenario, spreads) and wanted.items() <= line.items()
    ]
    return 100 * lines[0]


def decode_speed(ablation: str, arm: str) -> float:
    return runs(ablation, "inference")[arm][0]["decode_tokens_per_second"]


def after_the_first_segment(arm: str, state: str = "") -> dict[int, float]:
    """Nats per token of context_vector by seed; state: "", "_zeroed" or "_swapped"."""
    rows = runs("context_vector", "segments")[arm]
    return {seed: rows[seed][f"loss_after_first_segment{state}"] for seed in sorted(rows)}


def spread(values) -> tuple[float, float]:
    """Mean and half of the 95 % interval."""
    found = summary(list(values))
    return found.mean, found.half_width


def above(first: dict[int, float], second: dict[int, float], sign: int = 1) -> tuple[float, float]:
    return spread(sign * (first[seed] - second[seed]) for seed in first)


# ------------------------------------------------------------------------------------------ the claims


def claims() -> list[tuple[str, str, tuple]]:
    """(document, words around the numbers, the numbers from their records)."""
    light, long, toy = record("light_5_minutes"), record("light_15_minutes"), record("tinystories_20_minutes")
    quick, soak, parity = record("quickstart"), record("soak"), record("parity")
    checked = record("judging_quickstart")["stories"].values()
    passed = tuple(one["consistent and finished"]["hits"] for one in checked)
    peers, kill, fuzz = record("compare_peers")["shapes"], record("kill_resume"), record("fuzz")
    head, stories = record("head_memory"), record("stories")
    *_, profile = record("step_profile").values()
    told = record("context_stories")["models"]
    scores = tuple(light["bits_per_byte"].values())
    light_seconds = [run["final"]["final/seconds"] for run in light["runs"]]
    at = {name: dict(run["curve"]["val/bits_per_byte"]) for name, run in {"long": long}.items()}
    plain = [case for case in parity["cases"] if case["dtype"] == "float64" and case["rope"] == "plain rope"]
    worst = (
        max(case["logits_max_difference"] for case in plain),
        max(c["gradient_max_difference"] for c in plain),
    )
    single = [case for case in parity["cases"] if case["dtype"] == "float32"]
    sizes = max(c["logits_max"] for c in single), max(c["gradient_max"] for c in single)
    float32 = parity["logits_max_difference"]["float32"], parity["gradient_max_difference"]["float32"]
    toy_peer, wide_peer = peers["toy"], peers["4 layers of 256, 8 experts top-2"]
    arms = ("carried", "zeroed", "trunk_segments", "trunk_whole")
    carried, zeroed, segments, whole = (after_the_first_segment(arm) for arm in arms)
    kept = record("activation_memory")["measured"]
    mixture, decoding = record("mixture_cost")["shapes"], record("decode_peers")
    parts = profile["shares"]
    shown = [parts[k] for k in ("experts", "head and loss", "optimizer", "attention without its projections")]
    thread = profile["loader_thread_share"]
    load = {arm: mean("balancing", arm, "max_violation") for arm in ("bias", "aux", "none")}

    readme = [
        ("{:.3f}, {:.3f}, {:.3f}", scores),
        ("6.3 M tokens? | {:.3f}", (toy["final"]["final/bits_per_byte"],)),
        ("by {:.3f} +- {:.3f}, or {:.3f} +- {:.3f} in equal seconds: worth {:.1f} times the compute and {:.1f} times the clock",
         (*positions("gptoss", "gpt2"), *contract("time")[:2], *contract("active")[2::3])),
        ("beat no positions by {:.3f} +- {:.3f}", positions("gpt2", "gpt2_none")),
        ("RoPE, the first part added: {:.3f} +- {:.3f} against", size("ladder", "rope", "gpt2")),
        ("training without it is {:+.4f} +- {:.4f}", pair("balancing", "none", "aux")),
        ("one of four by {:.3f} +- {:.3f}", size("granularity", "8_of_2", "4_of_1")),
        ("{:.2f} times its step (`toy`, 2 of 8 experts), {:.2f} (8 of 32); decoding {:.2f} and {:.2f} times",
         tuple(mixture[f"toy {name}"][task]["against"]["same parameters"]["ratio"]
               for task in ("training", "decoding, 1 rows") for name in ("8:2", "32:8"))),
        ("{:.2f} times the tokens/s with {:.2f} of the memory at `toy`", (toy_peer["speed"], toy_peer["memory"])),
        ("to {:.1e} of {:.1f} in float32, gradients to {:.1e} of {:.2f}",
         (float32[0], sizes[0], float32[1], sizes[1])),
        ("{} runs, killed, hung up or misled {} times", (kill["runs"], kill["events"])),
        ("({:.1f} M parameters, of which a token uses {:.2f} M)",
         (quick["final"]["final/parameters"] / 1e6, quick["final"]["final/active_parameters"] / 1e6)),
        ("| {:.1f} M | {:.2f} M | two cores, bundled stories | {:.0f} s",
         (quick["final"]["final/parameters"] / 1e6, quick["final"]["final/active_parameters"] / 1e6,
          quick["final"]["final/seconds"])),
        ("{:.1f} M | {:.2f} M | two cores, TinyStories | {:.0f} to {:.0f} s with one thread",
         (light["runs"][0]["final"]["final/parameters"] / 1e6, light["runs"][0]["final"]["final/active_parameters"] / 1e6,
          min(light_seconds), max(light_seconds))),
        ("| {:.1f} M | {:.1f} M | two cores, TinyStories | {:,.0f} s",
         (toy["final"]["final/parameters"] / 1e6, toy["final"]["final/active_parameters"] / 1e6, toy["final"]["final/seconds"])),
    ]  # fmt: skip
    results = [
        ("all {:,} validation tokens", (long["final"]["final/validation_tokens"],)),
        ("1,600 steps, {:.1f} M tokens; took {:.0f}, {:.0f} and {:.0f} s with one thread",
         (light["runs"][0]["final"]["final/tokens"] / 1e6, *light_seconds)),
        ("`light`, {:.1f} M parameters", (light["runs"][0]["final"]["final/parameters"] / 1e6,)),
        ("**{:.3f}, {:.3f}, {:.3f}**", scores),
        ("{:,} steps, {:.1f} M tokens, {:,.0f} s | **{:.3f}** ({:.3f} nats per token)",
         (4800, long["final"]["final/tokens"] / 1e6, long["final"]["final/seconds"],
          long["final"]["final/bits_per_byte"], long["final"]["final/loss"])),
        ("`toy`, {:.1f} M parameters | {:,} steps, {:.1f} M tokens, {:,.0f} s with two threads | **{:.3f}** ({:.3f} nats",
         (toy["final"]["final/parameters"] / 1e6, toy["final"]["final/steps"], toy["final"]["final/tokens"] / 1e6,
          toy["final"]["final/seconds"], toy["final"]["final/bits_per_byte"], toy["final"]["final/loss"])),
        ("{:,} steps, {:.1f} M tokens, {:,.0f} s with one thread | **{:.3f}**",
         (soak["final"]["final/steps"], soak["final"]["final/tokens"] / 1e6, soak["final"]["final/seconds"],
          soak["final"]["final/bits_per_byte"])),
        ("stands at {:.3f} just before the fall and at {:.3f} after it", (at["long"][2750], at["long"][4800])),
        ("The recorded run took {:.0f} s ({:,.0f} tokens/s)",
         (quick["final"]["final/seconds"], quick["final"]["final/tokens_per_second"])),
        ("| of the models | {}, {}, {} |", passed[4::2]),
        ("the same with `--top_p {}` | {}, {}, {} |", (0.95, *passed[5::2])),
        ("| real, held out | {}; the other {}", (passed[0], 200 - passed[0])),
        ("shuffled | {} |", passed[1:2]),
        ("halves of two real stories | {} |", passed[2:3]),
        ("of a bigram model | {} |", passed[3:4]),
        ("The checker rejects {:.1f} % of copies", (100 * stories["swapped_copies_rejected"],)),
        ("{:,} stories, all different, {:.0f} to {:.0f} words; {:.1f} % of the held-out",
         (stories["stories"], stories["words"][0], stories["words"][2],
          100 * stories["validation_stories_with_20_words_of_training"])),
        ("accepts {:.1f} % of them", (100 * stories["accepted"],)),
        ("**better by {:.3f} +- {:.3f}** ({:.3f} against {:.3f})",
         (*positions("gptoss", "gpt2"), *(mean("gpt2_vs_gptoss", arm, phase="test") for arm in ("gptoss", "gpt2")))),
        ("by as much ({:.3f} +- {:.3f}, {:.3f} +- {:.3f})",
         (*positions("gptoss", "gpt2_small"), *positions("gptoss", "gpt2_sinusoidal"))),
        ("GPT-2 is {:.3f} +- {:.3f} worse than GPT-OSS", positions("gptoss", "gpt2_none")),
        ("GPT-2 is {:.3f} +- {:.3f} worse (a pair", positions("gpt2", "gpt2_none")),
        ("all the difference is {:.3f} +- {:.3f}, at equal seconds {:.3f} +- {:.3f}",
         (*contract("total")[:2], *contract("time")[:2])),
        ("**{:.2f} ({:.2f} to {:.2f}) times the compute and {:.2f} ({:.2f} to {:.2f}) times the clock**",
         contract("active")[2:]),
        ("learned positions by {:.3f} +- {:.3f}**", size("ladder", "rope", "gpt2")),
        ("({:.3f} +- {:.3f}). SwiGLU", size("ladder", "experts", "gpt2")),
        ("worse than GELU by {:.3f} +- {:.3f}**", pair("ladder", "swiglu", "rmsnorm")),
        ("win **{:.3f} +- {:.3f}**", size("ladder", "experts", "swiglu")),
        ("The balance loss: {:+.4f} +- {:.4f} for", pair("balancing", "none", "aux")),
        ("**worse by {:.3f} +- {:.3f}**, and balances: max violation {:.2f} against {:.2f} with the balance loss and {:.2f}",
         (*pair("balancing", "bias", "aux"), load["bias"], load["aux"], load["none"])),
        ("two of eight by {:.3f} +- {:.3f}, 16:4 by {:.3f} +- {:.3f}, 32:8 by {:.3f} +- {:.3f}. Finer",
         tuple(x for arm in ("8_of_2", "16_of_4", "32_of_8") for x in size("granularity", arm, "4_of_1"))),
        *((f"{words} (this design resolves {{:.{digits}f}})",
           (statistics.median(line["resolves"] for line in judged(name) if line["pair"] == "planned"),))
          for words, name, digits in (("one by one", "ladder", 3), ("without it, **not resolved**", "balancing", 4))),
        ("{:+.3f} +- {:.3f}; this design resolves {:.3f})",
         (*pair("granularity", "32_of_8", "16_of_4"), judged("granularity")[-1]["resolves"])),
        *((f"| `{name}` | {{}} | {{}} | {{}} | {{}} | {{}} |", judged_row(name))
          for name in ("balancing", "context_choices", "context_vector", "gpt2_vs_gptoss_first", "granularity", "ladder")),
        ("SwiGLU by {:.3f} +- {:.3f}, than a head of its own by {:.3f} +- {:.3f} and than sinks by {:.3f} +- {:.3f}, and "
         "every arm is better than GPT-2 (by {:.3f} to {:.3f})",
         (*(x for arm in ("swiglu", "untied", "sinks") for x in size("ladder", "experts", arm)),
          *(bound(-line["difference"] for line in judged("ladder") if line["second"] == "gpt2") for bound in (min, max)))),
        *((f"| {name} | {{:.1f}} % | {{:.0f}} % and {{:.0f}} % | {{:.1f}} % |", planted_row(name))
          for name in ("one pair", "one pair among nine arms", "three arms against a reference",
                       "eight arms against a reference", "eight pairs of a ladder", "eight pairs without a common arm")),
        ("All 36 pairs of arms of the ladder: {:.1f} %, and up to {:.1f} % for unequal spreads",
         (planted(every := "eight pairs of a ladder, all pairs of arms"),
          max(planted(every, told) for told in ("arm 4 3 times", "1 to 3")))),
        ("would err in {:.0f} % of reports", (planted("one pair among nine arms", "arms 0 and 1 3 times",
                                                      rule="pooled spread alone"),)),
        ("intervals over seeds alone err in {:.0f} %, and with the documents in {:.1f} %",
         tuple(planted("1 pair, documents drawn for each grid", key=key, planted=0.0)
               for key in ("family_error_over_seeds_only", "family_error"))),
        ("at most {:.1f} points", (max(100 * line["standard_error"]
                                       for line in record("planted_differences")["lines"] if len(line["seeds"]) == 2),)),
        ("with p {:.3f}", (max(line["p"] for line in judged("context_vector")),)),
        ("16:4 against 8:2 {:+.3f} +- {:.3f}", pair("granularity", "16_of_4", "8_of_2")),
        ("{:.2f}, {:.2f} and {:.2f} times its tokens per CPU second",
         tuple(decoding["rows"][rows]["ratio"] for rows in ("1", "8", "64"))),
        *((name + " {:.3f}, {:.3f}, {:.3f} GB",
           [kept[shape][kind]["peak_gb"] for kind in ("none", "selective", "full")])
          for name, shape in (("`toy`", "toy"), ("eight layers", "deep"), ("`gpt2.py`", "dense"))),
        ("{:.2f} times its compiled way",
         (decoding["rows"]["1"]["tokens_per_cpu_second"]["ours"] / decoding["compiled_one_row"]["tokens_per_cpu_second"],)),
        ("{:.2f} (`toy`, 2 of 8 experts), {:.2f} (4 layers of 256, 2 of 8), {:.2f} (`toy`, 8 of 32); beside one of as "
         "many FLOPs {:.2f}, {:.2f}, {:.2f}",
         tuple(mixture[shape]["training"]["against"][dense]["ratio"]
               for dense in ("same parameters", "same FLOPs") for shape in ("toy 8:2", "4x256 8:2", "toy 32:8"))),
        ("takes {:.2f} times the seconds of 8:2", (seconds("granularity", "32_of_8") / seconds("granularity", "8_of_2"),)),
        ("Yes, by {:.3f} +- {:.3f} nats", size("context_vector", "carried", "zeroed")),
        ("`toy`: **{:.2f}** times its tokens/s with {:.2f} of its memory", (toy_peer["speed"], toy_peer["memory"])),
        ("top-2: **{:.2f}** and {:.2f}", (wide_peer["speed"], wide_peer["memory"])),
        ("experts {:.0%}, head and loss {:.0%}, optimizer {:.0%}, attention {:.0%}, the rest {:.0%}",
         (*shown, 1 - sum(shown))),
        ("{:.1%} on bundled stories, {:.1%} on a file; the trainer waits for another {:.1%}",
         (thread["bundled"], thread["train.jsonl"], profile["loader_wait_share"])),
        ("{:.1%} of the training time of `toy`", (record("instrument_cost")["share_of_training_time"],)),
        ("{:.2f} GB extra in {:.2f} of the naive time (naive: {:.1f} GB)",
         (head["median"]["ours"]["extra_gb"], head["time_ratio"], head["median"]["naive"]["extra_gb"])),
        ("GPT-OSS {:,.0f} tokens per CPU second, `gpt2.py` {:,.0f}",
         tuple(runs("gpt2_vs_gptoss", "inference")[arm][0]["decode_tokens_per_cpu_second"] for arm in ("gptoss", "gpt2"))),
        ("the same runs: {:.0f} and {:.0f} tokens/s",
         (decode_speed("balancing", "aux"), decode_speed("granularity", "8_of_2"))),
        ("{} runs that met {} events: {} times `kill -9`, {} of them while",
         (kill["runs"], kill["events"], kill["kills"], kill["kills_in_a_checkpoint_write"])),
        ("{:,} checkpoints compared", (kill["checkpoints_compared"],)),
        ("{:,} damaged or arbitrary inputs, {} of them as commands | all but {}:",
         (fuzz["cases"], fuzz["of_them_as_commands"], len(fuzz["findings"]))),
        ("{:,} flipped bits and zeroed sectors",
         (sum(sum(ends.values()) for ends in record("integrity")["flips"].values()),)),
        ("memory {:.1%} from", (soak["memory_rise"],)),
        ("and {:.2f} MB of logs a minute", (soak["log_mb_per_minute"],)),
        ("logits {:.1e} of {:.1f}, any gradient {:.1e} of {:.2f}", (float32[0], sizes[0], float32[1], sizes[1])),
        ("| {:.1e} and {:.1e} |", worst),
    ]  # fmt: skip
    context = [
        ("(a) state carried | {:.3f} +- {:.3f} | | {:.0f} |",
         (*spread(carried.values()), seconds("context_vector", "carried"))),
        ("every segment | {:.3f} +- {:.3f} | worse by {:.3f} +- {:.3f} | {:.0f} |",
         (*spread(zeroed.values()), *above(zeroed, carried), seconds("context_vector", "zeroed"))),
        ("same segments | {:.3f} +- {:.3f} | worse by {:.3f} +- {:.3f} | {:.0f} |",
         (*spread(segments.values()), *above(segments, carried), seconds("context_vector", "trunk_segments"))),
        ("its window | {:.3f} +- {:.3f} | better by {:.3f} +- {:.3f} | {:.0f} |",
         (*spread(whole.values()), *above(carried, whole), seconds("context_vector", "trunk_whole"))),
        ("lowers the loss by {:.3f} nats", above(zeroed, carried)[:1]),
        ("({:.3f} +- {:.3f}), and it trains",
         above({s: r["loss_by_segment"][0] for s, r in runs("context_vector", "segments")["trunk_whole"].items()},
               {s: r["loss_by_segment"][0] for s, r in runs("context_vector", "segments")["carried"].items()})),
        ("{:.0f} +- {:.0f} % as the report",
         spread(100 * (segments[s] - carried[s]) / (segments[s] - whole[s]) for s in carried)),
        ("costs the trained model {:.3f} +- {:.3f}",
         above(after_the_first_segment("carried", "_swapped"), carried)),
        ("zeros {:.3f} +- {:.3f}", above(after_the_first_segment("carried", "_zeroed"), carried)),
        ("accepts {}, {} and {} with the carried", [m["carried"]["consistent and finished"] for m in told]),
        ("accepts {}, {} and {}, but", [m["zeroed"]["consistent and finished"] for m in told]),
    ]  # fmt: skip
    return [
        (name, words, tuple(values))
        for name, part in (("README.md", readme), ("docs/results.md", results), ("docs/context.md", context))
        for words, values in part
    ]


def written(words: str, values: tuple) -> str:
    """As documents write numbers: 8.3e-7, 32 %."""
    return re.sub(r"(?<=\d)%", " %", words.format(*values).replace("e-0", "e-"))


CLAIMS = claims()

# Numbers with a decimal point that have no record here, each with where it comes from.
WITHOUT_RECORD = {
    "README.md": ["0.90 M active", "3.3 M tokens", "3.6 M parameters", "3.11", "--top_p 0.95", "Sharing-1.0"],
    "docs/results.md": [
        "0.90 M active", "1.12 M active", "0.37 M active",  # of the plan
        "a price of 0.003 fits",  # within the interval before it
        "5.23", "Sharing-1.0", "temperature 0.8",  # a version, a licence, a setting
        "differ by up to 1.5", "9e-5 of 9.4",  # an independent check
    ],
    "docs/context.md": ["0.5 M tokens", "(0.007 to 0.015,"],
}  # fmt: skip


@pytest.mark.parametrize(("document", "words", "values"), CLAIMS, ids=[words[:50] for _, words, _ in CLAIMS])
def test_a_published_number_is_that_of_its_record(document, words, values):
    said = written(words, values)
    assert said in text_of(document), f"{document} should say: {said}"


@pytest.mark.parametrize("document", WITHOUT_RECORD)
def test_no_number_with_a_decimal_point_lacks_a_record(document):
    left = text_of(document)
    for name, words, values in CLAIMS:
        if name == document:
            left = left.replace(written(words, values), " ")
    left = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|arXiv:\S+", " ", left)
    for words in WITHOUT_RECORD[document]:
        assert words in left, f"{document} does not say {words!r} any more"
        left = left.replace(words, " ")
    assert re.findall(r"\d+\.\d+\S*", left) == []


@pytest.mark.parametrize(
    ("ablation", "said"),
    [
        ("context_choices", "0.007 to 0.015"),
    ],
)
def test_what_a_design_resolves_is_what_its_report_says(ablation, said):
    report = (RESULTS / "ablations" / ablation / "report.md").read_text(encoding="utf-8")
    resolves = [f"{float(x):.3f}" for x in re.findall(r"this design resolves (\d\.\d+)", report)]
    wanted = re.findall(r"\d\.\d+", said)
    assert {min(resolves), max(resolves)} == set(wanted)


# ------------------------------------------------------------------------------- files, links, commands


def test_the_tree_of_the_design_page_names_every_file():
    """Each folder's block lists its files, or the folder has one line for all of them."""
    tree = re.search(
        r"```\n(common/.*?)```", (ROOT / "docs/design.md").read_text(encoding="utf-8"), re.S
    ).group(1)
    named, folder = set(), ""
    for line in tree.splitlines():
        if line[0] != " ":
            folder = line.split()[0]
            continue
        for word in line.split():
            if not re.fullmatch(r"[\w-]+(\.py|/)", word):
                break  # the description begins
            named.add(folder + word)
    files = set()
    for folder in ("common", "architecture", "data", "training", "evaluation"):
        for path in (ROOT / folder).iterdir():
            if path.name.startswith("__") or path.name in ("cache", "prepared"):
                continue
            files.add(f"{folder}/{path.name}" + ("/" if path.is_dir() else ""))
    assert named == files


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_named_files_exist(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target
    for name in re.findall(r"`((?:\w+/)+\w+\.(?:py|yaml|json|md))`", text):
        if name.split("/")[0] in OURS and "NAME" not in name:
            assert (ROOT / name).exists(), name


def commands(document: Path) -> list[list[str]]:
    """The words of each `python ...` in indented lines and code spans."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.S)
    lines = re.findall(r"^    (python .*)$", text, re.M) + re.findall(
        r"`(python [^`]*)`", " ".join(text.split())
    )
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_name_scripts_and_flags_that_exist(document):
    for words in commands(document):
        if words[0] == "-c":
            compile(words[1], document.name, "exec")
        elif words[0] == "-m":
            path = ROOT / words[1].replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), words
        else:
            assert (ROOT / words[0]).exists(), words
        if words[0] in ("train.py", "train_context.py") and not {"...", "--help"} & set(words):
            kind = TrainConfig if words[0] == "train.py" else ContextTrainConfig
            parse_command_line(
                ["1" if word == "N" else word for word in words[1:]], model_fields, config_class=kind
            )
