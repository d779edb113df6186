"""`generate` goes on as transformers does, and every log-prob it writes is the one `score` gives."""

import io
import json
import pathlib
import sys

import numpy as np
import pytest

import tolerance
from thinkfirst.launch import generate, recipes, score
from thinkfirst.models import tokenizer

pytestmark = pytest.mark.slow
GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture
def generated(tmp_path):
    """Rows through the program."""

    def run(rows, *arguments):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = [f"--input={tmp_path / 'rows.jsonl'}", f"--out={tmp_path / 'out.jsonl'}"]
        assert generate.main(["generate", *files, *arguments]) == 0
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    return run


@pytest.mark.long
@pytest.mark.parametrize("name", ["hf_gemma2", "hf_gemma3"])
def test_the_likeliest_tokens_are_those_of_transformers(name, generated):
    with np.load(GOLDEN / f"{name}.npz") as golden:
        lengths, greedy = golden["prompt_length_B"], golden["greedy_BT"].tolist()
        prompts = golden["tokens_BT"][: len(lengths)]
        rows = [{"tokens": row[:length].tolist()} for row, length in zip(prompts, lengths, strict=True)]
    room = f"--max_new_tokens={len(greedy[0])}"
    for found, expected in zip(
        generated(rows, f"--checkpoint={GOLDEN / name}", "--temperature=0", room), greedy, strict=True
    ):
        ends = [place for place, token in enumerate(expected) if token == 1]  # transformers was told not to stop at eos
        whole = expected[: ends[0] + 1] if ends else expected
        assert found["tokens"] == whole
        assert found["finish_reason"] == ("stop" if ends else "length") and found["text"] is None


def test_log_probs_are_those_of_score(generated, tmp_path):
    prompt, folder = [2, 9, 4], f"--checkpoint={GOLDEN / 'hf_gemma3'}"
    found = generated([{"tokens": prompt}], folder, "--num_samples=3", "--max_new_tokens=20")
    rows = "".join(json.dumps({"tokens": prompt + row["tokens"]}) + "\n" for row in found)
    (tmp_path / "whole.jsonl").write_text(rows)
    files = [f"--input={tmp_path / 'whole.jsonl'}", f"--out={tmp_path / 'scores.jsonl'}"]
    assert score.main(["score", folder, *files]) == 0
    for row, line in zip(found, (tmp_path / "scores.jsonl").read_text().splitlines(), strict=True):
        expected = json.loads(line)["logprobs"][len(prompt) :]
        tolerance.assert_close(np.array(row["logprobs"], np.float32), np.array(expected, np.float32))


def test_samples_do_not_depend_on_the_batch(generated):
    rows = [{"tokens": [2, *range(3, 3 + count)]} for count in (1, 5, 2, 30, 4)]
    how = [
        f"--checkpoint={GOLDEN / 'hf_gemma2'}",
        "--num_samples=2",
        "--max_new_tokens=6",
        "--top_k=9",
        "--min_p=0.001",
    ]
    together = generated(rows, *how, "--lanes=8")
    apart = generated(rows, *how, "--lanes=2")
    assert [row["tokens"] for row in together] == [row["tokens"] for row in apart]
    assert len(together) == 10 and len({str(row["tokens"]) for row in together}) > 5
    assert [row["tokens"] for row in generated(rows, *how, "--seed=1")] != [row["tokens"] for row in together]


def test_text_in_and_out(generated, capsys, monkeypatch):
    words = tokenizer.Tokenizer(recipes.DEMO_BASE)
    how = [f"--checkpoint={recipes.DEMO_BASE}", "--temperature=0", "--max_new_tokens=40"]
    question = "Ann has 12 apples and buys 3. How many apples does Ann have?"
    (turn,) = generated([{"messages": [{"role": "user", "content": question}]}], *how)
    (chat,) = generated([{"prompt": question}], *how, "--chat")
    (raw,) = generated([{"prompt": question}], *how)
    assert chat == turn != raw
    assert turn["finish_reason"] == "stop" and turn["tokens"][-1] in words.stop_ids
    assert turn["text"] == words.decode(turn["tokens"][:-1])[0]
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"prompt": question}) + "\n"))
    for source in (f"--prompt={question}", "--input=-"):
        capsys.readouterr()
        assert generate.main(["generate", *how, "--chat", source]) == 0
        assert turn["text"] in capsys.readouterr().out


def test_a_text_ends_before_the_string_it_was_to_stop_at(generated):
    how = [f"--checkpoint={recipes.DEMO_BASE}", "--temperature=0", "--max_new_tokens=40", "--chat"]
    rows = [{"prompt": "Ann has 12 apples and buys 3. How many apples does Ann have?"}] * 2
    whole = generated(rows, *how)[0]
    stop = whole["text"][8:11]
    for found in generated(rows, *how, f"--stop_string={stop}", "--stop_string=never"):
        assert found["text"] == whole["text"][: whole["text"].index(stop)]
        assert found["finish_reason"] == "stop" and len(found["tokens"]) < len(whole["tokens"])
        assert found["tokens"] == whole["tokens"][: len(found["tokens"])]


def test_a_single_text_grows_on_the_screen_and_is_there_once(capsys, monkeypatch):
    pieces = []
    monkeypatch.setattr(generate, "print", lambda *text, **how: pieces.append(text[0]), raising=False)
    how = [f"--checkpoint={recipes.DEMO_BASE}", "--temperature=0", "--max_new_tokens=40", "--chat"]
    question = "Ann has 12 apples and buys 3. How many apples does Ann have?"
    assert generate.main(["generate", *how, f"--prompt={question}"]) == 0
    told = pieces[1:-1]  # what is read and the summary are around it
    assert len(told) > 1 and "".join(told).count("The answer is") == 1
