"""Files and terminal output: what every part of the package reads, writes and prints through."""
