"""The report of a run: before and after, the curves, and what the model wrote, as one HTML file and a console table.

`report.html` stands alone: styles and picture are inside, nothing is fetched, and its content policy forbids scripts.
All text that came from a model, a data set or a configuration passes `_text`.
"""

import base64
import html
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from thinkfirst.rl import plots

Row = Mapping[str, Any]

_SHARES = {"accuracy": "accuracy", "accuracy_greedy": "greedy", "accuracy_strict": "strict", "format_rate": "format"}
_SHARES |= {"rubric": "rubric"}
_DIFFICULTIES, _NUM_GROUPS = ("easy", "medium", "hard"), 3


def write(workdir: str | Path) -> Path:
    """Writes `report.html`, and the picture of the curves it holds, from the files of a run's working directory."""
    workdir = Path(workdir)
    results = _parse(_read(workdir / "final_results.json"), str(workdir / "final_results.json"))
    metrics = list(_read_lines(workdir / "metrics.jsonl"))
    has_samples = any(row.get("kind") == "grpo" for row in metrics)
    completions = _first_and_last(_read_lines(workdir / "completions.jsonl")) if has_samples else {}
    picture = workdir / "plots" / "learning_curves.png"
    plots.learning_curves(metrics, _list(results, "evaluations"), picture)
    partial = workdir / "report.html.partial"
    partial.write_bytes(render(results, completions, picture.read_bytes()).encode("utf-8", errors="replace"))
    os.replace(partial, workdir / "report.html")
    return workdir / "report.html"


def summary_table(results: Row) -> str:
    """Stages x metrics as plain text: what held before and after each stage."""
    head, rows = _table_of(_list(results, "evaluations"))
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    padded = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def render(results: Row, completions: Mapping[int, Sequence[Row]], picture: bytes) -> str:
    """The page.  `completions` holds the rows of `completions.jsonl` of the steps to show, `picture` is a PNG."""
    evaluations = _list(results, "evaluations")
    notes = "".join(f"<p>{_text(note)}</p>" for note in _list(results, "notes"))
    curves = f'<img alt="Learning curves" src="data:image/png;base64,{base64.b64encode(picture).decode("ascii")}">'
    stages = [(x.get("name"), x.get("kind"), x.get("steps"), _duration([x])) for x in _list(results, "stages")]
    table = _table(*_table_of(evaluations), extras=map(_accuracy_bar, evaluations))
    gates = itertools.chain.from_iterable(map(_gate, _list(results, "gates")))
    failed = [(row.get("stage"), *map(_number, (row.get("failures") or {}).values())) for row in evaluations]
    kinds = next((tuple(row["failures"]) for row in evaluations if row.get("failures")), ())
    sections = {
        "Before and after": table and table + _WORDS,
        "Gates": _table(_GATE_COLUMNS, gates),
        "Why completions failed": _table(("stage", *kinds), failed) if kinds else "",
        "Learning curves": f'<div class="wide curves">{curves}</div>',
        "The same questions, stage by stage": _side_by_side(evaluations),
        "The built-in questions": _side_by_side(
            [{"stage": row.get("stage"), "samples": (row.get("suite") or {}).get("samples")} for row in evaluations]
        ),
        "What training saw": _training_samples(completions),
        "Stages": _table(("stage", "kind", "steps", "time"), stages),
        "Versions": _table(("package", "version"), dict(results.get("versions") or {}).items()),
    }
    title, summary = _text(results.get("recipe") or "run"), _text(_summary(results))
    body = "".join(f"<section><h2>{name}</h2>{content}</section>\n" for name, content in sections.items() if content)
    return _PAGE.format(title=title, style=_STYLE, summary=summary, notes=notes, body=body)


def _summary(results: Row) -> str:
    """One line: what was trained, for how long, and what came of it."""
    evaluations = _list(results, "evaluations")
    wall = _duration(_list(results, "stages"))
    line = f"Model {results.get('model')}, seed {results.get('seed')}, {wall} of wall time."
    if len(evaluations) > 1:
        before, after = (_number(row.get("accuracy")) for row in (evaluations[0], evaluations[-1]))
        line += f" Accuracy on {evaluations[-1].get('problems')} held-out problems: {before} before, {after} after."
    return line


