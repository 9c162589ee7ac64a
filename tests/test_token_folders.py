"""Token folders: reading gives what was written or one sentence, and a folder has one writer."""

import contextlib
import fcntl
import io
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

import data.prepare as prepare_module
import data.tokens as tokens
from architecture.tokenizer import SHIPPED_FOLDER, get_tokenizer, load_rank_file, tokenizer_state
from common.files import write_json_atomic
from data.prepare import main as prepare_main
from data.prepare import prepare
from data.sources import open_dataset
from data.tokens import TokenFolderWriter
from tests.test_data_files import STORIES, take, whole, write_jsonl

SPLITS = ("train", "validation")
SECTOR = 4096


@pytest.fixture
def folder(tmp_path):
    """STORIES for training, in reverse and with one less for validation."""
    path = write_jsonl(tmp_path / "a.jsonl", STORIES)
    other = write_jsonl(tmp_path / "b.jsonl", STORIES[:0:-1])
    prepare(str(path), tmp_path / "tokens", get_tokenizer("stories4k"), val_dataset=str(other))
    return tmp_path / "tokens"


def write(folder: Path, documents, tokenizer=None, **options) -> Path:
    writer = TokenFolderWriter(folder, tokenizer or get_tokenizer("stories4k"), **options)
    for split in SPLITS:
        writer.write_split(split, documents)
    writer.finish()
    return folder


def read(folder: Path) -> list[list[list[int]]]:
    sources = [open_dataset(str(folder), split=split) for split in SPLITS]
    return [[ids.tolist() for ids in source.documents()] for source in sources]


def random_documents(count: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(4096) for _ in range(rng.randrange(1, 200))] for _ in range(count)]


# ------------------------------------------------------------------------------------- what is written


def test_prepared_documents_are_the_ids_of_the_texts_in_the_same_shuffle(tmp_path):
    encoding = get_tokenizer("stories4k")
    path = write_jsonl(tmp_path / "a.jsonl", STORIES)
    other = write_jsonl(tmp_path / "b.jsonl", STORIES[1:])
    folder = tmp_path / "tokens"
    totals = prepare(str(path), folder, encoding, val_dataset=str(other))
    assert totals["train"]["documents"] == 40 and sorted(tmp_path.iterdir()) == [path, other, folder]
    raw, prepared = whole(path), open_dataset(str(folder), split="train")
    for text, ids in zip(take(raw.shuffled(5), 90), take(prepared.shuffled(5), 90)):
        assert encoding.encode_ordinary(text) == ids.tolist()


def test_shards_hold_ids_of_the_largest_vocabulary_and_any_number_of_documents(tmp_path, monkeypatch):
    class Large:  # what the writer asks of a tokenizer, with the ids of o200k_harmony
        name, n_vocab, _pat_str = "large", 201_088, ""
        _mergeable_ranks, _special_tokens = {b"a": 0}, {}

    monkeypatch.setattr(tokens, "BLOCK_BYTES", 256)
    rng = random.Random(0)
    documents = [[rng.randrange(201_088) for _ in range(rng.randrange(1, 30))] for _ in range(100)]
    documents[3] = [201_087] * 500  # longer than a shard and than several blocks
    folder = write(tmp_path / "tokens", documents, Large(), shard_tokens=64)
    assert read(folder) == [documents, documents]
    assert len(list(folder.glob("train_*.tokens.npy"))) > 10


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
@pytest.mark.parametrize("count", [0, 12_345])
def test_the_header_is_that_of_numpy(dtype, count):
    file = io.BytesIO()
    np.save(file, np.zeros(count, dtype))
    assert file.getvalue()[:128] == tokens._header(np.dtype(dtype), count)


def test_documents_may_be_empty_and_end_at_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "BLOCK_BYTES", 256)  # the header and 64 ids
    documents = [[], [1] * 64, [], [2] * 64, []]
    assert read(write(tmp_path / "tokens", documents)) == [documents, documents]


