"""Programs that the benchmark runs as processes, some in other environments; nobody imports them."""
