"""Flags, YAML, defaults, the rules of --resume, and how a script ends."""

import io
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from architecture.gptoss import ModelConfig
from common.script import exit_code
from common.settings import as_text, cast
from training import other_names
from training.command_line import parse_command_line
from training.config import RESOLVED_BY_THE_RUN, RESUMABLE_CHANGES, TrainConfig, check_resume
from training.post.settings import KINDS, GRPOConfig, PostTrainConfig

ROOT = Path(__file__).resolve().parent.parent
MODEL_FIELDS = {
    "num_experts": int,
    "sliding_window": int | None,
    "rope_theta": float,
    "attention_sinks": bool,
    "layer_types": tuple[str, ...] | None,
    "moe_layers": tuple[int, ...] | None,
}


def parse(*argv):
    return parse_command_line(list(argv), lambda model: MODEL_FIELDS)


def refused(*argv) -> str:
    with pytest.raises(ValueError) as caught:
        parse(*argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


# precedence


def test_without_flags_and_with_an_empty_yaml_file_every_field_has_its_default(yaml_file):
    assert parse("--config", yaml_file("# nothing yet\n")).config == TrainConfig()
    line = parse()
    assert line.config == TrainConfig()
    assert (line.model_overrides, line.given, line.help_model) == ({}, frozenset(), False)


def test_numbers_of_yaml_are_those_of_flags(yaml_file):
    content = "max_iters: 1_000\nlr: 1e-2\nweight_decay: .5\nseed: +5\nbatch_size: '08'\ndecay: 0.25\n"
    content += "grad_clip: 1.5e+0\nwarmup: 0\nout_dir: '010'\n"
    settings = dict(line.split(": ") for line in content.replace("'", "").splitlines())
    flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
    assert parse("--config", yaml_file(content)).config == parse(*flags).config


def test_a_flag_beats_yaml_and_yaml_beats_the_default(yaml_file):
    path = yaml_file("# YAML takes 1e-2 for text\nlr: 1e-2\nbatch_size: 4\nnum_experts: 16\n")
    line = parse("--config", path, "--batch_size", "8", "--num_experts=32")
    assert (line.config.lr, line.config.batch_size, line.config.seed) == (0.01, 8, 1337)
    assert line.model_overrides == {"num_experts": 32}
    assert line.given == {"lr", "batch_size", "num_experts"}


def test_the_model_is_asked_for_its_fields_only_when_a_name_is_not_ours(yaml_file):
    def fail(model):
        raise AssertionError("asked")

    parse_command_line(["--lr", "1e-3", "--config", yaml_file("seed: 1")], fail)
    with pytest.raises(AssertionError, match="asked"):
        parse_command_line(["--num_experts", "4"], fail)


# values


@pytest.mark.parametrize(
    "value, hint, expected",
    [
        ("3e-4", float, 3e-4),
        (2, float, 2.0),
        ("65_536", int, 65536),
        ("none", int | None, None),
        (None, float | None, None),
        ("5", int | None, 5),
        ("True", bool, True),
        (False, bool, False),
        ("a,b", tuple[str, ...] | None, ("a", "b")),
        ("0, 2", tuple[int, ...] | None, (0, 2)),
        ([0, 2], tuple[int, ...], (0, 2)),
        ("", tuple[int, ...], ()),
        ("none", tuple[str, ...] | None, None),
        ("none", str, "none"),
    ],
)
def test_a_value_becomes_the_type_of_its_field(value, hint, expected):
    result = cast("x", value, hint)
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize(
    "value, hint",
    [
        ("1e3", int),
        ("1.0", int),
        (1.0, int),
        (True, int),
        (None, int),
        ("nan", float),
        ("inf", float),
        (True, float),
        ("0,x", tuple[int, ...]),
        (3, tuple[int, ...]),
        ("yes", bool),
        (1, bool),
        (7, str),
        ("", str),
        ("a\0b", str),
        ("caf\udce9", str),
        (None, str),
        (2**63, int),
        (10**400, float),
        ({"a": 1}, float),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_name(value, hint):
    with pytest.raises(ValueError, match="^x must be .*; got "):
        cast("x", value, hint)


def test_a_boolean_is_set_by_its_name_its_negation_or_a_word():
    for argv in (["--use_tensorboard"], ["--use_tensorboard", "true"], ["--use_tensorboard=true"]):
        assert parse(*argv).config.use_tensorboard is True
    for argv in (["--no-use_tensorboard"], ["--use_tensorboard", "False"]):
        assert parse(*argv).config.use_tensorboard is False
    assert parse("--no-attention_sinks").model_overrides == {"attention_sinks": False}
    assert parse("--sliding_window", "none").model_overrides == {"sliding_window": None}


def test_compile_is_auto_unless_a_flag_yaml_or_an_old_checkpoint_says_on_or_off(yaml_file):
    assert parse().config.compile == "auto"
    for setting, flag, words in (
        ("on", "--compile", ("true", "on")),
        ("off", "--no-compile", ("false", "off")),
    ):
        assert parse(flag).config.compile == setting
        assert TrainConfig(compile=setting == "on").compile == setting  # as an old checkpoint holds it
        for word in words:
            assert (
                parse("--compile", word).config.compile
                == parse(f"--compile={word}").config.compile
                == setting
            )
            assert parse("--config", yaml_file(f"compile: {word}")).config.compile == setting
    with pytest.raises(ValueError, match="compile must be one of auto, on, off; got 'maybe'"):
        parse("--compile", "maybe")


@pytest.mark.parametrize(
    "name, value, rule",
    [
        ("batch_size", 0, "at least 1"),
        ("lr", 0.0, "above 0"),
        ("warmup", 1.0, "below 1"),
        ("decay", 1.5, "at most 1"),
        ("keep", 0, "at least 1"),
        ("threads", 10**9, "at most 1,024"),
        ("schedule", "linear", "one of wsd, cosine"),
        ("balance", None, "one of none, aux, aux_global, bias"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_the_rule(name, value, rule):
    with pytest.raises(ValueError, match=f"^{name} must be {rule}; got {value!r}"):
        TrainConfig(**{name: value})


def test_warmup_and_decay_must_fit_into_the_run_of_a_wsd_schedule():
    TrainConfig(warmup=0.7, decay=0.4, schedule="cosine")
    with pytest.raises(ValueError, match="warmup \\+ decay must be at most 1"):
        TrainConfig(warmup=0.7, decay=0.4)


# length of the run


def test_the_length_is_given_in_steps_or_in_minutes_and_the_higher_level_decides(yaml_file):
    def length(*argv):
        config = parse(*argv).config
        return config.max_iters, config.max_minutes

    assert length("--max_minutes", "2.5") == (None, 2.5)
    minutes, steps = yaml_file("max_minutes: 20"), ["--max_iters", "7"]
    assert length("--config", minutes) == (None, 20.0)
    assert length("--config", minutes, *steps) == (7, None)
    assert length("--config", yaml_file("max_iters: 9"), "--max_minutes", "3") == (None, 3.0)


def test_both_lengths_on_one_level_are_refused(yaml_file):
    assert "give one of them" in refused("--max_iters", "5", "--max_minutes", "1")
    assert "run.yaml" in refused("--config", yaml_file("max_iters: 5\nmax_minutes: 1"))
    with pytest.raises(ValueError, match="either max_iters or max_minutes"):
        TrainConfig(max_minutes=1.0)


# bad input


@pytest.mark.parametrize(
    "argv, words",
    [
        ("--batch_sise 4", "'--batch_sise' is unknown; did you mean '--batch_size'?"),
        ("--batch_siz 4", "did you mean '--batch_size'?"),  # argparse alone would take a prefix
        ("--num_expert=4", "did you mean '--num_experts'?"),
        ("--zzzz 4", "--help_model"),
        ("train.txt", "'train.txt' is not a flag"),
        ("--lr", "--lr: expected one argument"),
        ("--max_iters 1e3", "max_iters must be a whole number"),
        ("--config nothing.yaml", "nothing.yaml: cannot be read"),
    ],
)
def test_a_bad_command_line_is_refused_in_one_line(argv, words):
    assert words in refused(*argv.split())


def test_all_unknown_names_are_told_at_once(yaml_file):
    assert refused("--batch_sise", "4", "--zzzz=1", "--grad_clipp", "1") == (
        "3 flags are unknown: '--batch_sise' (did you mean '--batch_size'?), '--zzzz', "
        "'--grad_clipp' (did you mean '--grad_clip'?); --help and --help_model list the names"
    )
    told = refused("--config", yaml_file("lrr: 1\nzzzz: 2"))
    assert "run.yaml: 2 keys are unknown: 'lrr' (did you mean 'lr'?), 'zzzz'; " in told


def test_a_file_of_settings_is_found_by_its_name_and_told_where_its_flag_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = parse("--config", "medium")
    assert (line.config.model_size, line.config.block_size) == ("medium", 512)
    Path("medium").write_text("block_size: 7")  # a path stands before a name
    assert parse("--config", "medium").config.block_size == 7
    assert "configs/ has gpt2, large, light, " in refused("--config", "lihgt")
    assert refused("--config", "lihgt").endswith("did you mean 'light'?")
    for word in ("configs/toy.yaml", "light"):
        assert refused(word) == f"{word!r} is not a flag; use --config {word}"


def test_a_wrong_type_in_yaml_names_the_field_and_the_file(yaml_file):
    assert "run.yaml: max_iters must be a whole" in refused("--config", yaml_file("max_iters: 1e3"))
    assert "run.yaml: num_experts must be" in refused("--config", yaml_file("num_experts: many"))


@pytest.mark.parametrize(
    "text, reason",
    [
        ("batch_sise: 4", "did you mean 'batch_size'?"),
        ("lr: 1\nseed: 2\nlr: 3", "'lr' is set 2 times"),
        ("- lr\n- seed", "must hold lines of `name: value`"),
        ("lr: [1", "is not valid YAML"),
        ("lr: !!python/object/apply:os.getcwd []", "is not valid YAML"),
        (b"dataset: caf\xe9", "is not UTF-8"),
        ("lr: " + "9" * 5000, "is not valid YAML"),
        ("seed: 2001-99-99", "is not valid YAML"),
        ("seed: 1\nbatch_size: 010", "line 2: a number must be in plain digits"),
        ("batch_size: 010", "got '010', which counts as 8; write 8 or the number that you mean"),
        ("seed: 0123", "got '0123', which counts as 83"),
        ("seed: -010", "got '-010', which counts as -8"),
        ("max_minutes: 1:30", "got '1:30', which counts as 90"),
        ("max_iters: 1:00:00", "got '1:00:00', which counts as 3600"),
        ("lr: 0:0.5", "got '0:0.5', which counts as 0.5"),
        ("batch_size: 0x10", "got '0x10', which counts as 16"),
        ("batch_size: 0b11", "got '0b11', which counts as 3"),
        ("batch_size: !!int '010'", "got '010', which counts as 8"),
        ("layer_types: [x, 010]", "got '010', which counts as 8"),
        ("010: x", "got '010', which counts as 8"),
        ("max_iters: " + "1:" * 20_000 + "1", "a number with too many digits"),
        ("compile: !!bool x", "is not valid YAML"),
        ("seed: !!int ''", "is not valid YAML"),
        ("lr: !!timestamp x", "is not valid YAML"),
        ("lr: " + "[" * 20_000, "nested too deeply"),
        ("model: [gptoss]\nnum_experts: 4", "model must be text"),
        (
            "out_dir: ''",
            "out_dir must be text that is not empty (without the setting, its default holds); got ''",
        ),
        ("lr: " + "9" * 400, "lr must be a finite number"),
        ("seed: " + "9" * 400, "seed must be a whole number below 2**63"),
        ('dataset: "a\\0b"', "dataset must be text without the character NUL"),
        ("1: 2", "key '1' is unknown"),
        ("batch_size: 0", "batch_size must be at least 1"),
    ],
)
def test_a_bad_yaml_file_is_refused_in_one_line(yaml_file, text, reason):
    assert reason in refused("--config", yaml_file(text))


ALIASES = {
    "lists of lists": ("[x, x, x, x, x, x, x, x, x]", "[{}]"),
    "merged keys": ("{x: 1}", "{{<<: [{}]}}"),
}


@pytest.mark.parametrize("kind", ALIASES)
def test_a_yaml_file_that_repeats_itself_by_aliases_is_refused_at_once(yaml_file, kind):
    first, further = ALIASES[kind]
    lines = ["lr:", f"  - &a {first}"]
    for name, before in zip("bcdefghijkl", "abcdefghijk"):  # 9**12 values, if they were written out
        lines.append(f"  - &{name} {further.format(', '.join([f'*{before}'] * 9))}")
    began = time.perf_counter()
    assert "at most 100,000 values" in refused("--config", yaml_file("\n".join(lines)))
    assert time.perf_counter() - began < 1


def test_aliases_of_a_few_values_are_what_they_stand_for(yaml_file):
    config = parse("--config", yaml_file("seed: &n 7\nbatch_size: *n\n<<: {lr: 0.5}")).config
    assert (config.seed, config.batch_size, config.lr) == (7, 7, 0.5)
    assert "at most 100,000 values" in refused("--config", yaml_file("lr: &a [*a]"))  # without end


def test_a_value_of_any_size_is_quoted_in_few_words(yaml_file):
    for value in ("0x" + "f" * 5000, "x" * 5000, str([[["x"] * 30] * 30] * 9), "1:" * 20_000 + "1"):
        told = refused("--config", yaml_file(f"seed: {value}"))
        rule = (
            "a number must be in plain digits" if value[:2] in ("0x", "1:") else "seed must be a whole number"
        )
        assert rule in told and len(told) < 1000


def test_a_yaml_file_without_an_end_is_not_read(yaml_file, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe", tmp_path):
        assert "cannot be read: it is a folder or a device" in refused("--config", str(path))
    assert "at most 1,000,000 bytes" in refused("--config", yaml_file("# " + "x" * 1_000_000))


# names and values of other trainers


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("learning_rate", "lr"),
        ("max_steps", "max_iters"),
        ("eval_interval", "eval_every"),
        ("log_interval", "log_every"),
        ("gradient_accumulation_steps", "grad_accum"),
        ("always_save_checkpoint", "save_every, whether or not the loss fell"),
        ("warmup_iters", "warmup, as a share of the run"),
        ("lr_decay_iters", "decay, as a share of the run"),
        ("wandb_log", "use_tensorboard"),
        ("top_k", "num_experts_of_a_token"),
    ],
)
def test_another_trainer_s_name_is_answered_with_ours(yaml_file, monkeypatch, theirs, ours):
    monkeypatch.setitem(other_names.SETTINGS, "top_k", ("num_experts_of_a_token", ""))
    fields = MODEL_FIELDS | {"num_experts_of_a_token": int}
    for argv, told in (
        ([f"--{theirs}", "1"], f"flag '--{theirs}' is unknown; here it is called --{ours}"),
        ([f"--{theirs.replace('_', '-')}=1"], f"is unknown; here it is called --{ours}"),
        (["--config", yaml_file(f"{theirs}: 1")], f"'{theirs}' is unknown; here it is called {ours}"),
    ):
        with pytest.raises(ValueError) as caught:
            parse_command_line(argv, lambda model: fields)
        assert str(caught.value).endswith(told)


def test_a_name_that_this_model_lacks_is_not_suggested():
    assert "here it is called" not in refused("--n_layer", "2")  # MODEL_FIELDS has no layers


def test_every_name_of_another_trainer_maps_to_a_setting_and_is_not_one():
    ours = {f.name for cls in (TrainConfig, ModelConfig) for f in fields(cls)}
    assert {name for name, _ in other_names.SETTINGS.values()} <= ours
    assert other_names.SETTINGS.keys().isdisjoint(ours)
    for setting, value in other_names.VALUES:
        with pytest.raises(ValueError, match="must be one of"):
            TrainConfig(**{setting: value})


def test_a_value_of_another_trainer_is_refused_with_the_alternative():
    told = refused("--dtype", "float16")
    assert "one of auto, float32, bfloat16 (float16 would need loss scaling; bfloat16 does" in told
    assert told.endswith("got 'float16'")


# how a script ends


def ending(function, capsys, **options):
    return exit_code("x.py", function, **options), capsys.readouterr().err


def raising(error):
    def function():
        raise error

    return function


def test_a_script_ends_with_what_its_work_returned_and_with_2_for_what_a_person_can_put_right(capsys):
    assert ending(lambda: None, capsys) == (0, "")
    assert ending(lambda: 143, capsys) == (143, "")
    for kind in (ValueError, OSError, ImportError):
        assert ending(raising(kind("no such\nfile")), capsys) == (2, "x.py: error: no such file\n")
        assert ending(raising(kind()), capsys) == (2, f"x.py: error: {kind.__name__}\n")
    with pytest.raises(AssertionError):  # a mistake of ours keeps its traceback
        ending(raising(AssertionError()), capsys)


def test_a_message_is_one_short_line_without_control_characters_whatever_it_quotes(capsys):
    told = ending(raising(ValueError("it is \x1b[31m\x00\u2028 here\r\nso")), capsys)[1]
    assert told == "x.py: error: it is \\x1b[31m\\x00  here so\n"
    surrogate = ending(raising(ValueError("no \udcff here")), capsys)[1]
    assert surrogate == "x.py: error: no \\udcff here\n"
    word = ending(raising(ValueError(f"no {'x' * 5000} here; leave it out")), capsys)[1]
    assert len(word) < 300 and word.endswith("xxx here; leave it out\n")
    words = ending(raising(ValueError(f"unknown: {'word ' * 5000}; leave them out")), capsys)[1]
    assert len(words) < 800 and words.endswith("word ; leave them out\n")


def test_characters_that_the_terminal_cannot_show_are_escaped(monkeypatch):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii", write_through=True))
    assert exit_code("x.py", lambda: print("caf\u00e9 \udcff")) == 0
    assert out.getvalue() == b"caf\\xe9 \\udcff\n"


def test_an_error_of_the_system_is_told_without_its_number(capsys, tmp_path):
    told = ending(lambda: open(tmp_path / "x"), capsys)[1]
    assert told == f"x.py: error: {tmp_path / 'x'}: No such file or directory\n"
    told = ending(lambda: Path("x" * 5000).exists() or 1 / 0, capsys)[1]
    assert told.endswith("xxx: File name too long\n") and len(told) < 300


def test_ctrl_c_is_130_and_says_what_is_left_behind(capsys):
    assert ending(raising(KeyboardInterrupt()), capsys) == (130, "x.py: interrupted\n")
    told = ending(raising(KeyboardInterrupt()), capsys, interrupted="interrupted; try again")
    assert told == (130, "x.py: interrupted; try again\n")


def test_a_closed_pipe_ends_a_script_without_a_message():
    script = (
        "import sys\n"
        "from common.script import exit_code\n"
        "sys.exit(exit_code('x.py', lambda: [print('line', flush=True) for _ in iter(int, 1)]))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(10) == 141


# help


def test_help_lists_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    told = capsys.readouterr().out
    assert all(f"--{f.name} " in told for f in fields(TrainConfig))
    assert "(default: 65536)" in told and "(default: none)" in told


@pytest.mark.parametrize("kind", KINDS)
def test_help_of_post_training_leaves_out_what_the_checkpoint_decides(kind, capsys):
    with pytest.raises(SystemExit):
        parse_command_line(["--help"], lambda model: MODEL_FIELDS, config_class=KINDS[kind])
    flags = set(re.findall(r"^  --(\w+) ", capsys.readouterr().out, re.MULTILINE))
    expected = {f.name for f in fields(KINDS[kind])} - KINDS[kind].unread
    assert flags == expected | {"config", "help_model"} and "tokenizer" not in flags


def test_a_flag_of_another_program_is_told_with_its_program():
    with pytest.raises(ValueError, match="'--lora_rank' is unknown; it is a setting of post_train.py sft"):
        parse("--lora_rank", "4")


# resume

SAVED = asdict(
    TrainConfig(lr=0.01, dataset="bundled", device="cpu", dtype="float32", attention="sdpa", threads=2)
)
SAVED_MODEL = {"num_experts": 8, "layer_types": ["full", "sliding"]}


def resumed(*argv):
    line = parse("--resume", *argv)
    return check_resume(SAVED, line.config, SAVED_MODEL, line.model_overrides, line.given)


def test_resume_takes_everything_that_was_not_given_from_the_saved_run():
    assert resumed() == TrainConfig(**SAVED | {"resume": True})


def test_resume_accepts_saved_values_and_auto():
    same = ["--lr", "1e-2", "--num_experts", "8", "--layer_types", "full,sliding"]
    open_choices = ["--device", "auto", "--attention", "auto", "--threads", "none"]
    open_choices += ["--dataset", "auto"]
    assert resumed(*same, *open_choices) == resumed()


def test_resume_accepts_changes_that_leave_the_computation_as_it_is():
    config = resumed("--keep", "3", "--eval_every", "7", "--out_dir", "moved")
    assert config == replace(resumed(), keep=3, eval_every=7, out_dir="moved")


def test_resume_accepts_another_name_of_the_data_and_another_machine():
    flags = "--dataset ./x.jsonl --val_dataset v.txt --text_column story --threads 1 --attention eager"
    changed = resumed(*flags.split())
    data = dict(dataset="./x.jsonl", val_dataset="v.txt", text_column="story")
    assert changed == replace(resumed(), **data, threads=1, attention="eager")


@pytest.mark.parametrize(
    "name, value",
    [
        ("lr", "0.02"),
        ("max_iters", "6000"),
        ("max_minutes", "20"),
        ("num_experts", "16"),
        ("layer_types", "full,full"),
    ],
)
def test_resume_refuses_changes_of_the_computation_and_names_the_page_of_what_may_change(name, value):
    with pytest.raises(ValueError) as caught:
        resumed(f"--{name}", value)
    message = str(caught.value)
    assert f"{name}={float(value) if name == 'max_minutes' else value} (saved: " in message
    assert "--init_from" in message and "docs/recipes.md lists what may change" in message


def test_a_longer_response_is_no_longer_run():
    with pytest.raises(ValueError, match="max_response=9 .* leave it out, or start a new run"):
        check_resume(asdict(GRPOConfig()), GRPOConfig(max_response=9), {}, {}, frozenset({"max_response"}))


def test_resume_refuses_a_saved_config_of_other_code():
    with pytest.raises(ValueError, match="unknown setting, 'momentum'"):
        check_resume(SAVED | {"momentum": 1}, TrainConfig(), {}, {}, frozenset())


def test_the_names_in_the_rules_of_resume_are_fields():
    names = {f.name for kind in (TrainConfig, PostTrainConfig) for f in fields(kind)}
    assert RESUMABLE_CHANGES <= names and RESOLVED_BY_THE_RUN <= names


# the words of moe_layers


@pytest.mark.parametrize(
    "text, layers", [("all", None), ("none", ()), ("", ()), ("2", (2,)), ("0, 2", (0, 2)), ("0,2", (0, 2))]
)
def test_moe_layers_are_named_all_none_or_by_number_and_are_written_as_they_are_read(text, layers, yaml_file):
    assert parse("--moe_layers", text).model_overrides == {"moe_layers": layers}
    path = yaml_file(f"moe_layers: {text!r}\n")
    assert parse("--config", path).model_overrides == {"moe_layers": layers}
    assert parse("--moe_layers", as_text(layers, "moe_layers")).model_overrides == {"moe_layers": layers}


def test_yaml_lists_and_nothing_are_layers_too(yaml_file):
    for text, layers in (("[]", ()), ("[1]", (1,)), ("none", ()), ("null", None), ("all", None)):
        assert parse("--config", yaml_file(f"moe_layers: {text}")).model_overrides == {"moe_layers": layers}
    for text in ("[]", "dense", "0;2", "-1", "first"):
        message = refused("--moe_layers", text)
        assert message.startswith("moe_layers must be all, none, or layer numbers separated by commas")


def test_final_eval_tokens_are_a_number_or_all():
    for text, value in (("all", "all"), ("none", None), ("64", 64)):
        assert parse("--final_eval_tokens", text).config.final_eval_tokens == value
    assert refused("--final_eval_tokens", "0").startswith("final_eval_tokens must be at least 1")
    assert refused("--final_eval_tokens", "every").startswith("final_eval_tokens must be a whole number")
