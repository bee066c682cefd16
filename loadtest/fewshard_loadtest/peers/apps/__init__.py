"""Programs that the benchmark runs as processes, some in other environments; they are never imported."""
