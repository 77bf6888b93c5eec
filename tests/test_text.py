"""Tokenizers, texts, buckets."""

import dataclasses
import gzip
import os
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from records import built

from research.core.errors import RunError, UserError
from research.core.special_tokens import BOS, EOS, MASK, PAD, SPECIALS, UNKNOWN
from research.data import pairs, sentences
from research.data import text as texts
from research.data.buckets import BucketFeed, eval_batches, into_buckets
from research.data.feed import prefetched
from research.data.order import indices, split, split_test
from research.data.pairs import Pairs
from research.data.sentences import Sentences
from research.data.strings import is_path
from research.data.text import END, IGNORED, Text, Windows, windows
from research.data.tfds import columns
from research.data.tokenizer import Tokenizer, most_frequent, read_tokenizer, train_tokenizer

ODD = "Zwölf Boxkämpfer — naïve 日本語 😀👩‍👩‍👧\r\n\t\x00\x03 <pad><eos>"
VERSE = "To be, or not to be: that is the question.\nWhether 'tis nobler in the mind to suffer\n" * 4


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def have(name):
    there = (Path(os.environ.get("TFDS_DATA_DIR", "nowhere")) / name).exists()
    return pytest.mark.skipif(not there, reason=f"no {name} in TFDS_DATA_DIR")


# ---- tokenizers


def test_characters_are_those_of_the_text_sorted():
    tokenizer = train_tokenizer("characters", ["hello", "öl\n😀"])
    assert tokenizer.size == 7
    np.testing.assert_array_equal(tokenizer.encode("\nehloö😀"), range(7))
    np.testing.assert_array_equal(tokenizer.lengths, np.ones(7))
    assert tokenizer.decode(tokenizer.encode("ö\n 😀lo".replace(" ", ""))) == "ö\n😀lo"
    assert tokenizer.encode("").shape == (0,) and tokenizer.encode("").dtype == np.int32
    with pytest.raises(UserError, match=r"lacks ' x'; it has 7: '\\nehloö😀'"):
        tokenizer.encode("hello x")


def test_characters_are_looked_up_as_the_library_does(rng):
    characters = [chr(c) for c in rng.permutation([*range(200), *range(0x4E00, 0x4F00), *range(0x1F600, 0x1F640)])]
    tokenizer = train_tokenizer("characters", characters)
    drawn = ["".join(rng.choice(characters, size)) for size in (0, 1, 1000)]
    equal(tokenizer.encode_batch(drawn), [np.array(x.ids, np.int32) for x in tokenizer.library.encode_batch(drawn)])


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_encoding_takes_little_memory(kind):
    whole = train_tokenizer(kind, [VERSE], 257)
    sizes = []

    def encode(some):
        sizes.append(len(some))
        return whole.library.encode_batch_fast(some)

    # The library's encodings are not in Python's memory, and not counted below.
    library = SimpleNamespace(get_vocab=whole.library.get_vocab, encode_batch_fast=encode)
    found = Tokenizer(kind, library, whole.lengths).encode_batch(["to be"] * 2500)
    assert sizes == ([1000, 1000, 500] if kind == "bpe" else [])
    equal(found, [whole.encode("to be")] * 2500)


@pytest.mark.parametrize("specials", [False, True])
def test_byte_pairs_lose_nothing(specials):
    tokenizer = train_tokenizer("bpe", [VERSE], vocabulary=300, specials=specials)
    assert tokenizer.size == 300
    for text in (ODD, VERSE, "", "<mask>"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.lengths[ids].sum() == len(text)
        assert not specials or ids.min(initial=5) >= len(SPECIALS)
    assert len(tokenizer.encode(VERSE)) < 0.7 * len(VERSE)
    assert tokenizer.encode("ß").shape == (2,), "unmerged, a character is its bytes"
    equal(tokenizer.encode_batch([ODD, VERSE]), [tokenizer.encode(ODD), tokenizer.encode(VERSE)])
    if specials:
        assert tokenizer.lengths[:5].sum() == 0 and (tokenizer.lengths[5:] <= 300).all()
        assert tokenizer.decode([BOS, *tokenizer.encode("so"), EOS, PAD]) == "so"


def test_the_first_merge_is_the_most_frequent_pair():
    tokenizer = train_tokenizer("bpe", ["abab abab xyab"], vocabulary=257)
    assert tokenizer.library.id_to_token(256) == "ab"
    assert (tokenizer.encode("ab") == 256).all() and tokenizer.lengths[256] == 2


def test_words_are_the_most_frequent_ones():
    tokenizer = train_tokenizer("words", ["The cat, the dog", "A cat. the END"], vocabulary=8)
    # the 3 times, cat twice; of those met once, the first in the order of their letters.
    assert [tokenizer.library.id_to_token(n) for n in range(8)] == [*SPECIALS, "the", "cat", ","]
    np.testing.assert_array_equal(tokenizer.encode("THE bird,cat <mask>"), [5, 3, 7, 6, 3, 3, 3])
    np.testing.assert_array_equal(tokenizer.lengths, [0, 0, 0, 0, 0, 3, 3, 1])
    assert tokenizer.decode([5, 6, PAD]) == "the cat"
    assert (PAD, BOS, EOS, UNKNOWN, MASK) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("kind", ["characters", "words", "bpe"])
def test_tokenizers_are_their_json(kind):
    made = train_tokenizer(kind, [VERSE, ODD], vocabulary=280, specials=True)
    same = train_tokenizer(kind, [VERSE, ODD], 280, True)
    assert made.to_json() == same.to_json()
    # The library reads it, as `experiments.export` says.
    again = tokenizers.Tokenizer.from_str(made.to_json())
    assert again.encode(VERSE).ids == made.encode(VERSE).tolist()
    assert again.decode(made.encode(VERSE).tolist()) == made.decode(made.encode(VERSE))


@pytest.mark.parametrize("kind", ["characters", "words", "bpe"])
def test_the_tokenizer_of_a_run_is_read_back(kind, tmp_path):
    made = train_tokenizer(kind, [VERSE, ODD], 280, True)
    (tmp_path / "tokenizer.json").write_text(made.to_json())
    again = read_tokenizer(str(tmp_path), kind, specials=kind != "characters")
    assert again.kind == kind and again.to_json() == made.to_json()
    for text in (VERSE, ODD):
        np.testing.assert_array_equal(again.encode(text), made.encode(text))
    np.testing.assert_array_equal(again.lengths, made.lengths)


def test_tokenizers_that_cannot_be_read(tmp_path):
    read = lambda *how: read_tokenizer(str(tmp_path), *how)
    with pytest.raises(UserError, match=r"data\.tokenizer_from .*: no tokenizer there .*: give the directory of a run"):
        read("bpe")
    file = tmp_path / "tokenizer.json"
    for damaged in (b"", b"{}", b"\xff"):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"no tokenizer"):
            read("bpe")
    file.write_text(train_tokenizer("bpe", [VERSE]).to_json())
    with pytest.raises(UserError, match="its tokens are bpe, and those of this data words"):
        read("words", True)
    with pytest.raises(UserError, match="has no special tokens"):
        read("bpe", True)
    assert read("bpe").kind == "bpe"


