"""System call numbers, one generated module per machine."""
