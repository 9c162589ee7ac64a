"""sample.py and inference.py on a tiny checkpoint: what is printed, where, and every bad input."""

import io
import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from test_generation import build, tiny_tokenizer

import inference
import sample
from architecture.generation.text import generate_text
from architecture.gptoss import Transformer
from architecture.tokenizer import tokenizer_state

ROOT = Path(__file__).parent.parent


def write_checkpoint(path: Path, seed: int = 0) -> Path:
    model = build(seed).float()
    state = {"model_name": "gptoss", "config": asdict(model.config), "model": model.state_dict()}
    torch.save(state | {"tokenizer": tokenizer_state(tiny_tokenizer()), "step": 20}, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoint_20.pt")


@pytest.fixture
def run(capsys):
    """main(flags) -> exit code, stdout, stderr"""

    def call(*flags):
        code = sample.main([str(flag) for flag in flags])
        return code, *capsys.readouterr()

    return call


SHORT = ("--max_tokens", 8, "--device", "cpu")


# --------------------------------------------------------------------------------------------------
# what it prints


def test_one_sample_is_the_prompt_and_its_continuation(run, checkpoint):
    code, out, err = run("--checkpoint", checkpoint, "--prompt", "the cat", "--seed", 3, *SHORT)
    model = inference.load_model(checkpoint)
    assert code == 0
    assert out == inference.generate_text(model, "the cat", 8, 0.8, seed=3) + "\n"
    assert out.startswith("the cat") and len(out) > len("the cat\n")
    assert err == f"{checkpoint}, cpu, seed 3\n"


def test_a_single_sample_is_streamed_piece_by_piece(checkpoint, monkeypatch):
    written = []

    class Recorder(io.StringIO):
        def write(self, text):
            written.append(text)

    monkeypatch.setattr(sys, "stdout", Recorder())
    flags = ["--checkpoint", checkpoint, "--prompt", "the", "--seed", 3, *SHORT]
    assert sample.main(list(map(str, flags))) == 0
    assert written[0] == "the" and len(written) > 4


def test_several_prompts_and_samples_have_separators(run, checkpoint, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffthe cat\r\n\n  \n\ufeffcaf\u00e9\r\n", encoding="utf-8", newline="")
    flags = ("--checkpoint", checkpoint, "--num_samples", 2, "--seed", 1, *SHORT)
    code, out, _ = run(*flags, "--prompts", prompts)
    assert code == 0
    model = inference.load_model(checkpoint)
    rows = ["the cat", "the cat", "caf\u00e9", "caf\u00e9"]
    texts = inference.generate_texts(model, rows, 8, 0.8, seed=1)
    heads = [f"=== prompt {p} of 2, sample {s} of 2 ===" for p in (1, 2) for s in (1, 2)]
    assert out == "".join(f"{head}\n{text}\n\n" for head, text in zip(heads, texts))
    assert texts[0] != texts[1]
    assert out == run(*flags, "--prompt", "the cat", "caf\u00e9")[1]
    assert out == run(*flags, "--prompt", "the cat", "--prompt", "caf\u00e9")[1]


def test_texts_go_to_a_file_that_is_read_again(run, checkpoint, tmp_path):
    from data.files import open_files

    flags = ["--prompt", "Tom", "Mia said", "--num_samples", 2, "--max_tokens", 3, "--seed", 5]
    _, printed, _ = run("--checkpoint", checkpoint, *flags)
    for name in ("told.txt", "told.jsonl"):
        code, out, err = run("--checkpoint", checkpoint, *flags, "--out", tmp_path / name)
        assert code == 0 and out == "" and f"wrote 4 texts to {tmp_path / name}" in err
        source = open_files(tmp_path / name, split="train", whole=True, text_column="text")
        texts = list(source.documents())
        assert len(texts) == 4 and texts[0].startswith("Tom")
        assert texts[3].startswith("Mia said")
        assert all(text.strip() in printed for text in texts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["told.jsonl", "told.txt"]


def test_no_prompt_starts_a_new_text(run, checkpoint):
    code, out, _ = run("--checkpoint", checkpoint, "--seed", 1, *SHORT)
    assert code == 0 and len(out) > 1
    assert out == run("--checkpoint", checkpoint, "--prompt", "", "--seed", 1, *SHORT)[1]


def test_the_printed_seed_repeats_the_text(run, checkpoint):
    flags = ("--checkpoint", checkpoint, "--temperature", 1, *SHORT)
    _, out, err = run(*flags)
    assert run(*flags, "--seed", err.split()[-1])[1] == out
    assert run(*flags)[1] != out


def test_filters_reach_the_sampler(run, checkpoint):
    flags = ("--checkpoint", checkpoint, "--prompt", "the", *SHORT, "--temperature")
    greedy = run(*flags, 0)[1]
    for name, value in (("--top_k", 1), ("--top_p", 1e-9), ("--min_p", 1)):
        assert run(*flags, 1, name, value)[1] == greedy
    assert run(*flags, 1, "--seed", 1)[1] != greedy


def test_default_length_fits_the_context_limit_and_says_so(run, checkpoint):
    code, out, err = run("--checkpoint", checkpoint, "--prompt", "q" * 29, "--device", "cpu")
    assert code == 0 and out
    assert "at most 10 new tokens fit behind a prompt of 30 (context limit 40)" in err


def test_a_run_folder_means_its_newest_checkpoint_and_best_its_best(run, tmp_path):
    for step in (9, 10, 20):
        write_checkpoint(tmp_path / f"checkpoint_{step}.pt", seed=step)
    assert_one_line(run("--checkpoint", tmp_path, "--best", *SHORT), "best.json names no checkpoint")
    err = run("--checkpoint", tmp_path, *SHORT)[2]
    newest = tmp_path / "checkpoint_20.pt"
    assert err.startswith(f"{newest}: the newest checkpoint of {tmp_path}\n{newest}, cpu, seed ")
    best = {"step": 9, "checkpoint": "checkpoint_9.pt", "val_loss": 1.5}
    (tmp_path / "best.json").write_text(json.dumps(best))
    err = run("--checkpoint", tmp_path, *SHORT)[2]
    assert err.startswith(f"{newest}: the newest checkpoint of {tmp_path}; ")
    assert f"checkpoint_9.pt has the lowest validation loss ({tmp_path}/best.json)\n" in err
    text = run("--checkpoint", tmp_path / "checkpoint_9.pt", "--seed", 3, *SHORT)[1]
    for flags in (["--checkpoint", tmp_path, "--best"], ["--checkpoint", tmp_path / "best.json"]):
        _, out, err = run(*flags, "--seed", 3, *SHORT)
        assert out == text and f"{tmp_path}/checkpoint_9.pt, cpu, seed 3\n" in err
    assert_one_line(run("--checkpoint", newest, "--best", *SHORT), "--best needs a run's folder")
    told = [inference.load_model_and_generate(path, "", 9, 0.8, seed=3) for path in (tmp_path, newest)]
    assert told[0] == told[1]
    best, same = (Transformer.from_checkpoint(tmp_path / name) for name in ("best.json", "checkpoint_9.pt"))
    assert torch.equal(best.embedding.weight, same.embedding.weight)


def test_help_comes_without_torch():
    code = (
        "import sys, sample\n"
        "try: sample.main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "--checkpoint " in shown.stdout and "--num_samples " in shown.stdout


# --------------------------------------------------------------------------------------------------
# the functions to import


def test_load_model_and_generate_counts_all_tokens(checkpoint):
    # "the cat" is end-of-text, "the" and four bytes: 6 tokens
    text = inference.load_model_and_generate(checkpoint, "the cat", 10, 0.8, seed=4)
    model = Transformer.from_checkpoint(checkpoint)
    assert text == generate_text(model, "the cat", 4, 0.8, seed=4)
    with pytest.raises(ValueError, match="above the prompt's 6 tokens .* got 6"):
        inference.load_model_and_generate(checkpoint, "the cat", 6, 0.8)
    with pytest.raises(ValueError, match="40 tokens"):
        inference.load_model_and_generate(checkpoint, "the cat", 41, 0.8)


# --------------------------------------------------------------------------------------------------
# bad input, and Ctrl-C


def test_a_bad_checkpoint_is_one_line(run, tmp_path, checkpoint):
    path = tmp_path / "checkpoint_1.pt"
    assert_one_line(run("--checkpoint", path, *SHORT), "does not exist")
    assert_one_line(run("--checkpoint", tmp_path, *SHORT), "folder without a checkpoint_<step>.pt")
    path.write_bytes(checkpoint.read_bytes()[:-5000])
    assert_one_line(run("--checkpoint", path, *SHORT), "cut off, damaged")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", "a", "--prompts", "b"], "not allowed with"),
        (["--prompts", "{folder}/none.txt"], "none.txt: No such file"),
        (["--prompts", "{folder}/blank.txt"], "contains no prompt"),
        (["--prompts", "{folder}/latin1.txt"], "latin1.txt, byte 3 is not UTF-8"),
        (["--prompt", "\udcff"], "must be UTF-8"),
        (["--num_samples", str(10**9)], "num_samples must be from 1 to 1,000,000"),
        (["--prompt", "x" * 5000 + "\x1b"], "40 tokens"),
        (["--max_tokens", "0"], "max_tokens must be at least 1"),
        (["--prompt", "q" * 50], "40 tokens"),
        (["--device", "gpu"], "device must be"),
        (["--temp", "1"], "unrecognized arguments: --temp 1; --help lists the flags"),
        (["--max_new_tokens", "9"], "--max_new_tokens 9; did you mean '--max_tokens'?"),
        (["--out", "{folder}/told.csv"], "--out must end in .jsonl or .txt"),
        (
            ["--prompt", "a", "x<|endoftext|>y", "--out", "{folder}/told.txt"],
            "cannot hold a text with <|endoftext|>",
        ),
        (["--prompts", "{folder}/ends.txt", "--out", "{folder}/told.txt"], "use --out {folder}/told.jsonl"),
        (["--out", "{folder}/no/told.txt"], "is in a folder that does not exist"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_flags_are_one_line(run, tmp_path, checkpoint, flags, message):
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "latin1.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (tmp_path / "ends.txt").write_text("a\nb <|endoftext|>\n")
    flags = [flag.format(folder=tmp_path) for flag in flags]
    assert_one_line(run("--checkpoint", checkpoint, *flags), message.format(folder=tmp_path))
    assert not list(tmp_path.glob("told.*"))


def test_a_separator_that_is_generated_is_not_written_into_a_txt_file(run, checkpoint, tmp_path, monkeypatch):
    prompts = ["--prompt", "x", "the<|endof"]
    monkeypatch.setattr(inference, "stream_text", lambda *_, **__: iter([(0, "y"), (1, "text|> z")]))
    flags = ["--checkpoint", checkpoint, *prompts, "--seed", 5, *SHORT, "--out"]
    told = f"cannot hold a text with .* use --out {tmp_path}/told.jsonl with the same --seed"
    code, out, err = run(*flags, tmp_path / "told.txt")
    assert code == 2 and re.search(told, err) and not list(tmp_path.glob("told*"))
    assert run(*flags, tmp_path / "told.jsonl")[0] == 0
    assert "the<|endoftext|> z" in (tmp_path / "told.jsonl").read_text()


def test_more_texts_than_memory_holds_are_refused_before_the_first(run, checkpoint, monkeypatch):
    from common import device

    monkeypatch.setattr(device, "available_memory", lambda where: 1e9)
    result = run("--checkpoint", checkpoint, "--num_samples", "1000000", "--max_tokens", "5")
    assert_one_line(result, "1,000,000 texts of 6 tokens need about")
    assert "lower --num_samples or --max_tokens" in result[2]


def test_a_checkpoint_must_be_given(run):
    assert_one_line(run("--prompt", "the"), "required: --checkpoint")


def assert_one_line(result, message):
    code, out, err = result
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("sample.py: error: ") and message in err, err


def test_ctrl_c_ends_with_130_and_no_traceback(run, checkpoint, monkeypatch):
    def interrupted(*arguments, **options):
        yield 0, " and"
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "stream_text", interrupted)
    code, out, err = run("--checkpoint", checkpoint, "--prompt", "the", *SHORT)
    assert (code, out) == (130, "the and\n")
    assert err.endswith("sample.py: interrupted\n")
