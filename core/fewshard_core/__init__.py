"""What every package of Fewshard shares: its errors. Imports the standard library alone."""
