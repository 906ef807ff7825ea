"""The verb ``export``: files for other tools from a stored run."""

from __future__ import annotations


def test_tables_of_a_run_as_csv(command, home, runs, tmp_path):
    code, out, err = command("export", runs[1], "csv", "-o", str(tmp_path / "out"))
    assert code == 0 and err == ""
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {line.rpartition("/")[2] for line in out.split()} == names and len(names) > 1
    code, found, _ = command("export", runs[1], "csv", "-o", str(tmp_path / "again"), "--json")
    assert code == 0 and len(found["files"]) == len(names)


def test_what_cannot_be_written_says_what_can(command, home, runs, tmp_path):
    code, _, err = command("export", runs[1], "neuronpedia", "-o", str(tmp_path / "out"))
    assert code == 1 and "format of" in err and "csv" in err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    code, _, err = command("export", runs[1], "csv", "-o", str(tmp_path / "full"))
    assert code == 1 and "--output" in err
