"""Cost of predictions: prices as data, and formulas that `docs/cost.md` explains with a worked example."""
