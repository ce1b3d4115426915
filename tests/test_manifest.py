import subprocess
import sys
from pathlib import Path

import pytest

from jaxft import manifest

KILLED = """
import os, signal, sys
from pathlib import Path
from jaxft import manifest

left = int(sys.argv[2])

def count(event, _arguments):
    # Every event by which a process changes files; the kill comes before the one that is number `left`.
    global left
    if event in ("open", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[1])
sys.addaudithook(count)
manifest.seal(folder / "5.tmp")
manifest.publish(folder / "5.tmp", folder / "5")
manifest.remove(folder / "4")
"""


def fill(folder: Path, text: str) -> None:
    (folder / "state").mkdir(parents=True)
    for name in ("meta.json", "state/a", "state/b"):
        (folder / name).write_text(f"{text} {name}")


def texts(folder: Path) -> set[str]:
    return {path.read_text().split()[0] for path in folder.rglob("*") if path.is_file() and path.name != manifest.NAME}


def test_a_kill_before_any_change_of_a_file_leaves_each_folder_whole_or_uncommitted(tmp_path):
    seen = set()
    for left in range(100):
        folder = tmp_path / str(left)
        for step, text in (("3", "oldest"), ("4", "pruned"), ("5", "old")):
            fill(folder / step, text)
            manifest.seal(folder / step)
        fill(folder / "5.tmp", "new")
        command = [sys.executable, "-c", KILLED, str(folder), str(left)]
        finished = subprocess.run(command, cwd=Path(__file__).parents[1], check=False).returncode == 0
        for step, allowed in (("3", {"oldest"}), ("4", {"pruned"}), ("5", {"old", "new"})):
            if manifest.is_sealed(folder / step):
                assert manifest.damage(folder / step) == ""
                (text,) = texts(folder / step)
                assert text in allowed
                seen.add(text)
            else:
                assert step != "3" and not (folder / step).exists()
        if finished:
            break
    assert finished and left > 10
    assert sorted(path.name for path in folder.iterdir()) == ["3", "5"]
    assert seen == {"oldest", "pruned", "old", "new"}


@pytest.mark.parametrize("place", [0, 1, 0.3, 0.5, 0.7, -1])
def test_a_flipped_byte_in_the_manifest_itself_is_noticed(tmp_path, place):
    fill(tmp_path / "1", "text")
    manifest.seal(tmp_path / "1")
    assert manifest.damage(tmp_path / "1") == ""
    path = tmp_path / "1" / manifest.NAME
    content = bytearray(path.read_bytes())
    content[place if isinstance(place, int) else int(place * len(content))] ^= 1
    path.write_bytes(content)
    assert manifest.damage(tmp_path / "1")
