"""Signals that a process leaves ignored."""

import signal


def is_nohup(number: signal.Signals) -> bool:
    """Whether the signal is the hang-up of a terminal that the process ignores, as `nohup` sets it."""
    return number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN
