"""What a command will need on this machine."""
