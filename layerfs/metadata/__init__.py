"""What the store remembers: the one home of SQL."""
