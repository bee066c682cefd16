"""Where to place experts, when to move them, and what that gains: decisions only, without Ray or HTTP."""
