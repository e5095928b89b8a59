"""What works with no network: a small corpus and a small encoder, and how each was made."""
