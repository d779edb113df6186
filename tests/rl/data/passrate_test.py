import pytest

from thinkfirst.rl.data import passrate


@pytest.mark.parametrize(
    ("rate", "level"),
    [(1.0, "easy"), (0.67, "easy"), (0.66, "medium"), (0.34, "medium"), (0.33, "hard"), (0.0, "hard")],
)
def test_three_thirds(rate, level):
    assert passrate.difficulty(rate) == level


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "b", "pass_rate": 1.5}', r"r\.jsonl:2: 'pass_rate' must be a number in 0\.\.1, got 1\.5"),
        ('{"id": "b", "pass_rate": true}', r"r\.jsonl:2: 'pass_rate' must be a number in 0\.\.1, got True"),
        ('{"id": "a", "pass_rate": 0}', r"r\.jsonl:2: 'id' must not have stood on a line before, got 'a'"),
        ('{"pass_rate": 0}', r"r\.jsonl:2: 'id' must be text, got None"),
    ],
)
def test_broken_lines_are_named(tmp_path, line, said):
    path = tmp_path / "r.jsonl"
    path.write_text('{"id": "a", "pass_rate": 1}\n')
    assert passrate.read(str(path)) == {"a": 1.0}
    path.write_text('{"id": "a", "pass_rate": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=said):
        passrate.read(str(path))
