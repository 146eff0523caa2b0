"""Fine-tuning data: conversations, chat template, rows."""
