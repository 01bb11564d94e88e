"""What a weight is made of, exactly: the base model's own values, and the sum of what tasks added."""
