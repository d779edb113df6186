"""Every reader on a tiny file of the published format, and what it says of a broken row."""

import json

import pytest

from thinkfirst.rl.data import mix

OPTIONS = ["one", "two", "three", "four"]
LISTED = "\nA) one\nB) two\nC) three\nD) four"
PARAGRAPHS = [["Rome", ["It is old.", " It is large."]], ["Oslo", ["It is cold."]], ["Lima", ["It is dry."]]]
FACTS = [["Lima", 0], ["Rome", 1]]
FOUND_IN = "Rome: It is old. It is large.\n\nLima: It is dry.\n\nWhich?"
LOGIQA = "\na\nC.\nQ?\nA.one\nB.two\nC.three\nD.four\n"
MBPP = {"task_id": 601, "text": "Add.", "test_list": ["assert f(1)==2\n", "assert f(2)==3"]}
SHOWN = "Add.\nIt is tested like this:\nassert f(1)==2"
COMPLETE = "Complete this Python function. Answer with the whole function and the imports it needs.\n\n"
PROMPT = 'import math\n\ndef f(x):\n    """Adds."""\n'
HUMANEVAL = {"prompt": PROMPT, "entry_point": "f", "test": "def check(candidate):\n    assert candidate(1) == 2\n"}
SVAMP = {"Body": "Ann has 2 pens", "Question": "How many?", "Equation": "( 2.0 - -1.0 )", "Answer": 3.0}
GSM8K = {"question": "Q?", "answer": "1+1=<<1+1=2>>2\n#### 2"}
JSONL = {"question": "Q?", "answer": "A"}


def arc(*labels):
    return [{"text": text, "label": label} for text, label in zip(OPTIONS, labels, strict=False)]


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


# kind, file name, content, and the domain, question, answer, difficulty and tests of its last problem
PUBLISHED = [
    ("gsm8k", "a.jsonl", lines(GSM8K), ("math", "Q?", "2", "easy", ())),
    ("svamp", "a.json", json.dumps([SVAMP]), ("math", "Ann has 2 pens, how many?", "3", "easy", ())),
    ("svamp", "b.csv", "Body,Question,Equation,Answer\nA.,Why?,1 + 1 - 3,0.5\n",
     ("math", "A. Why?", "0.5", "medium", ())),
    ("mbpp", "a.jsonl", lines(MBPP | {"test_setup_code": ""}),
     ("code", SHOWN, "", "medium", ("assert f(1)==2", "assert f(2)==3"))),
    ("mbpp", "b.jsonl", lines(MBPP | {"test_setup_code": "x = 1\r\ny = 2"}),
     ("code", SHOWN, "", "medium", ("x = 1\ny = 2", "assert f(1)==2", "assert f(2)==3"))),
    ("mbpp", "sanitized.json", json.dumps([{**MBPP, "prompt": "Add."} | {"test_imports": ["import math"]}]),
     ("code", SHOWN, "", "medium", ("import math", "assert f(1)==2", "assert f(2)==3"))),
    ("humaneval", "a.jsonl", lines(HUMANEVAL),
     ("code", COMPLETE + PROMPT, "", "medium",
      ("import math\ndef check(candidate):\n    assert candidate(1) == 2\n\ncheck(f)",))),
    ("mmlu", "college_physics_test.csv", "Q?,one,two,three,four,D\n", ("science", "Q?" + LISTED, "D", "hard", ())),
    ("mmlu", "marketing_dev.csv", 'question,choice0,choice1,choice2,choice3,answer\n"Q?",one,two,three,four,1\n',
     ("knowledge", "Q?" + LISTED, "B", "medium", ())),
    ("mmlu", "a.jsonl", lines({"question": "Q?", "choices": OPTIONS, "answer": 2, "subject": "elementary_mathematics"}),
     ("science", "Q?" + LISTED, "C", "easy", ())),
    ("arc", "ARC-Challenge-Test.jsonl", lines({"question": {"stem": "Q?", "choices": arc(*"1234")}, "answerKey": "3"}),
     ("science", "Q?" + LISTED, "C", "hard", ())),
    ("arc", "ARC-Easy-Dev.jsonl",
     lines({"question": "Q?", "choices": {"text": OPTIONS[:3], "label": ["A", "B", "C"]}, "answerKey": "A"}),
     ("science", "Q?\nA) one\nB) two\nC) three", "A", "easy", ())),
    ("reclor", "train.json",
     json.dumps([{"context": "C.", "question": "Q?", "answers": OPTIONS, "label": 3}], indent=1),
     ("logic", "C.\n\nQ?" + LISTED, "D", "medium", ())),
    ("logiqa", "Train.txt", LOGIQA * 2 + LOGIQA.replace("\na\n", "\nb\n"),
     ("logic", "C.\n\nQ?" + LISTED, "B", "medium", ())),
    ("logiqa", "train.txt", lines({"text": "C.", "question": "Q?", "options": OPTIONS, "answer": 0}),
     ("logic", "C.\n\nQ?" + LISTED, "A", "medium", ())),
    ("logiqa", "hub.jsonl", lines({"context": "C.", "query": "Q?", "options": OPTIONS, "correct_option": "2"}),
     ("logic", "C.\n\nQ?" + LISTED, "C", "medium", ())),
    ("hotpotqa", "a.json",
     json.dumps([{"question": "Which?", "answer": "Lima", "level": "hard", "context": PARAGRAPHS,
                  "supporting_facts": FACTS}]),
     ("span", FOUND_IN, "Lima", "hard", ())),
    ("hotpotqa", "hub.jsonl",
     lines({"question": "Which?", "answer": "yes", "level": "easy",
            "context": {"title": [p[0] for p in PARAGRAPHS], "sentences": [p[1] for p in PARAGRAPHS]},
            "supporting_facts": {"title": ["Lima", "Rome"], "sent_id": [0, 1]}}),
     ("span", FOUND_IN, "yes", "easy", ())),
    ("xsum", "a.jsonl", lines({"document": "Long.\nText.", "summary": "Short."}),
     ("summary", "Summarise this article in one sentence.\n\nLong.\nText.", "Short.", "medium", ())),
    ("samsum", "train.json", json.dumps([{"id": "1", "dialogue": "A: Hi\r\nB: Ho", "summary": "They greet."}]),
     ("dialogue", "Summarise this conversation in a few sentences.\n\nA: Hi\nB: Ho", "They greet.", "medium", ())),
    ("creative", "a.jsonl", lines({"prompt": "Write a poem."}), ("creative", "Write a poem.", "", "medium", ())),
    ("creative", "a.txt", "\nWrite an ode.\n", ("creative", "Write an ode.", "", "medium", ())),
    ("creative", "train.wp_source", "[ WP ] You wake . <newline> It rains .\n",
     ("creative", "Write a short story from this premise.\n\nYou wake .\nIt rains .", "", "medium", ())),
    ("replay", "a.jsonl", lines(JSONL | {"domain": "logic", "completion": "So A."}),
     ("logic", "Q?", "A", "medium", ())),
    ("jsonl", "a.jsonl", lines({"question": "Q?", "domain": "code", "tests": ["assert f()"], "difficulty": "hard"}),
     ("code", "Q?", "", "hard", ("assert f()",))),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "content", "expected"), PUBLISHED)
