"""The report of a load test: figures from raw samples, and the same as HTML, JSON, CSV and Markdown."""