def test_data_with_the_tokenizer_of_a_run(tmp_path):
    """Texts of one data set in the tokens of another; what a run keeps is then the same file."""
    (tmp_path / "first.tsv").write_text("".join(f"a fine film number{n}\t{n % 2}\n" for n in range(20)))
    (tmp_path / "second.tsv").write_text("".join(f"a dull film, not fine\t{n % 2}\n" for n in range(20)))
    first = Sentences(str(tmp_path / "first.tsv"), vocabulary=9, lengths=(8,), batch=2)
    kept = first.feeds(1).kept["tokenizer.json"]
    (tmp_path / "tokenizer.json").write_text(kept)
    second = Sentences(str(tmp_path / "second.tsv"), lengths=(8,), batch=2, tokenizer_from=str(tmp_path))
    assert second.spec().tokenizer.size == 9 and second.feeds(1).kept == {"tokenizer.json": kept}
    tokens = first.spec().tokenizer.encode("a dull film, not fine")
    assert tokens.tolist().count(UNKNOWN) == 3, "dull, the comma and not"
    np.testing.assert_array_equal(second.feeds(1).test[0].inputs[0], [*tokens, PAD, PAD])

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tokenizer.json").write_text(train_tokenizer("characters", ["abc"]).to_json())
    text = lambda part: Text(str(tmp_path / "text.txt"), context=2, tokenizer_from=str(tmp_path / "run"), limit=part)
    (tmp_path / "text.txt").write_text("abba" * 20 + "cdcd" * 3)
    spec, _, _, test = texts._tokens(text(None), str(tmp_path))
    assert spec.classes == 3 and test.tolist() == [1, 2] * 4 + [1], "d is replaced by b, and c stays"
    (tmp_path / "text.txt").write_text("abde" * 30)
    with pytest.raises(UserError, match="the vocabulary of characters lacks 'de'"):
        text(9).spec()
    with pytest.raises(UserError, match=r"has tokens already: leave out data\.tokenizer_from"):
        Text("tokens.npy", tokenizer_from=str(tmp_path))


def test_tokenizers_that_cannot_be():
    with pytest.raises(UserError, match="no text"):
        train_tokenizer("bpe", ["", ""])
    with pytest.raises(UserError, match="bpe needs at least 261 tokens, not 260"):
        train_tokenizer("bpe", ["a"], vocabulary=260, specials=True)
    with pytest.raises(UserError, match="words needs at least 6 tokens, not 5"):
        train_tokenizer("words", ["a"], vocabulary=5)
    assert train_tokenizer("bpe", ["a"], vocabulary=256).size == 256
    assert most_frequent("abcbac") == "a" and most_frequent("xyy") == "y"


# ---- a text to model


def test_windows_are_slices_of_the_text():
    tokens = np.arange(100, 200, dtype=np.uint16)
    feed = Windows(tokens, context=7, batch=4, seed=3, resident=False)
    for step in (0, 5, 10**6):
        batch = feed.batch_at(step)
        np.testing.assert_array_equal(batch.index, indices(step, 4, 93, 3, np))
        for n, start in enumerate(batch.index):
            np.testing.assert_array_equal(batch.inputs[n], tokens[start : start + 7])
            np.testing.assert_array_equal(batch.targets[n], tokens[start + 1 : start + 8])
        assert batch.inputs.dtype == batch.targets.dtype == np.int32 and batch.mask.tolist() == [1] * 4
        equal(feed.batch_at(step, np.array([3, 1])), jax.tree.map(lambda x: x[[3, 1]], batch))
    seen = np.concatenate([feed.batch_at(step).index for step in range(24)])
    np.testing.assert_array_equal(np.sort(seen[:93]), np.arange(93))


def test_a_file_of_more_tokens_than_32_bits_count(tmp_path, monkeypatch):
    size, context = 2**32 + 50, 5
    tokens = np.memmap(tmp_path / "tokens", np.uint8, "w+", shape=(size,))  # sparse: what is not written takes no space
    places = indices(3, 16, size - context, 0, np)
    for n, place in enumerate(places):
        tokens[place : place + context + 1] = np.arange(context + 1) + 6 * n
    assert places.max() > 2**31 and places.min() < 2**31
    batch = Windows(tokens, context, batch=16, seed=0, resident=False).batch_at(3)
    np.testing.assert_array_equal(batch.inputs, np.arange(5) + 6 * np.arange(16)[:, None])
    np.testing.assert_array_equal(batch.targets, batch.inputs + 1)
    np.testing.assert_array_equal(batch.index.view(np.uint32), places % 2**32)

    few = tokens[:20]
    monkeypatch.setattr(texts, "_tokens", lambda *_: (texts.TextSpec(None, 100), tokens, few, few))
    config = Text("tokens.npy", context=context, batch=16, feed="host")
    equal(config.feeds().train.batch_at(3), batch)
    with pytest.raises(
        UserError, match=r"4,294,967,346 tokens of data.name tokens.npy are more than the 2,147,483,648"
    ):
        dataclasses.replace(config, feed="device").feeds()


def test_windows_on_the_device_are_those_on_the_host():
    tokens = np.random.default_rng(0).integers(50, size=40, dtype=np.int32)
    here = Windows(jnp.asarray(tokens), context=6, batch=8, seed=1)
    host = dataclasses.replace(here, tokens=tokens, resident=False)
    at = jax.jit(lambda feed, step, rows: feed.batch_at(step, rows))
    for step in (0, 3, 10**6):
        for rows in (np.arange(8), np.array([7, 2, 3])):
            equal(at(here, step, rows), host.batch_at(step, rows))


