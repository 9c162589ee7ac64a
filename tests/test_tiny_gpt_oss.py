"""examples/tiny_gpt_oss.py after a few steps: every program gives the golden results of its format."""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from architecture.generation.text import encode_prompt, generate_text
from architecture.open_gpt_oss import engines
from architecture.registry import load_model

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "tiny_gpt_oss.py"
pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("tiny_gpt_oss", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    out = tmp_path_factory.mktemp("made") / "tiny"
    script.run(["--out_dir", str(out), "--max_iters", "8"])
    return out, json.loads((out / "golden.json").read_text(encoding="utf-8")), script


def require_close(found: torch.Tensor, golden: dict, most: float = 2e-5) -> None:
    """found: (T, V) log-probabilities of the token after each of the golden ids."""
    ids = torch.tensor(golden["ids"])
    scored = found[:-1].gather(-1, ids[1:, None]).flatten()
    assert (scored - torch.tensor(golden["log_probabilities"])).abs().max() < most


def test_the_golden_text_passes_the_windows_and_the_first_context_of_yarn(tiny):
    _, golden, _ = tiny
    config = load_model(tiny[0] / "hf").config
    tokens = len(golden["exact"]["ids"])
    assert (
        tokens > config.initial_context_length > 3 * config.sliding_window and config.rope_scaling_factor > 1
    )
    exact, gguf = (torch.tensor(golden[name]["log_probabilities"]) for name in ("exact", "gguf"))
    assert (exact - gguf).abs().max() > 1e-5  # the rounded limits matter


@pytest.mark.parametrize("layout", ["original", "hf", "mxfp4"])
def test_our_formats_hold_the_same_numbers(tiny, layout):
    out, golden, script = tiny
    model, exact = load_model(out / layout), golden["exact"]
    require_close(model(torch.tensor([exact["ids"]])).logits[0].log_softmax(-1), exact)
    for prompt, text in exact["greedy"].items():
        assert generate_text(model, prompt, script.NEW_TOKENS, 0.0) == text


@pytest.mark.parametrize("layout", ["hf", "mxfp4"])
def test_transformers_gives_the_golden_results(tiny, layout):
    from transformers import AutoModelForCausalLM, AutoTokenizer, Mxfp4Config

    out, golden, script = tiny
    options = {"quantization_config": Mxfp4Config(dequantize=True)} if layout == "mxfp4" else {}
    model = AutoModelForCausalLM.from_pretrained(out / layout, dtype=torch.float32, **options)
    tokenizer = AutoTokenizer.from_pretrained(out / layout)
    with torch.no_grad():
        require_close(
            model(torch.tensor([golden["exact"]["ids"]])).logits[0].log_softmax(-1), golden["exact"]
        )
    for prompt, text in golden["exact"]["greedy"].items():
        ids = tokenizer("<|endoftext|>" + prompt, return_tensors="pt", add_special_tokens=False)
        new = model.generate(**ids, max_new_tokens=script.NEW_TOKENS, do_sample=False)
        assert tokenizer.decode(new[0], skip_special_tokens=True) == text


def test_mlx_gives_the_golden_results(tiny):
    pytest.importorskip("mlx_lm")
    out, golden, script = tiny
    program, tokenizer = engines.Mlx(out / "mlx"), load_model(out / "hf").tokenizer
    require_close(program.log_probabilities(golden["mlx"]["ids"]), golden["mlx"], 1e-4)
    for prompt, text in golden["mlx"]["greedy"].items():
        ids = encode_prompt(tokenizer, prompt)
        new = program.greedy(ids, script.NEW_TOKENS, tokenizer.eot_token)
        assert prompt + tokenizer.decode(new) == text


def test_llama_cpp_gives_the_golden_results(tiny):
    pytest.importorskip("xllamacpp")
    out, golden, script = tiny
    tokenizer, expected = load_model(out / "hf").tokenizer, golden["gguf"]
    program = engines.LlamaCpp(out / "gguf" / "model.gguf", context=512)
    for prompt, text in expected["greedy"].items():
        assert prompt + program.greedy(encode_prompt(tokenizer, prompt), script.NEW_TOKENS) == text
    for length in engines.lengths(len(expected["ids"]) - 1, 8):
        found = program.log_probabilities(expected["ids"][:length], tokenizer.n_vocab)
        if found is not None:  # it gives none where the most probable token is a part of a character
            next_id, value = expected["ids"][length], expected["log_probabilities"][length - 1]
            assert found[next_id].item() == pytest.approx(value, abs=1e-4)


def test_a_second_call_writes_the_same_bytes(tiny):
    out, _, script = tiny
    before = (out / "SHA256SUMS").read_text(encoding="utf-8")
    for line in before.splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    script.run(["--out_dir", str(out), "--max_iters", "8"])
    assert (out / "SHA256SUMS").read_text(encoding="utf-8") == before
