from upalm.terminal import printable


def test_controls_are_spelt_out_and_text_stays():
    assert printable("a\x1b[31mb\rc\x00\x9b\u202ed") == "a\\x1b[31mb\\rc\\x00\\x9b\\u202ed"
    assert printable("tab\t, line\n, é 漢字 👩\u200d🚀") == "tab\t, line\n, é 漢字 👩\u200d🚀"
