"""Files and token folders: their documents, the split rule, positions, clear errors."""

import hashlib
import json
import os
import tracemalloc

import numpy as np
import pytest

import data.files as data_files
from architecture.tokenizer import get_tokenizer
from data import sources
from data.documents import is_validation_document
from data.hub import HubUnreachable
from data.packing import PackedRows, encode
from data.prepare import main as prepare_main
from data.prepare import prepare
from data.sources import open_dataset
from data.train_tokenizer import main as train_tokenizer_main

STORIES = [f"Story {n}: \u00e9{'so it went on. ' * (n % 7)}\nThe end." for n in range(40)]


def write_jsonl(path, texts, column="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({column: text, "id": 7}) + "\n" for text in texts), encoding="utf-8")
    return path


def write_txt(path, texts):
    path.write_bytes("\n<|endoftext|>\n".join(texts).encode())
    return path


def write_parquet(path, texts):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    table = pyarrow.table({"id": list(range(len(texts))), "text": pyarrow.array(texts, pyarrow.string())})
    parquet.write_table(table, path, row_group_size=6 if len(texts) < 100 else 1000)
    return path


WRITERS = {"jsonl": write_jsonl, "txt": write_txt, "parquet": write_parquet}


def whole(path, split="train", **options):
    return open_dataset(str(path), split=split, val_dataset=str(path), **options)


def take(documents, count):
    return [next(documents) for _ in range(count)]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_gives_its_documents_in_order_without_the_empty_ones(tmp_path, kind):
    texts = [STORIES[0], "", *STORIES[1:5], " \n ", *STORIES[5:]]
    source = whole(WRITERS[kind](tmp_path / f"a.{kind}", texts))
    assert list(source.documents()) == STORIES
    assert (len(source), source.skipped) == (40, 2)


@pytest.mark.parametrize("kind", WRITERS)
def test_each_epoch_has_every_document_once_in_its_own_order(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(data_files, "WINDOW_BYTES", 600)
    shuffled = whole(WRITERS[kind](tmp_path / f"a.{kind}", STORIES)).shuffled(seed=3)
    first, second = take(shuffled, 40), take(shuffled, 40)
    assert sorted(first) == sorted(second) == sorted(STORIES)
    assert first != second and first != STORIES
    assert shuffled.epoch == 1


@pytest.mark.parametrize("kind", WRITERS)
def test_a_position_resumes_exactly_within_and_over_epochs(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(data_files, "WINDOW_BYTES", 600)
    path = WRITERS[kind](tmp_path / f"a.{kind}", STORIES)
    shuffled, states, documents = whole(path).shuffled(seed=3), [], []
    for _ in range(100):
        states.append(json.dumps(shuffled.state_dict()))
        documents.append(next(shuffled))
    for cut in (0, 1, 17, 39, 40, 41, 79, 80):
        resumed = whole(path).shuffled(seed=3, state=json.loads(states[cut]))
        assert take(resumed, 20) == documents[cut : cut + 20]


def test_parquet_reads_a_window_of_row_groups_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "WINDOW_BYTES", 600)
    path = write_parquet(tmp_path / "a.parquet", STORIES)
    reads, read_group = [], data_files.ParquetFile.read_group
    monkeypatch.setattr(
        data_files.ParquetFile,
        "read_group",
        lambda self, group: reads.append(group) or read_group(self, group),
    )
    source = whole(path)
    reads.clear()
    take(source.shuffled(seed=0), 40)
    assert sorted(reads) == list(range(7))  # each of ceil(40 / 6) groups once, though the order is random


def test_data_that_changed_since_the_checkpoint_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", STORIES)
    state = whole(path).shuffled(seed=0).state_dict()
    write_jsonl(path, STORIES[:-1])
    with pytest.raises(ValueError, match="39 documents, but had 40"):
        whole(path).shuffled(seed=0, state=state)


def test_a_folder_is_split_by_the_names_of_its_files(tmp_path):
    write_jsonl(tmp_path / "Stories-train-0.jsonl", STORIES[:10])
    write_jsonl(tmp_path / "Stories-train-1.jsonl", STORIES[10:20])
    write_jsonl(tmp_path / "Stories-valid.jsonl", STORIES[20:30])
    write_jsonl(tmp_path / "Stories-test.jsonl", STORIES[30:])
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "README.txt").write_text("about")
    assert list(open_dataset(str(tmp_path), split="train").documents()) == STORIES[:20]
    validation = open_dataset(str(tmp_path), split="validation")
    assert list(validation.documents()) == STORIES[20:30]
    assert validation.left_out() == " (not read: 'README.md', 'README.txt', 'Stories-test.jsonl')"


@pytest.mark.parametrize(
    "word", ["eval", "Evaluation", "heldout", "held-out", "hold_out", "dev", "val", "valid", "validation"]
)
def test_each_word_for_validation_keeps_its_file_out_of_training(tmp_path, word):
    write_jsonl(tmp_path / "stories.jsonl", STORIES[:30])
    write_jsonl(tmp_path / f"{word}-0.JSONL", STORIES[30:])
    assert list(open_dataset(str(tmp_path), split="train").documents()) == STORIES[:30]
    assert list(open_dataset(str(tmp_path), split="validation").documents()) == STORIES[30:]
    source = whole(tmp_path)
    assert list(source.documents()) == STORIES[:30]
    assert source.left_out() == f" (not read: '{word}-0.JSONL')"


def test_what_a_folder_has_beside_its_documents_is_not_read_and_is_named(tmp_path):
    write_txt(tmp_path / "stories.txt", ["", *STORIES])
    for name in (
        "README.txt",
        "README.jsonl",
        "LICENSE-data.txt",
        "._stories.txt",
        ".draft.txt",
        ".DS_Store",
        "notes.csv",
    ):
        (tmp_path / name).write_bytes(b"\xff\0 about")
    write_txt(tmp_path / "test.txt", ["the last measurement"])
    write_txt(tmp_path / "old.tar.zst", ["packed"])
    (tmp_path / "train.txt").symlink_to(tmp_path / "nowhere")
    write_jsonl(tmp_path / "more" / "train-2.jsonl", STORIES)
    source = whole(tmp_path)
    assert list(source.documents()) == STORIES
    assert source.left_out() == (
        " (1 empty documents left out; not read: '._stories.txt', '.draft.txt', 'LICENSE-data.txt', "
        "'README.jsonl' and 6 others)"
    )
    assert set(source.not_read[4:]) == {
        *("README.txt", "more/", "notes.csv", "old.tar.zst", "test.txt", "train.txt")
    }
    for number in range(30):
        (tmp_path / ("x" * 200 + str(number))).write_bytes(b"")
    assert len(whole(tmp_path).left_out()) < 500


@pytest.mark.parametrize(
    "names, told",
    [
        (["train-0.jsonl", "train-1.jsonl.gz"], "train-1.jsonl.gz is compressed, .* with gunzip, or move it"),
        (["stories.txt.zst"], "stories.txt.zst is compressed, .* with unzstd"),
        (
            ["eval.jsonl", "test.jsonl"],
            "no training files, .* such as eval.jsonl; to train on a file, name it",
        ),
        (["test.jsonl"], "no training files, only files named for validation or test, such as test.jsonl"),
        (["train_eval.jsonl", "train.jsonl"], "train_eval.jsonl names two splits, train and validation"),
        (
            ["README.txt", ".hidden.jsonl"],
            "no .txt, .jsonl .* token files, only '.hidden.jsonl', 'README.txt'",
        ),
        (["train/a.jsonl", "valid/a.jsonl"], "has no .txt, .* files, only 'train/', 'valid/'"),
    ],
)
def test_a_folder_that_may_lose_or_mix_its_files_is_refused(tmp_path, names, told):
    for name in names:
        write_jsonl(tmp_path / name, STORIES)
    with pytest.raises(ValueError, match=told):
        open_dataset(str(tmp_path), split="train")
    with pytest.raises(ValueError, match="must be a .txt, .jsonl or .parquet file, unpacked"):
        write_jsonl(tmp_path / "a.jsonl.gz", STORIES)
        open_dataset(str(tmp_path / "a.jsonl.gz"), split="train")


def test_a_folder_of_test_files_is_read_where_it_is_named_as_validation(tmp_path):
    write_jsonl(tmp_path / "test-0.jsonl", STORIES)
    assert list(whole(tmp_path, split="validation").documents()) == STORIES


def test_a_val_dataset_is_the_validation_and_the_dataset_trains_whole(tmp_path):
    train = write_jsonl(tmp_path / "a.jsonl", STORIES)
    validation = write_txt(tmp_path / "b.txt", ["one", "two"])
    options = {"val_dataset": str(validation)}
    assert list(open_dataset(str(train), split="train", **options).documents()) == STORIES
    assert list(open_dataset(str(train), split="validation", **options).documents()) == ["one", "two"]


def test_the_hash_rule_is_blake2b_of_the_text_mod_1000():
    for text in STORIES:
        number = int(hashlib.blake2b(text.encode()).hexdigest(), 16)
        assert is_validation_document(text) == (number % 1000 < 10)


@pytest.mark.parametrize("kind", WRITERS)
def test_without_a_validation_split_the_hash_decides_and_copies_stay_together(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(data_files, "MIN_VALIDATION_DOCUMENTS", 10)  # else 100, of 10,000 documents
    texts = [f"Document number {n} of many." for n in range(2000)]
    expected = [text for text in texts if is_validation_document(text)]
    path = WRITERS[kind](tmp_path / f"a.{kind}", texts + texts[:1000])
    train = list(open_dataset(str(path), split="train").documents())
    validation = list(open_dataset(str(path), split="validation").documents())
    assert set(validation) == set(expected) and len(validation) > len(expected) > 10
    assert len(train) + len(validation) == 3000 and not set(train) & set(validation)


@pytest.mark.parametrize("held_out", [False, True], ids=["trained on", "held out"])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_text_without_separators_is_called_one_document(tmp_path, kind, held_out):
    text = next(t for t in map(str, range(10_000)) if is_validation_document(t) == held_out)
    path = (write_txt if kind == "txt" else write_jsonl)(tmp_path / f"essay.{kind}", [text])
    message = f"^essay.{kind} is one document, .*--val_dataset FILE, or separate .*<.endoftext.> between"
    with pytest.raises(ValueError, match=message):
        for split in ("train", "validation"):
            open_dataset(path, split=split)
    assert list(open_dataset(path, split="train", val_dataset="bundled").documents()) == [text]


def test_too_few_validation_documents_by_the_hash_ask_for_a_val_dataset(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", STORIES)
    with pytest.raises(ValueError, match="only 0 of its 40 documents .*--val_dataset"):
        open_dataset(str(path), split="validation")


def columns(*names):
    """Writes a parquet file with these columns."""

    def make(path):
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["a"])] * len(names), names), path)

    return make


