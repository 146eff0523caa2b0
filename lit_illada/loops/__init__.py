"""Detection, comparison and reports of reasoning loops in generated texts of any model; needs no torch."""
