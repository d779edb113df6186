"""The report of a run: nothing a model writes becomes markup, everything it wrote is there, bad input is named."""

import html.parser
import json
from pathlib import Path

import pytest

from thinkfirst.rl import report

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;"
WRITTEN = "\n<reasoning>\n  Step 1:\t2 < 3 & so on\n</reasoning>\n<answer>4</answer>\n"


class Page(html.parser.HTMLParser):
    """The tags, attributes and texts of a page, as a browser would find them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.pres: list[str] = []
        self.words: list[str] = []
        self.inside_pre = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "pre":
            self.inside_pre = True
            self.pres.append("")

    def handle_endtag(self, tag):
        self.inside_pre = self.inside_pre and tag != "pre"

    def handle_data(self, data):
        self.words.append(data)
        if self.inside_pre:
            self.pres[-1] += data


def results(**changes) -> dict:
    def evaluation(stage: str, accuracy: float, written: str, *, correct: bool) -> dict:
        sample = {"question": "2 + 2?", "answer": "4", "completion": written, "correct": correct, "difficulty": "easy"}
        return {
            "stage": stage, "problems": 200, "accuracy": accuracy, "accuracy_greedy": None, "accuracy_strict": accuracy,
            "accuracy_interval": [accuracy - 0.05, accuracy + 0.05], "format_rate": 1.0, "trace_score": 0.5,
            "mean_tokens": 31.25, "by_difficulty": {"hard": 0.0, "easy": accuracy}, "by_domain": {"math": accuracy},
            "samples": [sample],
        }  # fmt: skip

    return {
        "recipe": "demo", "seed": 0, "model": "tiny", "versions": {"jax": "0.10.2"}, "notes": ["Slips: 12 %."],
        "stages": [{"name": "sft", "kind": "sft", "steps": 2, "seconds": 3.0},
                   {"name": "grpo", "kind": "grpo", "steps": 3, "seconds": 70.4}],
        "evaluations": [evaluation("sft", 0.25, "7", correct=False),
                        evaluation("grpo", 0.75, WRITTEN, correct=True)],
    } | changes  # fmt: skip


def completion(step: int, problem: int, **changes) -> dict:
    return {
        "step": step, "stage": "grpo", "problem_id": f"p{problem}", "question": f"question {problem}", "answer": "4",
        "difficulty": "easy", "completion": f"step {step} problem {problem}", "reward": 0.5, "advantage": 1.0,
        "parts": {"trace": 0.25, "correctness": 1.0},
    } | changes  # fmt: skip


def make_run(workdir: Path, final: dict, completions: list[dict], kinds: str = "sft grpo") -> Path:
    rows = [{"step": 1, "stage": kind, "kind": kind, "stage_step": 1, "loss": 1.0} for kind in kinds.split()]
    (workdir / "final_results.json").write_text(json.dumps(final))
    for name, lines in (("metrics.jsonl", rows), ("completions.jsonl", completions)):
        (workdir / name).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return workdir


@pytest.fixture
def run(tmp_path) -> Path:
    completions = [completion(step, problem) for step in (3, 4, 5) for problem in range(5) for _ in range(2)]
    return make_run(tmp_path, results(), completions)


def evil(value: object) -> object:
    """`value` with every text in it, keys included, made hostile; the keys of the format itself stay."""
    if isinstance(value, dict):
        own = value.keys() & {"trace", "jax", "easy", "math"}
        return {key + EVIL if key in own else key: evil(item) for key, item in value.items()}
    if isinstance(value, list):
        return [evil(item) for item in value]
    return value + EVIL if isinstance(value, str) else value


def test_no_text_becomes_markup(tmp_path):
    make_run(tmp_path, evil(results()), [evil(completion(3, 0))])
    text = report.write(tmp_path).read_text()
    page = Page(text)
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert "script" not in page.tags and not any(name.startswith("on") for name, _ in page.attributes)
    assert page.tags.count("img") == 1 and len(sources) == 1 and sources[0].startswith("data:image/png;base64,")
    known = "alt charset class content http-equiv lang name scope src style tabindex"
    assert {name for name, _ in page.attributes} <= set(known.split())
    assert "default-src 'none'" in text and "//" not in text.replace(sources[0], "")
    shown = "".join(page.words)
    for name in ("demo", "tiny", "Slips: 12 %.", "2 + 2?", "trace", "jax", "0.10.2", "easy", "question 0"):
        assert name + EVIL in shown


def test_completions_stand_as_written_side_by_side(run):
    text = report.write(run).read_text()
    page = Page(text)
    assert page.pres[:2] == ["\n7", "\n" + WRITTEN], "a browser drops the first line end of a pre, and no other"
    block = text.split("The same questions")[1]
    assert block.index("wrong</span>") < block.index("correct</span>")
    assert "&lt;reasoning&gt;" in block


def test_training_samples_are_a_few_groups_of_the_first_and_last_step(run):
    written = Page(report.write(run).read_text()).pres[2:]
    assert written == [f"\nstep {step} problem {p}" for step in (3, 5) for p in range(3) for _ in range(2)]


def test_summary_line_and_interval(run):
    text = report.write(run).read_text()
    assert "Model tiny, seed 0, 1 min 13 s of wall time." in text
    assert "Accuracy on 200 held-out problems: 25.0% before, 75.0% after." in text
    assert "20.0% to 30.0%" in text and "math" not in text


def test_summary_table():
    assert report.summary_table(results()).splitlines() == [
        "stage  accuracy  greedy  strict  format  trace  tokens   easy  hard",
        "-----  --------  ------  ------  ------  -----  ------  -----  ----",
        "sft       25.0%       -   25.0%  100.0%   0.50    31.2  25.0%  0.0%",
        "grpo      75.0%       -   75.0%  100.0%   0.50    31.2  75.0%  0.0%",
    ]


def test_summary_table_without_evaluations():
    assert report.summary_table({}).splitlines()[0] == "stage  accuracy  greedy  strict  format  trace  tokens"


def test_several_domains_are_columns():
    rows = [{"stage": "base", "by_domain": {"math": 0.5, "code": 0.25}}]
    assert report.summary_table({"evaluations": rows}).splitlines()[2].split() == ["base", *"------", "50.0%", "25.0%"]


@pytest.mark.parametrize("name", ["final_results.json", "metrics.jsonl", "completions.jsonl"])
def test_a_missing_file_is_named_and_nothing_is_written(run, name):
    (run / name).unlink()
    with pytest.raises(ValueError, match=name):
        report.write(run)
    assert not (run / "report.html").exists() and not (run / "plots").exists()


def test_a_run_without_grpo_needs_no_completions(tmp_path):
    make_run(tmp_path, {"recipe": "sft_only"}, [], kinds="sft")
    (tmp_path / "completions.jsonl").unlink()
    assert "sft_only" in report.write(tmp_path).read_text()


@pytest.mark.parametrize("line", ["{oops", "[1]"])
def test_a_bad_line_is_named(run, line):
    (run / "metrics.jsonl").write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        report.write(run)


def test_a_line_cut_short_by_a_kill_is_left_out(run):
    with open(run / "completions.jsonl", "a") as file:
        file.write('{"step": 6, "comp')
    assert "step 5 problem 0" in report.write(run).read_text()


def test_odd_characters_survive(tmp_path):
    make_run(tmp_path, results(), [completion(3, 0, completion="a\u2028b \u00e9")])
    with open(tmp_path / "completions.jsonl", "a") as file:
        file.write('{"step": 3, "completion": "lone \\ud800 half"}\n')
    written = Page(report.write(tmp_path).read_text(encoding="utf-8")).pres
    assert written[2:] == ["\na\u2028b \u00e9", "\nlone ? half"]
