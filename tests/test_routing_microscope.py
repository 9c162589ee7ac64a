"""The routing microscope: changes of the routing, what they cost, and the split of a difference into parts."""

import contextlib
import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import scipy.stats
import small_model
import torch
import torch.nn.functional as F

from architecture import gptoss
from architecture.generation.decode import generate
from architecture.generation.text import encode_prompt
from architecture.gpt2 import GPT2
from architecture.gpt2 import ModelConfig as GPT2Config
from architecture.gptoss import ROUTERS
from architecture.registry import load_model
from evaluation.routing import changes, measure, replay
from evaluation.routing.__main__ import main
from evaluation.routing.changes import UNCHANGED, Change

FIXTURES = Path(__file__).resolve().parent / "fixtures"
TRUNK, CONTEXT = FIXTURES / "trunk", FIXTURES / "context"
E, K = small_model.SHAPE["num_experts"], small_model.SHAPE["experts_per_token"]


def model(**changed):
    """A model whose routers and experts matter: with its initial weights the experts hardly do."""
    made = small_model.model(**changed).double().eval()
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in made.named_parameters():
            if not name.endswith("norm.scale"):
                p.normal_(0.0, 0.4, generator=draw)
        for mlp in made.routed_experts():
            mlp.selection_bias.uniform_(-0.2, 0.2, generator=draw)
    return made


def text_of(ids):
    """As of measure.read_text, for one row of ids and 3 bytes a token."""
    ids = ids[:1]
    return measure.Text("x", ids, [str(i) for i in ids[0].tolist()], 3 * ids.shape[1])


def bits_of(made, ids):
    """Bits of each token (T,), from the logits."""
    with torch.no_grad():
        logits = made(ids).logits[0, :-1].double()
    return F.pad(F.cross_entropy(logits, ids[0, 1:], reduction="none"), (1, 0)) / np.log(2)


TEXT = text_of(small_model.batch()[0])


# ------------------------------------------------------------------------------------------- changes
@pytest.mark.parametrize("rule", ROUTERS)
def test_an_expert_that_is_knocked_out_costs_what_a_model_without_it_costs(rule):
    made = model(moe_layers=(1,), router=rule)
    made.block[1].mlp.selection_bias[4] = -100.0  # an expert that no token chooses
    reading = measure.read(made, TEXT)
    assert torch.allclose(reading.bits, bits_of(made, TEXT.ids), atol=1e-12)
    found = measure.knock_outs(made, TEXT, reading)
    assert found.shape == (1, E, small_model.T) and not found[0, 4].any()
    for expert in range(E):
        smaller = small_model.model(moe_layers=(1,), router=rule, num_experts=E - 1).double().eval()
        kept = [e for e in range(E) if e != expert]
        of_experts = re.compile(r"block\.1\.mlp\.(gate\.|mlp|selection)")
        state = {n: w[kept] if of_experts.match(n) else w for n, w in made.state_dict().items()}
        smaller.load_state_dict(state)
        expected = bits_of(smaller, TEXT.ids) - reading.bits
        assert torch.allclose(found[0, expert], expected, atol=1e-10)
        assert bool(expected.abs().max() > 1e-3) == bool((reading.index == expert).any())
    assert len(reading.index.unique()) > E // 2


def test_two_swapped_experts_are_those_of_a_model_with_exchanged_weights():
    made, other = model(), model()
    with torch.no_grad():
        for name in other.block[2].mlp.expert_parameters:
            weight = getattr(other.block[2].mlp, name)
            weight[[1, 5]] = weight[[5, 1]]
    before = measure.read(made, TEXT)
    found = measure.read(made, TEXT, Change(swapped=((2, 1, 5),)))
    assert torch.allclose(found.bits, bits_of(other, TEXT.ids), atol=1e-10)
    assert (found.bits - before.bits).abs().max() > 1e-3
    exchanged = torch.tensor([0, 5, 2, 3, 4, 1, 6])
    assert torch.equal(found.index[2], exchanged[before.index[2]])
    assert torch.equal(found.weight[2], before.weight[2])


def test_a_change_reaches_every_decoder_and_ends_with_its_block():
    made = model().float()
    rules = [mlp.routing_rule for mlp in made.routed_experts()]
    plain = generate(made, [[1, 2, 3]], max_tokens=20, temperature=0)
    change = Change(knocked_out=((0, 3), (1, 0), (1, 6)), swapped=((2, 0, 4),))
    with changes.changed(made, change):
        lean = generate(made, [[1, 2, 3]], max_tokens=20, temperature=0)
        assert generate(made, [[1, 2, 3]], max_tokens=20, temperature=0, use_cache=False) == lean != plain
        chosen = made(TEXT.ids).router.chosen
        assert not (chosen[0] == 3).any() and not torch.isin(chosen[1], torch.tensor([0, 6])).any()
    with contextlib.suppress(KeyError), changes.changed(made, change):
        raise KeyError
    assert [mlp.routing_rule for mlp in made.routed_experts()] == rules
    with changes.changed(made, UNCHANGED):
        assert generate(made, [[1, 2, 3]], max_tokens=20, temperature=0) == plain


