"""What may be printed of texts that come from elsewhere."""

from lit_illada.runtime.terminal import one_line, printable


def test_controls_and_formatting_are_shown_as_escapes_and_letters_stay():
    assert printable("\x1b[31mred\x07") == "\\x1b[31mred\\x07"
    assert printable("a\u202eb\ud800") == "a\\u202eb\\ud800"
    assert printable("Größe 中 é ✓") == "Größe 中 é ✓"


def test_a_message_is_one_line_of_bounded_length():
    assert one_line("a\n  b\tc") == "a b c"
    line = one_line("model: " + "x" * 100_000 + ": fix it")
    assert len(line) < 1300
    assert line.startswith("model: x")
    assert line.endswith("x: fix it")
