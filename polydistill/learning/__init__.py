"""What one student's training is in every world."""