def test_evaluation_windows_predict_every_token_once():
    for length in (2, 7, 8, 9, 15, 16):
        tokens = np.arange(10, 10 + length)
        count = -(-(length - 1) // 7)
        inputs, targets = windows(tokens, 7, np.arange(count))
        assert inputs.shape == targets.shape == (count, 7) and inputs.dtype == targets.dtype == np.int32
        equal(windows(tokens, 7, np.array([count - 1])), (inputs[-1:], targets[-1:]))
        kept = targets != IGNORED
        np.testing.assert_array_equal(targets[kept], tokens[1:])
        np.testing.assert_array_equal(inputs[kept], tokens[:-1])
        assert (inputs[~kept] == 0).all()


def test_evaluation_may_read_longer_windows(tmp_path):
    (tmp_path / "text.txt").write_text("abcdefghij" * 100)
    config = Text(name=str(tmp_path / "text.txt"), context=4, evaluation_context=30, evaluation_batch=2)
    feeds = config.feeds()
    assert feeds.train.batch_at(0).inputs.shape == (64, 4)
    assert {batch.inputs.shape for batch in (*feeds.validation, *feeds.test)} == {(2, 30)}
    with pytest.raises(UserError, match=r"data\.evaluation_context must be at least 1"):
        dataclasses.replace(config, evaluation_context=0)


def test_a_text_file(tmp_path):
    text = "".join(chr(97 + n % 26) for n in range(2000))
    (tmp_path / "alphabet.txt").write_text(text)
    config = Text(name=str(tmp_path / "alphabet.txt"), context=16, batch=4, evaluation_batch=3, validation=0.1)
    spec, feeds = config.spec(), config.feeds()
    assert spec.classes == 26
    assert tokenizers.Tokenizer.from_str(feeds.kept["tokenizer.json"]).decode(feeds.train.tokens) == text[:1620]
    for part, expected in ((feeds.validation, text[1620:1800]), (feeds.test, text[1800:])):
        assert {batch.inputs.shape for batch in part} == {(3, 16)}
        targets = np.concatenate([batch.targets[batch.mask == 1] for batch in part])
        assert spec.tokenizer.decode(targets[targets != IGNORED]) == expected[1:]
    assert feeds.train.resident and not dataclasses.replace(config, feed="host").feeds().train.resident
    few = dataclasses.replace(config, limit=100).feeds()
    assert len(few.train.tokens) == 100
    assert sum((batch.targets[batch.mask == 1] != IGNORED).sum() for batch in few.test) == 9


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_a_folder_of_texts(tmp_path, kind):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.md").write_text("two " * 30)
    (tmp_path / "a.txt").write_text("one " * 100)
    (tmp_path / "c.txt").write_text("three 😀" * 9)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "picture.png").write_text("not this")
    config = Text(name=str(tmp_path), tokenizer=kind, vocabulary=270, context=8)
    whole = END.join(["one " * 100, "two " * 30, "three 😀" * 9])
    spec, *parts = texts._tokens(config, None)
    train, validation, test = (spec.tokenizer.decode(part) for part in parts)
    assert train == whole[: len(train)] and len(train + validation + test) == len(whole)
    assert len(test) == round(len(whole) * 0.1) and len(validation) == round((len(whole) - len(test)) * 0.05)
    # The training part has none of the letters of "three😀" but t and e; its most_frequent character is the space.
    others = whole[len(train) :]
    expected = others if kind == "bpe" else others.translate(dict.fromkeys(map(ord, "hr😀"), " "))
    assert validation + test == expected
    if kind == "bpe":
        assert all(END not in spec.tokenizer.library.id_to_token(n) for n in range(256, spec.classes))


def test_files_of_another_encoding_are_named(tmp_path, capsys):
    (tmp_path / "A.TXT").write_text("read " * 50)
    assert texts._files(str(tmp_path)) == ["read " * 50] and not capsys.readouterr().err
    for name in ("b.txt", "c.Md"):
        (tmp_path / name).write_bytes(b"caf\xe9")
    assert texts._files(str(tmp_path)) == ["read " * 50]
    said = " ".join(capsys.readouterr().err.split())
    assert (
        f"data.name {tmp_path}: 2 of 3 files can't be read as UTF-8 and are left out, such as {tmp_path / 'b.txt'}"
        in said
    )


@pytest.mark.parametrize("name", ["BOOK.TXT", "Table.CSV", "table.tsv", "./folder", "~/folder"])
def test_names_of_paths(name):
    assert is_path(name) and not is_path(name.strip("~./").split(".")[0])


def test_a_byte_order_mark_is_no_text(tmp_path):
    marked = lambda name, text: (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
    for name in ("a.txt", "b.txt"):
        marked(name, "abc" * 50)
    assert "".join(texts._files(str(tmp_path))) == "abc" * 100 and texts._files(str(tmp_path / "a.txt")) == ["abc" * 50]
    for language in ("en", "de"):
        marked(f"train.{language}", "one\ntwo\n")
        (tmp_path / f"test.{language}.gz").write_bytes(gzip.compress("three\n".encode("utf-8-sig")))
    assert Pairs(str(tmp_path)).load() == ([["one", "two"]] * 2, None, [["three"]] * 2)


def test_numbers_of_a_file(tmp_path):
    path = tmp_path / "tokens.npy"
    tokens = np.random.default_rng(0).integers(300, size=1000).astype(np.uint16)
    np.save(path, tokens)
    config = Text(name=str(path), vocabulary=300, context=10, validation=0.1, feed="host")
    spec, feeds = config.spec(), config.feeds()
    assert spec.tokenizer is None and spec.classes == 300 and not feeds.kept
    np.testing.assert_array_equal(feeds.train.tokens, tokens[:810])
    np.testing.assert_array_equal(feeds.test[0].inputs[0], tokens[900:910])
    equal(dataclasses.replace(config, feed="device").feeds().train.batch_at(3), feeds.train.batch_at(3))
    high = tokens.max()
    with pytest.raises(
        UserError, match=rf"tokens \d+ ... {high} are not in 0 ... 99; give --data.vocabulary {high + 1}"
    ):
        dataclasses.replace(config, vocabulary=100).spec()
    for seed, wrong in enumerate((tokens.astype(float), tokens.reshape(10, -1), tokens[:0])):
        np.save(path, wrong)
        with pytest.raises(UserError, match=r"one row of whole numbers, not (float64|uint16) \["):
            dataclasses.replace(config, seed=10 + seed).spec()
    np.save(path, np.array([print], object), allow_pickle=True)
    with pytest.raises(UserError, match="damaged or no such file"):
        dataclasses.replace(config, seed=1).spec()
    np.save(path, tokens)
    whole = path.read_bytes()
    for seed, size in enumerate((900, 20, 0)):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="damaged or no such file"):
            dataclasses.replace(config, seed=20 + seed).spec()
    with path.open("wb") as file:
        np.savez(file, a=tokens, b=tokens)
    with pytest.raises(UserError, match="several arrays"):
        dataclasses.replace(config, seed=2).spec()


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04 of a zip",
        *(
            b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
            for header in (
                *(b"{'descr': ((((", b"{[]: 1}"),
                b"{'descr': '<i4', 'fortran_order': False, 'shape': (1180591620717411303424,)}",
            )
        ),
    ],
    ids=["zip", "brackets", "key", "size"],
)
def test_numbers_of_a_damaged_file(tmp_path, content):
    path = tmp_path / "tokens.npy"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"data.name {path}: it is damaged or no such file .*expected a .npy file"):
        Text(name=str(path)).spec()


