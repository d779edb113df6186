import hashlib
import json

import pytest

from thinkfirst.core import manifest


def test_size_and_digest_of_every_file_by_hand(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x").write_bytes(b"abc")
    manifest.write(tmp_path, 7)
    written = json.loads((tmp_path / manifest.FILE_NAME).read_text())
    assert written["step"] == 7
    assert written["files"] == {"d/x": {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}}
    manifest.verify(tmp_path, 7)


NONE = ("", "{}", "[]", "null", '{"sha256": "0"}', '{"step": 1, "files": {}, "sha256": 3}')


@pytest.mark.parametrize("content", NONE)
def test_what_is_no_manifest_is_damage(tmp_path, content):
    (tmp_path / manifest.FILE_NAME).write_text(content)
    with pytest.raises(manifest.Damaged, match=r"MANIFEST\.json"):
        manifest.verify(tmp_path, 1)


def test_a_link_to_nowhere_is_not_listed_and_not_passed_over(tmp_path):
    manifest.write(tmp_path, 1)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(manifest.Damaged, match=r"link: a file that MANIFEST\.json does not list"):
        manifest.verify(tmp_path, 1)
