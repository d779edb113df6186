"""Completions of given prompts under any model on disk, sampled by the engine that trains.

    python -m thinkfirst.launch.generate --workdir=runs/demo --chat --prompt="Ann has 12 apples and eats 5. How many?"
    python -m thinkfirst.launch.generate --checkpoint=FOLDER --input=PROMPTS.jsonl --out=COMPLETIONS.jsonl

A row is {"prompt": text} (a <bos> is put before it; with --chat it is a user's turn), {"messages": [...]} or
{"tokens": [ids]}.  A row out is {"tokens", "text", "logprobs", "finish_reason"}: --num_samples of them for every row
in, in order.  Where finish_reason is "stop" the stop token is the last of `tokens`, and not in the text, nor is what
--stop_string asked to end at; log-probs, in nats, are those of the distribution that was sampled.  A completion depends
on the seed, its row's place and its number.  Without --out texts are printed as they end, a single one as it grows.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

import tqdm
from absl import flags

from thinkfirst.core import files
from thinkfirst.launch import opening, rows
from thinkfirst.rl import batch, generate, policy, stopping


def define_flags() -> flags.FlagValues:
    """The command line."""
    line = opening.define_flags()
    flags.DEFINE_string("input", "", "JSONL file of rows, or - for standard input", flag_values=line)
    flags.DEFINE_string("prompt", "", "one prompt, in place of --input", flag_values=line)
    flags.DEFINE_bool("chat", False, "prompts are a user's turn, not raw text", flag_values=line)  # noqa: FBT003
    flags.DEFINE_string("out", "", "JSONL file to write (default: the texts are printed)", flag_values=line)
    flags.DEFINE_float("temperature", 1.0, "0 takes the likeliest token", flag_values=line)
    flags.DEFINE_integer("top_k", 0, "0 keeps every token", flag_values=line)
    flags.DEFINE_float("top_p", 1.0, "1 keeps every token", flag_values=line)
    flags.DEFINE_float("min_p", 0.0, "drops tokens less than min_p times as likely as the likeliest", flag_values=line)
    flags.DEFINE_integer("num_samples", 1, "completions of each row", flag_values=line)
    flags.DEFINE_integer("max_new_tokens", 256, "length at which a completion is cut off", flag_values=line)
    flags.DEFINE_integer("seed", 0, "of the sampling", flag_values=line)
    flags.DEFINE_multi_string("stop_string", [], "text that ends a completion, and is cut off it", flag_values=line)
    flags.DEFINE_integer("lanes", 16, "completions that are decoded side by side", flag_values=line)
    return line


def main(argv: list[str]) -> int:
    """Exit status: 0 done, 2 for input that cannot be used."""
    return opening.main(argv, define_flags(), __doc__ or "", _generate)


def _generate(line: flags.FlagValues) -> None:
    if bool(line.input) == bool(line.prompt):
        raise ValueError("name one source of prompts: --input=FILE or --prompt=TEXT")
    for name, least in (("num_samples", 1), ("lanes", 1), ("max_new_tokens", 1), ("seed", 0)):
        if getattr(line, name) < least:
            raise ValueError(f"--{name}={getattr(line, name)} must be at least {least}")
    sampling = batch.Sampling.of(
        temperature=line.temperature,
        top_k=line.top_k,
        top_p=line.top_p,
        min_p=line.min_p,
        max_new_tokens=line.max_new_tokens,
    )
    asked = rows.read(line.input) if line.input else [files.JsonLine("--prompt", {"prompt": line.prompt})]
    subject = opening.open_policy(line)
    prompts = [_ids(row, subject, chat=line.chat, room=line.max_new_tokens) for row in asked]
    print(f"reads {line.input or '--prompt'} ({len(asked)} rows), writes {line.out or 'here'}", flush=True)
    subject = dataclasses.replace(subject, lanes=line.lanes)
    cut = None
    if line.stop_string:
        cut = stopping.at_strings(line.stop_string, lambda ids: subject.tokenizer.decode(ids)[0])
    generated = generate.generate(
        subject,
        prompts,
        sampling=sampling,
        num_samples=line.num_samples,
        seed=line.seed,
        cut=cut,
        growing=not line.out and len(asked) * line.num_samples == 1,
    )
    found, shown = {}, ""
    quiet = not (line.out and sys.stderr.isatty())
    for one in tqdm.tqdm(generated, total=len(asked) * line.num_samples, disable=quiet):
        row = _row(one, subject, line.stop_string)
        if one.finish_reason:
            found[one.place, one.sample] = row
        if not line.out:
            shown = _show(row, shown)
    written = [found[place] for place in sorted(found)]
    if line.out:
        files.write_text(pathlib.Path(line.out), files.json_lines(written))
    count = sum(len(row["tokens"]) for row in written)
    stopped = sum(row["finish_reason"] == "stop" for row in written)
    print(f"{len(written)} completions, {count} tokens, {stopped} ended by themselves")


def _show(row: dict, shown: str) -> str:
    """Prints what is new of a completion, and gives back what is on the screen of one that still grows."""
    text = row["text"] if row["text"] is not None else str(row["tokens"])
    if row["finish_reason"]:
        print(text.removeprefix(shown), flush=True)
        return ""
    whole = text.rstrip("\ufffd")  # half a character, which the next token may complete
    print(whole.removeprefix(shown), end="", flush=True)
    return whole


def _ids(row: rows.Row, subject: policy.Policy, *, chat: bool, room: int) -> list[int]:
    """The row's prompt."""
    kind = rows.kind(row, "tokens", "prompt", "messages")
    if kind == "tokens":
        ids = rows.tokens(row, subject)
    elif kind == "messages":
        ids = rows.conversation(row, subject)
    elif chat:
        ids = subject.tokenizer.prompt(rows.text(row, "prompt"), subject.instruction)
    else:
        ids = [subject.tokenizer.bos_id, *subject.tokenizer.encode(rows.text(row, "prompt"))]
    if not ids:
        raise ValueError(f"{row.place}: no tokens to go on from")
    rows.check_length(row, len(ids) + room, subject)
    return ids


def _row(completion: generate.Generated, subject: policy.Policy, stop_strings: Sequence[str]) -> dict:
    """A row out; without a tokenizer its text is null."""
    ends = completion.tokens[-1:] and completion.tokens[-1] in subject.stop_ids
    text = subject.words.decode(completion.tokens[: len(completion.tokens) - bool(ends)])[0] if subject.words else None
    if text is not None and (found := [text.find(stop) for stop in stop_strings if stop in text]):
        text = text[: min(found)]
    return {
        "tokens": completion.tokens,
        "text": text,
        "logprobs": completion.logprobs,
        "finish_reason": completion.finish_reason,
    }


def cli() -> None:
    """Console script."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    cli()
