"""What was kept, written down: selections -> files."""
