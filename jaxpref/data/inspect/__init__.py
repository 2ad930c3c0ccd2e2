"""What is in preference data: `python -m jaxpref.data.inspect PATH`."""
