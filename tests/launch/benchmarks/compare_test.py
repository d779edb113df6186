"""Two files of figures side by side: what belongs together, what is worse, and what is no file of figures."""

import json

import pytest

from thinkfirst.launch import bench
from thinkfirst.launch.benchmarks import compare, updates

OLD = {
    "suite": "learner",
    "case": "update",
    "seconds": {"ours": 2.0, "logits written out": 3.0},
    "temp_bytes": {"ours": 100, "logits written out": 900},
    "roofline": None,
    "date": "2026-11-30",
    "device": "cpu",
    "versions": {"jax": "0.10.2"},
}
NEW = {**OLD, "seconds": {"ours": 2.5, "logits written out": 9.0}, "versions": {"jax": "0.11.0"}, "date": "2026-12-01"}


def test_every_number_is_shown_with_how_many_times_the_old_it_is():
    said, bad = compare.lines([OLD], [NEW])
    assert not bad
    text = "\n".join(said)
    assert "date: 2026-11-30 -> 2026-12-01" in text
    assert "jax: 0.10.2 -> 0.11.0" in text
    assert "device" not in text  # the same
    assert [line.split() for line in said if "seconds, ours" in line] == [
        ["learner", "update", "seconds,", "ours", "2", "->", "2.5", "x", "1.250"]
    ]
    assert "roofline" not in text  # nobody knows it


@pytest.mark.parametrize(("most", "bad"), [(0.0, False), (1.3, False), (1.2, True)])
def test_only_what_is_ours_and_too_much_worse_is_bad(most, bad):
    """The peer's side is three times slower, and that is no fault of ours."""
    said, found = compare.lines([OLD], [NEW], most=most)
    assert found == bad
    assert [line for line in said if "WORSE" in line] == [line for line in said if bad and "seconds, ours" in line]


@pytest.mark.parametrize(
    ("name", "old", "new", "times"),
    [
        ("seconds, ours", 2.0, 3.0, 1.5),
        ("cycles", 200.0, 100.0, 0.5),
        ("ours", 300.0, 100.0, 3.0),  # tokens per second
        ("accuracy, ours", 0.9, 0.6, 1.5),
        ("seconds, peer", 1.0, 9.0, None),
        ("peer", 9.0, 1.0, None),
        ("ratio", 9.0, 1.0, None),
        ("seconds, ours", 0.0, 1.0, None),
    ],
)
def test_worse_is_slower_larger_or_less_right(name, old, new, times):
    found = compare.worse_by(name, old, new)
    assert found == (times if times is None else pytest.approx(times))


def test_figures_belong_together_by_suite_case_and_chip():
    """Those of an old file of estimates have no suite yet."""
    old = [{"case": "lora_fwd", "chip": "v5e", "cycles": 100}, {"case": "lora_fwd", "chip": "v5p", "cycles": 50}]
    new = [{"suite": "kernels", "case": "lora_fwd", "chip": "v5e", "cycles": 130}]
    said, bad = compare.lines(old, new, most=1.2)
    assert bad
    assert any(line.startswith("kernels lora_fwd v5e") and "x 1.300  WORSE" in line for line in said)
    assert "kernels lora_fwd v5p: not measured now" in said
    said, bad = compare.lines([OLD], new, most=1.2)
    assert "kernels lora_fwd v5e: not in the old file" in said and not bad


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "no figures to compare with: Expecting"),
        ("{}", "not a list of them"),
        ("[]", "not a list of them"),
        ('[{"case": "update"}, {"cases": 3}]', "entry 1 has no case"),
        (b"\xff\xfe", "no figures to compare with: "),
    ],
)
def test_a_file_without_figures_is_named_before_anything_is_measured(tmp_path, monkeypatch, capsys, text, complaint):
    monkeypatch.setattr(updates, "run", lambda repeats, names: pytest.fail("measured"))
    path = tmp_path / "old.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert bench.main(["bench", "--suite=learner", f"--compare={path}"]) == 2
    assert f"{path}: " in (said := capsys.readouterr().err) and complaint in said


@pytest.mark.parametrize(("worse", "status"), [("", 0), ("--worse=1.3", 0), ("--worse=1.2", 1)])
def test_the_program_compares_what_it_has_measured(tmp_path, monkeypatch, capsys, worse, status):
    monkeypatch.setattr(updates, "run", lambda repeats, names: [{"case": "update", "seconds": {"ours": 2.5}}])
    path, out = tmp_path / "old.json", tmp_path / "new.json"
    path.write_text(json.dumps([OLD]))
    given = ["bench", "--suite=learner", f"--compare={path}", f"--out={out}", *filter(None, [worse])]
    assert bench.main(given) == status
    assert "learner update" in capsys.readouterr().out
    (figure,) = json.loads(out.read_text())
    assert (figure["suite"], figure["device"]) == ("learner", "cpu")
    assert figure["date"].startswith("20") and figure["versions"]["jax"]
