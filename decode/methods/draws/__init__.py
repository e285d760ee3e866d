"""How tokens are drawn from a policy's distribution: one file a draw, and what draws share."""