def test_texts_are_cached_by_their_path(tmp_path, monkeypatch):
    for folder, text in (("a", "abc" * 99), ("b", "defgh" * 99)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text(text)
        monkeypatch.chdir(tmp_path / folder)
        assert Text("./text.txt", context=8).spec().classes == len(set(text))


def test_the_standard_library():
    config = Text(limit=20_000)
    spec, train, validation, test = texts._tokens(config, None)
    assert [len(x) for x in (train, validation, test)] == [20_000, 2000, 2000] and 80 < spec.classes < 200
    parts = [set(part.split(END)) for part in texts._stdlib(config)]
    source = Path(dataclasses.__file__).read_text()
    assert sum(source in part for part in parts) == 1, "each file is in one part"
    assert [len(part) > 10 for part in parts] == [True] * 3 and not parts[0] & parts[2]
    assert not any(Path(pytest.__file__).read_text() in part for part in parts)
    assert texts._stdlib(config) == texts._stdlib(config) != texts._stdlib(Text(seed=1))


@have("tiny_shakespeare")
def test_tiny_shakespeare():
    config = Text(name="tiny_shakespeare", validation=0.05)
    spec, *parts = texts._tokens(config, os.environ["TFDS_DATA_DIR"])
    assert spec.classes == 65
    assert [len(part) for part in parts] == [953_661, 50_193, 111_540], "nanoGPT's train, 1,003,854, and validation"
    assert spec.tokenizer.decode(range(13)) == "\n !$&',-.3:;?"
    assert spec.tokenizer.decode(parts[0][:14]) == "First Citizen:"
    few = dataclasses.replace(config, tokenizer="bpe", limit=3000, vocabulary=300)
    spec, *parts = texts._tokens(few, os.environ["TFDS_DATA_DIR"])
    assert [spec.tokenizer.lengths[part].sum() for part in parts] == [3000, 300, 300]


def test_texts_that_cannot_be(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"na\xefve" * 99)
    (tmp_path / "short.txt").write_text("abc" * 20)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "nothing").mkdir()
    at = lambda name, **fields: Text(name=str(tmp_path / name), **fields)
    for config, message in (
        (at("latin.txt"), r"latin\.txt: not UTF-8 at byte 2 \(0xef\); convert it"),
        (at("short.txt", context=60), r"51 tokens to train on fill no window of 60; give a smaller --data\.context"),
        (at("short.txt", validation=0.001), r"0 tokens to validate on are too few"),
        (at("empty.txt"), "no text to train on"),
        (at("nothing"), r"no readable text there; expected UTF-8 files \.txt"),
        (at("missing.txt"), r"can't read .*missing\.txt \(No such file"),
        (at("missing.npy"), r"can't read it \(No such file"),
        (Text("tiny_shakespear", dir=str(tmp_path)), "no set tiny_shakespear.*did you mean tiny_shakespeare"),
        (Text("lm1b", dir=str(tmp_path)), "lm1b: not found in .*tfds build lm1b.*--data.name stdlib needs nothing"),
    ):
        with pytest.raises(UserError, match=message):
            config.feeds()
    for wrong, message in (
        ({"context": 0}, r"data\.context must be at least 1"),
        ({"limit": 0}, r"data\.limit must be at least 1"),
        ({"validation": 0.0}, "between 0 and 1"),
    ):
        with pytest.raises(UserError, match=message):
            Text(**wrong)


# ---- buckets


def numbers(sizes, lengths=(4, 8, 16), block=0):
    """Examples whose inputs say which they are: example n is a row of n, as long as its bucket."""
    rows = lambda index, length: (np.repeat(index[:, None], length, 1), {"n": index})
    return into_buckets(np.array(sizes), lengths, rows, block)


SIZES = np.random.default_rng(0).choice([1, 4, 5, 8, 9, 99], size=90, p=[0.2, 0.3, 0.2, 0.2, 0.06, 0.04])