def test_what_is_read_of_the_routers_is_what_they_did():
    made = model()
    reading, router = measure.read(made, TEXT), made(TEXT.ids).router
    for row, (logits, chosen) in enumerate(zip(router.logits, router.chosen)):
        logits, choice = logits[0].numpy(), logits[0].numpy() + made.block[row].mlp.selection_bias.numpy()
        order = np.argsort(-choice, axis=-1)
        assert np.array_equal(np.sort(reading.index[row]), np.sort(order[:, :K]))
        assert np.array_equal(np.sort(reading.index[row]), np.sort(chosen[0]))
        weight = scipy.special.softmax(np.take_along_axis(logits, reading.index[row].numpy(), 1), axis=1)
        np.testing.assert_allclose(reading.weight[row], weight, atol=1e-12)
        assert (np.diff(reading.weight[row]) <= 0).all()
        probability = np.sort(scipy.special.softmax(logits, axis=1))
        np.testing.assert_allclose(reading.entropy[row], scipy.stats.entropy(probability, axis=1) / np.log(E))
        np.testing.assert_allclose(reading.margin[row], probability[:, -1] - probability[:, -2], atol=1e-12)
        assert np.array_equal(reading.next_best[row], order[:, K])
        lead = np.take_along_axis(choice, order, 1)
        np.testing.assert_allclose(reading.lead[row], lead[:, K - 1] - lead[:, K], atol=1e-12)
        counts = np.bincount(chosen[0].numpy().ravel(), minlength=E)
        np.testing.assert_allclose(measure.load(reading, E)[row], counts / counts.sum())


# -------------------------------------------------------------------------------------------- replays
NO_CAST = contextlib.nullcontext


def centred(logits):
    return logits - logits.mean(-1, keepdims=True)


def kl(p, q):
    """KL of two sets of logits, by row."""
    return scipy.stats.entropy(scipy.special.softmax(p, 1), scipy.special.softmax(q, 1), axis=1)


@pytest.mark.parametrize("flips, arithmetic", [(True, False), (False, True), (True, True)])
def test_planted_flips_and_planted_arithmetic_are_found_as_what_they_are(flips, arithmetic):
    """Flips come from a bias that acts on the choice only, arithmetic from a head that no router follows."""
    a = model()
    b = copy.deepcopy(a)
    if flips:
        b.block[0].mlp.selection_bias[2] += 0.5
    if arithmetic:
        with torch.no_grad():
            b.unembedding.weight += 0.01 * torch.randn(
                b.unembedding.weight.shape, generator=torch.Generator().manual_seed(9)
            )
    found = replay.split(a, b, TEXT.ids, NO_CAST, NO_CAST)

    with torch.no_grad():  # the parts, from the two hidden states and the two heads
        hidden = [
            m.run_blocks(*m.embed(TEXT.ids, None, None, None, None), None)[0][0].numpy() for m in (a, b)
        ]
        heads = [m.unembedding.weight.numpy().T for m in (a, b)]
        choice = a(TEXT.ids).router.routing[0].choice.numpy()
    at_a, at_forced, at_b = hidden[0] @ heads[0], hidden[0] @ heads[1], hidden[1] @ heads[1]
    np.testing.assert_allclose(found.arithmetic, centred(at_forced - at_a), atol=1e-11)
    np.testing.assert_allclose(found.flips, centred(at_b - at_forced), atol=1e-11)
    np.testing.assert_allclose(found.kl, kl(at_a, at_b), atol=1e-12)
    np.testing.assert_allclose(found.kl_arithmetic, kl(at_a, at_forced), atol=1e-12)
    parts = [centred(at_forced - at_a).ravel(), centred(at_b - at_forced).ravel()]
    whole = sum(parts)
    np.testing.assert_allclose(found.shares, [part @ whole / (whole @ whole) for part in parts], atol=1e-9)
    assert sum(found.shares) == pytest.approx(1) and sum(found.kl_shares) == pytest.approx(1)
    assert found.control == 0
    if not (flips and arithmetic):
        assert found.shares == found.kl_shares == (float(arithmetic), float(flips))

    top = np.sort(choice, axis=1)
    np.testing.assert_allclose(found.lead[0], top[:, -K] - top[:, -K - 1], atol=1e-12)
    moved = (choice[:, 2] < top[:, -K]) & (choice[:, 2] + 0.5 * flips > top[:, -K])
    assert np.array_equal(found.flipped[0], moved) and np.array_equal(found.direct[0], moved)
    assert moved.sum() == (found.flipped[0].sum() if flips else 0) and moved.any() == flips
    assert not found.direct[1:].any() and bool(found.flipped[1:].any()) == flips  # these only follow
    rows = replay.table(found, [0, 1, 2])
    assert [row[:3] for row in rows] == [
        (n, int(found.flipped[n].sum()), int(moved.sum()) if n == 0 else 0) for n in range(3)
    ]
    bits = [F.pad(bits_of(m, TEXT.ids)[1:], (1, 0)) for m in (a, b)]
    torch.testing.assert_close(found.bits[0], bits[0])
    torch.testing.assert_close(found.bits[2], bits[1])


