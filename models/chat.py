"""Conversations as the published chat templates of Gemma 2 and Gemma 3 lay them out.

<bos>, then <start_of_turn>{user|model}\\n{content}<end_of_turn>\\n for each message, then, for a reply,
<start_of_turn>model\\n.  A conversation is parts, markers apart from text, so that what somebody typed can never become
a marker.

Both templates want user and model by turns, user first, and trim contents.  They differ in two things: Gemma 2 takes no
system message, where Gemma 3 puts its text, untrimmed, and an empty line before the first user's content; Gemma 2 takes
strings only, where Gemma 3 also takes lists of items.  Left out: images, as the models here read text.
"""

import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, Protocol, runtime_checkable

BOS, START_OF_TURN, END_OF_TURN = "<bos>", "<start_of_turn>", "<end_of_turn>"
GENERATIONS = (2, 3)
_ROLES = {"system": "system", "user": "user", "assistant": "model", "model": "model"}


class Part(NamedTuple):
    """A marker, which is one id, or a run of text, which never holds one."""

    text: str
    control: bool


@runtime_checkable
class Encoder(Protocol):
    """What turns parts into ids: `tokenizer.Tokenizer`, which itself is made of this module's markers."""

    def encode_parts(self, parts: Sequence[Part]) -> list[int]: ...


def render(messages: Any, generation: int, *, generation_prompt: bool = True) -> list[Part]:
    """The parts of a conversation; `messages` is a user's JSON, a list of {"role": ..., "content": ...}."""
    if generation not in GENERATIONS:
        raise ValueError(f"generation is {generation!r}: chat templates are known for Gemma {GENERATIONS}")
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(f"messages is {reprlib.repr(messages)}, not a list of one message or more")
    parts = [Part(BOS, control=True)]
    for role, content in _turns(messages, generation):
        parts += [_START, Part(f"{role}\n{content}", control=False), _END, Part("\n", control=False)]
    if generation_prompt:
        parts += [_START, Part("model\n", control=False)]
    return parts


def text(messages: Any, generation: int, *, generation_prompt: bool = True) -> str:
    """What the template renders, to be read: encoding this string would let typed markers through."""
    return "".join(part.text for part in render(messages, generation, generation_prompt=generation_prompt))


def encode(tokenizer: Encoder, messages: Any, *, generation: int, generation_prompt: bool = True) -> list[int]:
    """The ids of a conversation, <bos> included once."""
    return tokenizer.encode_parts(render(messages, generation, generation_prompt=generation_prompt))


_START, _END = Part(START_OF_TURN, control=True), Part(END_OF_TURN, control=True)


def _turns(messages: Sequence[Any], generation: int) -> list[tuple[str, str]]:
    """(user or model, content as rendered) of each turn."""
    turns: list[tuple[str, str]] = []
    prefix, first = "", 0
    for number, message in enumerate(messages):
        role, content = _role(number, message), message["content"]
        if role == "system":
            prefix, first = _system(number, content, generation), 1
            continue
        if role != ("user", "model")[(number - first) % 2]:
            _refuse(number, message["role"], "Conversation roles must alternate user/assistant/user/assistant/...")
        turns.append((role, prefix + _trimmed(number, content, generation)))
        prefix = ""
    return turns


def _role(number: int, message: Any) -> str:
    if not isinstance(message, dict):
        _refuse(number, message, "a message is an object with role and content")
    for key in ("role", "content"):
        if key not in message:
            _refuse(number, message, f"no key {key!r}")
    role = message["role"]
    if not isinstance(role, str) or role not in _ROLES:
        _refuse(number, role, f"a role is one of {', '.join(_ROLES)}")
    return _ROLES[role]


def _system(number: int, content: Any, generation: int) -> str:
    """What Gemma 3 puts before the first user's content: of a list of items the first alone, as its template does."""
    if generation == 2:
        _refuse(number, content, "System role not supported by Gemma 2")
    if number:
        _refuse(number, content, "only the first message may be the system's")
    texts = _texts(number, content)
    if not texts:
        _refuse(number, content, "no item of text")
    return texts[0] + "\n\n"


def _trimmed(number: int, content: Any, generation: int) -> str:
    if generation == 2 and not isinstance(content, str):
        _refuse(number, content, "the content for Gemma 2 is a string")
    return "".join(item.strip() for item in _texts(number, content))


def _texts(number: int, content: Any) -> list[str]:
    """The texts of a content: itself, or those of its items."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        _refuse(number, content, "a content is a string or a list of items")
    for item in content:
        if isinstance(item, dict) and item.get("type") in ("image", "image_url"):
            _refuse(number, item, "images are not supported: this is the text model")
        if not isinstance(item, dict) or item.get("type") != "text" or not isinstance(item.get("text"), str):
            _refuse(number, item, 'an item is {"type": "text", "text": ...}')
    return [item["text"] for item in content]


def _refuse(number: int, value: Any, reason: str) -> NoReturn:
    raise ValueError(f"messages[{number}]: {reason}, got {reprlib.repr(value)}")