def test_each_example_is_in_the_first_bucket_that_holds_it():
    buckets = numbers([4, 5, 16, 1, 99, 8], (4, 8, 16))
    assert [bucket.index.tolist() for bucket in buckets] == [[0, 3], [1, 5], [2, 4]]
    assert [bucket.inputs.shape for bucket in buckets] == [(2, 4), (2, 8), (2, 16)]
    assert [bucket.inputs.shape[1] for bucket in numbers([3, 30])] == [4, 16], "an empty bucket is none"


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_a_dispatch_reads_one_bucket_and_a_cycle_all_of_them(steps):
    feed = BucketFeed(numbers(SIZES), batch=3, steps_per_dispatch=steps, seed=5)
    blocks, sizes = feed.blocks(), [len(bucket.index) for bucket in feed.buckets]
    cycle = sum(blocks) * steps
    batches = [feed.batch_at(step) for step in range(2 * cycle)]
    assert {b.inputs.shape for b in batches} == {(3, 4), (3, 8), (3, 16)}
    for start in range(0, len(batches), steps):
        assert len({b.inputs.shape for b in batches[start : start + steps]}) == 1
    widths = [[b.inputs.shape[1] for b in part[::steps]] for part in (batches[:cycle], batches[cycle:])]
    assert [Counter(x) for x in widths] == [dict(zip((4, 8, 16), blocks, strict=True))] * 2
    assert widths[0] != widths[1] or len(widths[0]) < 6
    np.testing.assert_allclose(np.array(blocks) / sum(blocks), np.array(sizes) / sum(sizes), atol=0.5 / min(blocks) / 3)
    for bucket in feed.buckets:
        seen = np.concatenate([b.index for b in batches if b.inputs.shape[1] == bucket.inputs.shape[1]])
        for epoch in range(len(seen) // len(bucket.index)):
            part = seen[epoch * len(bucket.index) : (epoch + 1) * len(bucket.index)]
            np.testing.assert_array_equal(np.sort(part), bucket.index)
    with prefetched(feed, 0, 3 * steps, steps, lambda make, _: make(None)) as dispatches:
        stacked = list(dispatches)
    for n, part in enumerate(stacked):
        equal(part, jax.tree.map(lambda *x: np.stack(x), *batches[n * steps : (n + 1) * steps]))
    for batch in batches:
        np.testing.assert_array_equal(batch.inputs, np.repeat(batch.index[:, None], batch.inputs.shape[1], 1))
        np.testing.assert_array_equal(batch.targets["n"], batch.index)
        assert batch.index.dtype == np.int32 and batch.mask.sum() == 3


def test_a_bucketed_batch_is_a_function_of_the_step():
    feed = BucketFeed(numbers(SIZES), batch=4, steps_per_dispatch=5, seed=5)
    again, other = (dataclasses.replace(feed, seed=seed) for seed in (5, 6))
    steps = np.random.default_rng(1).permutation(60)
    shuffled = {step: again.batch_at(step) for step in steps}
    for step in range(60):
        equal(feed.batch_at(step), shuffled[step])
        shares = [feed.batch_at(step, rows) for rows in (np.arange(2), np.arange(2, 4))]
        equal(jax.tree.map(lambda *x: np.concatenate(x), *shares), shuffled[step])
    assert any(feed.batch_at(s).index.tolist() != other.batch_at(s).index.tolist() for s in range(5))
    assert feed.batch_at(2**31 - 1).inputs.shape[0] == 4
    assert not feed.resident


def test_a_rare_bucket_gets_a_block_all_the_same():
    feed = BucketFeed(numbers([1] * 5000 + [99]), batch=10, steps_per_dispatch=100, seed=0)
    assert feed.blocks() == (500, 1)
    batches = [feed.batch_at(step) for step in range(0, 50_100, 100)]
    assert [b.index.tolist() for b in batches if b.inputs.shape[1] == 16] == [[5000] * 10]


@pytest.mark.parametrize(
    ("counts", "merged"),
    [
        ((5, 5, 5), {4: 5, 8: 5, 16: 5}),
        ((4, 9, 5), {8: 13, 16: 5}),
        ((9, 4, 5), {4: 9, 16: 9}),
        ((9, 9, 4), {4: 9, 16: 13}),
        ((2, 2, 9), {16: 13}),
        ((2, 2, 2), {16: 6}),
        ((1, 0, 0), {4: 1}),
        ((1, 9, 0), {8: 10}),
        ((9, 1, 0), {8: 10}),
    ],
)
def test_buckets_of_few_training_texts_are_merged(counts, merged):
    """A block of 1,000 examples, of which a bucket has to fill half in 100 epochs."""
    found = numbers(np.repeat([4, 8, 16], counts), block=1000)
    assert {bucket.inputs.shape[1]: len(bucket.index) for bucket in found} == merged
    assert sorted(np.concatenate([bucket.index for bucket in found])) == list(range(sum(counts)))


def test_few_long_texts_are_read_no_more_often_than_others(tmp_path):
    rows = [f"{'a ' * (30 if n < 3 else 2)}\t{n % 2}" for n in range(2000)]
    (tmp_path / "texts.tsv").write_text("\n".join(["text\tlabel", *rows]))
    data = Sentences(name=str(tmp_path / "texts.tsv"), lengths=(4, 32), batch=64, validation=0.1)
    assert [bucket.inputs.shape[1] for bucket in data.feeds(1).train.buckets] == [4, 32]
    (bucket,) = data.feeds(50).train.buckets
    assert bucket.inputs.shape[1] == 32
    folder = tmp_path / "pairs"
    folder.mkdir()
    for part in ("train", "test"):
        for language in ("en", "de"):
            (folder / f"{part}.{language}").write_text("\n".join(row.split("\t")[0] for row in rows))
    pairs = Pairs(name=str(folder), lengths=(4, 64), batch=64, test="test", vocabulary=300)
    assert [len(pairs.feeds(steps).train.buckets) for steps in (1, 50)] == [2, 1]


def test_evaluation_meets_every_example_once():
    batches = eval_batches(numbers(SIZES), 7)
    assert all(b.inputs.shape[0] == 7 for b in batches)
    kept = np.concatenate([b.index[b.mask == 1] for b in batches])
    np.testing.assert_array_equal(np.sort(kept), np.arange(len(SIZES)))
    for batch in batches:
        np.testing.assert_array_equal(batch.inputs[:, 0], batch.index)


# ---- labelled texts, pairs


def rated(directory, train, test, **more):
    import tensorflow_datasets as tfds

    examples = {"train": train, "test": test, **more}
    features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["bad", "good"])}
    return built(
        directory,
        features,
        {split: [{"text": text, "label": label} for text, label in pairs] for split, pairs in examples.items()},
    )


def test_sentences(tmp_path):
    train = [("good " * n + "film", 1) for n in range(1, 11)] + [("Bad,<br />bad film", 0)] * 10
    test = [("a b c d good film bad x", 1), ("", 0), ("bad<br />film", 0)]
    where = rated(tmp_path, train, test)
    config = Sentences("tiny", where, vocabulary=8, lengths=(3, 5), batch=4, evaluation_batch=2, validation=0.2)
    spec, feeds = config.spec(), config.feeds(2)
    assert (spec.classes, spec.names, spec.length, spec.tokenizer.size) == (2, ("bad", "good"), 5, 8)
    assert feeds.kept["tokenizer.json"] == spec.tokenizer.to_json()
    good, film, bad = (int(spec.tokenizer.encode(word)[0]) for word in ("good", "film", "bad"))
    assert {good, film, bad} == {5, 6, 7}
    rows = sorted((x[m].tolist(), int(t)) for _, x, t, m in unbatched(feeds.test))
    u = UNKNOWN
    assert rows == sorted([([u, u, u, bad, u], 1), ([u], 0), ([bad, film], 0)])
    assert sorted(i for i, *_ in unbatched(feeds.test)) == [0, 1, 2]
    size = sum(len(bucket.index) for bucket in feeds.train.buckets)
    assert (size, len(unbatched(feeds.validation))) == (16, 4)
    for step in range(10):
        batch = feeds.train.batch_at(step)
        assert batch.inputs.shape in {(4, 3), (4, 5)} and batch.targets.dtype == batch.inputs.dtype == np.int32
        np.testing.assert_array_equal((batch.inputs == good).any(1), batch.targets)


def unbatched(batches):
    """(index, inputs, targets, where inputs are not PAD) of each example that counts."""
    return [
        (batch.index[n], batch.inputs[n], batch.targets[n], batch.inputs[n] != PAD)
        for batch in batches
        for n in np.flatnonzero(batch.mask)
    ]


def test_the_ends_of_long_texts():
    cut = lambda size, length: sentences._ends(np.arange(size), length).tolist()
    assert cut(9, 4) == [0, 1, 7, 8] and cut(9, 5) == [0, 1, 2, 7, 8] and cut(9, 1) == [0] and cut(3, 3) == [0, 1, 2]


def test_a_set_that_says_what_to_validate_on(tmp_path):
    where = rated(tmp_path, [("good", 1)] * 5, [("bad", 0)] * 2, validation=[("film", 1)] * 3)
    feeds = Sentences("tiny", where, vocabulary=300, tokenizer="bpe", lengths=(8,)).feeds(1)
    assert [len(unbatched(part)) for part in (feeds.validation, feeds.test)] == [3, 2]
    assert len(feeds.train.buckets[0].index) == 5


@pytest.mark.parametrize("tensorflow", [False, True])
def test_a_set_that_is_known_with_tensorflow_alone(tmp_path, monkeypatch, tensorflow):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: tensorflow or None)
    with pytest.raises(UserError, match=r"no set zzz/y, nor has .*a folder or table.*its path \(\./zzz/y\)") as error:
        Sentences("zzz/y", str(tmp_path)).spec()
    assert ("pip install 'samestep[prepare]' && tfds build zzz/y" in str(error.value)) is not tensorflow


