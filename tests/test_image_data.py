"""Real images and folders and sets of them: what is read, identity, exact positions, bad input."""

# ruff: noqa: F811  # the fixtures of another file

import hashlib
import importlib.util
import io
import json

import numpy as np
import pytest
import torch
from hub_server import HubServer
from PIL import Image
from test_data_hub import hub_at, nothing_asked_before  # noqa: F401

import data.image_folder as image_folder
import data.images as data_images
from architecture.images import IMAGE, read_image
from architecture.tokenizer import get_tokenizer
from data.documents import Pictured, common_documents, is_validation_document
from data.images import open_images, question_prompt
from data.loader import TrainLoader

SIZE = 12


def png(shade, mode="RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (5, 7), (shade,) * len(mode)).save(file, "PNG")
    return file.getvalue()


def write(folder, lines, name="captions.jsonl", **images):
    (folder / "more").mkdir(parents=True, exist_ok=True)
    for image, data in ({"a.png": png(10), "b.png": png(20), "more/c.png": png(30)} | images).items():
        (folder / image).write_bytes(data)
    content = lines if isinstance(lines, str) else "".join(json.dumps(line) + "\n" for line in lines)
    (folder / name).write_text(content)
    return folder


def whole(folder, **options):
    """All of a folder, as --val_dataset makes it the training data."""
    return open_images(str(folder), split="train", size=SIZE, val_dataset="digits", **options)


def shades(document):
    return [int(image[0, 0, 0]) for image in document.images]


LINES = [
    {"image": "a.png", "text": "a cat"},
    {"image": ["b.png", "more/c.png"], "question": "Are both cats?", "answer": "no"},
    {"text": "no image here"},
    {"image": "b.png", "text": ""},
    {"image": ["a.png", "b.png"], "text": f"first {IMAGE} then {IMAGE}", "kind": "story"},
]


# ---- what packages ship


def test_digits_are_those_of_the_package_and_the_last_fifth_is_validation():
    rows = np.loadtxt(
        data_images.shipped_file("scikit-learn", "sklearn", "datasets/data/digits.csv.gz"), delimiter=","
    )
    train, validation = (open_images("digits", split=split, size=16) for split in ("train", "validation"))
    assert (len(train), len(validation), len(rows)) == (1437, 360, 1797)
    names = "zero one two three four five six seven eight nine".split()
    texts = [document.text for source in (train, validation) for document in source.documents()]
    assert texts == [f"a handwritten {names[int(row[64])]}" for row in rows]
    for index in range(0, 360, 40):
        document = validation[index]
        ink = 255 - rows[1437 + index, :64].reshape(8, 8) * 255 / 16
        (image,) = document.images
        assert image.shape == (3, 16, 16) and image.dtype == np.uint8 and (image[0] == image[2]).all()
        assert np.corrcoef(image[0].reshape(8, 2, 8, 2).mean((1, 3)).flat, ink.flat)[0, 1] > 0.98
        assert (document.prompt, document.kind) == ("", "caption")
    assert train.identity != validation.identity and common_documents(train, validation) == ()


def test_faces_are_half_of_each_split():
    patches = np.load(data_images.shipped_file("scikit-image", "skimage", "data/lfw_subset.npy"))
    for split, first, count in (("train", 0, 80), ("validation", 80, 20)):
        source = open_images("faces", split=split, size=25)
        answers = [source[index].text for index in range(len(source))]
        assert answers == [" yes"] * count + [" no"] * count
        for index, patch in ((0, first), (count - 1, first + count - 1), (count, 100 + first)):
            assert abs(source[index].images[0][1] / 255 - patches[patch]).max() < 0.01
        assert source[0].prompt == question_prompt("Is this a face?") == "Question: Is this a face? Answer:"


def test_a_package_that_is_missing_is_named_with_its_install_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="scikit-learn: pip install -r requirements-vision.txt"):
        open_images("digits", split="train", size=16)


@pytest.mark.parametrize("name, told", [
    ("digit", r"dataset 'digit': no such folder of images; did you mean 'digits'"),
    ("bundled", "no such folder of images; use pictures, digits, faces, ORG/NAME on the Hub, or a folder"),
])  # fmt: skip
def test_an_unknown_name_is_refused(name, told):
    with pytest.raises(ValueError, match=told):
        open_images(name, split="train", size=16)


def test_only_pictures_have_familiar_ones():
    assert len(open_images("pictures", split="familiar", size=48)) == 5000
    with pytest.raises(ValueError, match="digits has the splits train and validation, not 'familiar'"):
        open_images("digits", split="familiar", size=48)


