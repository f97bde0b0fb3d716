"""What a plugin imports."""
