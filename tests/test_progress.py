"""Progress: a bar for people, two lines for logs, silence on demand."""

from har_jax.progress import progress, track


def test_a_log_gets_two_lines(monkeypatch, capsys):
    monkeypatch.delenv("HAR_PROGRESS", raising=False)
    assert list(track(range(3), desc="counting", unit="sheep")) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "counting: 3 sheep ..."
    assert lines[1].startswith("counting: done, 3 sheep in ") and len(lines) == 2


def test_what_stops_says_so(monkeypatch, capsys):
    monkeypatch.delenv("HAR_PROGRESS", raising=False)
    try:
        with progress(10, desc="training", unit="step", initial=4) as bar:
            bar.update(2)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert "from 4" in capsys.readouterr().err.splitlines()[0]
    assert bar.n == 6


def test_silence_and_bars_on_demand(monkeypatch, capsys):
    monkeypatch.setenv("HAR_PROGRESS", "0")
    list(track(range(3), desc="counting"))
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("HAR_PROGRESS", "1")
    with progress(3, desc="counting") as bar:
        bar.set_postfix({"loss": "1.2"})
        bar.update(3)
        bar.write("a line")
    said = capsys.readouterr().err
    assert "a line" in said and "3/3" in said and "loss=1.2" in said
