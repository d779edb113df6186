"""SentencePiece with Gemma's chat turns; text of a user never becomes a control token.

A rendered prompt is <bos><start_of_turn>user\\n{text}<end_of_turn>\\n<start_of_turn>model\\n, in Gemma 2 and 3 alike.
"""

import io
import itertools
import pathlib
from collections.abc import Iterable, Sequence

import sentencepiece

START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"
FILE_NAME = "tokenizer.model"


class Tokenizer:
    """A SentencePiece model and the ids a trainer needs of it."""

    def __init__(self, path: str | pathlib.Path) -> None:
        """Reads `path`, a .model file or a checkpoint folder that holds tokenizer.model."""
        path = pathlib.Path(path)
        file = path / FILE_NAME if path.is_dir() else path
        if not file.is_file():
            hint = " (tokenizer.json alone is not enough: fetch tokenizer.model)" if path.is_dir() else ""
            raise ValueError(f"{file}: no such tokenizer file{hint}")
        self.path = file
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{file}: not a SentencePiece model") from error
        self.vocab_size = self._pieces.vocab_size()
        self.pad_id, self.bos_id, self.eos_id = self._pieces.pad_id(), self._pieces.bos_id(), self._pieces.eos_id()
        self._start, self._end = (self._special(name) for name in (START_OF_TURN, END_OF_TURN))
        self.stop_ids = (self.eos_id, self._end)

    def _special(self, name: str) -> int:
        index = self._pieces.piece_to_id(name)
        if index == self._pieces.unk_id():
            raise ValueError(f"{self.path}: no piece {name}; this is not a Gemma chat tokenizer")
        return index

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; turn markers typed inside it come out as ordinary characters."""
        ids: list[int] = []
        for part in _cut_inside_markers(text):
            ids += self._pieces.encode(part)
        return ids

    def prompt(self, question: str, instruction: str = "") -> list[int]:
        """Ids of a user's turn and the opening of the model's; `instruction` stands before the question."""
        text = f"{instruction}\n\n{question}" if instruction else question
        body = self.encode(f"user\n{text.strip()}")
        tail = self.encode("\n")
        return [self.bos_id, self._start, *body, self._end, *tail, self._start, *self.encode("model\n")]

    def completion(self, text: str) -> list[int]:
        """Ids of a model's whole turn, the end-of-turn token included."""
        return [*self.encode(text), self._end]

    def decode(self, ids: Sequence[int]) -> tuple[str, tuple[tuple[int, int], ...]]:
        """The text of `ids` and the range of characters each id wrote.

        Each of the byte pieces that together make one character gets that character's range.
        """
        proto = self._pieces.decode([int(i) for i in ids], return_type="proto")
        starts = itertools.accumulate((len(character.encode()) for character in proto.text), initial=0)
        character_at = {byte: place for place, byte in enumerate(starts)}
        spans = ((piece.id, character_at[piece.begin], character_at[piece.end]) for piece in proto.pieces)
        # SentencePiece gives a character to the last of its bytes, and (begin, begin) to the others.
        return proto.text, tuple((begin, max(end, begin + self._pieces.is_byte(i))) for i, begin, end in spans)


def check_vocab(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises when the tokenizer has ids that the embedding has no row for, or the embedding is for another one."""
    if tokenizer.vocab_size != vocab_size:
        raise ValueError(
            f"{tokenizer.path}: {tokenizer.vocab_size} pieces, but the model's embedding has {vocab_size} rows"
        )


def train(texts: Iterable[str], file: str | pathlib.Path, *, vocab_size: int) -> None:
    """Writes a small SentencePiece model laid out as Gemma's: pad 0, eos 1, bos 2, unk 3, digits apart, bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=[START_OF_TURN, END_OF_TURN, "\n"],
        split_digits=True,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    pathlib.Path(file).write_bytes(model.getvalue())


def _cut_inside_markers(text: str) -> list[str]:
    """`text` in parts none of which holds a whole turn marker."""
    parts = [text]
    for marker in (START_OF_TURN, END_OF_TURN):
        cut: list[str] = []
        for part in parts:
            first, *others = part.split(marker)
            for other in others:
                cut.append(first + marker[0])
                first = marker[1:] + other
            cut.append(first)
        parts = cut
    return parts