def _table_of(evaluations: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the before/after table; difficulties, and domains if there are several, are columns."""
    hard = dict.fromkeys(name for row in evaluations for name in row.get("by_difficulty") or {})
    domains = dict.fromkeys(name for row in evaluations for name in row.get("by_domain") or {})
    columns = [("by_difficulty", name) for name in sorted(hard, key=lambda name: (*_DIFFICULTIES, name).index(name))]
    columns += [("by_domain", name) for name in domains if len(domains) > 1]
    shares = {key: name for key, name in _SHARES.items() if key != "rubric" or any(row.get(key) for row in evaluations)}
    most = [max(map(int, row.get("pass_at") or {"1": 0})) for row in evaluations]
    columns = [(field, str(k)) for k in sorted(set(most) - {1}) for field in ("pass_at", "maj_at")] + columns
    named = [f"{field.removesuffix('_at')}@{name}" if field.endswith("_at") else name for field, name in columns]
    head = ["stage", *shares.values(), "trace", "tokens", *named]
    rows = []
    for row in evaluations:
        groups = [_number((row.get(field) or {}).get(name)) for field, name in columns]
        trace, tokens = _number(row.get("trace_score"), ".2f"), _number(row.get("mean_tokens"), ".1f")
        rows.append([str(row.get("stage", "")), *(_number(row.get(key)) for key in shares), trace, tokens, *groups])
    return head, rows


_GATE_COLUMNS = ("gate", "verdict", "compares", "before", "after", "difference (95 %)", "chance of it", "problems")


def _gate(row: Row) -> Iterator[tuple[str, ...]]:
    """The cells of a gate's lines, one for each metric."""
    verdict = "kept" if row.get("kept") else "given up"
    metrics: Row = row.get("metrics") or {}
    for metric, found in metrics.items():
        spread = " to ".join(_number(value, "+.3f") for value in _list(found, "difference_interval"))
        yield (
            str(row.get("name")),
            verdict,
            f"{metric} of {row.get('before')} and {row.get('after')}",
            _number(found.get("mean_before"), ".3f"),
            _number(found.get("mean_after"), ".3f"),
            f"{_number(found.get('difference'), '+.3f')} ({spread})",
            _number(found.get("p_worse"), ".3f"),
            str(found.get("problems")),
        )


def _accuracy_bar(row: Row) -> str:
    width = 100 * min(max(_value(row.get("accuracy")) or 0.0, 0.0), 1.0)
    interval = " to ".join(map(_number, _list(row, "accuracy_interval")))
    return f'<span class=bar><i style="width:{width:.1f}%"></i></span><small>{interval}</small>'


def _side_by_side(evaluations: Sequence[Row]) -> str:
    """A block per held-out question, in it a card per stage."""
    by_stage = [(row.get("stage"), {_question(x): x for x in _list(row, "samples")}) for row in evaluations]
    blocks = []
    for question in dict.fromkeys(itertools.chain(*(samples for _, samples in by_stage))):
        found = [(stage, samples[question]) for stage, samples in by_stage if question in samples]
        cards = [_card(f"<h4>{_text(stage)} {_mark(row)}</h4>", row) for stage, row in found]
        blocks.append(_block(question, cards))
    return "".join(blocks)


def _mark(row: Row) -> str:
    """Right, wrong, or how far right a text without a single answer is; markup."""
    score = _value(row.get("score"))
    return f"<small>{score:.2f}</small>" if score and score < 1 else _MARKS[bool(row.get("correct"))]


def _training_samples(completions: Mapping[int, Sequence[Row]]) -> str:
    """The first groups of each step given, with what each part of the reward said."""
    blocks = []
    for step, rows in completions.items():
        blocks.append(f"<h3>GRPO samples at step {step} of the run</h3>")
        groups: dict[str, list[Row]] = {}
        for row in rows:
            groups.setdefault(str(row.get("problem_id")), []).append(row)
        for group in itertools.islice(groups.values(), _NUM_GROUPS):
            blocks.append(_block(_question(group[0]), [_card(_scores(row), row) for row in group]))
    return "".join(blocks)


def _scores(row: Row) -> str:
    parts = dict(row.get("parts") or {}).items()
    chips = "".join(f"<span>{_text(name)} <b>{_number(score, '.2f')}</b></span>" for name, score in parts)
    total = f"reward {_number(row.get('reward'), '.2f')}, advantage {_number(row.get('advantage'), '+.2f')}"
    return f"<h4>{total}</h4><p class=chips>{chips}</p>"


def _question(row: Row) -> tuple[str, str, str]:
    return str(row.get("question") or ""), str(row.get("answer") or ""), str(row.get("difficulty") or "")


def _block(question: tuple[str, str, str], cards: Sequence[str]) -> str:
    asked, answer, difficulty = map(_text, question)
    about = ", ".join(f"{name} <b>{text}</b>" for name, text in (("answer", answer), ("level", difficulty)) if text)
    head = f"<p class=asked>{asked}</p><p class=quiet>{about}</p>"
    return f"<div class=block>{head}<div class=cards>{''.join(cards)}</div></div>"


def _card(head: str, row: Row) -> str:
    """What the model wrote, white space kept and tags shown; `head` is markup already."""
    written = re.sub(r"&lt;/?[a-z_]+&gt;", r"<i>\g<0></i>", _text(row.get("completion") or "")) or "<i>(nothing)</i>"
    return f"<article>{head}<pre tabindex=0>\n{written}</pre></article>"


def _table(head: Sequence[str], rows: Iterable[Iterable[object]], extras: Iterable[str] = ()) -> str:
    """A table of plain cells, or nothing without rows; `extras` is markup to add to the second cell of each row."""
    lines = []
    for (name, value, *others), extra in zip(rows, itertools.chain(extras, itertools.repeat("")), strict=False):
        cells = "".join(f"<td>{_text(cell)}</td>" for cell in others)
        lines.append(f"<tr><th scope=row>{_text(name)}</th><td>{_text(value)}{extra}</td>{cells}</tr>")
    names = "".join(f"<th scope=col>{_text(name)}</th>" for name in head)
    return f"<div class=wide><table><tr>{names}</tr>{''.join(lines)}</table></div>" if lines else ""


def _text(value: object) -> str:
    """`value` as text that HTML cannot take for markup, inside an element or a quoted attribute."""
    return html.escape(str(value), quote=True)


def _value(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _number(value: object, form: str = ".1%") -> str:
    return "-" if _value(value) is None else format(value, form)


def _duration(stages: Iterable[Row]) -> str:
    whole = round(sum(_value(stage.get("seconds")) or 0 for stage in stages))
    hours, minutes, seconds = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _list(row: Row, key: str) -> list[Any]:
    return list(row.get(key) or ())


def _first_and_last(rows: Iterable[Row]) -> dict[int, list[Row]]:
    """The rows of the first and of the last step by step; no others are kept while reading."""
    by_step: dict[int, list[Row]] = {}
    for row in rows:
        by_step.setdefault(int(row.get("step") or 0), []).append(row)
        if len(by_step) > 2:
            del by_step[sorted(by_step)[1]]
    return dict(sorted(by_step.items()))


def _read_lines(path: Path) -> Iterable[Row]:
    """The objects of a JSONL file; a last line without its line end, cut short by a kill, is left out."""
    *lines, _ = _read(path).split("\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _parse(line, f"{path}, line {number}")


def _read(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path} is missing: a report needs the working directory of a finished run")
    return path.read_text(encoding="utf-8", errors="replace")


def _parse(text: str, place: str) -> Row:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected a JSON object, found {text[:60]!r}")
    return value


_MARKS = ("<span class=wrong>&#10007; wrong</span>", "<span class=right>&#10003; correct</span>")
_WORDS = """<p class=quiet>On held-out problems; small figures are the 95&nbsp;% interval. Greedy: at temperature 0.
Strict: only answers in the form asked for count. Trace: mean score of the reasoning, 0 to 1. Tokens: mean length."""
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}: thinkfirst report</title><style>{style}</style>
<header><h1>{title}</h1><p>{summary}</p></header><aside>{notes}</aside>
{body}</html>
"""
_STYLE = """
:root{color-scheme:light dark;--ink:#1b2430;--quiet:#5b6775;--page:#fbfaf7;--card:#fff;--line:#dfe3e8;--tint:#e9f1f8;
--accent:#0067a3;--right:#00704f;--wrong:#b34700}@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--quiet:#9aa6b4;
--page:#14181d;--card:#1c2229;--line:#333c46;--tint:#1f2c38;--accent:#6cb8ec;--right:#4cc79b;--wrong:#f39a57}}
*{box-sizing:border-box}p{margin:.3rem 0}img{display:block;width:100%;min-width:900px}header p{font-size:1.08rem}
body{margin:0 auto;padding:2rem 1.2rem 4rem;max-width:1240px;color:var(--ink);background:var(--page)}
body{font:16px/1.5 system-ui,sans-serif}h1{margin:0;overflow-wrap:anywhere}h2{margin:2.6rem 0 .8rem}
h3{margin:1.6rem 0 .6rem}h4{margin:0 0 .4rem;font-size:.9rem;display:flex;justify-content:space-between;gap:.6rem}
.quiet,small{color:var(--quiet);font-size:.85rem}small{display:block}small,.chips{font-size:.75rem}
aside{margin:1.2rem 0;padding:.6rem 1rem;border-left:4px solid var(--accent);background:var(--tint);border-radius:4px}
aside:empty{display:none}.wide{overflow-x:auto}
.curves{background:#fff;border:1px solid var(--line);border-radius:8px;padding:.6rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}[scope=col]{color:var(--quiet);font-size:.85rem}
th,td{padding:.45rem .8rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top;white-space:nowrap}
th:first-child{text-align:left}.bar,.bar i{display:block;height:5px;border-radius:3px}
.bar{width:110px;margin:.25rem 0 .2rem auto;background:var(--line)}.bar i{background:var(--accent)}
.block{margin:0 0 1.6rem}.asked{font-weight:600;white-space:pre-wrap;overflow-wrap:anywhere}
.cards{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,270px),1fr));margin-top:.5rem}
article{min-width:0;padding:.7rem .8rem;border:1px solid var(--line);border-radius:8px;background:var(--card)}
pre{margin:0;max-height:24rem;overflow:auto;white-space:pre-wrap;overflow-wrap:anywhere;font:.82rem/1.5 monospace}
pre i{color:var(--accent);font-style:normal}.right{color:var(--right)}.wrong{color:var(--wrong)}
.chips span{display:inline-block;margin:0 .3rem .3rem 0;padding:0 .45rem;border-radius:9px;background:var(--tint)}
"""