def content(data):
    return lambda path: path.write_bytes(data)


def nothing(path):
    pass


@pytest.mark.parametrize(
    "name, make, message",
    [
        ("absent.jsonl", nothing, "no such file"),
        ("tinystorie", nothing, "did you mean 'tinystories'"),
        ("~nobody-of-that-name", nothing, "no such file or folder; use tinystories"),
        ("folder", lambda path: path.mkdir(), "no .txt, .jsonl or .parquet file"),
        ("a.csv", content(b"text\na\n"), "must be a .txt, .jsonl or .parquet file"),
        ("a.jsonl", os.mkfifo, "must be a .txt, .jsonl or .parquet file, unpacked, or a"),
        ("a.txt", content(b""), "a.txt is empty"),
        ("a.txt", content(b" \n "), "no document with text"),
        ("a.txt", content(b"one<|endoftext|>tw\xe9o"), r"byte 18 is not UTF-8 \(.*0xe9"),
        ("a.jsonl", content(b'{"text": "a"}\n{"text": "\xff"}\n'), "line 2 is not UTF-8"),
        ("a.jsonl", content(b'{"text": "a"}\n\n{"text": "b"\n'), "line 3 is not JSON"),
        (
            "a.jsonl",
            content(b'{"text": ' + b"[" * 20_000),
            "line 1 is not JSON .brackets are nested too deeply",
        ),
        (
            "a.jsonl",
            content(b'{"id": ' + b"9" * 5000 + b"}\n"),
            "line 1 is not JSON .a number has too many digits",
        ),
        ("a.jsonl", content(b'["a"]\n'), "line 1 must be an object"),
        ("a.jsonl", content(b'{"text": 3}\n'), "must hold text, got int"),
        (
            "a.jsonl",
            content(b'{"story": "a", "id": 7}\n'),
            "no column 'text', only id, story; choose with --text",
        ),
        ("a.parquet", content(b"PAR1 but no more"), "is not a whole parquet file"),
        ("a.parquet", columns("id", "story"), "no column 'text', only id, story; choose with --text"),
        ("a.parquet", columns("text", "text"), "has 2 columns 'text'; keep one"),
    ],
)
def test_bad_files_are_one_clear_sentence(tmp_path, monkeypatch, name, make, message):
    make(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        open_dataset(name, split="train", val_dataset=name)
    assert "\n" not in str(caught.value)


def test_text_that_has_no_utf8_form_is_repaired(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a \\ud83d b"}\n{"text": null}\n')
    source = whole(tmp_path / "a.jsonl")
    assert list(source.documents()) == ["a \ufffd b"] and source.skipped == 1


MARK = b"\xef\xbb\xbf"
MARKED = ["\ufeffone\r\ntwo", "three", "\ufefffour\r\n\ufefffive", "six\rseven \u0000"]
PLAIN = ["one\ntwo", "three", "four\nfive", "six\rseven \u0000"]


@pytest.mark.parametrize("kind", WRITERS)
def test_every_source_drops_byte_order_marks_and_turns_crlf_into_a_newline(tmp_path, kind):
    texts = MARKED if kind != "txt" else MARKED[:3]  # a zero byte in a .txt is refused
    path = WRITERS[kind](tmp_path / f"a.{kind}", texts)
    if kind != "parquet":  # files that were joined on Windows
        content = path.read_bytes().replace(b"\n", b"\r\n")
        between = b"\r\n<|endoftext|>\r\n" if kind == "txt" else MARK + b"\r\n"
        path.write_bytes(MARK + content + between + MARK + content)
        texts = texts * 2
    plain = PLAIN[: len(texts)] if kind == "parquet" else PLAIN[: len(texts) // 2] * 2
    source = whole(path)
    assert list(source.documents()) == plain
    assert sorted(take(source.shuffled(seed=1), len(plain))) == sorted(plain)


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32-le"])
def test_utf16_with_and_without_a_mark_is_refused(tmp_path, kind, encoding):
    path = WRITERS[kind](tmp_path / f"a.{kind}", ["Once upon a time", "The end"])
    path.write_bytes(path.read_bytes().decode().encode(encoding))
    where = "byte [0-9]" if kind == "txt" else "line 1"
    with pytest.raises(
        ValueError, match=f"a.{kind}, {where} is not UTF-8 .a zero byte, as UTF-16 has.; conv"
    ):
        whole(path)


GOOD = {"epoch": 0, "index": 0, "num_documents": 40}


@pytest.mark.parametrize(
    "state",
    [{}, GOOD | {"index": None}, GOOD | {"index": 41}, GOOD | {"epoch": -1}, GOOD | {"epoch": 2**63}],
)
def test_a_damaged_position_is_refused(tmp_path, state):
    source = whole(write_jsonl(tmp_path / "a.jsonl", STORIES))
    with pytest.raises(ValueError, match="the checkpoint's position in a.jsonl is damaged"):
        source.shuffled(0, state)


# ------------------------------------------------------------------------------ replaced, or too large


def others(kind, path):
    """Other documents in a file of the same size, where that can be."""
    texts = [text.replace("Story", "Other") for text in STORIES]
    return WRITERS[kind](path, texts)


@pytest.mark.parametrize("how", ["moved there", "cut off"])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_is_replaced_while_it_is_read_is_refused(tmp_path, monkeypatch, kind, how):
    monkeypatch.setattr(data_files, "WINDOW_BYTES", 600)  # parquet: not the whole file is kept
    path = WRITERS[kind](tmp_path / f"a.{kind}", STORIES)
    documents = whole(path).shuffled(seed=3)
    first = take(documents, 3)
    assert set(first) <= set(STORIES)
    other = others(kind, tmp_path / f"b.{kind}")
    if how == "moved there":
        os.replace(other, path)
    else:
        path.write_bytes(other.read_bytes()[:100])
    os.utime(path, ns=(1, 1))
    with pytest.raises(
        ValueError, match=f"a.{kind} changed while it was being read, or can no longer be read; restore"
    ):
        for _ in range(37):
            assert next(documents) in STORIES
    assert set(whole(others(kind, path)).documents()) == {t.replace("Story", "Other") for t in STORIES}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_is_replaced_while_it_is_scanned_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(data_files, "CHUNK_BYTES", 100)
    path = WRITERS[kind](tmp_path / f"a.{kind}", STORIES)

    def replaced(text):
        path.write_bytes(b"{not what it was")
        return 0

    monkeypatch.setattr(data_files, "text_digest", replaced)
    with pytest.raises(ValueError, match=f"a.{kind}"):
        list(whole(path).documents())


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
@pytest.mark.parametrize("chunk", [1, 7, 13, 100])
def test_documents_are_the_same_wherever_a_chunk_of_the_file_ends(tmp_path, monkeypatch, kind, chunk):
    monkeypatch.setattr(data_files, "CHUNK_BYTES", chunk)
    texts = ["\u00e9" * 50, "<|endoftext|", "", "b" * 300, "<|endoftext", *STORIES]
    path = WRITERS[kind](tmp_path / f"a.{kind}", texts)
    for content in (path.read_bytes(), b"\xef\xbb\xbf" + path.read_bytes(), path.read_bytes() + b"\n"):
        path.write_bytes(content)
        source = whole(path)
        assert list(source.documents()) == [text for text in texts if text]
        assert source.skipped == 1
        path.unlink()


@pytest.mark.parametrize(
    "kind, size, where",
    [
        ("txt", 401, "byte 314"),
        ("txt", 5000, "byte 314"),
        ("jsonl", 401, "line 2"),
        ("jsonl", 5000, "byte 322"),
        ("parquet", 401, "row 1 of a row group"),
    ],
)
def test_a_document_beyond_the_limit_is_refused(tmp_path, monkeypatch, kind, size, where):
    monkeypatch.setattr(data_files, "LARGEST_DOCUMENT", 400)
    monkeypatch.setattr(data_files, "CHUNK_BYTES", 64)
    texts = ["a" * 300, "b" * 340, "c"]
    path = WRITERS[kind](tmp_path / f"a.{kind}", texts)
    assert list(whole(path).documents()) == texts
    path = WRITERS[kind](tmp_path / f"b.{kind}", ["a" * 300, "b" * size, "c"])
    told = rf"b.{kind}, {where}: a document has more than .* MB, the limit; cut it into several"
    with pytest.raises(ValueError, match=told):
        whole(path)


def bomb(path, rows):
    """A parquet file of 2 KB that decodes to 8 KB for each row."""
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    text = pyarrow.array(["once upon a time " * 470])
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(rows, np.int32)), text)
    table = pyarrow.table({"text": column})
    parquet.write_table(table, path, row_group_size=rows, compression="zstd", store_schema=False)
    return path


def test_a_row_group_is_decoded_in_small_batches_and_refused_at_its_limit(tmp_path, monkeypatch):
    path = bomb(tmp_path / "a.parquet", 100_000)
    assert path.stat().st_size < 4000
    monkeypatch.setattr(data_files, "LARGEST_ROW_GROUP", 2_000_000)
    scanned = []
    monkeypatch.setattr(data_files, "text_digest", lambda text: scanned.append(len(text)) or 1)
    with pytest.raises(
        ValueError,
        match="row group 0 of .*a.parquet has more than 2 GB of text; write the file again with smaller",
    ):
        whole(path)
    assert 1_000_000 < sum(scanned) < 2_000_000


def test_a_column_of_categories_is_read_as_its_texts(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    texts = [STORIES[n % 7] for n in range(500)]
    table = pyarrow.table({"text": pyarrow.array(texts).dictionary_encode()})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    source = whole(tmp_path / "a.parquet")
    assert list(source.documents()) == texts
    assert sorted(take(source.shuffled(0), 500)) == sorted(texts)


def test_a_very_long_document_is_an_array_and_is_not_copied_for_each_batch(tmp_path):
    text = " ".join(STORIES * 200)
    path = write_jsonl(tmp_path / "a.jsonl", [text])
    encoding = get_tokenizer("stories4k")
    tracemalloc.start()
    try:
        ids = encode(encoding, next(iter(whole(path).documents())))
        assert tracemalloc.get_traced_memory()[1] < 6 * len(text)
        assert ids.tolist() == encoding.encode_ordinary(text)
    finally:
        tracemalloc.stop()
    rows = PackedRows(iter([ids]), encoding.eot_token, num_rows=2, block_size=16, state=None)
    next(rows)
    (rest,) = rows.tokens  # in the position of each batch that is read ahead
    next(rows)
    assert np.shares_memory(rest, rows.tokens[0])


@pytest.mark.parametrize(
    "main, name, out",
    [
        (prepare_main, "data.prepare", ["--out_dir", "tokens"]),
        (train_tokenizer_main, "data.train_tokenizer", ["--out", "a.tiktoken"]),
    ],
)
def test_a_script_on_data_ends_with_one_line_and_2_for_bad_input(
    tmp_path, monkeypatch, capsys, main, name, out
):
    monkeypatch.chdir(tmp_path)
    for flags, told in (
        (["--dataset", "missing.txt", *out], "dataset 'missing.txt': no such file or folder"),
        (["--datset", "missing.txt", *out], "the following arguments are required: --dataset"),
    ):
        assert main(flags) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"{name}: error: {told}") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--max_documents", "-1"], "--max_documents must be at least 1, got -1"),
        (["--max_documents", "0"], "--max_documents must be at least 1, got 0"),
        (["--vocab_size", str(10**30)], "must be from 257 (256 bytes and <|endoftext|>) to 1,048,576"),
        (["--dataset", "tokens"], "--dataset tokens has token ids, but a tokenizer learns from text"),
    ],
)
def test_the_tokenizer_trainer_refuses_what_it_cannot_learn_from(tmp_path, monkeypatch, capsys, flags, told):
    monkeypatch.chdir(tmp_path)
    path = write_jsonl(tmp_path / "a.jsonl", STORIES)
    other = write_txt(tmp_path / "b.txt", ["one"])
    prepare(str(path), tmp_path / "tokens", get_tokenizer("stories4k"), val_dataset=str(other))
    argv = ["--dataset", "a.jsonl", "--vocab_size", "270", "--out", "new.tiktoken", *flags]
    capsys.readouterr()
    assert train_tokenizer_main(argv) == 2
    assert told in capsys.readouterr().err and not list(tmp_path.glob("*new*"))


