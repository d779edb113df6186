import struct

from tensorboardX import event_file_writer
from tensorboardX.proto import event_pb2

from thinkfirst.core import board


def events(folder):
    """Of all files of a folder, in the order of their names: (step, scalars), and whether a session starts."""
    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[12 + length + 4 :]
            scalars = {value.tag: value.simple_value for value in event.summary.value}
            found.append((event.step, scalars, event.HasField("session_log")))
    return found


def test_scalars_are_in_the_file_at_once(tmp_path):
    written = board.Board(tmp_path / "tensorboard", first_step=4)
    written.scalars(4, {"sft/loss": 0.5, "sft/n": 3})
    assert events(tmp_path / "tensorboard") == [
        (0, {}, False),
        (4, {}, True),
        (4, {"sft/loss": 0.5}, False),
        (4, {"sft/n": 3.0}, False),
    ]
    written.close()
    written.close()


def test_a_folder_that_cannot_be_is_told_and_done_without(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("a file")
    written = board.Board(tmp_path / "tensorboard", first_step=1)
    written.scalars(1, {"loss": 0.5})
    written.close()
    assert "goes on without TensorBoard" in capsys.readouterr().out


def test_a_full_disk_is_told_once(tmp_path, capsys, monkeypatch):
    written = board.Board(tmp_path / "tensorboard", first_step=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(event_file_writer.EventsWriter, "flush", full)
    file = written._file
    for step in range(1, 30):
        written.scalars(step, {"loss": 0.5})
    assert capsys.readouterr().out.count("No space left on device; goes on without TensorBoard") == 1
    monkeypatch.undo()
    file.close()
