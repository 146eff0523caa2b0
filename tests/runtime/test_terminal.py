"""Escaping of control characters in printed texts."""

import subprocess
import sys

from lit_illada.runtime.terminal import one_line, printable


def test_control_and_formatting_characters_are_escaped_and_letters_are_not():
    assert printable("\x1b[31mred\x07") == "\\x1b[31mred\\x07"
    assert printable("a\u202eb\ud800") == "a\\u202eb\\ud800"
    assert printable("Größe 中 é ✓") == "Größe 中 é ✓"


def test_a_message_is_one_line_of_bounded_length():
    assert one_line("a\n  b\tc") == "a b c"
    line = one_line("model: " + "x" * 100_000 + ": fix it")
    assert len(line) < 1300
    assert line.startswith("model: x")
    assert line.endswith("x: fix it")


def test_multiline_texts_retain_their_layout_and_joiners():
    text = "a\tb\n\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f468\u200d\U0001f469"
    assert printable(text, keeps_lines=True) == text
    assert printable("a\nb\r\x9b1m\u2066", keeps_lines=True) == "a\nb\\r\\x9b1m\\u2066"


def test_log_records_of_the_command_line_are_printable():
    script = (
        "import logging; from lit_illada.cli import main; main(['completion', 'bash'], standalone_mode=False); "
        r"logging.getLogger('lit_illada').warning('%s', 'a\x1b[31mb\x07')"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr == "a\\x1b[31mb\\x07\n"