def test_the_commands_on_data_say_what_they_leave_out(tmp_path, capsys):
    folder = write_jsonl(tmp_path / "in" / "stories.jsonl", STORIES).parent
    write_jsonl(folder / "more" / "stories.jsonl", STORIES)
    write_jsonl(folder / "eval.jsonl", ["once", "twice"])
    assert prepare_main(["--dataset", str(folder), "--out_dir", str(tmp_path / "tokens")]) == 0
    assert capsys.readouterr().err.count("data: in (not read: 'more/')\n") == 1
    flags = ["--dataset", str(folder), "--vocab_size", "270", "--out", str(tmp_path / "a.tiktoken")]
    assert train_tokenizer_main(flags) == 0
    assert capsys.readouterr().err == "data: in (not read: 'more/')\n"


def test_prepare_takes_a_file_the_bundled_stories_and_auto(tmp_path, monkeypatch, capsys):
    def unreachable(name):
        raise HubUnreachable("the Hub is away", "no network")

    monkeypatch.setitem(sources.FIRST_AND_COUNT, "train", (0, 40))
    monkeypatch.setitem(sources.FIRST_AND_COUNT, "validation", (40, 5))
    monkeypatch.setattr(sources, "current_revision", unreachable)
    path = str(write_jsonl(tmp_path / "a.jsonl", STORIES))
    other = str(write_txt(tmp_path / "b.txt", ["one"]))
    datasets = ["--dataset", "bundled"], ["--dataset", "auto"], ["--dataset", path, "--val_dataset", other]
    for number, flags in enumerate(datasets):
        assert prepare_main([*flags, "--out_dir", str(tmp_path / "new" / str(number))]) == 0
        out, err = capsys.readouterr()
        assert "train: 40 documents" in out
        assert ("dataset auto: no network; using the bundled stories" in err) == (flags[1] == "auto")
