"""How fast the operators are, beside the torch reference and whatever peers are installed."""