# ---- a folder


def test_a_folder_has_captions_questions_several_images_and_texts(tmp_path):
    source = whole(write(tmp_path, LINES))
    first, second, third, fourth = source.documents()
    assert source.skipped == 1 and "1 empty documents left out" in source.left_out()
    assert first[1:4] == ("", "a cat", "caption") and shades(first) == [10]
    assert second[1:4] == (question_prompt("Are both cats?"), " no", "question") and shades(second) == [
        20,
        30,
    ]
    assert third == "no image here"
    assert fourth[1:4] == ("", f"first {IMAGE} then {IMAGE}", "story")
    assert first.images[0].shape == (3, SIZE, SIZE) and fourth.name.endswith("captions.jsonl, line 5")
    caption = {"image": "a.png", "caption": "a dog"}
    (document,) = whole(write(tmp_path / "other", [caption])).documents()
    assert document.text == "a dog"


def test_every_kind_of_file_is_read_as_read_image_does(tmp_path):
    clear = io.BytesIO()
    Image.new("RGBA", (5, 7), (0, 0, 0, 0)).save(clear, "PNG")
    folder = write(tmp_path, [{"image": "t.png", "text": "nothing"}], **{"t.png": clear.getvalue()})
    (document,) = whole(folder).documents()
    assert (document.images[0] == 255).all()
    assert (document.images[0] == read_image(folder / "t.png", SIZE, "t.png")).all()


def test_identity_is_that_of_words_and_images_wherever_they_are(tmp_path):
    here, there = whole(write(tmp_path / "here", LINES)), whole(write(tmp_path / "there", LINES))
    assert here.identity == there.identity and here.identity.startswith("4 documents, blake2b ")
    other = whole(write(tmp_path / "pixels", LINES, **{"more/c.png": png(31)}))
    words = whole(write(tmp_path / "words", [{"image": "a.png", "text": "a dog"}, *LINES[1:]]))
    order = whole(write(tmp_path / "order", LINES[::-1]))
    assert len({source.identity for source in (here, other, words, order)}) == 4
    assert (here.digests != other.digests).sum() == 1


def test_a_folder_resumes_exactly(tmp_path):
    folder = write(tmp_path, [{"image": "a.png", "text": f"number {n}"} for n in range(20)])
    shuffled = whole(folder).shuffled(seed=5)
    texts = [next(shuffled).text for _ in range(30)]
    state = shuffled.state_dict()
    assert sorted(texts[:20]) == sorted(f"number {n}" for n in range(20)) != texts[:20]
    expected = [next(shuffled).text for _ in range(25)]
    resumed = whole(folder).shuffled(5, state)
    assert [next(resumed).text for _ in range(25)] == expected


@pytest.mark.parametrize("change", ["image", "captions", "gone"])
def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path, change):
    source = whole(write(tmp_path, LINES))
    if change == "image":
        (tmp_path / "a.png").write_bytes(png(11))
    elif change == "captions":
        write(tmp_path, [{"image": "a.png", "text": "a dog"}])
    else:
        (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="captions.jsonl, line 1, or an image of it, changed while it was"):
        source[0]


@pytest.mark.parametrize("line, told", [
    ("{", "line 2 is not JSON"),
    ("[1]", "line 2 must be an object with an image and a text"),
    ('{"image": "a.png"}', "line 2 has no column 'text', only image"),
    ('{"image": "a.png", "question": "?"}', "line 2 has no column 'text'"),
    ('{"image": "a.png", "text": 5}', "line 2: column 'text' must hold text, got int"),
    ('{"image": "a.png", "text": "x", "kind": 5}', "column 'kind' must hold text"),
    ('{"image": "d.png", "text": "x"}', "line 2: there is no image .*d.png"),
    ('{"image": "more", "text": "x"}', "line 2: there is no image .*more"),
    ('{"image": "../a.png", "text": "x"}', "line 2: an image must be the path of a file inside"),
    ('{"image": "/etc/hostname", "text": "x"}', "must be the path of a file inside .*, got '/etc/hostname'"),
    ('{"image": "link.png", "text": "x"}', "must be the path of a file inside"),
    ('{"image": "a\\u0000.png", "text": "x"}', "must be the path of a file inside"),
    ('{"image": 7, "text": "x"}', "must be the path of a file inside .*, got 7"),
    ('{"image": "a.png", "text": "<|image|> <|image|>"}', "line 2: its text must have <.image.> once"),
    ('{"text": "<|image|>"}', "has it 1 times for 0 image"),
])  # fmt: skip
def test_a_bad_line_is_named_when_the_folder_is_opened(tmp_path, line, told):
    folder = tmp_path / "folder"
    good = json.dumps(LINES[0])
    write(folder, "")
    (tmp_path / "a.png").write_bytes(png(1))
    (folder / "link.png").symlink_to(tmp_path / "a.png")
    write(folder, f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=told):
        whole(folder)


