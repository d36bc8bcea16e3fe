"""What is read from disk. Importing this package imports no torch: prediction without PyTorch shares its readers."""
