"""The journal: good lines come back, bad ones are passed over, a refusing disk is never fatal."""

from executors.work.journal import Journal, read


def test_lines_come_back(tmp_path):
    log = Journal(tmp_path / "j")
    log.write("run", pid=3, path=tmp_path, text="\udcff\nline", number=float("nan"))
    log.close()
    (row,) = read(tmp_path / "j")
    assert (row["event"], row["pid"], row["path"], row["text"]) == ("run", 3, str(tmp_path), "\udcff\nline")
    again = Journal(tmp_path / "j")
    again.write("run")
    again.close()
    assert len(list(read(tmp_path / "j"))) == 2


def test_nothing_there(tmp_path):
    assert list(read(tmp_path / "none")) == []
    assert list(read(tmp_path)) == []
    log = Journal(tmp_path)
    log.write("x")
    log.close()
    assert isinstance(log.failed, IsADirectoryError)


def test_a_closed_journal_takes_no_more(tmp_path):
    log = Journal(tmp_path / "j")
    log.close()
    log.write("x")
    log.close()
    assert list(read(tmp_path / "j")) == []


def test_a_huge_line_of_another_is_passed_over(tmp_path):
    (tmp_path / "j").write_bytes(b"x" * (3 << 20))
    log = Journal(tmp_path / "j")
    log.write("after")
    log.close()
    assert [row["event"] for row in read(tmp_path / "j")] == ["after"]