@pytest.mark.parametrize("data, told", [
    (b"", "image d.png of .*line 1 must hold an image, and the file is empty"),
    (b"no image", "image d.png of .*line 1 cannot be read"),
    (png(40)[:50], "image d.png of .*line 1 cannot be read"),
])  # fmt: skip
def test_a_bad_image_is_named_when_it_is_read(tmp_path, data, told):
    source = whole(write(tmp_path, [{"image": "d.png", "text": "x"}], **{"d.png": data}))
    with pytest.raises(ValueError, match=told):
        source[0]


def test_a_folder_without_captions_or_without_words_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no captions.jsonl, which says what its images show"):
        whole(tmp_path / "empty")
    with pytest.raises(ValueError, match="captions.jsonl has no document with text in it"):
        whole(write(tmp_path / "silent", [{"image": "a.png", "text": " "}]))
    with pytest.raises(
        ValueError, match='captions.jsonl names no image; write the path of each under "image"'
    ):
        whole(write(tmp_path / "blind", [{"file_name": "a.png", "text": "x"}]))


def test_a_second_file_of_captions_is_the_validation_split(tmp_path):
    write(tmp_path, LINES)
    write(tmp_path, [{"image": "more/c.png", "text": "a hat"}], "captions_validation.jsonl")
    write(tmp_path, LINES, "captions_test.jsonl")
    train, validation = (
        open_images(str(tmp_path), split=split, size=SIZE) for split in ("train", "validation")
    )
    assert (len(train), [document.text for document in validation.documents()]) == (4, ["a hat"])
    assert train.not_read == validation.not_read == ("captions_test.jsonl",)
    assert whole(tmp_path).not_read == ("captions_test.jsonl", "captions_validation.jsonl")
    other = open_images("pictures", split="validation", size=SIZE, val_dataset=str(tmp_path))
    assert other.identity == validation.identity


def test_without_one_the_hash_of_the_first_image_decides(tmp_path, monkeypatch):
    """So all that is said of an image is in the same split."""
    monkeypatch.setattr(image_folder, "VALIDATION_PER_THOUSAND", 50)  # 1% of 200 images may be none
    images = {f"{n}.png": png(n) for n in range(200)}
    lines = [{"image": f"{n % 200}.png", "text": f"text {n}"} for n in range(600)]
    write(tmp_path, lines, **images)
    with pytest.raises(
        ValueError, match="captions.jsonl has only .* of its 600 documents for validation, by the"
    ):
        open_images(str(tmp_path), split="validation", size=SIZE)
    monkeypatch.setattr(image_folder, "MIN_VALIDATION_DOCUMENTS", 1)
    train, validation = (
        open_images(str(tmp_path), split=split, size=SIZE) for split in ("train", "validation")
    )
    held_out = {name for name, data in images.items() if digest_of(data) % 1000 < 50}
    expected = [line["text"] for line in lines if line["image"] in held_out]
    assert [document.text for document in validation.documents()] == expected and len(expected) in range(
        9, 60
    )
    assert len(train) == 600 - len(expected)


def digest_of(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data).digest(), "big")


# ---- the Hub


def parquet(tmp_path, numbers, **columns):
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Image()} | {name: datasets.Value("string") for name in columns}
    rows = {"image": [{"bytes": png(n), "path": None} for n in numbers]}
    rows |= {name: [make(n) for n in numbers] for name, make in columns.items()}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(
        str(tmp_path / "t.parquet")
    )
    return (tmp_path / "t.parquet").read_bytes()


