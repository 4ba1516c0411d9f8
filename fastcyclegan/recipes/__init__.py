"""What is trained: networks, losses, and the phases of one iteration."""
