"""Losses by segment: states, windows that end within a segment, that overlap, and that keep keys; what they cost."""

import contextlib
from pathlib import Path

import pytest
import torch

from architecture import gpt2
from architecture.generation.cache import KVCache
from architecture.gptoss import ModelConfig, Transformer, visible_keys
from architecture.gptoss_context import ContextConfig, ContextTransformer
from evaluation import context
from evaluation.windows import Reading, readings

SHAPE = dict(hidden_size=20, num_attention_heads=6, num_key_value_heads=3, head_dim=4, intermediate_size=9)
SHAPE |= dict(num_hidden_layers=2, num_experts=4, experts_per_token=2, vocab_size=64)
SHAPE |= dict(sliding_window=4, initial_context_length=64, rope_scaling_factor=1.0)
LENGTHS = (3, 41, 17, 8, 30)
EOT = 63
TRUNK = Path(__file__).parent / "fixtures" / "trunk"


def large(model):
    """The model in float64, with weights so large that what came before matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    return model.double().eval()


@pytest.fixture(scope="module")
def trunk():
    return large(Transformer(ModelConfig(**SHAPE), generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def variant():
    config = ContextConfig(**SHAPE, segment_length=6)
    return large(ContextTransformer(config, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def documents():
    """The shortest first, as the losses come."""
    draw = torch.Generator().manual_seed(1)
    ids = [torch.randint(EOT, (length,), generator=draw).tolist() for length in sorted(LENGTHS)]
    return [[EOT, *document, EOT] for document in ids]


def losses(model, documents, window, batch_size=2):
    return list(context.document_losses(model, documents, window, 6, batch_size, contextlib.nullcontext))


def read_alone(model, document, states):
    """Nats of each segment with these states before them, and the states after."""
    nats, after = [], []
    for start, state in zip(range(0, len(document) - 1, 6), states):
        ids = torch.tensor([document[start : start + 7]])
        with torch.no_grad():
            out = model(ids[:, :-1], ids[:, 1:], carry=state)
        nats.append(float(out.loss_sum))
        after.append(out.carry)
    return nats, after


def test_each_column_begins_its_segments_with_the_state_that_its_name_says(variant, documents):
    carried, states = [], []
    for document in documents:
        before, nats = [None], []
        for number in range(-(-(len(document) - 1) // 6)):
            part, after = read_alone(variant, document[6 * number :], before[-1:])
            nats, before = nats + part, before + after
        carried.append(nats)
        states.append(before)  # before each segment, None before the first
    for row, (document, found) in enumerate(zip(documents, losses(variant, documents, 6, 5))):
        segments, other = len(found.tokens), states[row - 1]  # the first row takes the states of the last
        other = other + [other[-1]] * segments  # a document that has ended keeps its last state
        swapped, _ = read_alone(variant, document, [None, *other[1:segments]])
        zeroed, _ = read_alone(variant, document, [None] * segments)
        assert found.nats["carried"] == pytest.approx(carried[row], rel=1e-6)
        assert found.nats["swapped"] == pytest.approx(swapped, rel=1e-6)
        assert found.nats["zeroed"] == pytest.approx(zeroed, rel=1e-6)
        assert segments == 1 or found.nats["swapped"] != pytest.approx(carried[row], rel=1e-4)


def in_windows(model, document, window):
    """Nats of each segment of 6 tokens of a document that is read in windows of its own."""
    ids, alone = torch.tensor([document]), []
    for start in range(0, len(document) - 1, window):
        part = ids[:, start : start + window + 1]
        with torch.no_grad():
            alone.append(model(part[:, :-1], part[:, 1:]).token_losses[0])
    return [float(part.sum()) for part in torch.cat(alone).split(6)]


def test_a_trunk_reads_each_document_in_windows_that_may_end_within_a_segment(trunk, documents):
    whole, cut = (losses(trunk, documents[::-1], window) for window in (64, 10))
    for document, one, other in zip(documents, whole, cut):
        count = len(document) - 1
        assert one.tokens == other.tokens == [min(6, count - start) for start in range(0, count, 6)]
        assert one.nats["plain"] == pytest.approx(in_windows(trunk, document, 64), rel=1e-6)
        assert other.nats["plain"] == pytest.approx(in_windows(trunk, document, 10), rel=1e-6)
        if count > 11:
            assert one.nats["plain"][1] != pytest.approx(other.nats["plain"][1], rel=1e-3)


# ------------------------------------------------------------------------- rivals of a carried state
def small_gpt2(position):
    size = dict(
        hidden_size=20, num_attention_heads=5, intermediate_size=33, num_hidden_layers=3, vocab_size=64
    )
    config = gpt2.ModelConfig(**size, initial_context_length=64, position=position)
    return large(gpt2.GPT2(config, generator=torch.Generator().manual_seed(0)))


def read_as(model, documents, window, *ways):
    return list(context.document_losses(model, documents, window, 6, 2, contextlib.nullcontext, ways))


@torch.no_grad()
def nats(model, ids, target, **given):
    """The loss of the token after the last of ids."""
    return -model(ids[None], **given).logits[0, -1].double().log_softmax(-1)[target].item()


def by_segment(token_losses):
    return [sum(token_losses[at : at + 6]) for at in range(0, len(token_losses), 6)]


@pytest.mark.parametrize("window, overlap", [(6, 5), (10, 3)])
def test_windows_that_overlap_score_every_token_once_as_token_by_token(trunk, documents, window, overlap):
    for model in (trunk, small_gpt2("learned")):
        found = read_as(model, documents[::-2], window, Reading(), Reading(overlap=overlap))
        for document, losses in zip(documents[::2], found):
            ids, wanted, begins = torch.tensor(document), [], [0]
            for token in range(len(document) - 1):
                if token >= begins[-1] + window:
                    begins.append(token - overlap)
                wanted.append(nats(model, ids[begins[-1] : token + 1], ids[token + 1]))
            name, count = f"overlap_{overlap}", len(document) - 1
            assert sum(losses.tokens) == count
            assert losses.nats[name] == pytest.approx(by_segment(wanted), rel=1e-6)
            assert count <= window or losses.nats[name] != pytest.approx(losses.nats["plain"], rel=1e-3)
            assert losses.windows[name] == len(begins)
            assert losses.computed[name] == count + overlap * (len(begins) - 1)
            assert (losses.windows["plain"], losses.computed["plain"]) == (-(-count // window), count)


@pytest.mark.parametrize("window, kept", [(6, 6), (10, 3)])
def test_kept_keys_score_every_token_once_as_token_by_token(trunk, documents, monkeypatch, window, kept):
    """The reference reads the whole text for each token, with a mask in place of a cache."""

    def band(query, key, seen):
        first = query[:, None, :, None] // window * window - kept
        return seen & (key[:, None, None, :] >= first)

    other = small_gpt2("none")
    found = {
        model: read_as(model, documents[::-2], window, Reading(), Reading(kept=kept))
        for model in (trunk, other)
    }
    monkeypatch.setattr(trunk, "mask", lambda q, k, *rest: band(q, k, visible_keys(q, k, *rest)))
    plain = gpt2.visible_keys
    monkeypatch.setattr(gpt2, "visible_keys", lambda q, k, *rest: band(q, k, plain(q, k, *rest)))
    for model, all_losses in found.items():
        for document, losses in zip(documents[::2], all_losses):
            ids, count, name = torch.tensor(document), len(document) - 1, f"kept_{kept}"
            wanted = [
                nats(model, ids[: token + 1], ids[token + 1], positions=torch.arange(token + 1)[None])
                for token in range(count)
            ]
            assert losses.nats[name] == pytest.approx(by_segment(wanted), rel=1e-6)
            assert count <= window or losses.nats[name] != pytest.approx(losses.nats["plain"], rel=1e-3)
            assert (losses.windows[name], losses.computed[name]) == (-(-count // window), count)


def test_a_leak_that_only_a_cache_opens_gets_no_score(trunk, documents, monkeypatch):
    def later(self, window, positions, extend=KVCache.extend):
        return extend(self, window, positions) - 1  # each query sees the key after it

    monkeypatch.setattr(KVCache, "extend", later)
    with pytest.raises(
        ValueError, match="^kept_3 is not scored: in the first window, where nothing is kept yet"
    ):
        read_as(trunk, documents, 10, Reading(), Reading(kept=3))


def test_costs_are_sums_over_documents_and_a_slot_counts_as_a_token(variant, documents):
    found = losses(variant, documents, 6)
    tokens = [len(document) - 1 for document in documents]
    segments = sum(-(-count // 6) for count in tokens)
    for cost in context.costs(found).values():
        assert (cost["windows"], cost["tokens_computed"]) == (segments, sum(tokens) + segments)
        assert cost["tokens_computed_per_scored_token"] == pytest.approx(1 + segments / sum(tokens))


@pytest.mark.parametrize(
    "window, asked, told",
    [
        (6, dict(overlaps=(3, 6)), "^--overlap must hold different numbers of tokens from 1 to 5, .* got 3,6; change"),
        (6, dict(kept=(7,)), "^--keep_keys must hold different numbers of tokens from 1 to 6, .* got 7; change"),
        (40, dict(kept=(8, 30)), "^--keep_keys 30 and a window of 40 must be at most the context limit .64. together"),
    ],
)  # fmt: skip
def test_a_reading_that_the_model_cannot_do_is_refused(trunk, window, asked, told):
    with pytest.raises(ValueError, match=told):
        readings(trunk, window, **asked)


def test_keys_are_not_kept_where_positions_were_learned_and_states_have_no_rivals(tmp_path, capsys):
    with pytest.raises(
        ValueError, match="^--keep_keys needs positions that go on .* trained for the first 6 only"
    ):
        readings(small_gpt2("learned"), 6, kept=(3,))
    assert [way.name for way in readings(small_gpt2("none"), 6, (1,), (3,))] == [
        "plain",
        "overlap_1",
        "kept_3",
    ]
    assert context.main([str(TRUNK.with_name("context")), "--overlap", "3"]) == 2
    assert "carries a state from segment to segment, and --overlap" in capsys.readouterr().err


def test_a_text_column_is_obeyed_with_the_data_of_the_checkpoint(monkeypatch):
    seen = {}

    def stop(dataset, **options):
        seen.update(options)
        raise ValueError("seen")

    monkeypatch.setattr("data.sources.open_dataset", stop)
    assert context.main([str(TRUNK), "--text_column", "story"]) == 2
    assert seen["text_column"] == "story"
