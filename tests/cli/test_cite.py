from pathlib import Path

from upalm import __version__


def test_cite_agrees_with_citation_cff(upalm, capsys):
    upalm("cite")
    out = capsys.readouterr().out
    cff = (Path(__file__).parents[2] / "CITATION.cff").read_text()
    for number in ("2210.11399", "2205.05131", "2204.02311"):
        assert number in out and number in cff
    assert f"version: {__version__}\n" in cff and __version__ in out
