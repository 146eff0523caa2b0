"""Tables, files and the page that `loops analyze` writes."""