def test_published_formats(tmp_path, kind, name, content, expected):
    (tmp_path / name).write_text(content)
    problem = mix.READERS[kind](str(tmp_path / name))[-1].problem
    assert (problem.domain, problem.question, problem.answer, problem.difficulty, problem.tests) == expected
    assert bool(problem.choices) == ("\nA) " in problem.question)
    assert all(choice in problem.question for choice in problem.choices)


def test_every_kind_is_read_here():
    assert {kind for kind, *_ in PUBLISHED} == set(mix.READERS)


# kind, a sound row and a broken one, and what is said of the latter
BROKEN = [
    ("gsm8k", GSM8K, {"question": "Q?", "answer": "2"}, r"a\.jsonl:2: .*'#### number', got '2'"),
    ("gsm8k", GSM8K, {"question": 7, "answer": "#### 2"}, r"a\.jsonl:2: 'question' must be text, got 7"),
    ("svamp", SVAMP, SVAMP | {"Answer": "many"}, r"a\.jsonl:2: 'Answer' must be a number, got 'many'"),
    ("svamp", SVAMP, SVAMP | {"Answer": True}, r"a\.jsonl:2: 'Answer' must be a number, got True"),
    ("mbpp", MBPP | {"test_imports": []}, MBPP | {"test_imports": [], "test_list": ["f(1)"]},
     r"a\.jsonl:2: 'test_list' must hold assert statements, got \['f\(1\)'\]"),
    ("mbpp", MBPP | {"test_imports": []}, MBPP, r"a\.jsonl:2: needs a field 'test_imports' or"),
    ("humaneval", HUMANEVAL, HUMANEVAL | {"entry_point": "g"}, r"a\.jsonl:2: 'prompt' must define 'g'"),
    ("mmlu", {"question": "Q?", "choices": OPTIONS, "answer": 2, "type": "law"},
     {"question": "Q?", "choices": OPTIONS, "answer": 4, "type": "law"},
     r"a\.jsonl:2: 'answer' must be a number in 0\.\.3 or a letter in A\.\.D, got 4"),
    ("arc", {"question": {"stem": "Q?", "choices": arc(*"ABCD")}, "answerKey": "A"},
     {"question": {"stem": "Q?", "choices": arc(*"ABCD")}, "answerKey": "1"},
     r"a\.jsonl:2: 'answerKey' must be one of A, B, C, D, got '1'"),
    ("arc", {"question": {"stem": "Q?", "choices": arc(*"ABCD")}, "answerKey": "A"},
     {"question": "Q?", "choices": {"text": OPTIONS, "label": ["A"]}, "answerKey": "A"},
     r"a\.jsonl:2: 'choices' must have as many labels as texts"),
    ("reclor", {"context": "C.", "question": "Q?", "answers": OPTIONS, "label": 3},
     {"context": "C.", "question": "Q?", "answers": OPTIONS}, r"a\.jsonl:2: 'label' must be a number .*, got None"),
    ("logiqa", {"text": "C.", "question": "Q?", "options": OPTIONS, "answer": 0},
     {"text": "C.", "question": "Q?", "options": ["one", " "], "answer": 0}, r"a\.jsonl:2: .* none of them blank"),
    ("hotpotqa",
     {"question": "Q?", "answer": "x", "level": "easy", "context": PARAGRAPHS, "supporting_facts": FACTS},
     {"question": "Q?", "answer": "x", "level": "easy", "context": PARAGRAPHS, "supporting_facts": [["Paris", 0]]},
     r"a\.jsonl:2: 'supporting_facts' must name paragraphs of 'context', got \['Paris'\]"),
    ("xsum", {"document": "D", "summary": "S"}, {"document": " ", "summary": "S"},
     r"a\.jsonl:2: 'document' must be text, got ' '"),
    ("samsum", {"dialogue": "D", "summary": "S"}, {"dialogue": "D"}, r"a\.jsonl:2: 'summary' must be text"),
    ("creative", {"prompt": "P"}, {"text": "P"},
     r"a\.jsonl:2: needs a field 'prompt' or 'question', got \['text'\]"),
    ("replay", JSONL | {"domain": "math", "completion": "c"}, JSONL | {"domain": "math"},
     r"a\.jsonl:2: 'completion' must be text, got None"),
    ("jsonl", JSONL, JSONL | {"choices": ["x", "y"], "answer": "C"},
     r"a\.jsonl:2: 'answer' must be one of the choices .*, got 'C'"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "sound", "broken", "said"), BROKEN)
