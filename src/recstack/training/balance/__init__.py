"""Ways to balance the losses of several tasks; one method a file."""
