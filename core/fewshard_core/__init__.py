"""What every package of Fewshard shares: the root of its errors, a classifier's values, and activation."""
