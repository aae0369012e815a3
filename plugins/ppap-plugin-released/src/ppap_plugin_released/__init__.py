"""`ppap experts import`: imports the experts that the authors of PPAP released."""