@pytest.mark.parametrize("rule", ROUTERS)
def test_a_forced_pass_goes_to_the_least_likely_experts_if_it_is_told_to(rule):
    made = model(router=rule)
    least = (-replay.run(made, TEXT.ids, NO_CAST).choice).topk(K).indices
    told = torch.zeros(3, small_model.T, E, dtype=torch.bool).scatter_(-1, least, True)
    assert torch.equal(replay.forced(made, TEXT.ids, NO_CAST, told).chosen, told)


@pytest.mark.parametrize("path", [TRUNK, CONTEXT], ids=["trunk", "context"])
def test_a_model_against_itself_has_no_difference_and_bfloat16_has_one_that_adds_up(path):
    made = load_model(path)
    text = measure.read_text(made, "Once upon a time")
    itself = replay.split(made, made, text.ids, NO_CAST, NO_CAST)
    assert itself.control == 0 and itself.shares is None and itself.kl_shares is None
    assert not itself.flipped.any() and not itself.arithmetic.any() and not itself.flips.any()
    pair = [replay.load(path, replay.parse_backend(name), torch.device("cpu"))
            for name in ("loop+eager:float64", "sorted:bfloat16")]  # fmt: skip
    found = replay.split(pair[0][0], pair[1][0], text.ids, pair[0][1], pair[1][1])
    assert found.arithmetic.abs().max() > 1e-5 and found.control == 0
    chosen = measure.read(made, text).index.sort(-1).values
    expected = torch.stack([layer[0].sort(-1).values for layer in made(text.ids).router.chosen])
    assert torch.equal(chosen, expected)


# ------------------------------------------------------------------------------------ the command and its page
TOLD = "Tom </script><b>saw</b> a \U0001f436!"


