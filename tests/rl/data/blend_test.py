from thinkfirst.rl import batch
from thinkfirst.rl.data import blend


class Line:
    def demonstration(self, index):
        return row(f"a{index}")


class Replay:
    def __getitem__(self, index):
        return row(f"b{index}")


def row(name):
    return batch.Demonstration(batch.Problem(name, name, ""), name)


def line(share, count):
    blended = blend.Blend(Line(), Replay(), share)
    return [blended.demonstration(index).completion for index in range(count)]


def test_shares_are_exact_and_nothing_is_left_out():
    assert line(0.5, 6) == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert line(0.25, 8) == ["a0", "a1", "a2", "b0", "a3", "a4", "a5", "b1"]
    assert line(0.0, 3) == ["a0", "a1", "a2"]
    assert line(1.0, 3) == ["b0", "b1", "b2"]
    assert sum(name[0] == "b" for name in line(0.3, 1000)) == 300
