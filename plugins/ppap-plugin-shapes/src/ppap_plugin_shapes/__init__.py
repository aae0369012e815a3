"""The embedded world of ppap-framework: rendered scenes, and small networks trained on them."""