# -------------------------------------------------------------------------------------------- damage


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def zero_a_sector(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start = rng.randrange(0, len(content), SECTOR)
    content[start : start + SECTOR] = bytes(len(content[start : start + SECTOR]))
    path.write_bytes(content)


def read_as_good_and_different(folder: Path, damage, times: int) -> int:
    """Count the damages of a file of the folder that go unnoticed and change what is read."""
    good, rng, unseen = read(folder), random.Random(0), 0
    for _ in range(times):
        path = rng.choice(sorted(folder.iterdir()))
        content = path.read_bytes()
        damage(path, rng)
        try:
            unseen += read(folder) != good
        except ValueError as error:
            assert "prepare it again" in str(error) and "\n" not in str(error)
        path.write_bytes(content)
    assert read(folder) == good
    return unseen


def test_no_flip_of_a_bit_and_no_lost_sector_is_read_as_good(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "BLOCK_BYTES", 3000)
    folder = write(tmp_path / "tokens", random_documents(60), shard_tokens=3000)
    assert len(list(folder.iterdir())) > 8
    assert read_as_good_and_different(folder, flip, 150) == 0
    assert read_as_good_and_different(folder, zero_a_sector, 30) == 0


@pytest.mark.slow
def test_no_bit_of_the_description_is_read_as_good(tmp_path):
    folder = write(tmp_path / "tokens", random_documents(60), shard_tokens=3000)
    path, good = folder / "tokens.json", read(folder)
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:  # a change of the blank space around values does no harm
            assert read(folder) == good
        except ValueError as error:
            assert "prepare it again" in str(error)


def test_a_flipped_bit_of_a_tokenizer_never_gives_other_ids(tmp_path):
    for suffix in (".tiktoken", ".json"):
        shutil.copy(SHIPPED_FOLDER / f"bundled1536{suffix}", tmp_path)
    good, rng, refused = load_rank_file(tmp_path / "bundled1536.tiktoken"), random.Random(0), 0
    ids = [good.encode_ordinary(text) for text in STORIES]
    for number in range(50):
        path = tmp_path / ("bundled1536.json" if number % 2 else "bundled1536.tiktoken")
        content = path.read_bytes()
        flip(path, rng)
        try:
            found = load_rank_file(tmp_path / "bundled1536.tiktoken")
            assert tokenizer_state(found)["sha256"] == tokenizer_state(good)["sha256"]
            assert [found.encode_ordinary(text) for text in STORIES] == ids
        except ValueError:
            refused += 1
        path.write_bytes(content)
    assert refused > 25


def test_a_block_is_verified_when_it_is_first_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "BLOCK_BYTES", 256)
    folder = write(tmp_path / "tokens", [[n] * 100 for n in range(20)])
    path = folder / "train_00000.tokens.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    source = open_dataset(str(folder), split="train")
    assert [source[n].tolist() for n in range(17)] == [[n] * 100 for n in range(17)]
    with pytest.raises(
        ValueError,
        match="tokens cannot be read as a token folder .the 32 bytes of train_00000.tokens.npy from byte "
        "4,096 are not as written.; prepare it again with python -m data.prepare",
    ):
        source[19]


def shards(meta):
    return meta["splits"]["train"]["shards"]


def resealed(change):
    """Change tokens.json and seal it again."""

    def damage(folder):
        meta = json.loads((folder / "tokens.json").read_text())
        del meta["seal"]
        change(meta)
        write_json_atomic(folder / "tokens.json", meta)

    return damage


def changed(name, change):
    """Another array under the name of a file of the folder."""

    def damage(folder):
        path = folder / f"train_00000.{name}.npy"
        np.save(path, change(np.load(path)))

    return damage


def pipe_for_a_file(folder):
    (folder / "train_00000.ends.npy").unlink()
    os.mkfifo(folder / "train_00000.ends.npy")


def npz_for_npy(folder):
    np.savez(folder / "train_00000.npz", ids=np.zeros(9))
    (folder / "train_00000.npz").rename(folder / "train_00000.tokens.npy")


