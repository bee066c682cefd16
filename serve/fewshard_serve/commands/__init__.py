"""The server's own sub-commands of `fewshard`, one module each; `cli` finds them by their entry points."""
