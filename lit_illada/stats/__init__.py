"""Statistics of the whole package, one implementation each: intervals, tests, power and survival. Needs no torch."""
