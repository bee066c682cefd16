"""The report of a load test: figures from raw samples, written as HTML, JSON, CSV and Markdown."""
