"""What all packages of Fewshard share: errors, a classifier's values, activation, formats, YAML reading."""
