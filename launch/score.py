"""Per-token log-probs and entropies of given rows, in nats, under any model on disk.

    python -m thinkfirst.launch.score --checkpoint=FOLDER --input=ROWS.jsonl --out=SCORES.jsonl

A row is {"tokens": [ids]}, {"text": ...} (a <bos> is put before it) or {"messages": [...], "completion": ...} (the
end-of-turn token is put after it).  A row out is {"tokens", "logprobs", "entropies"}, in the order of the rows in:
logprobs[i] belongs to tokens[i], entropies[i] to the distribution it was taken from; both are null for the first.
"""

import pathlib
import sys

import tqdm
from absl import flags

from thinkfirst.core import files
from thinkfirst.launch import opening, rows
from thinkfirst.rl import policy, score


def define_flags() -> flags.FlagValues:
    """The command line."""
    line = opening.define_flags()
    flags.DEFINE_string("input", None, "JSONL file of rows, or - for standard input", flag_values=line, required=True)
    flags.DEFINE_string("out", None, "JSONL file to write", flag_values=line, required=True)
    return line


def main(argv: list[str]) -> int:
    """Exit status: 0 done, 2 for input that cannot be used."""
    return opening.main(argv, define_flags(), __doc__ or "", _score)


def _score(line: flags.FlagValues) -> None:
    asked = rows.read(line.input)
    subject = opening.open_policy(line)
    print(f"reads {line.input} ({len(asked)} rows), writes {line.out}", flush=True)
    ids = [_ids(row, subject) for row in asked]
    found: list[dict] = [{} for _ in asked]
    scored = score.score(subject.model, subject.params, subject.adapter, subject.mesh, ids)
    for place, scores in tqdm.tqdm(scored, total=len(ids), unit="row", disable=not sys.stderr.isatty()):
        found[place] = {"tokens": ids[place], **scores._asdict()}
    files.write_text(pathlib.Path(line.out), files.json_lines(found))
    total = sum(logp for row in found for logp in row["logprobs"][1:])
    count = sum(len(row["logprobs"][1:]) for row in found)
    print(f"{len(found)} rows, {count} tokens, mean log-prob {total / max(count, 1):.4f} nats")


def _ids(row: rows.Row, subject: policy.Policy) -> list[int]:
    """The row's tokens."""
    kind = rows.kind(row, "tokens", "text", "messages")
    if kind == "tokens":
        ids = rows.tokens(row, subject)
    elif kind == "text":
        ids = [subject.tokenizer.bos_id, *subject.tokenizer.encode(rows.text(row, "text"))]
    else:
        rows.kind(row, "completion")
        ids = rows.conversation(row, subject) + subject.tokenizer.completion(rows.text(row, "completion"))
    rows.check_length(row, len(ids), subject)
    return ids


def cli() -> None:
    """Console script."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    cli()
