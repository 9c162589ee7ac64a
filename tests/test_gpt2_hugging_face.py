"""GPT-2 folders of transformers: read, written, trained from, and refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
import tiktoken
import torch
from safetensors.torch import load_file, save_file
from test_generation import tiny_tokenizer
from test_gpt2_training import SIZES
from tiktoken_ext.openai_public import r50k_pat_str
from toy_run import load, run_here

import sample
from architecture import checkpoint, registry, tokenizer
from architecture.gpt2 import GPT2, ModelConfig
from architecture.gpt2_hugging_face import main, read_config, read_folder, read_weights, write_folder
from architecture.tokenizer_json import read_vocabulary, tokenizer_json

T = 19
# no two axes are equal; the tiny tokenizer has 260 ids, and 320 is the next multiple of 64
SHAPE = dict(num_hidden_layers=3, vocab_size=320, used_vocab_size=260, hidden_size=20, intermediate_size=33)
SHAPE |= dict(num_attention_heads=5, initial_context_length=29)
THEIRS = dict(vocab_size=260, n_positions=29, n_embd=20, n_layer=3, n_head=5, n_inner=33)
THEIRS |= dict(bos_token_id=259, eos_token_id=259)
IDS = torch.randint(260, (2, T), generator=torch.Generator().manual_seed(0))


def randomised(model):
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=draw), alpha=0.3)
    return model.eval()


def our_model(**changes) -> GPT2:
    start = torch.Generator().manual_seed(0)
    model = randomised(GPT2(ModelConfig(**{**SHAPE, **changes}), generator=start))
    model.tokenizer = tiny_tokenizer()
    return model


def their_model(**changes):
    import transformers

    return randomised(transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**THEIRS, **changes})))


def without_tokenizer(folder: Path, **changes) -> None:
    """Write a folder that has no tokenizer, as save_pretrained of a model does."""
    model = our_model(**changes)
    model.tokenizer = None
    write_folder(model, folder)


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    return model(IDS).logits[..., :260]


def loaded(folder: Path) -> GPT2:
    """The model of a folder, without a tokenizer."""
    config = read_config(folder)
    model = GPT2(config)
    checkpoint.load_weights(model, read_weights(folder, config), folder)
    return model.eval()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "tiny"
    write_folder(our_model(), folder)
    return folder


# ----------------------------------------------------------------------------------------- round trips
@pytest.mark.peer
@pytest.mark.parametrize(
    "dtype, changes",
    [
        (torch.float32, dict(n_inner=None, activation_function="gelu_pytorch_tanh")),
        (torch.float32, dict(tie_word_embeddings=False)),
        (torch.bfloat16, {}),
    ],
    ids=str,
)
def test_what_transformers_saved_gives_the_same_logits_here_in_float32(tmp_path, dtype, changes):
    peer = their_model(**changes).to(dtype)
    peer.save_pretrained(tmp_path)
    model, peer = loaded(tmp_path), peer.float()
    assert model.embedding.weight.dtype == torch.float32
    assert model.config.vocab_size == 320 and model.config.used_vocab_size == 260
    assert model.config.intermediate_size == (33 if "n_inner" not in changes else 80)
    assert logits_of(peer).abs().max() > 1
    torch.testing.assert_close(logits_of(model), logits_of(peer), rtol=0, atol=1e-5)
    assert (model(IDS).logits[..., 260:] == -torch.inf).all()


@pytest.mark.peer
@pytest.mark.parametrize(
    "changes",
    [{}, dict(tie_embeddings=False), dict(position="none")],
    ids=["tied", "own head", "no positions"],
)
def test_what_was_exported_gives_the_same_logits_in_transformers(tmp_path, changes):
    import transformers

    model = our_model(**changes)
    write_folder(model, tmp_path / "out")
    peer, told = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told.values()), told
    assert type(peer.config) is transformers.GPT2Config and peer.config.eos_token_id == 259
    torch.testing.assert_close(logits_of(peer.eval()), logits_of(model), rtol=0, atol=1e-5)


def test_an_export_comes_back_to_the_bit_with_its_tokenizer(written):
    model = our_model()
    back = registry.load_model(written)
    assert back.config == model.config and back.tokenizer.name == "tiny"
    assert back.tokenizer.encode("the hat") == model.tokenizer.encode("the hat")
    for name, tensor in model.state_dict().items():
        used = 260 if "bedding" in name and "position" not in name else len(tensor)
        assert torch.equal(back.state_dict()[name][:used], tensor[:used]), name
    assert back.unembedding.weight is back.embedding.weight


def test_a_model_without_positions_comes_back_to_the_bit_with_a_table_of_zeros(tmp_path):
    model = our_model(position="none")
    write_folder(model, tmp_path / "out")
    back = registry.load_model(tmp_path / "out")
    table = back.state_dict()["position_embedding.weight"]
    assert table.shape == (29, 20) and not table.any()
    assert torch.equal(logits_of(back), logits_of(model))


def test_the_older_files_of_the_hub_are_read_without_prefix_and_with_masks(tmp_path, written):
    tensors = {
        name.removeprefix("transformer."): tensor
        for name, tensor in load_file(written / "model.safetensors").items()
    }
    tensors |= {f"h.{n}.attn.bias": torch.ones(1, 1, 29, 29) for n in range(3)}
    tensors["h.1.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()  # the tied head, once more
    shutil.copy(written / "config.json", tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    assert torch.equal(logits_of(loaded(tmp_path)), logits_of(loaded(written)))


# --------------------------------------------------------------------------------- folders that are wrong
def change_config(folder, **changes):
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not KeyError}))


def change_tensors(folder, **changes):
    """changes: names with / in place of . ; KeyError removes the tensor."""
    path = folder / "model.safetensors"
    tensors = load_file(path) | {name.replace("/", "."): value for name, value in changes.items()}
    save_file({k: v for k, v in tensors.items() if v is not KeyError}, path)


def several_files(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")


QKV = "transformer/h/1/attn/c_attn/weight"
WRONG = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json; use a complete folder"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors with all weights; write one"),
    "several files": (several_files, "has no model.safetensors with all weights; write one"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json does not contain a JSON object; use"),
    "other model": (lambda f: change_config(f, model_type="llama"),
                    "config.json must be one of gpt2, gpt_oss, gpt_oss_vision, got 'llama'; this code reads no other"),
    "no model": (lambda f: change_config(f, model_type=KeyError), "must be one of gpt2, gpt_oss, gpt_oss_vision, got None"),
    "relu": (lambda f: change_config(f, activation_function="relu"),
             "activation_function in .*config.json must be \"gelu_new\", got 'relu'; this code has no"),
    "scaled": (lambda f: change_config(f, scale_attn_by_inverse_layer_idx=True), "must be false, got True"),
    "text for a size": (lambda f: change_config(f, n_embd="wide"), "cannot be read as the config of a GPT-2 .hidden_size must be a whole number"),
    "text for ids": (lambda f: change_config(f, vocab_size="260"), "cannot be read as the config of a GPT-2 .it is damaged"),
    "heads": (lambda f: change_config(f, n_head=3), "hidden_size must be a multiple of num_attention_heads"),
    "huge": (lambda f: change_config(f, n_layer=10**400), "num_hidden_layers must be a whole number below"),
    "truncated": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
                  "model.safetensors cannot be read as weights .it is damaged.*; use another copy of it"),
    "missing": (lambda f: change_tensors(f, **{QKV: KeyError}),
                "lacks 1 tensor.s. of GPT-2 .first: h.1.attn.c_attn.weight.; write it with"),
    "surplus": (lambda f: change_tensors(f, **{"h/0/attn/rotary": torch.zeros(2)}),
                "holds 1 tensor.s. that GPT-2 lacks .first: h.0.attn.rotary.; write it with"),
    "turned": (lambda f: change_tensors(f, **{QKV: torch.zeros(60, 20)}),
               r"h.1.attn.c_attn.weight of .* in the shape \[20, 60\], as its config.json says, got "
               r"torch.float32 in \[60, 20\]; use"),
    "integers": (lambda f: change_tensors(f, **{QKV: torch.zeros(20, 60, dtype=torch.int8)}), "got torch.int8"),
    "another head": (lambda f: change_tensors(f, **{"lm_head/weight": torch.zeros(260, 20)}),
                     "has a head of its own .*; set it to false"),
    "no tokenizer": (lambda f: [(f / name).unlink() for name in ("tiktoken.json", "tokenizer.json")],
                     "has 260 ids and no tiktoken.json, tokenizer.json, or vocab.json with merges.txt, and GPT-2's own tokenizer has 50,257; copy"),
    "other ids": (lambda f: change_config(f, vocab_size=259), "has 259 ids, but its tokenizer tiny has 260; use"),
    "bad tokenizer": (lambda f: (f / "tiktoken.json").write_text("3"), "tiktoken.json does not contain a JSON object"),
}  # fmt: skip


@pytest.mark.parametrize("spoil, told", WRONG.values(), ids=WRONG)
def test_an_unusable_folder_is_refused_in_one_line(tmp_path, written, capsys, spoil, told):
    shutil.copytree(written, tmp_path / "given")
    spoil(tmp_path / "given")
    assert run_here(tmp_path, "--init_from", "given", "--dataset", "none.txt") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and re.search(told, err), err
    assert err.startswith("train.py: error: ") and "given" in err and "; " in err
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


# ---------------------------------------------------------------------------------------------- writing
def test_a_folder_in_use_is_refused_and_an_empty_one_taken(tmp_path):
    model = our_model()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    for path in (tmp_path / "mine", tmp_path / "mine/notes.txt"):
        with pytest.raises(ValueError, match=f"^{path} must be a new or an empty folder, and "):
            write_folder(model, path)
    with pytest.raises(ValueError, match="b is in a folder that does not exist; create that first"):
        write_folder(model, tmp_path / "a/b")
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "notes.txt"]
    (tmp_path / "empty").mkdir()
    write_folder(model, tmp_path / "empty")
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "empty").iterdir()}
    assert modes.keys() == {
        *("config.json", "model.safetensors", "tiktoken.json", "tokenizer.json", "tokenizer_config.json")
    }
    notes = (tmp_path / "mine/notes.txt").stat().st_mode
    assert set(modes.values()) == {notes}  # the permissions of any new file


def test_a_failed_export_leaves_nothing_and_the_rest_of_a_killed_one_is_replaced(tmp_path, monkeypatch):
    (tmp_path / ".out.tmp").mkdir()  # left by a killed export
    (tmp_path / ".out.tmp/model.safetensors").write_text("half")
    with monkeypatch.context() as patch:

        def full(descriptor):
            raise OSError(28, "No space left on device")

        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="out.* cannot be written .No space left.*; make room"):
            write_folder(our_model(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    write_folder(our_model(), tmp_path / "out")
    assert torch.equal(logits_of(registry.load_model(tmp_path / "out")), logits_of(our_model()))


# ------------------------------------------------------------------------------- from run to run, by command
RUN = (
    "--device cpu --threads 1 --block_size 16 --batch_size 4 --max_iters 3 --eval_tokens 256 --no-use_tensorboard"
).split()


@pytest.fixture(scope="module")
def exported(tmp_path_factory, corpus) -> Path:
    """A folder with a run of gpt2 in model/ and its export in exported/."""
    folder = tmp_path_factory.mktemp("exported")
    assert run_here(folder, *SIZES, *RUN, *corpus) == 0
    assert main(["export", "--checkpoint", str(folder / "model"), "--out", str(folder / "exported")]) == 0
    return folder


def test_an_exported_run_scores_and_tells_what_its_checkpoint_does(exported, corpus, capsys):
    scores, stories = [], []
    for given in ("model/best.json", "exported"):
        given = str(exported / given)
        capsys.readouterr()
        assert run_here(exported, *RUN[:6], "--eval_only", given, *corpus) == 0
        scores.append(capsys.readouterr().out)
        flags = "--prompt Tom --seed 3 --device cpu --max_tokens 8".split()
        assert sample.main(["--checkpoint", given, *flags]) == 0
        stories.append(capsys.readouterr().out)
    assert scores[0] == scores[1] and scores[0].startswith("validation loss ")
    assert stories[0] == stories[1] and stories[0].startswith("Tom")


def test_a_run_starts_from_a_folder_and_takes_model_and_tokenizer_from_it(exported, tmp_path, corpus, capsys):
    flags = ["--init_from", exported / "exported", *RUN, *corpus]
    assert run_here(tmp_path, *flags, "--lr", 1e-30, "--dropout", 0.25) == 0
    saved, start = (load(f / "model/checkpoint_3.pt") for f in (tmp_path, exported))
    assert saved["model_name"] == "gpt2" and saved["tokenizer"] == start["tokenizer"]
    assert saved["config"] == start["config"] | {"dropout": 0.25}
    assert saved["train_config"]["init_from"] == str(exported / "exported")
    for name, tensor in start["model"].items():  # the learning rate was next to zero
        torch.testing.assert_close(saved["model"][name], tensor, rtol=1e-6, atol=1e-8)
    capsys.readouterr()
    for flag, value in (("tokenizer", "bundled1536"), ("model", "gptoss"), ("model_size", "gpt2")):
        assert run_here(tmp_path, *flags, f"--{flag}", value, "--out_dir", "new") == 2
        assert f"{flag} of {exported}/exported is " in capsys.readouterr().err
    assert run_here(tmp_path, *flags, "--hidden_size", 40, "--out_dir", "new") == 2
    assert "a model with hidden_size 32 (got 40)" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_without_a_tokenizer_beside_it_a_folder_has_the_ids_of_gpt2(tmp_path, monkeypatch, capsys, corpus):
    ranks = {bytes([byte]): byte for byte in range(256)}
    words = (bytes([a, b, c]) for a in range(256) for b in range(256) for c in range(256))
    ranks |= {word: rank for rank, word in zip(range(256, 50256), words)}
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
    )
    monkeypatch.setattr(tokenizer, "_load_well_known", lambda *_: encoding)
    without_tokenizer(tmp_path / "hub", vocab_size=50304, used_vocab_size=50257)
    state = read_folder(tmp_path / "hub")
    assert state["tokenizer"]["name"] == "gpt2"
    assert (state["config"]["vocab_size"], state["config"]["used_vocab_size"]) == (50304, 50257)
    capsys.readouterr()
    assert run_here(tmp_path, "--init_from", "hub", *RUN, *corpus, "--tokenizer", "stories4k") == 2
    told = "tokenizer of hub is gpt2, got stories4k; leave tokenizer out"
    assert capsys.readouterr().err == f"train.py: error: {told}\n"


def usual_folder(folder: Path, encoding: tiktoken.Encoding, **files: str) -> Path:
    """A folder with the vocabulary of an encoding, as most GPT-2 folders have it."""
    folder.mkdir()
    model = tokenizer_json(encoding)["model"]
    model["vocab"] |= encoding._special_tokens  # as in GPT-2's own vocab.json
    merges = "\n".join(["#version: 0.2", *map(" ".join, model["merges"])])
    given = {"vocab.json": json.dumps(model["vocab"]), "merges.txt": merges + "\n"} | files
    for name, content in given.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


TEXT = " It's 1984,\tand   a caf\u00e9 \u2014 \u4f60\u597d \U0001f431!!\n\n  The end.\r\n" + "".join(
    map(chr, range(1, 256))
)


@pytest.mark.peer
@pytest.mark.parametrize("name", ["stories4k", "bundled1536"])
def test_transformers_reads_the_tokenizer_of_an_exported_folder_and_we_read_theirs(tmp_path, name):
    import transformers

    model, encoding = our_model(), tokenizer.get_tokenizer(name)
    model.tokenizer = encoding
    write_folder(model, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids, end = encoding.encode_ordinary(TEXT), encoding.eot_token
    assert theirs(TEXT)["input_ids"] == ids and theirs.decode(ids) == TEXT
    assert (len(theirs), theirs.eos_token_id, theirs.bos_token_id) == (encoding.n_vocab, end, end)
    theirs.save_pretrained(tmp_path / "again")
    again = read_vocabulary(tmp_path / "again")
    assert again.encode_ordinary(TEXT) == ids and again.eot_token == end


def test_the_vocabulary_of_a_usual_folder_is_read_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "_load_well_known", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(tokenizer, "_is_cached", lambda name: False)
    encoding = tokenizer.get_tokenizer("bundled1536")
    without_tokenizer(tmp_path / "model", vocab_size=1536, used_vocab_size=None)
    hub = usual_folder(tmp_path / "hub", encoding)
    shutil.copytree(tmp_path / "model", hub, dirs_exist_ok=True)
    found = read_vocabulary(hub)
    assert found._mergeable_ranks == encoding._mergeable_ranks and found.eot_token == encoding.eot_token
    assert found._pat_str == r50k_pat_str and found.decode(found.encode_ordinary(TEXT)) == TEXT
    assert read_folder(hub)["tokenizer"]["name"] == "bpe"
    own = tokenizer.tokenizer_state(found)["sha256"]
    monkeypatch.setattr("architecture.tokenizer_json.GPT2_SHA256", own)  # as if these ids were GPT-2's
    state = read_folder(hub)["tokenizer"]
    rebuilt = tokenizer.tokenizer_from_state(state)  # the checkpoint of a run needs no network either
    assert rebuilt.name == "gpt2" and rebuilt.encode_ordinary(TEXT) == found.encode_ordinary(TEXT)


@pytest.mark.parametrize(
    "files, told",
    [
        ({"merges.txt": "#version: 0.2\nt h\nh e\n"}, "its merges are not in the order of its ids"),
        ({"vocab.json": "[]"}, "does not contain a JSON object"),
        ({"vocab.json": '{"a": 0}'}, "'<|endoftext|>' is missing"),
        ({"vocab.json": '{"<|endoftext|>": 0, "\u4f60": 1}'}, "it is damaged"),
        ({"merges.txt": "", "vocab.json": '{"a": 0, "<|endoftext|>": 1}'}, "it is damaged"),
    ],
    ids=["order", "list", "no end", "no byte letters", "few bytes"],
)
def test_a_damaged_vocabulary_is_refused_in_one_line(tmp_path, files, told):
    folder = usual_folder(tmp_path / "hub", tokenizer.get_tokenizer("bundled1536"), **files)
    with pytest.raises(ValueError, match=f"vocab.json .*{re.escape(told)}.*; use another copy of it"):
        read_vocabulary(folder)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    other = {"model": {"vocab": {}, "merges": []}, "pre_tokenizer": {"type": "Whitespace"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    told = "tokenizer.json cannot be read .*it does not cut text into words as tiktoken"
    with pytest.raises(ValueError, match=told):
        read_vocabulary(tmp_path)


def test_without_vocabulary_and_network_the_advice_does_not_contradict_itself(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(tokenizer, "_is_cached", lambda name: False)
    monkeypatch.setattr("requests.head", unreachable)
    without_tokenizer(tmp_path / "hub", vocab_size=50304, used_vocab_size=50257)
    with pytest.raises(ValueError, match="copy GPT-2's vocab.json .* has no tiktoken.json, ") as error:
        read_folder(tmp_path / "hub")
    assert "--tokenizer" not in str(error.value)  # a folder brings its tokenizer, and refuses another
    with pytest.raises(ValueError, match="set TIKTOKEN_CACHE_DIR to it$"):
        tokenizer.tokenizer_from_state({"name": "gpt2", "sha256": "0" * 64})
    with pytest.raises(ValueError, match="or use --tokenizer stories4k, which needs no network$"):
        tokenizer.get_tokenizer("gpt2")


def test_from_checkpoint_names_what_reads_a_folder_of_transformers(written):
    with pytest.raises(ValueError, match="is a folder of transformers; load it with .*load_model"):
        GPT2.from_checkpoint(written)


def test_an_export_of_another_model_is_refused_in_one_sentence(tmp_path, capsys):
    given = Path(__file__).resolve().parent / "fixtures/trunk/checkpoint_6.pt"
    assert main(["export", "--checkpoint", str(given), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "holds a 'gptoss' model, not 'gpt2'" in err
    assert not (tmp_path / "out").exists()