def test_sentences_that_cannot_be(tmp_path):
    import tensorflow_datasets as tfds

    for wrong, message in (
        ({"lengths": (8, 4)}, r"data\.lengths must increase.*\(8, 4\)"),
        ({"lengths": ()}, r"data\.lengths"),
        ({"batch": 0}, r"data\.batch must be at least 1"),
        ({"validation": 1.5}, "between 0 and 1"),
    ):
        with pytest.raises(UserError, match=message):
            Sentences(**wrong)
    where = rated(tmp_path / "a", [("x", 1)], [("y", 0)])
    with pytest.raises(UserError, match="1 training examples are too few"):
        Sentences("tiny", where).spec()
    where = rated(tmp_path / "b", [("x", 1), ("z", -1)], [("y", 0)])
    with pytest.raises(
        UserError, match=r"tiny, split train: expected labels 0 ... 1; 1 are out of range, example \d has -1"
    ):
        Sentences("tiny", where).spec()
    where = rated(tmp_path / "c", [(b"x\xff", 1)] * 3, [("y", 0)])
    with pytest.raises(UserError, match=r"tiny, split train, example 0: not UTF-8 at byte 1 \(0xff\)"):
        Sentences("tiny", where).spec()
    where = built(tmp_path / "d", {"text": tfds.features.Text()}, {"train": [{"text": "x"}]})
    with pytest.raises(UserError, match=r"expected features text and label, and a split train; it has features text"):
        Sentences("tiny", where).spec()
    with pytest.raises(UserError, match=r"expected features en and de, and a split train; it has features text"):
        Pairs("tiny", where).spec()


def test_a_test_split_without_labels(tmp_path, capsys):
    """glue/sst2, whose names and labels are these."""
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(names=["negative", "positive"])
    features = {"sentence": tfds.features.Text(), "label": label, "idx": np.int32}
    example = lambda text, label: {"sentence": text, "label": label, "idx": 0}
    splits = {"train": [example(f"train {n}", n % 2) for n in range(20)], "test": [example("secret", -1)] * 3}
    validation = [example("known", 1)] * 4
    where = built(tmp_path / "a", features, splits | {"validation": validation}, "glue", "sst2")
    config = Sentences("glue/sst2", where, validation=0.25)
    found, feeds = config.load(), config.feeds(1)
    assert found.names == ("negative", "positive") and found.validation is None
    assert [text for text, _ in zip(*found.test, strict=True)] == ["known"] * 4 and found.test[1].tolist() == [1] * 4
    said = " ".join(capsys.readouterr().err.split())
    assert "data.name glue/sst2: its test split has no labels; its validation split is the test data" in said
    sizes = [len(feeds.train.buckets[0].index), len(unbatched(feeds.validation)), len(unbatched(feeds.test))]
    assert sizes == [15, 5, 4]
    where = built(tmp_path / "b", features, splits, "glue", "sst2")
    found = Sentences("glue/sst2", where).load()
    assert (len(found.train[0]), len(found.test[0])) == (16, 4) and not set(found.train[0]) & set(found.test[0])
    assert "a fifth of its training texts is the test data" in " ".join(capsys.readouterr().err.split())
    where = built(tmp_path / "c", features, {"train": splits["test"]}, "glue", "sst2")
    with pytest.raises(UserError, match="glue/sst2: its training texts have no labels"):
        Sentences("glue/sst2", where).spec()


def test_a_title_and_a_description(tmp_path):
    import tensorflow_datasets as tfds

    features = {name: tfds.features.Text() for name in ("title", "description", "body")}
    features |= {name: tfds.features.ClassLabel(names=["world", "sports"]) for name in ("label", "topic")}
    example = {"title": "A", "description": "b c", "body": "d", "label": 0, "topic": 1}
    where = built(tmp_path, features, {"train": [example] * 5, "test": [example] * 2})
    assert Sentences("tiny", where).load().test[0].tolist() == ["A\nb c"] * 2
    found = Sentences("tiny", where, text_features=("body", "title"), label_feature="topic").load()
    assert found.test[0].tolist() == ["d\nA"] * 2 and found.test[1].tolist() == [1, 1]
    config = Text("tiny", where, tokenizer="bpe", vocabulary=256, text_features=("body",), context=2, validation=0.4)
    assert config.spec().tokenizer.decode(config.feeds().train.tokens) == "d\x03d\x03d"
    with pytest.raises(
        UserError, match="expected features text and label, and a split train; it has features body, de"
    ):
        Sentences("tiny", where, text_features=("text",)).load()


