"""`score` says of every row what transformers says, whichever way the row is written and the model is kept."""

import json
import math
import pathlib

import numpy as np
import pytest

import tolerance
from thinkfirst.launch import export, recipes, score
from thinkfirst.models import chat, tokenizer

pytestmark = pytest.mark.slow
GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture
def scored(tmp_path):
    """Rows through the program."""

    def run(rows, *arguments):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = [f"--input={tmp_path / 'rows.jsonl'}", f"--out={tmp_path / 'out.jsonl'}"]
        assert score.main(["score", *files, *arguments]) == 0
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    return run


@pytest.mark.long
@pytest.mark.parametrize("name", ["hf_gemma2", "hf_gemma3"])
def test_log_probs_are_those_of_transformers(name, scored, tmp_path):
    with np.load(GOLDEN / f"{name}.npz") as golden:
        rows = [row[:length].tolist() for row, length in zip(golden["tokens_BT"], golden["length_B"], strict=True)]
        expected = np.split(golden["next_logp_T"], np.cumsum([len(row) - 1 for row in rows])[:-1])
    asked = [{"tokens": row} for row in [[5], *rows, []]]
    found = scored(asked, f"--checkpoint={GOLDEN / name}")
    assert [row["tokens"] for row in found] == [row["tokens"] for row in asked], "rows come in their order"
    for row, logp in zip(found[1:-1], expected, strict=True):
        assert row["logprobs"][0] is None and row["entropies"][0] is None
        tolerance.assert_close(np.array(row["logprobs"][1:], np.float32), logp)
        assert all(0 <= entropy <= math.log(64) for entropy in row["entropies"][1:])
    assert (found[0]["logprobs"], found[-1]["logprobs"]) == ([None], [])
    assert (
        export.main(["export", f"--checkpoint={GOLDEN / name}", "--format=orbax", f"--out={tmp_path / 'orbax'}"]) == 0
    )
    assert scored(asked, f"--checkpoint={tmp_path / 'orbax'}", "--set", "mesh.tensor=2") != []
    again = scored(asked, f"--checkpoint={tmp_path / 'orbax'}")
    assert again == found, "the same numbers from the same weights in the other layout"


def test_bfloat16_is_near(scored):
    row = {"tokens": list(range(2, 40))}
    exact, rounded = (
        scored([row], f"--checkpoint={GOLDEN / 'hf_gemma3'}", *more)[0] for more in ([], ["--dtype=bfloat16"])
    )
    gap = np.abs(np.array(exact["logprobs"][1:]) - np.array(rounded["logprobs"][1:]))
    assert 0 < gap.max() < 1 and gap.mean() < 0.2  # logits spread over +-8 with eight bits of mantissa


def test_entropy_is_that_of_the_distribution(scored):
    folder = GOLDEN / "hf_gemma2"
    every = scored([{"tokens": [2, 9, token]} for token in range(64)], f"--checkpoint={folder}")
    logp = np.array([row["logprobs"][2] for row in every])
    tolerance.assert_close(np.exp(logp).sum().astype(np.float32), np.float32(1))
    tolerance.assert_close(np.float32(every[0]["entropies"][2]), np.float32(-(np.exp(logp) * logp).sum()))


def test_text_and_turns_are_rows_of_tokens(scored):
    words = tokenizer.Tokenizer(recipes.DEMO_BASE)
    messages = [{"role": "user", "content": "Ann has 12 apples."}]
    rows = [{"text": "12+3=15"}, {"messages": messages, "completion": "15"}]
    prompt = chat.encode(words, messages, generation=3)
    found = scored(rows, f"--checkpoint={recipes.DEMO_BASE}")
    assert found[0]["tokens"] == [words.bos_id, *words.encode("12+3=15")]
    assert found[1]["tokens"] == [*prompt, *words.completion("15")]
    assert found[1]["tokens"][-1] == words.stop_ids[1], "the end of the turn is scored"
    assert scored([{"tokens": row["tokens"]} for row in found], f"--checkpoint={recipes.DEMO_BASE}") == found
