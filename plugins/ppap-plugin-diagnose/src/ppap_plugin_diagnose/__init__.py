"""`ppap diagnose`: what a network understands of noisy images, and what its experts do."""