def test_labelled_texts_of_a_folder(tmp_path):
    for name, count in (("train", 6), ("test", 2)):
        for label in ("pos", "neg", *(["unsup"] if name == "train" else [])):
            (tmp_path / name / label).mkdir(parents=True)
            for n in range(count):
                (tmp_path / name / label / f"{n}_7.txt").write_text(f"{label}<br />{name}{n}")
        (tmp_path / name / "urls_pos.txt").write_text("not this")
    found = Sentences(str(tmp_path)).load()
    assert found.names == ("neg", "pos") and found.validation is None
    for name, (lines, labels) in (("train", found.train), ("test", found.test)):
        expected = [(f"{label}\n{name}{n}", k) for k, label in enumerate(found.names) for n in range(len(lines) // 2)]
        assert sorted(zip(lines, labels, strict=True)) == expected and len(lines) == {"train": 12, "test": 4}[name]
    (tmp_path / "test/pos/0_7.txt").rename(tmp_path / "test/pos/0_7.TXT")
    assert len(Sentences(str(tmp_path)).load().test[0]) == 4
    few = Sentences(str(tmp_path), limit=5).load()
    np.testing.assert_array_equal(few.train[0], found.train[0][:5])
    assert set(few.train[1]) == {0, 1}, "the classes are mixed"
    (tmp_path / "val" / "other").mkdir(parents=True)
    with pytest.raises(UserError, match=r"val: no texts there; expected files CLASS/\*\.txt"):
        Sentences(str(tmp_path)).load()
    (tmp_path / "val" / "other" / "a.txt").write_text("a")
    with pytest.raises(UserError, match="split validation: labels that the training texts lack: other"):
        Sentences(str(tmp_path)).load()
    with pytest.raises(
        UserError, match=r"no labelled texts there; expected a folder with train/CLASS/\*\.txt, train\.tsv"
    ):
        Sentences(str(tmp_path / "test")).load()


def test_labelled_texts_of_tables(tmp_path):
    table = lambda name, *lines: (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    # Without a header, as the sentences of SST-2 are found; quotes are characters like any other.
    table("train.tsv", 'a "fine film\t10', "dull\t9", "", "good\t10")
    table("dev.tsv", "so so\t9")
    table("test.tsv", "great\t10")
    found = Sentences(str(tmp_path)).load()
    assert found.names == ("9", "10") and found.train[0].tolist() == ['a "fine film', "dull", "good"]
    assert [part[1].tolist() for part in found[1:]] == [[1, 0, 1], [0], [1]]
    table("validation.tsv", "the first of its names\t10")
    assert Sentences(str(tmp_path)).load().validation[0].tolist() == ["the first of its names"]
    (tmp_path / "validation.tsv").unlink()
    # With one, as GLUE's own files; its test file has no labels.
    table("train.tsv", "sentence\tlabel", "dull\t0", "good\t1")
    table("dev.tsv", "sentence\tlabel", "so so\t0")
    table("test.tsv", "index\tsentence", "0\tgreat")
    found = Sentences(str(tmp_path)).load()
    assert found.validation is None and [x.tolist() for x in found.test] == [["so so"], [0]]
    # In the test split a first row's label may be the only one.
    table("train.tsv", "dull\t0", "good\t1", "fine\t1", "bad\t0")
    table("test.tsv", "great\t1", "sad\t0", "slow\t0")
    (tmp_path / "dev.tsv").unlink()
    assert Sentences(str(tmp_path)).load().test[1].tolist() == [1, 0, 0]
    # One table; quoted; a byte order mark; other names.
    rows = [f'"say ""{n}"",\nplease",{n},x{n},{"yes" if n % 2 else "no"}' for n in range(10)]
    table("one.csv", "\ufeffwords,id,more,verdict", *rows)
    config = Sentences(str(tmp_path / "one.csv"), text_features=("words", "more"), label_feature="verdict")
    found = config.load()
    assert found.names == ("no", "yes") and [len(part[0]) for part in (found.train, found.test)] == [8, 2]
    texts = {f'say "{n}",\nplease\nx{n}': n % 2 for n in range(10)}
    assert dict(zip([*found.train[0], *found.test[0]], [*found.train[1], *found.test[1]], strict=True)) == texts
    assert len(dataclasses.replace(config, limit=5).load().train[0]) == 4
    (tmp_path / "one.csv").rename(tmp_path / "ONE.CSV")
    assert dataclasses.replace(config, name=str(tmp_path / "ONE.CSV")).load().names == ("no", "yes")
    table("long.csv", "text,label", *(f"{'word ' * 40_000},{n % 2}" for n in range(5)))
    assert len(Sentences(str(tmp_path / "long.csv")).load().train[0][0]) == 200_000
    for wrong in ('"a "b" c",1', '"never closed,1'):
        table("wrong.csv", "text,label", wrong)
        with pytest.raises(UserError, match=r"wrong\.csv, line 2: not comma-separated \(.*to be doubled"):
            Sentences(str(tmp_path / "wrong.csv")).load()
    equal_numbers = [f"{'0' * n}1" for n in range(8)]
    table("zeros.tsv", *(f"words\t{label}" for label in ("10", "x", *equal_numbers) * 9))
    found = Sentences(str(tmp_path / "zeros.tsv")).load()
    assert found.names == (*sorted(equal_numbers), "10", "x"), "the same order in every process"
    for lines, message in (
        (["a\tb\tc"], "expected columns text and label, named in the first row, which is a, b, c"),
        ([], "expected columns text and label, named in the first row, which is not there"),
        (["text\tlabel", "x\t1", "y"], "expected 2 columns in each row; 'y' has 1"),
        (["text\tlabel", "x\t1"], "1 training examples are too few to hold some out"),
        (["text\tkind", "x\t1", "z\t1"], "its training texts have no labels"),
        (
            ["a review\tverdict", "x\tgood", "y\tbad", "z\tgood"],
            "the first row looks like the names of the columns: say --data.text-features 'a review' "
            "--data.label-feature verdict; or if it is an example, put a row with the names text and label before it",
        ),
    ):
        table("wrong.tsv", *lines)
        with pytest.raises(UserError, match=message):
            Sentences(str(tmp_path / "wrong.tsv")).load()


def test_texts_that_inherit_are_limited_and_checked():
    class Odd(Sentences):
        def texts(self):
            part = lambda count: (np.array(["one two"] * count, object), np.arange(count) % self.seed)
            return sentences.Texts(("even", "odd"), part(20), part(9), part(8))

    config = Odd(seed=2, limit=5, lengths=(4,))
    feeds = config.feeds(1)
    assert len(feeds.train.buckets[0].index) == len(unbatched(feeds.validation)) == len(unbatched(feeds.test)) == 5
    with pytest.raises(UserError, match=r"split train: expected labels 0 ... 1; 6 are out of range, example 2 has 2"):
        Odd(seed=3).spec()

    class Echo(Pairs):
        def texts(self):
            part = lambda count: [["a b"] * count, ["a b"] * min(count, self.seed)]
            return pairs.Texts(part(20), part(9), part(8))

    feeds = Echo(seed=20, limit=5, vocabulary=270).feeds(1)
    assert len(feeds.train.buckets[0].index) == 5 and len(Echo(seed=20, limit=5, vocabulary=270).references()) == 5
    assert len(unbatched_pairs(feeds.validation)) == 5
    with pytest.raises(UserError, match="split train: expected as many of both, not 20 texts and 10 translations"):
        Echo(seed=10).spec()


def unbatched_pairs(batches):
    return [batch.index[n] for batch in batches for n in np.flatnonzero(batch.mask)]


def test_columns_of_an_empty_or_damaged_split():
    def builder(examples):
        info = SimpleNamespace(splits={"train": 0}, features={"text": 0})
        return SimpleNamespace(info=info, data_path="/there", as_data_source=lambda split: examples)

    class Damaged(list):
        def __getitems__(self, places):
            raise OSError("bit rot")

    with pytest.raises(UserError, match="tiny: its split train is empty"):
        columns(builder([]), "tiny", "train", ["text"])
    with pytest.raises(RunError, match=r"tiny, split train: can't read the data in /there \(bit rot\)"):
        columns(builder(Damaged([1])), "tiny", "train", ["text"])


def test_a_text_of_many_documents(tmp_path):
    where = rated(tmp_path, [("one", 0)] * 40, [("two", 1)] * 3)
    config = Text("tiny", where, tokenizer="bpe", vocabulary=258, context=4)
    spec, *parts = texts._tokens(config, where)
    train, validation, test = (spec.tokenizer.decode(part) for part in parts)
    assert train + validation == END.join(["one"] * 40) and test == END.join(["two"] * 3)
    assert len(validation) == round(159 * 0.05)


def written(folder, **files):
    for name, lines in files.items():
        (folder / name.replace("_", ".")).write_text("".join(f"{line}\n" for line in lines))
    return str(folder)


def test_pairs(tmp_path):
    english, german = ["a dog", "two dogs", "x" * 40, "a cat"], ["ein Hund", "zwei Hunde", "x", "eine süße Katze"]
    test = ["the dog", "y" * 30], ["der Hund", "z" * 30]
    where = written(tmp_path, train_en=english, train_de=german, test_en=test[0], test_de=test[1])
    config = Pairs(where, vocabulary=261, lengths=(10, 20), batch=2, evaluation_batch=2, test="test", validation=0.25)
    config = dataclasses.replace(config, seed=next(s for s in range(99) if split(4, 0.25, s)[1][0] == 0))
    spec, feeds = config.spec(), config.feeds(3)
    assert (spec.tokenizer.size, spec.length) == (261, 20)
    assert (config.sources(), config.references()) == test
    assert (config.sources("validation"), config.references("validation")) == (["a dog"], ["ein Hund"])
    encode = lambda text: spec.tokenizer.encode(text).tolist()
    tail = lambda row, length: row + [PAD] * (length - len(row))
    (batch,) = [b for b in feeds.test if b.inputs[0].shape == (2, 10)]
    np.testing.assert_array_equal(batch.inputs[0][0], tail([*encode("the dog"), EOS], 10))
    np.testing.assert_array_equal(batch.inputs[1][0], tail([BOS, *encode("der Hund")], 10))
    np.testing.assert_array_equal(batch.targets[0], tail([*encode("der Hund"), EOS], 10))
    assert batch.mask.tolist() == [1, 0] and batch.index[0] == 0
    (batch,) = [b for b in feeds.test if b.inputs[0].shape == (2, 20)]
    np.testing.assert_array_equal(batch.inputs[0][0], [*encode("y" * 19), EOS])
    np.testing.assert_array_equal(batch.inputs[1][0], [BOS, *encode("z" * 19)])
    np.testing.assert_array_equal(batch.targets[0], [*encode("z" * 19), EOS])
    assert batch.index[0] == 1
    assert [bucket.inputs[0].shape for bucket in feeds.train.buckets] == [(0, 10), (2, 20)][1:]
    decoded = {spec.tokenizer.decode(row) for bucket in feeds.train.buckets for row in bucket.targets}
    assert decoded == {"zwei Hunde", "eine süße Katze"}
    back = dataclasses.replace(config, source="de", target="en")
    assert (back.references(), back.sources()) == test
    # As Multi30k's own files are: packed, with a split val, and here and there a space at the end.
    for file in tmp_path.iterdir():
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes().replace(b"\n", b" \n")))
        file.unlink()
    written(tmp_path, val_en=["three dogs"], val_de=["drei Hunde"])
    packed = dataclasses.replace(config, seed=99).load()
    assert packed == ([english, german], [["three dogs"], ["drei Hunde"]], list(test))
    damaged = tmp_path / "train.de.gz"
    damaged.write_bytes(damaged.read_bytes()[:20])
    with pytest.raises(UserError, match=r"can't read .*train\.de \("):
        config.load()


def test_pairs_are_tested_on_the_test_split_that_there_is(tmp_path):
    numbers = [str(n) for n in range(20)]
    where = written(tmp_path, train_en=numbers, train_de=numbers)
    config = Pairs(where, vocabulary=261, lengths=(10,))
    rest, held_out = split_test(20)
    of = lambda places: [[str(n) for n in places]] * 2
    assert config.load() == (of(rest), None, of(held_out))
    assert config.sources() == of(held_out)[0] and not {*config.sources()} & {*config.sources("validation")}
    for language in ("en", "de"):
        (tmp_path / f"test_2016_flickr.{language}").write_text("of 2016\n")
    assert config.load() == (of(range(20)), None, [["of 2016"]] * 2)
    written(tmp_path, test_en=["the test"], test_de=["der Test"])
    assert config.load().test == [["the test"], ["der Test"]]
    assert dataclasses.replace(config, test="test_2016_flickr").load().test == [["of 2016"]] * 2
    written(tmp_path, train_en=["a"], train_de=["b"])
    for file in tmp_path.glob("test*"):
        file.unlink()
    with pytest.raises(UserError, match="1 training examples are too few to hold some out"):
        config.load()


def test_the_page_on_data_names_texts_by_paths(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text()
    names = re.findall(r"^\| .*`(?:stdlib|imdb|multi30k)_\w+ --data\.name (\S+?)[ `]", page, re.MULTILINE)
    assert len(names) == 3 and all(map(is_path, names))
    (tmp_path / "some.set").mkdir()
    with pytest.raises(UserError, match=r"no set folder.*for a text or a folder of texts, give its path \(\./folder\)"):
        Text("folder", str(tmp_path)).spec()


@have("multi30k")
def test_multi30k():
    config = Pairs(dir=os.environ["TFDS_DATA_DIR"])
    sources, references = config.sources(), config.references()
    assert len(sources) == len(references) == 1000
    place = sources.index("Two black dogs, a black puppy, and a white dog in the snow.")
    assert references[place] == "Zwei schwarze Hunde, ein schwarzer Welpe und ein weißer Hund im Schnee."
    spec, feeds = config.spec(), config.feeds(20)
    assert spec.tokenizer.size == 6000
    assert sum(len(bucket.index) for bucket in feeds.train.buckets) == 28_987, "13 of 29,000 are longer than 48 tokens"
    assert sum(batch.mask.sum() for batch in feeds.validation) == 1014
    met = set()
    for batch in feeds.test:
        for n in np.flatnonzero(batch.mask):
            i = int(batch.index[n])
            met.add(i)
            assert spec.tokenizer.decode(batch.targets[n]) == references[i]
            assert spec.tokenizer.decode(batch.inputs[0][n]) == sources[i]
    assert met == set(range(1000))


def test_pairs_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="both de"):
        Pairs(source="de")
    with pytest.raises(UserError, match=r"data\.lengths must increase"):
        Pairs(lengths=(4, 4))
    where = written(tmp_path, train_en=["a", "b"], train_de=["c"], test_en=["a"], test_de=[])
    with pytest.raises(UserError, match=r"the same number of sentences, one a line, not 2 in .*train\.en and 1 in"):
        Pairs(where).spec()
    written(tmp_path, train_de=["c", "d"])
    with pytest.raises(UserError, match=r"not 1 in .*test\.en and 0 in .*test\.de"):
        Pairs(where, test="test").spec()
    with pytest.raises(UserError, match=r"can't read .*test_2018_flickr\.en"):
        Pairs(where, test="test_2018_flickr").spec()
    written(tmp_path, test_de=["d"])
    with pytest.raises(UserError, match="no training pair is as short as 1 tokens"):
        Pairs(where, test="test", lengths=(1,)).spec()
    written(tmp_path, train_en=["a"], train_de=["c"])
    with pytest.raises(UserError, match="1 training examples are too few"):
        Pairs(where, test="test").spec()
