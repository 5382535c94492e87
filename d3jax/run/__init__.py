"""What a command does, from its options to files in a folder."""
