"""Where experts should sit, when to move them, and what it is worth: pure decisions, without Ray or HTTP."""
