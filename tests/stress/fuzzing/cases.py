"""Cases for the fuzzer: a program, its arguments and its files.

KINDS[kind] has one strategy, or two: mutations of valid input, and arbitrary input.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hypothesis import strategies as st

from tests.stress.fuzzing import silence
from tests.stress.fuzzing.materials import DATA, FINISHED, MACHINE, NEWEST, RUN, TINY, flags
from tests.stress.fuzzing.mutations import NUMBERS, WORDS, Made, Mutant, Raw, mutants, odd_values

Strategy = st.SearchStrategy


class Case(NamedTuple):
    """One call of a program, in a new folder that holds the materials and these files."""

    kind: str
    program: str  # a key of judge.PROGRAMS
    argv: tuple[str, ...]
    files: tuple[Any, ...] = ()  # each has a name, `file`, and a method `build(materials)`
    stdin: bytes = b""
    rule: str = ""  # a key of silence.RULES
    shell: str = ""  # redirections of the command
    ctrl_c: float | None = None  # seconds after the start of the command


class Use(NamedTuple):
    """A command that reads a file of the materials."""

    program: str
    argv: tuple[str, ...]
    file: str
    by_stdin: bool = False


def _train(**settings: str) -> tuple[str, ...]:
    return tuple(flags(TINY | DATA | {"out_dir": "model_new"} | settings))


ON_RUN = ("--out_dir", RUN, "--resume", "--log_every", "1")
SAMPLE = ("--max_tokens", "3", "--seed", "1", "--device", "cpu")
NEW_RANKS = ("--vocab_size", "270", "--out", "new.tiktoken")
PREPARED = ("--tokenizer", "small.tiktoken", "--out_dir", "prepared")


def from_weights(file: str, block_size: str) -> tuple[str, ...]:
    """A new run of one step from the weights of a checkpoint."""
    new = {"out_dir": "model_new", "max_iters": "1", "batch_size": "2", "block_size": block_size}
    return ("--init_from", file, *flags(MACHINE | DATA | new))


def data_uses(file: str) -> list[Use]:
    """Return the commands that read documents from a file."""
    found = [
        Use("train", _train(dataset=file), file),
        Use("train_tokenizer", ("--dataset", file, *NEW_RANKS), file),
        Use("prepare", ("--dataset", file, "--val_dataset", "valid.jsonl", *PREPARED), file),
    ]
    if not file.endswith(".parquet"):
        found.append(Use("check", (file, "--against", "none"), file))
    return found


USES: dict[str, list[Use]] = {
    "yaml": [
        Use("train", ("--config", "recipe.yaml", "--dry_run"), "recipe.yaml"),
        Use("train", ("--config", "recipe.yaml"), "recipe.yaml"),
    ],
    "text": [
        *data_uses("stories.txt"),
        Use("check", ("-", "--against", "none", "--json"), "stories.txt", by_stdin=True),
        Use("check", ("stories.txt", "--against", "stories.txt"), "stories.txt"),
        Use("sample", ("--checkpoint", RUN, "--prompts", "prompts.txt", *SAMPLE), "prompts.txt"),
    ],
    "jsonl": [
        *data_uses("stories.jsonl"),
        Use("train", _train(), "valid.jsonl"),
        Use("check", ("valid.jsonl", "--against", "stories.jsonl", "--json"), "valid.jsonl"),
    ],
    "parquet": data_uses("stories.parquet"),
    "config.json": [
        Use("train", ON_RUN, f"{RUN}/config.json"),
        Use("report", (RUN, "--out", "page.png"), f"{RUN}/config.json"),
        Use("report", (FINISHED, RUN, "--out", "page.png"), f"{FINISHED}/config.json"),
    ],
    "metrics.jsonl": [
        Use("report", (RUN, "--out", "page.png"), f"{RUN}/metrics.jsonl"),
        Use("report", (FINISHED, RUN, "--out", "page.png"), f"{FINISHED}/metrics.jsonl"),
        Use("train", ON_RUN, f"{RUN}/metrics.jsonl"),
    ],
    "checkpoint": [
        Use("sample", ("--checkpoint", RUN, *SAMPLE), NEWEST),
        Use("train", ON_RUN, NEWEST),
        Use("train", (*ON_RUN, "--dry_run"), NEWEST),
        Use("train", from_weights(NEWEST, "16"), NEWEST),
        Use("train", ("--eval_only", RUN, *flags(MACHINE)), NEWEST),
    ],
    "best.json": [
        Use("sample", ("--checkpoint", RUN, *SAMPLE), f"{RUN}/best.json"),
        Use("train", (*ON_RUN, "--keep", "1"), f"{RUN}/best.json"),
        Use("train", ("--eval_only", RUN, "--device", "cpu"), f"{RUN}/best.json"),
    ],
    "token folder": [
        Use("train", _train(dataset="tokens", val_dataset="valid.jsonl"), file)
        for file in ("tokens/tokens.json", "tokens/train_00000.tokens.npy", "tokens/train_00000.ends.npy")
    ],
    "ranks": [Use("train", (*_train(), "--dry_run"), file) for file in ("small.tiktoken", "small.json")]
    + [
        Use("prepare", ("--dataset", "stories.jsonl", "--val_dataset", "valid.jsonl", *PREPARED), file)
        for file in ("small.tiktoken", "small.json")
    ],
    "band": [Use("report", (RUN, "--reference", "band.json", "--out", "page.png"), "band.json")],
}
HOWS = {
    ".yaml": ("bytes", "lines", "tree", "tree"),
    ".txt": ("bytes", "lines"),
    ".jsonl": ("bytes", "lines", "tree"),
    ".json": ("bytes", "lines", "tree", "tree"),
    ".parquet": ("bytes", "column"),
    ".pt": ("bytes", "tree", "tree", "tree", "tree"),
    ".tiktoken": ("bytes", "lines"),
    ".npy": ("bytes",),
}


def _case(kind: str, use: Use, file: Mutant | Raw | Made, materials: Path) -> Case:
    if use.by_stdin:
        return Case(kind, use.program, use.argv, (), file.build(materials))
    return Case(kind, use.program, use.argv, (file,))


def mutated_files(kind: str, materials: Path) -> Strategy[Case]:
    return st.one_of(
        mutants(materials, use.file, HOWS[Path(use.file).suffix]).map(
            lambda file, use=use: _case(kind, use, file, materials)
        )
        for use in USES[kind]
    )


def arbitrary_files(kind: str, materials: Path) -> Strategy[Case]:
    def of(use: Use) -> Strategy[Case]:
        suffix = Path(use.file).suffix
        contents = st.one_of(st.binary(max_size=200), st.text(max_size=60).map(_encoded))
        files = contents.map(lambda content: Raw(use.file, content))
        if suffix in (".json", ".jsonl", ".yaml", ".pt"):
            values = _arbitrary_values(tensors=suffix == ".pt")
            files = st.one_of(files, values.map(lambda value: Made(use.file, value)))
        return files.map(lambda file: _case(kind, use, file, materials))

    return st.one_of([of(use) for use in USES[kind]])


def _arbitrary_values(*, tensors: bool) -> Strategy:
    known = (
        "step train model config starts text checkpoint val_loss tags runs settings lr num_experts".split()
    )
    known += "train/loss moe/load model_name tokenizer".split()
    value = odd_values(tensors=tensors)
    record = st.dictionaries(st.sampled_from(known), value, max_size=5)
    return st.one_of(value, record, st.lists(record, max_size=3))


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


# --------------------------------------------------------------------------------------------------
# flags

# A shell passes no NUL, and Python reads bytes that are not UTF-8 as lone surrogates.
ARGUMENTS = (
    *(word for word in WORDS if "\0" not in word),
    *map(str, NUMBERS),
    *"1_000 0x10 \uff11\uff12 true True None -- --help @file \udcff %(prog)s ~ cpu:1 small.tiktoken".split(),
    *"tokens . stories.txt prompts.txt band.json page.png new.jsonl".split(),
    *(NEWEST, FINISHED),
)
MORE_TRAIN = dict(  # further settings, each with a valid value
    pair.split("=")
    for pair in """lr=1e-3 schedule=cosine warmup=0.1 decay=0.5 grad_clip=0 optimizer=adamw
    weight_decay=0 balance=bias balance_coef=0.1 bias_rate=0.01 z_loss_coef=0.001 packing=lanes
    grad_accum=2 keep=1 eval_every=1 use_tensorboard=false seed=7 dtype=bfloat16 attention=eager
    experts=loop text_column=text position=learned norm=layernorm mlp=gelu tie_embeddings=true
    attention_bias=false attention_sinks=false dropout=0.1 moe_layers=1 capacity_factor=1.5
    nope_stride=2 layer_types=full_attention,sliding_attention rope_theta=10000 swiglu_limit=3
    rope_ntk_alpha=1 rope_ntk_beta=32 model_size=toy model=gptoss used_vocab_size=300 vocab_size=320
    router=topk_sigmoid shared_experts=1""".split()
)
VALID: dict[str, list[tuple[str, ...]]] = {  # whole commands to begin with
    "sample": [
        ("--checkpoint", RUN, "--prompt", "Once upon", "--temperature", "0.8", "--top_k", "5", *SAMPLE),
        ("--checkpoint", NEWEST, "--prompts", "prompts.txt", "--num_samples", "2", "--top_p", "0.9",
         "--min_p", "0.1", "--out", "told.jsonl", *SAMPLE),
    ],
    "check": [
        ("stories.txt", "--against", "none"),
        ("valid.jsonl", "--against", "stories.jsonl", "stories.txt", "--text_column", "text", "--json"),
    ],
    "report": [
        (RUN, "--out", "page.png", "--x", "step", "--reference", "none"),
        (RUN, f"{FINISHED}/metrics.jsonl", "--out", "page.png", "--x", "tokens"),
    ],
    "train_tokenizer": [
        ("--dataset", "stories.jsonl", "--text_column", "text", "--max_documents", "20", *NEW_RANKS),
    ],
    "prepare": [
        ("--dataset", "stories.jsonl", "--val_dataset", "valid.jsonl", "--text_column", "text", *PREPARED),
    ],
}  # fmt: skip


@st.composite
def mutated_words(draw, argv: tuple[str, ...]) -> tuple[str, ...]:
    """Change, drop, repeat, swap or insert one to three words of a command line."""
    words = list(argv)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(words) - 1))
        how = draw(st.sampled_from(("odd", "odd", "odd", "drop", "again", "swap", "typo", "put", "join")))
        if how == "odd":
            values = [n for n, word in enumerate(words) if not word.startswith("--")] or [place]
            words[draw(st.sampled_from(values))] = draw(arguments())
        elif how == "drop" and len(words) > 1:
            del words[place]
        elif how == "again":
            words[place:place] = words[place : place + 2]
        elif how == "swap":
            other = draw(st.integers(0, len(words) - 1))
            words[place], words[other] = words[other], words[place]
        elif how == "typo":
            word = words[place]
            cut = draw(st.integers(0, len(word)))
            words[place] = (
                word[:cut] + draw(st.sampled_from(("", "x", "-", "_", "=", "\u00e9"))) + word[cut + 1 :]
            )
        elif how == "put":
            words.insert(place, draw(arguments()))
        elif how == "join" and place + 1 < len(words):
            words[place : place + 2] = [f"{words[place]}={words[place + 1]}"]
    return tuple(words)


def arguments() -> Strategy[str]:
    free = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), max_size=8)
    return st.one_of(st.sampled_from(ARGUMENTS), st.sampled_from(ARGUMENTS), free)


@st.composite
def train_words(draw) -> tuple[str, ...]:
    """Draw a valid command line of train.py. Most have --dry_run, because a run takes longer."""
    more = draw(st.lists(st.sampled_from(sorted(MORE_TRAIN)), max_size=4, unique=True))
    argv = flags(TINY | DATA | {"out_dir": "model_new"} | {name: MORE_TRAIN[name] for name in more})
    return (*argv, "--dry_run") if draw(st.integers(0, 3)) else tuple(argv)


def mutated_train(kind: str, materials: Path) -> Strategy[Case]:
    return train_words().flatmap(mutated_words).map(lambda argv: Case(kind, "train", argv))


def mutated_tools(kind: str, materials: Path) -> Strategy[Case]:
    return st.one_of(
        mutated_words(argv).map(lambda argv, program=program: Case(kind, program, argv))
        for program, commands in VALID.items()
        for argv in commands
    )


def arbitrary_words(*programs: str) -> Callable[[str, Path], Strategy[Case]]:
    """Return a strategy of arbitrary words, some of them names of flags."""
    more = "config resume init_from eval_only max_minutes dry_run help_model no-use_tensorboard".split()
    names = [f"--{name}" for name in (*TINY, *DATA, *MORE_TRAIN, *more)]
    tools = sorted({word for commands in VALID.values() for argv in commands for word in argv})

    def strategy(kind: str, materials: Path) -> Strategy[Case]:
        known = st.sampled_from(names if programs == ("train",) else tools)
        words = st.lists(st.one_of(known, known, arguments()), max_size=7)
        return st.builds(
            lambda program, argv: Case(kind, program, tuple(argv)), st.sampled_from(programs), words
        )

    return strategy


# --------------------------------------------------------------------------------------------------
# what may go wrong in silence

IN_FORMATS = ("stories.txt", "stories.jsonl", "stories.parquet")
ONE_THING = {  # names of the same documents
    "stories": (*IN_FORMATS, *(f"./{name}" for name in IN_FORMATS), "run/../stories.jsonl", "copy.jsonl"),
    "valid": ("valid.jsonl", "./valid.jsonl", "tokens/../valid.jsonl"),
}
COMMANDS = {  # short commands, each of them with messages
    "train": (_train(), ("--eval_only", RUN, *flags(MACHINE))),
    "sample": (("--checkpoint", RUN, "--prompt", "Once", *SAMPLE),),
    "check": (("stories.txt", "--against", "none"),),
    "report": ((RUN, "--out", "page.png"),),
    "prepare": (("--dataset", "stories.jsonl", "--val_dataset", "valid.jsonl", *PREPARED),),
    "train_tokenizer": (("--dataset", "stories.jsonl", *NEW_RANKS),),
    "ablate": (("spec.yaml", "--out_dir", "report"),),
}
SPEC = {  # of a short ablation
    "base": {n: yaml.safe_load(v) for n, v in (TINY | DATA).items() if n not in ("max_iters", "save_every")},
    "arms": {"narrow": {}, "wide": {"intermediate_size": 20}},
    "seeds": [1, 2],
    "budget": {"tokens": 96},
    "learning_rates": "none",
}
IN_SPEC = {  # places of a number in a specification; each value is wrapped around it
    "budget": lambda number: {"tokens": number},
    "seeds": lambda number: [1, number],
    "learning_rates": lambda number: [1e-3, number, 4e-3],
    "base": lambda number: SPEC["base"] | {"batch_size": number},
    "arms": lambda number: {"narrow": {}, "wide": {"intermediate_size": number}},
}
WITH_SPEC = (Made("spec.yaml", SPEC),)


@st.composite
def encodings(draw, kind: str, materials: Path) -> Case:
    file = draw(st.sampled_from((*IN_FORMATS, "prompts.txt")))
    names = st.lists(st.sampled_from(list(silence.TEXTS)), min_size=1, max_size=3)
    coding = draw(st.sampled_from(silence.CODINGS))
    line_end = draw(st.sampled_from(("\n", "\n", "\r\n")))
    made = silence.Encoded(file, tuple(draw(names)), coding, line_end, draw(st.booleans()))
    if file == "prompts.txt":
        argv = ("--checkpoint", RUN, "--prompts", file, "--out", "told.jsonl", *SAMPLE)
        return Case(kind, "sample", argv, (made,), rule="same_prompts")
    use = draw(st.sampled_from(data_uses(file)))
    return Case(
        kind, use.program, use.argv, (made,), rule="same_documents" if use.program == "prepare" else ""
    )


@st.composite
def folders(draw, kind: str, materials: Path) -> Case:
    name = st.builds(str.__add__, st.sampled_from(silence.FILES), st.sampled_from(silence.SUFFIXES))
    names = draw(st.lists(name, min_size=1, max_size=4, unique_by=str.lower))
    files = tuple(silence.InFolder(f"folder/{name}") for name in names)
    whole = draw(st.booleans())
    argv = (
        _train(dataset="folder")
        if whole
        else tuple(flags(TINY | {"dataset": "folder", "out_dir": "model_new"}))
    )
    return Case(kind, "train", argv, files, rule="read_or_named")


@st.composite
def both_sides(draw, kind: str, materials: Path) -> Case:
    names = ONE_THING[draw(st.sampled_from(sorted(ONE_THING)))]
    train, validation = draw(st.sampled_from(names)), draw(st.sampled_from(names))
    files = (Raw("copy.jsonl", (materials / "stories.jsonl").read_bytes()),)
    data = ("--dataset", train, "--val_dataset", validation)
    if draw(st.booleans()):
        return Case(kind, "prepare", (*data, *PREPARED), files, rule="refused")
    return Case(kind, "train", (*flags(TINY | {"out_dir": "model_new"}), *data), files, rule="refused")


@st.composite
def yaml_numbers(draw, kind: str, materials: Path) -> Case:
    number = draw(st.sampled_from(silence.NUMBERS))
    if draw(st.booleans()):
        place = draw(st.sampled_from(sorted(IN_SPEC)))
        content = yaml.safe_dump(SPEC | {place: IN_SPEC[place]("NUMBER")}).replace("NUMBER", number)
        spec = (Raw("spec.yaml", content.encode()),)
        odd = silence.ODD_NUMBER.fullmatch(number)
        return Case(kind, "ablate", ("spec.yaml", "--plan"), spec, rule="refused" if odd else "")
    name = draw(st.sampled_from(silence.KEYS))
    lines = (materials / "recipe.yaml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(f"{name}:")]
    content = "\n".join([*kept, f"{name}: {number}"]) + "\n"
    argv = ("--config", "odd.yaml", "--dry_run")
    return Case(kind, "train", argv, (Raw("odd.yaml", content.encode()),), rule="as_a_flag")


@st.composite
def lossy_ranks(draw, kind: str, materials: Path) -> Case:
    ids = st.one_of(st.none(), st.sampled_from((0, 10, 32, 255, 299, 300, 301, -1, 2**31)))
    made = silence.Ranks("small.json", draw(st.sampled_from(silence.PATTERNS)), draw(ids), draw(ids))
    program, argv = draw(st.sampled_from((("train", _train()), ("prepare", COMMANDS["prepare"][0]))))
    return Case(kind, program, argv, (made,), rule="lossless")


@st.composite
def streams(draw, kind: str, materials: Path) -> Case:
    program = draw(st.sampled_from(sorted(COMMANDS)))
    shell = draw(st.sampled_from((*silence.REDIRECTIONS, *silence.RESULTS)))
    return Case(kind, program, COMMANDS[program][0], WITH_SPEC, rule="undisturbed", shell=shell)


@st.composite
def first_seconds(draw, kind: str, materials: Path) -> Case:
    program = draw(st.sampled_from(sorted(COMMANDS)))
    argv = draw(st.sampled_from(COMMANDS[program]))
    return Case(kind, program, argv, WITH_SPEC, rule="interrupted", ctrl_c=draw(st.integers(1, 80)) / 20)


IN_SILENCE = {
    "encodings": encodings,
    "folders": folders,
    "both sides": both_sides,
    "yaml numbers": yaml_numbers,
    "lossy ranks": lossy_ranks,
}
AS_COMMANDS = {"streams": streams, "first seconds": first_seconds}  # only as commands

KINDS: dict[str, tuple[Callable[[str, Path], Strategy[Case]], ...]] = {
    "train flags": (mutated_train, arbitrary_words("train")),
    "tool flags": (mutated_tools, arbitrary_words(*VALID)),
    **{kind: (mutated_files, arbitrary_files) for kind in USES},
    **{kind: (strategy,) for kind, strategy in (IN_SILENCE | AS_COMMANDS).items()},
}


def described(case: Case) -> str:
    """Describe all of a case as text."""
    lines = [f"kind     {case.kind}", f"program  {case.program}", f"argv     {json.dumps(case.argv)}"]
    lines += [f"file     {file!r}" for file in case.files]
    lines += [f"stdin    {case.stdin!r}"] * bool(case.stdin) + [f"shell    {case.shell}"] * bool(case.shell)
    lines += [f"Ctrl-C   after {case.ctrl_c} s"] * (case.ctrl_c is not None)
    return "\n".join(lines)
