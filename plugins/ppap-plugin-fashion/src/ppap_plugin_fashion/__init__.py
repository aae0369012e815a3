"""A second world of ppap-framework: small networks trained on photographs of clothes."""
