"""Fine-tuning data: examples, chat template, rows."""
