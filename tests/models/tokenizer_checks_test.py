"""A tokenizer that is no Gemma's, or not the checkpoint's, is refused by name before weights are read."""

import io

import pytest
import sentencepiece

from thinkfirst.models import tokenizer

TEXTS = ["How many apples are left?", "There are 12 apples and 30 pears.\nStep 1: 12 + 30 = 42", "user\nmodel\n"] * 20


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    file = tmp_path_factory.mktemp("pieces") / tokenizer.FILE_NAME
    tokenizer.train(TEXTS, file, vocab_size=320)
    return tokenizer.Tokenizer(file)


def test_an_embedding_of_another_size_is_refused(pieces):
    tokenizer.check_vocab(pieces, pieces.vocab_size)
    for size in (pieces.vocab_size - 1, pieces.vocab_size + 1):
        with pytest.raises(ValueError, match=f"{pieces.vocab_size} pieces, but .* {size} rows"):
            tokenizer.check_vocab(pieces, size)


def test_the_rows_that_gemma_3_pads_are_accepted(pieces, monkeypatch):
    with pytest.raises(ValueError, match="384 rows"):
        tokenizer.check_vocab(pieces, pieces.vocab_size + 64)
    monkeypatch.setattr(pieces, "vocab_size", 262_144)
    tokenizer.check_vocab(pieces, 262_144)
    tokenizer.check_vocab(pieces, 262_208)
    for size in (262_143, 262_145, 262_207, 262_272, 256_000):
        with pytest.raises(ValueError, match=f"262144 pieces, but .* {size} rows"):
            tokenizer.check_vocab(pieces, size)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"bos_id": 1}, r"tokenizer\.model: bos is 2, but the checkpoint's is 1"),
        ({"pad_id": 1}, "pad is 0, but the checkpoint's is 1"),
        ({"eos_ids": (7,)}, r"stops at \(1, 5\), but the checkpoint at \(7,\)"),
        ({"eos_ids": ()}, r"stops at \(1, 5\), but the checkpoint at \(\)"),
        ({"eos_ids": (1, 320)}, "320 pieces, but the checkpoint stops at 320"),
        ({"eos_ids": (1, -1)}, "320 pieces, but the checkpoint stops at -1"),
        ({"eos_ids": (1, 6)}, r"stops at \(1, 5\), but the checkpoint at 6, which is text here"),
    ],
)
def test_special_ids_of_another_tokenizer_are_refused(pieces, declared, message):
    assert pieces.encode("\n") == [6] and pieces.stop_ids == (1, 5)
    right = {"bos_id": 2, "eos_ids": (1, 5), "pad_id": 0}
    for eos_ids in ((1, 5), (1,), (5,), (5, 1)):
        tokenizer.check_special(pieces, **{**right, "eos_ids": eos_ids})
    with pytest.raises(ValueError, match=message):
        tokenizer.check_special(pieces, **{**right, **declared})


def test_a_folder_with_only_tokenizer_json_says_what_to_fetch(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json, which is not read: fetch tokenizer\.model"):
        tokenizer.Tokenizer(tmp_path)


def test_a_file_without_markers_or_special_pieces_is_refused(tmp_path):
    for name, options, message in (
        ("plain", {"bos_id": 2, "eos_id": 1, "pad_id": 0, "unk_id": 3}, "no piece <start_of_turn>"),
        ("padless", {"bos_id": 1, "eos_id": 2, "pad_id": -1, "unk_id": 0}, "no piece for one of pad, bos and eos"),
    ):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=40, minloglevel=2, **options
        )
        (tmp_path / name).write_bytes(model.getvalue())
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            tokenizer.Tokenizer(tmp_path / name)


def test_what_is_no_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"fetch tokenizer\.model"):
        tokenizer.Tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"missing\.model: no such"):
        tokenizer.Tokenizer(tmp_path / "missing.model")
    (tmp_path / tokenizer.FILE_NAME).write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        tokenizer.Tokenizer(tmp_path)
