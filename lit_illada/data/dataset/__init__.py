"""A prepared data set on disk: manifest, shards, reading, verification."""