def image_folder_files(split, numbers):
    lines = ({"file_name": f"{n}.png", "text": f"picture {n}"} for n in numbers)
    files = {f"{split}/{n}.png": png(n) for n in numbers}
    return files | {f"{split}/metadata.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()}


@pytest.mark.parametrize("form", ["parquet", "folder"])
def test_a_set_on_the_hub_streams_its_images_and_resumes(hub_at, tmp_path, form):
    if form == "parquet":
        texts = {"caption": lambda n: f"picture {n}"}
        files = {"data/train-00000-of-00001.parquet": parquet(tmp_path, range(40), **texts)}
        files["data/validation-00000-of-00001.parquet"] = parquet(tmp_path, range(40, 44), **texts)
    else:
        files = image_folder_files("train", range(7)) | image_folder_files("validation", range(40, 44))
    with HubServer(files, repo="org/cats") as server:
        hub_at(server.url)
        train, validation = (
            open_images("org/cats", split=split, size=SIZE) for split in ("train", "validation")
        )
        found = list(train.documents())
        count = len(found)
        assert [(document.text, shades(document)) for document in found] == [
            (f"picture {n}", [n]) for n in range({"parquet": 40, "folder": 7}[form])
        ]
        assert [shades(document) for document in validation.documents()] == [[n] for n in range(40, 44)]
        shuffled = train.shuffled(seed=1)
        order = [next(shuffled).text for _ in range(count)]
        assert sorted(order) == sorted(document.text for document in found) != order
        state = shuffled.state_dict()
        expected = [next(shuffled).text for _ in range(10)]
        again = open_images("org/cats", split="train", size=SIZE, identity=train.identity)
        resumed = again.shuffled(1, state)
        assert [next(resumed).text for _ in range(10)] == expected


def test_a_set_of_questions_without_a_validation_split_is_divided_by_its_images(
    hub_at, tmp_path, monkeypatch
):
    monkeypatch.setattr("data.documents.VALIDATION_PER_THOUSAND", 50)
    monkeypatch.setattr("data.hub.MIN_VALIDATION_DOCUMENTS", 1)
    words = {"question": lambda n: f"Is it {n}?", "answer": lambda n: "yes"}
    numbers = list(range(250))
    with HubServer({"data/train.parquet": parquet(tmp_path, numbers, **words)}, repo="org/asks") as server:
        hub_at(server.url)
        train, validation = (
            open_images("org/asks", split=split, size=SIZE) for split in ("train", "validation")
        )
        held_out = [n for n in numbers if is_validation_document(png(n))]
        assert len(held_out) in range(3, 30)
        assert [shades(document) for document in validation.documents()] == [[n] for n in held_out]
        assert [shades(document) for document in train.documents()] == [
            [n] for n in numbers if n not in held_out
        ]
        document = next(train.documents())
        assert isinstance(document, Pictured) and document[1:4] == (
            question_prompt("Is it 0?"),
            " yes",
            "question",
        )


def test_a_set_without_images_or_words_or_with_images_elsewhere_is_refused(hub_at, tmp_path):
    datasets = pytest.importorskip("datasets")
    no_words = {"data/train.parquet": parquet(tmp_path, range(3), label=str)}
    no_images = {"data/train.jsonl": b'{"text": "x"}\n', "data/validation.jsonl": b'{"text": "y"}\n'}
    no_columns = {"data/train.csv": b"image,text\na.png,x\n"}  # datasets knows them only when it reads a row
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": None, "path": "/etc/hostname"}], "text": ["x"]}
    table = datasets.Dataset.from_dict({"n": [0]}).data.table.from_pydict(rows, schema=features.arrow_schema)
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, tmp_path / "elsewhere.parquet")
    elsewhere = {"data/train.parquet": (tmp_path / "elsewhere.parquet").read_bytes()}
    for name, files, told in (
        ("org/words", no_words, "org/words has no column 'text', only image, label"),
        ("org/images", no_images, "org/images has no column of images, only text"),
        ("org/table", no_columns, "org/table has no column of images; use another set"),
        ("org/path", elsewhere, "a row of org/path has an image that is not inside the set"),
    ):
        with HubServer(files, repo=name) as server:
            hub_at(server.url)
            with pytest.raises(ValueError, match=told):
                list(open_images(name, split="train", size=SIZE, val_dataset="digits").documents())


# ---- training batches


def test_the_loader_reads_pictures_as_uint8_of_the_size_asked_for(tmp_path):
    from architecture.images import ImageFormat

    source = open_images("pictures", split="train", size=24)
    size = {"batch_size": 5, "block_size": 40, "packing": "rows", "image_format": ImageFormat(24, 9, 4096)}
    with TrainLoader(source, get_tokenizer("stories4k"), **size) as batches:
        batch = next(batches)
    assert batch["images"].shape == (5, 3, 24, 24) and batch["images"].dtype == torch.uint8
    assert ((batch["input_ids"] >= 4096).sum(1) == 9).all() and int(batch["input_ids"].max()) == 4096 + 44
    assert int(batch["targets"].max()) < 4096
