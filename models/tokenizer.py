"""SentencePiece and Gemma's special ids; text of a user never becomes one of them.

<bos>, <eos>, <pad> and <unk> are control pieces, which SentencePiece never finds in text.  The turn markers and what
else Gemma reserves are pieces "defined by the user", which it does find: those are cut here.  Html tags and runs of
spaces, tabs or newlines are such pieces too, and stay whole: they are how text is written.
"""

import hashlib
import io
import itertools
import pathlib
import re
from collections.abc import Iterable, Sequence

import sentencepiece

from thinkfirst.models import chat

FILE_NAME = "tokenizer.model"
_RESERVED = re.compile(
    r"<(?:(?:start|end)_of_[a-z_]+|image_soft_token|mask|2mass|unused[0-9]+)>|\[(?:@BOS@|multimodal|toxicity=0)\]"
)
# (pieces, rows): the embedding of Gemma 3 4B and larger has 64 rows that are no piece's.
_PADDED = {(262_144, 262_208)}


class Tokenizer:
    """A SentencePiece model and the ids a trainer needs of it."""

    def __init__(self, path: str | pathlib.Path) -> None:
        """Reads `path`, a .model file or a checkpoint folder that holds tokenizer.model."""
        path = pathlib.Path(path)
        file = path / FILE_NAME if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"{file}: no such tokenizer file{_hint(path)}")
        self.path = file
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{file}: not a SentencePiece model") from error
        self.vocab_size = self._pieces.vocab_size()
        self.pad_id, self.bos_id, self.eos_id = self._pieces.pad_id(), self._pieces.bos_id(), self._pieces.eos_id()
        if min(self.pad_id, self.bos_id, self.eos_id) < 0:
            raise ValueError(f"{file}: no piece for one of pad, bos and eos; this is not a Gemma tokenizer")
        self._controls = {name: self._special(name) for name in (chat.START_OF_TURN, chat.END_OF_TURN)}
        self._controls[chat.BOS] = self.bos_id
        self.stop_ids = (self.eos_id, self._controls[chat.END_OF_TURN])

    @property
    def digest(self) -> str:
        """sha256 of the model."""
        return hashlib.sha256(self._pieces.serialized_model_proto()).hexdigest()

    def _special(self, name: str) -> int:
        if not self._has(name):
            raise ValueError(f"{self.path}: no piece {name}; this is not a Gemma chat tokenizer")
        return self._pieces.piece_to_id(name)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; markers and reserved pieces typed inside it come out as ordinary characters.

        Decoded, they give `text` again, but for U+2581, which is how SentencePiece writes a space.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text holds {text[error.start]!r}, half of a surrogate pair") from error
        return [index for part in self._cut_inside_markers(text) for index in self._pieces.encode(part)]

    def encode_parts(self, parts: Sequence[chat.Part]) -> list[int]:
        """Ids of a conversation: one for each marker, those of plain text for the rest."""
        ids: list[int] = []
        for part in parts:
            ids += [self._controls[part.text]] if part.control else self.encode(part.text)
        return ids

    def prompt(self, question: str, instruction: str = "") -> list[int]:
        """Ids of a user's turn and the opening of the model's; `instruction` stands before the question."""
        text = f"{instruction}\n\n{question}" if instruction else question
        # Without a system message the turns of Gemma 2 and 3 are the same.
        return chat.encode(self, [{"role": "user", "content": text}], generation=2)

    def completion(self, text: str) -> list[int]:
        """Ids of a model's whole turn, the end-of-turn token included."""
        return [*self.encode(text), self._controls[chat.END_OF_TURN]]

    def decode(self, ids: Sequence[int]) -> tuple[str, tuple[tuple[int, int], ...]]:
        """The text of `ids` and the range of characters each id wrote.

        Each of the byte pieces that together make one character gets that character's range.  An id above the
        pieces, which a padded embedding has rows for, writes nothing.
        """
        if any(i < 0 for i in ids):
            raise ValueError(f"{min(ids)} is no token id: ids are not negative")
        known = [int(i) if i < self.vocab_size else self.pad_id for i in ids]
        proto = self._pieces.decode(known, return_type="proto")
        starts = itertools.accumulate((len(character.encode()) for character in proto.text), initial=0)
        character_at = {byte: place for place, byte in enumerate(starts)}
        spans = ((piece.id, character_at[piece.begin], character_at[piece.end]) for piece in proto.pieces)
        # SentencePiece gives a character to the last of its bytes, and (begin, begin) to the others.
        return proto.text, tuple((begin, max(end, begin + self._pieces.is_byte(i))) for i, begin, end in spans)

    def is_text(self, index: int) -> bool:
        """Whether plain text can hold this id."""
        return self.encode(self._pieces.id_to_piece(index)) == [index]

    def _cut_inside_markers(self, text: str) -> list[str]:
        """`text` in parts none of which holds a whole reserved piece."""
        cuts = [0]
        cuts += [found.start() + 1 for found in _RESERVED.finditer(text) if self._has(found.group())]
        return [text[start:end] for start, end in itertools.pairwise([*cuts, len(text)])]

    def _has(self, piece: str) -> bool:
        return self._pieces.piece_to_id(piece) != self._pieces.unk_id()


def check_vocab(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises when the tokenizer has ids that the embedding has no row for, or the embedding is for another one."""
    pieces = tokenizer.vocab_size
    if pieces != vocab_size and (pieces, vocab_size) not in _PADDED:
        raise ValueError(f"{tokenizer.path}: {pieces} pieces, but the model's embedding has {vocab_size} rows")


def check_special(tokenizer: Tokenizer, *, bos_id: int, eos_ids: tuple[int, ...], pad_id: int) -> None:
    """Raises when the special ids that a checkpoint declares are not the tokenizer's.

    `eos_ids` are those that end a completion: <eos> and, after tuning on chats, <end_of_turn> or another marker.
    """
    for name, ours, declared in (("bos", tokenizer.bos_id, bos_id), ("pad", tokenizer.pad_id, pad_id)):
        if ours != declared:
            raise ValueError(f"{tokenizer.path}: {name} is {ours}, but the checkpoint's is {declared}")
    if not set(tokenizer.stop_ids) & set(eos_ids):
        raise ValueError(f"{tokenizer.path}: stops at {tokenizer.stop_ids}, but the checkpoint at {eos_ids}")
    for index in eos_ids:
        if not 0 <= index < tokenizer.vocab_size:
            raise ValueError(f"{tokenizer.path}: {tokenizer.vocab_size} pieces, but the checkpoint stops at {index}")
        if tokenizer.is_text(index):
            raise ValueError(
                f"{tokenizer.path}: stops at {tokenizer.stop_ids}, but the checkpoint at {index}, which is text here"
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
        user_defined_symbols=[chat.START_OF_TURN, chat.END_OF_TURN, "\n"],
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


def _hint(path: pathlib.Path) -> str:
    if (path / "tokenizer.json").is_file():
        return " (it has tokenizer.json, which is not read: fetch tokenizer.model from where the checkpoint came)"
    return " (fetch tokenizer.model from where the checkpoint came)" if path.is_dir() else ""