DAMAGES = {
    "tokens.json that ends": lambda folder: (folder / "tokens.json").write_text("{"),
    "tokens.json empty": lambda folder: (folder / "tokens.json").write_text("{}"),
    "tokens.json deep": lambda folder: (folder / "tokens.json").write_text("[" * 200_000),
    "tokens.json a list": lambda folder: (folder / "tokens.json").write_text("[5]"),
    "n_vocab a text": resealed(lambda meta: meta.update(n_vocab="4096")),
    "n_vocab missing": resealed(lambda meta: meta.pop("n_vocab")),
    "n_vocab beyond 16 bits": resealed(lambda meta: meta.update(n_vocab=70_000)),
    "n_vocab below 0": resealed(lambda meta: meta.update(n_vocab=-1)),
    "ids below 0": changed("tokens", lambda ids: ids.astype(np.int16) - 9000),
    "an older format": resealed(lambda meta: meta.update(format="nano-gpt-oss tokens 1")),
    "a file is missing": lambda folder: (folder / "train_00000.tokens.npy").unlink(),
    "a file is a pipe": pipe_for_a_file,
    "a file is empty": lambda folder: (folder / "train_00000.ends.npy").write_bytes(b""),
    "an npz": npz_for_npy,
    "other ends": changed("ends", lambda ends: ends + 1),
    "another type": changed("tokens", lambda ids: ids.astype(np.int16)),
    "no checksums": resealed(lambda meta: shards(meta)[0].pop("sha256")),
    "sizes below 0": resealed(lambda meta: shards(meta)[0].update(tokens=-9, documents=-9)),
    "sizes beyond memory": resealed(lambda meta: shards(meta)[0].update(tokens=10**30, documents=10**30)),
    "a shard twice": resealed(lambda meta: shards(meta).append(shards(meta)[0])),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_token_folder_is_one_sentence(folder, damage):
    damage(folder)
    with pytest.raises(ValueError, match="prepare it again with python -m data.prepare") as caught:
        open_dataset(str(folder), split="train")[0]
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert str(folder) in str(caught.value)


def test_a_token_folder_of_another_tokenizer_is_refused(folder):
    source = open_dataset(str(folder), split="train")
    source.check_tokenizer(get_tokenizer("stories4k"))
    with pytest.raises(
        ValueError,
        match="prepared with tokenizer stories4k .* use the first with --tokenizer, or prepare again",
    ):
        source.check_tokenizer(get_tokenizer("bundled1536"))


@pytest.mark.parametrize("n_vocab", [4095, 10, 4096.5, 65536])
def test_another_n_vocab_than_that_of_the_tokenizer_is_refused(folder, n_vocab):
    resealed(lambda meta: meta.update(n_vocab=n_vocab))(folder)
    with pytest.raises(
        ValueError, match=f"tokens.json gives n_vocab {n_vocab}, but .* has 4096 ids; prepare"
    ):
        open_dataset(str(folder), split="train").check_tokenizer(get_tokenizer("stories4k"))


def test_other_files_in_a_token_folder_are_named_as_not_read(folder):
    write_jsonl(folder / "stories.jsonl", STORIES)
    assert open_dataset(str(folder), split="train").left_out() == " (not read: 'stories.jsonl')"


def test_an_id_outside_the_vocabulary_is_refused_and_never_reaches_the_model(tmp_path):
    folder = write(tmp_path / "tokens", [[1, 4095], [], [4096], [65535]])  # 65535 is -1 in 16 bits
    source = open_dataset(str(folder), split="train")
    assert source[0].tolist() == [1, 4095] and source[1].tolist() == []
    for index, number in ((2, 4096), (3, 65535)):
        told = f"document {index} has id {number}, but n_vocab is 4096.; prepare it again"
        with pytest.raises(ValueError, match=told):
            source[index]


# ------------------------------------------------------------------------------- replaced while it is read


@pytest.mark.parametrize("how", ["removed", "moved there", "written there", "cut off"])
def test_a_folder_that_is_replaced_while_it_is_read_is_refused(tmp_path, how):
    documents = random_documents(20)
    folder = write(tmp_path / "tokens", documents)
    other = write(tmp_path / "other", [[7] * len(document) for document in documents])
    source = open_dataset(str(folder), split="train")
    assert source[0].tolist() == documents[0]
    path = folder / "train_00000.tokens.npy"
    if how == "removed":
        path.unlink()
    elif how == "moved there":
        os.replace(other / path.name, path)
    elif how == "written there":
        path.write_bytes((other / path.name).read_bytes())
    else:
        path.write_bytes(path.read_bytes()[:200])
    for _ in range(2):
        with pytest.raises(ValueError, match="train_00000.tokens.npy changed while .*prepare it again"):
            source[0]


# ----------------------------------------------------------------------------------------- one writer


def test_a_killed_preparation_leaves_no_folder_and_the_next_one_starts_clean(tmp_path):
    encoding, folder = get_tokenizer("stories4k"), tmp_path / "tokens"

    def killed():
        yield [1, 2, 3]
        yield [4]
        raise KeyboardInterrupt

    writer = TokenFolderWriter(folder, encoding, shard_tokens=2)
    with pytest.raises(KeyboardInterrupt), writer.removed_if_it_fails():
        writer.write_split("train", killed())
    assert list(tmp_path.iterdir()) == []
    partial = tmp_path / "tokens.tokens-partial"  # of a kill -9
    partial.mkdir()
    for name in (".lock", "train_00000.tokens.npy", "train_00007.tokens.npy", ".tokens.json.tmp"):
        (partial / name).write_text("4000000")
    write(folder, [[5, 6]])
    assert read(folder) == [[[5, 6]], [[5, 6]]]
    assert {path.name for path in folder.iterdir()} == {
        "tokens.json",
        *(f"{split}_00000.{kind}.npy" for split in SPLITS for kind in ("tokens", "ends")),
    }
    with pytest.raises(ValueError, match="exists already"):
        TokenFolderWriter(folder, encoding)
    assert list(tmp_path.iterdir()) == [folder]


def test_the_second_writer_of_a_folder_is_refused_and_mixes_nothing_in(tmp_path, capsys):
    path, folder = write_jsonl(tmp_path / "a.jsonl", STORIES), tmp_path / "tokens"
    other = write_jsonl(tmp_path / "b.jsonl", ["one"])
    first = TokenFolderWriter(folder, get_tokenizer("stories4k"))
    first.write_split("validation", [[1, 2, 3]] * 200)
    for _ in range(2):
        flags = ["--dataset", path, "--val_dataset", other, "--out_dir", folder]
        assert prepare_main([str(flag) for flag in flags]) == 2
        assert capsys.readouterr().err == (
            f"data.prepare: error: data.prepare (process {os.getpid()}) is already writing {folder}; "
            "wait for it, or choose another --out_dir\n"
        )
    first.write_split("train", [[4, 5]])
    first.finish()
    assert read(folder) == [[[4, 5]], [[1, 2, 3]] * 200]


def test_a_writer_that_waited_for_another_to_finish_does_not_write_over_it(tmp_path, monkeypatch):
    encoding, folder = get_tokenizer("stories4k"), tmp_path / "tokens"
    lock_file = tokens.lock_file

    def late(*arguments):
        monkeypatch.undo()  # the other one begins and ends between our two looks at the folder
        write(folder, [[1]])
        return lock_file(*arguments)

    monkeypatch.setattr(tokens, "lock_file", late)
    with pytest.raises(ValueError, match="exists already"):
        TokenFolderWriter(folder, encoding)
    assert read(folder) == [[[1]], [[1]]] and list(tmp_path.iterdir()) == [folder]


def test_the_second_of_two_preparations_is_refused_before_it_reads_its_data(tmp_path, capsys, monkeypatch):
    path, folder = write_jsonl(tmp_path / "a.jsonl", STORIES), tmp_path / "tokens"
    other = write_jsonl(tmp_path / "b.jsonl", STORIES[:3])
    flags = [str(x) for x in ("--dataset", path, "--val_dataset", other, "--out_dir", folder)]
    codes, opened = [], prepare_module.open_dataset

    def while_the_first_scans(*args, **options):
        monkeypatch.setattr(prepare_module, "open_dataset", opened)
        codes.append(prepare_main([*flags[:1], "missing.txt", *flags[2:]]))
        return opened(*args, **options)

    monkeypatch.setattr(prepare_module, "open_dataset", while_the_first_scans)
    assert prepare_main(flags) == 0 and codes == [2]
    assert "is already writing" in capsys.readouterr().err
    assert prepare_main(flags) == 2 and "tokens exists already" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [path, other, folder]


@pytest.mark.parametrize("first_ends", ["well", "badly"])
@pytest.mark.parametrize("when", ["before the lock is opened", "before it is locked", "before the third"])
def test_a_writer_that_comes_while_another_ends_has_the_folder_alone_or_is_refused(
    tmp_path, monkeypatch, first_ends, when
):
    """The first writer ends between two steps of the second, and a third then comes."""
    encoding, folder = get_tokenizer("stories4k"), tmp_path / "tokens"
    first, others = TokenFolderWriter(folder, encoding), []
    first.write_split("train", [[1, 2, 3]])
    flock, mkdir = fcntl.flock, Path.mkdir

    def end():
        monkeypatch.setattr(fcntl, "flock", flock)
        monkeypatch.setattr(Path, "mkdir", mkdir)
        if first_ends == "well":
            first.write_split("validation", [[1]])
            first.finish()
        else:
            with pytest.raises(KeyboardInterrupt), first.removed_if_it_fails():
                raise KeyboardInterrupt
        if when == "before the third":
            with contextlib.suppress(ValueError):
                others.append(TokenFolderWriter(folder, encoding))

    def late_flock(*args):
        end()
        return flock(*args)

    def late_mkdir(path, **options):
        mkdir(path, **options)
        end()

    if when == "before the lock is opened":
        monkeypatch.setattr(Path, "mkdir", late_mkdir)
    else:
        monkeypatch.setattr(fcntl, "flock", late_flock)
    refused = "exists already" if first_ends == "well" else "is already writing"
    if first_ends == "well" or when == "before the third":
        with pytest.raises(ValueError, match=refused):
            TokenFolderWriter(folder, encoding)
    else:
        others.append(TokenFolderWriter(folder, encoding))
    for writer in others:
        for split in SPLITS:
            writer.write_split(split, [[7, 8]])
        writer.finish()
    assert read(folder) == ([[[7, 8]]] * 2 if others else [[[1, 2, 3]], [[1]]])
    assert list(tmp_path.iterdir()) == [folder]
    assert ".lock" not in os.listdir(folder)
