"""Report of a sweep: page, tables and pictures, made from its files at any time and without torch."""

from lit_illada.sweep.report.write import write_report

__all__ = ["write_report"]
