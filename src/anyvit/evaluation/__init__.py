"""What a candidate is worth: metrics over labels and probabilities, and how far chance may have moved them."""
