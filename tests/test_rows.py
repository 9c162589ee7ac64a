"""Packing rows: one document in each row, with images or without, and batches that resume exactly."""

import logging

import numpy as np
import pytest
import torch
from test_data_loader import EOT, STORIES, take

from architecture.images import IMAGE, ImageFormat
from architecture.tokenizer import get_tokenizer
from data.documents import IndexedSource, Pictured
from data.loader import TrainLoader
from data.rows import RowEncoder, batch_of, validation_rows

FORMAT = ImageFormat(size=4, tokens=3, first_id=5000)
FIRST = 5000


def picture(number: int) -> np.ndarray:
    return np.full((3, 4, 4), number, np.uint8)


class Album(IndexedSource):
    """One image, none, two, none, ... with a prompt of some words and a text."""

    name = "album"

    def __len__(self):
        return 23

    def __getitem__(self, index):
        text = f"the story of number {index}"
        if index % 4 in (1, 3):
            return text
        images = tuple(picture(index + n) for n in range(1 + index % 4 // 2))
        return Pictured(images, "what is it?" * (index % 3), text, "count", f"album {index}")


@pytest.fixture(scope="module")
def tokenizer():
    return get_tokenizer("stories4k")


def row_of(tokenizer, document, block_size=40):
    """Inputs and targets of one document, alone in a batch."""
    encode = RowEncoder(tokenizer, block_size, FORMAT)
    batch = batch_of([encode(document)], EOT, block_size, FORMAT)
    return batch["input_ids"][0].tolist(), batch["targets"][0].tolist()


def padded(ids, size, filler):
    return ids + [filler] * (size - len(ids))


def test_the_last_image_token_predicts_the_first_word_and_no_image_is_a_target(tokenizer):
    text = tokenizer.encode_ordinary("a red star")
    inputs, targets = row_of(tokenizer, Pictured((picture(1),), "", "a red star"))
    assert inputs == padded([EOT, FIRST, FIRST + 1, FIRST + 2, *text], 40, EOT)
    assert targets == padded([-100, -100, -100, *text, EOT], 40, -100)


def test_a_prompt_is_read_and_not_scored(tokenizer):
    prompt, answer = tokenizer.encode_ordinary("How many?"), tokenizer.encode_ordinary(" two")
    inputs, targets = row_of(tokenizer, Pictured((picture(1),), "How many?", " two"))
    assert inputs == padded([EOT, FIRST, FIRST + 1, FIRST + 2, *prompt, *answer], 40, EOT)
    assert targets == padded([-100] * (3 + len(prompt)) + [*answer, EOT], 40, -100)


def test_placeholders_in_prompt_and_text_say_where_images_go(tokenizer):
    a, b, c = (tokenizer.encode_ordinary(part) for part in ("one", "two", " three"))
    document = Pictured((picture(1), picture(2)), f"one{IMAGE}", f"two{IMAGE} three")
    inputs, targets = row_of(tokenizer, document)
    images = [FIRST + n for n in range(6)]
    assert inputs == padded([EOT, *a, *images[:3], *b, *images[3:], *c], 40, EOT)
    unscored = [-100] * (len(a) + 3)
    assert targets == padded([*unscored, *b, -100, -100, -100, *c, EOT], 40, -100)


def test_a_text_alone_is_scored_whole_or_cut(tokenizer):
    ids = tokenizer.encode_ordinary(STORIES[8])
    assert row_of(tokenizer, STORIES[8], 100) == (
        padded([EOT, *ids], 100, EOT),
        padded([*ids, EOT], 100, -100),
    )
    assert row_of(tokenizer, STORIES[8], 9) == ([EOT, *ids[:8]], ids[:9])


def test_the_images_of_a_batch_form_one_table_in_the_order_of_the_rows(tokenizer):
    album, encode = Album(), RowEncoder(tokenizer, 40, FORMAT)
    order = [2, 1, 0, 6]  # two images, none, one, two
    batch = batch_of([encode(album[index]) for index in order], EOT, 40, FORMAT)
    assert [int(image[0, 0, 0]) for image in batch["images"]] == [2, 3, 0, 6, 7]
    assert batch["images"].shape == (5, 3, 4, 4) and batch["images"].dtype == np.uint8
    found = [[i for i in row if i >= FIRST] for row in batch["input_ids"].tolist()]
    table = np.arange(FIRST, FIRST + 15).tolist()
    assert found == [table[:6], [], table[6:9], table[9:]]
    texts = batch_of([encode(album[1]), encode(album[3])], EOT, 40, FORMAT)
    assert texts.keys() == {"input_ids", "targets"}


def test_texts_that_are_cut_are_counted_and_said(tokenizer, caplog):
    encode = RowEncoder(tokenizer, 6, FORMAT)
    with caplog.at_level(logging.WARNING):
        for _ in range(25):
            encode(Pictured((picture(1),), "", "a long long long long text", name="photo 7"))
        encode("a cat")
    assert encode.cut == 25 and len(caplog.messages) == 2
    assert caplog.messages[0].startswith("photo 7 needs ") and "block_size 6" in caplog.messages[0]
    assert "documents cut so far: 10" in caplog.messages[1]


@pytest.mark.parametrize("document, format, told", [
    (Pictured((picture(1),) * 2, "", "x", name="photo 7"), FORMAT, "photo 7: its images and its prompt need 7 "),
    (Pictured((picture(1),), "", f"a b c{IMAGE}", name="photo 7"), FORMAT, "photo 7: its images and its prompt"),
    (Pictured((picture(1),), "", "x", name="photo 7"), None, "photo 7 has images, and this model reads only text"),
    (Pictured((picture(1),), IMAGE, f"x{IMAGE}", name="photo 7"), FORMAT, "photo 7: its text must have <.image.>"),
    (Pictured((picture(1),) * 2, IMAGE, "x", name="photo 7"), FORMAT, "has it 1 times for 2 image"),
])  # fmt: skip
def test_images_that_do_not_fit_are_refused_by_name(tokenizer, document, format, told):
    with pytest.raises(ValueError, match=told):
        RowEncoder(tokenizer, 6, format)(document)


def test_images_in_another_packing_are_refused_with_the_flag_to_use(tokenizer):
    with pytest.raises(ValueError, match="album .* has images, .* use --packing rows"):
        TrainLoader(Album(), tokenizer, batch_size=2, block_size=8)


def options(**changes):
    return {"batch_size": 3, "block_size": 40, "packing": "rows", "image_format": FORMAT} | changes


def test_batches_with_images_resume_bit_for_bit(tokenizer, tmp_path):
    with TrainLoader(Album(), tokenizer, seed=3, **options()) as batches:
        first = batches.first_batch_sha256
        take(batches, 5)
        torch.save(batches.state_dict(), tmp_path / "state.pt")
        expected = take(batches, 20)
        assert batches.progress.epoch >= 2
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    with TrainLoader(Album(), tokenizer, seed=3, state=state, **options()) as resumed:
        assert resumed.first_batch_sha256 != first
        for ours, theirs in zip(take(resumed, 20), expected, strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("batch_size", [1, 4, 50])
@pytest.mark.parametrize("max_tokens", [1, 30, 10**9, None])
def test_validation_rows_score_each_document_once_in_order(tokenizer, batch_size, max_tokens):
    album, expected = Album(), []
    for index in range(len(album)):
        document = album[index]
        text = document if isinstance(document, str) else document.text
        expected += [*tokenizer.encode_ordinary(text), EOT]
    size = {"batch_size": batch_size, "block_size": 40, "image_format": FORMAT}
    batches = list(validation_rows(album, tokenizer, max_tokens=max_tokens, **size))
    targets = torch.cat([batch["targets"].flatten() for batch in batches])
    assert targets[targets != -100].tolist() == expected[:max_tokens]
    rows = sum(len(batch["targets"]) for batch in batches)
    assert all((batch["targets"] != -100).any(1).all() for batch in batches)
    if max_tokens != 30:
        assert rows == {1: 1}.get(max_tokens, len(album))
