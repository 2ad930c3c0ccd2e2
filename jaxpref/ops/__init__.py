"""Array functions that models and objectives share."""
