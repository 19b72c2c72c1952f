"""What stores and databases cost."""
