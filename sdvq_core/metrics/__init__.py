"""How far a compressed model is from the original: numbers in, numbers out."""
