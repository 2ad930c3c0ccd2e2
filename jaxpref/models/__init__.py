"""Model ports, and their weights in Hugging Face folders."""
