"""What every package of Fewshard shares: the root of its errors, and the plain values of a classifier."""
