"""Report of a sweep: page, tables and figures, written from its files at any time, without torch."""

from lit_illada.sweep.report.write import write_report

__all__ = ["write_report"]
