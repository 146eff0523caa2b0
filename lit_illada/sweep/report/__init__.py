"""What a sweep found: its files become a page, tables and pictures, at any time and without torch."""

from lit_illada.sweep.report.write import write_report

__all__ = ["write_report"]
