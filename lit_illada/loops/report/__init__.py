"""The report page of `loops analyze`."""
