"""What applies a stylizer to pictures."""