def test_broken_rows_are_named_with_their_value(tmp_path, kind, sound, broken, said):
    path = tmp_path / "a.jsonl"
    path.write_text(lines(sound))
    assert len(mix.READERS[kind](str(path))) == 1
    path.write_text(lines(sound, broken))
    with pytest.raises(ValueError, match=said):
        mix.READERS[kind](str(path))


def test_every_kind_is_broken_here():
    assert {kind for kind, *_ in BROKEN} == set(mix.READERS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LOGIQA + LOGIQA.replace("A.one\n", ""), r"T\.txt:10: a block has 7 lines, this one 6"),
        (LOGIQA + LOGIQA.replace("B.two", "two"), r"T\.txt:10: the options must begin with A\. to D\."),
        (LOGIQA.replace("\na\n", "\ne\n"), r"T\.txt:2: 'answer' must be a number in 0\.\.3 or a letter .*, got 'e'"),
    ],
)
def test_broken_blocks_of_logiqa(tmp_path, content, said):
    (tmp_path / "T.txt").write_text(content)
    with pytest.raises(ValueError, match=said):
        mix.READERS["logiqa"](str(tmp_path / "T.txt"))


def test_splits_of_mbpp(tmp_path):
    path = tmp_path / "mbpp.jsonl"
    path.write_text(lines(*(MBPP | {"test_imports": [], "task_id": task} for task in (1, 10, 11, 510, 511, 601, 974))))
    counts = {split: len(mix.READERS["mbpp"](f"{path}#{split}")) for split in ("prompt", "test", "validation", "train")}
    assert counts == {"prompt": 2, "test": 2, "validation": 1, "train": 2}
    with pytest.raises(ValueError, match="MBPP has the splits prompt, test, validation, train, not 'dev'"):
        mix.READERS["mbpp"](f"{path}#dev")


def test_a_file_without_a_subject_is_refused(tmp_path):
    (tmp_path / "questions.csv").write_text("Q?,one,two,three,four,D\n")
    with pytest.raises(ValueError, match=r"questions\.csv:1 \(row 0\): the file of a subject is named like"):
        mix.READERS["mmlu"](str(tmp_path / "questions.csv"))