def data_in(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


def test_the_page_has_everything_inside_and_the_text_as_it_is(tmp_path, capsys):
    out = tmp_path / "page.html"
    words = [
        "--knock_out",
        "1:3",
        "0:0,0:2",
        "--swap",
        "1:0=4",
        "--replay",
        "loop:float32",
        "sorted:bfloat16",
    ]
    options = ["--max_tokens", "5", "--threads", "1"]
    assert main([str(TRUNK), "--text", TOLD, "--out", str(out), *words, *options]) == 0
    page, printed = out.read_text(encoding="utf-8"), capsys.readouterr().out
    assert not re.search(r"https?:|<link|\bsrc=|@import|url\(|<b>saw", page)
    assert page.count("</script>") == 2 and "default-src 'none'" in page
    data, made = data_in(page), load_model(TRUNK)
    text = measure.read_text(made, TOLD)
    reading = measure.read(made, text)
    assert data["tokens"] == text.tokens and len(TOLD.encode()) == text.num_bytes
    assert data["index"] == reading.index.tolist() and data["bits"] == pytest.approx(
        reading.bits.tolist(), abs=6e-4
    )
    assert [change["name"] for change in data["changes"]] == [
        "without 1:3",
        "without 0:0, 0:2",
        "swapped 1:0=4",
    ]
    knocked = measure.knock_outs(made, text, reading)
    assert data["changes"][0]["bits"] == data["knock_outs"]["1:3"]
    for row in range(2):
        totals = knocked[row].sum(-1) / text.num_bytes
        listed = [int(e) for e in re.findall(rf'<tr data-measure="knock_out:{row}:(\d)">', page)]
        assert sorted(listed) == list(range(5)) and totals[listed].tolist() == sorted(
            totals.tolist(), reverse=True
        )
    assert f"bits per byte {float(reading.bits.sum()) / text.num_bytes:.4f}" in printed
    assert "share of the logits' difference: " in printed and "to the last bit" in printed


def test_a_text_that_fills_the_context_limit_is_read_and_not_continued(tmp_path):
    made, out = load_model(TRUNK), tmp_path / "page.html"
    longest = max(
        (" so" * n for n in range(1, 60) if len(encode_prompt(made.tokenizer, " so" * n)) <= 32), key=len
    )
    assert main([str(TRUNK), "--text", longest, "--out", str(out), "--threads", "1"]) == 0
    page = out.read_text(encoding="utf-8")
    assert len(data_in(page)["tokens"]) == 32 and "greedy, changed" not in page
    assert "at most 0 tokens (the context limit leaves no more)" in page
    assert "No change was asked for: this is the knock-out that costs most" in page


@pytest.mark.parametrize("words, told", [
    (["--text", ""], "--text must have at least one character"),
    (["--text", "so " * 60], "tokens with the end-of-text token in front, and the model reads 32 at once"),
    (["--knock_out", "1-3"], "--knock_out takes LAYER:EXPERT"),
    (["--knock_out", "2:3"], "layer 2 has no router; those with one are 0, 1"),
    (["--knock_out", "1:5"], "layer 1 has 5 experts, 0 to 4, got 5"),
    (["--knock_out", "1:0,1:1,1:2,1:4"], "leaves 1 of 5 experts in layer 1, and the router picks 2"),
    (["--swap", "1:3"], "--swap takes LAYER:EXPERT=EXPERT"),
    (["--swap", "1:3=3"], "two different experts"),
    (["--replay", "loop", "sorted:bfloat16"], "--replay takes EXPERTS:DTYPE"),
    (["--replay", "loop:float8", "sorted:bfloat16"], "DTYPE one of float32, bfloat16, float64"),
    (["--replay", "lop:float32", "sorted:bfloat16"], "experts must be auto or one of loop, sorted, grouped"),
    (["--out", "page.png"], "--out must end in .html"),
    (["--max_tokens", "0"], "--max_tokens must be at least 1"),
])  # fmt: skip
def test_what_cannot_be_shown_is_refused_with_a_sentence(words, told, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(TRUNK), "--text", "Tom saw", *words, "--threads", "1"]) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error and not list(tmp_path.iterdir())


@pytest.mark.parametrize("only_replayed", [False, True])
def test_a_model_with_a_leak_is_refused_before_a_number(only_replayed, tmp_path, capsys, monkeypatch):
    visible, load = gptoss.visible_keys, replay.load

    def with_leak(*given):
        with monkeypatch.context() as patch:
            patch.setattr(gptoss, "visible_keys", lambda q, k, w: visible(q + 1, k, w))
            return load(*given)

    if only_replayed:
        monkeypatch.setattr(replay, "load", with_leak)
    else:
        monkeypatch.setattr(gptoss, "visible_keys", lambda q, k, w: visible(q + 1, k, w))
    words = ["--text", "Tom saw", "--replay", "loop+eager:float32", "sorted:bfloat16", "--threads", "1"]
    assert main([str(TRUNK), *words, "--out", str(tmp_path / "page.html")]) == 2
    printed = capsys.readouterr()
    assert "the model is not causal, so it is not scored" in printed.err
    assert printed.out == "" and "bits per byte" not in printed.err and not list(tmp_path.iterdir())


def test_a_dense_model_and_one_that_returns_nan_are_refused():
    sizes = dict(
        num_hidden_layers=2, vocab_size=37, hidden_size=20, intermediate_size=28, num_attention_heads=5
    )
    for dense in (GPT2(GPT2Config(**sizes)), small_model.model(moe_layers=())):
        with pytest.raises(ValueError, match=f"this {dense.name} model is dense"):
            measure.read(dense, TEXT)
    broken = model()
    with torch.no_grad():
        broken.block[2].mlp.mlp2_bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="the loss of token 1 is not finite"):
        measure.read(broken, TEXT)
    with pytest.raises(ValueError, match="the logits are not finite"):
        replay.split(broken, broken, TEXT.ids, NO_CAST, NO_CAST)


def test_without_a_rest_of_experts_nothing_is_knocked_out(tmp_path, capsys):
    everything = model(num_experts=2)
    reading = measure.read(everything, TEXT)
    assert reading.next_best is None and measure.knock_outs(everything, TEXT, reading) is None
    with pytest.raises(ValueError, match="knock out 0 at most"):
        measure.read(everything, TEXT, Change(knocked_out=((0, 1),)))
    swapped = measure.read(everything, TEXT, Change(swapped=((0, 0, 1),)))
    assert (swapped.bits - reading.bits).abs().max() > 1e-3
