"""`ppap experts import`: bundles made of the experts that the authors of PPAP released."""
