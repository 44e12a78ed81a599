"""Progress lines: what is known, and nothing else."""

from upalm.training import progress


def test_first_line_claims_no_speed_and_no_time_left(capsys, monkeypatch):
    now = iter([0.0, 100.0, 116.0, 132.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with progress.Bar("train", 20) as bar:
        bar.update(0, "compiling")
        bar.update(1, "loss 6.267")
        bar.update(5, "loss 6.1  80 tokens/s")
        bar.update(20, "loss 5.9  80 tokens/s")
    assert capsys.readouterr().err.splitlines() == [
        "train 0/20 compiling",
        "train 1/20 loss 6.267",
        "train 5/20 loss 6.1  80 tokens/s 60 s left",
        "train 20/20 loss 5.9  80 tokens/s",
    ]


def test_quiet_bar_prints_nothing(capsys):
    with progress.Bar("train", 2, quiet=True) as bar:
        bar.update(2, "loss 1")
        bar.say("checkpoint 2")
    assert capsys.readouterr() == ("", "")


def test_a_resumed_count_has_the_rate_of_this_start(capsys, monkeypatch):
    now = iter([0.0, 20.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with progress.Count("tokenised", ("documents", "tokens")) as count:
        for n_tokens in (1_000_000, 1_000_200, 1_000_400):
            count.update(7, n_tokens)
    assert capsys.readouterr().err.splitlines() == [
        "tokenised 7 documents, 1,000,000 tokens",
        "tokenised 7 documents, 1,000,200 tokens (10 tokens/s)",
        "tokenised 7 documents, 1,000,400 tokens (10 tokens/s)",
    ]
