"""Up: which shape of model suits a budget."""
