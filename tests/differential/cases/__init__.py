"""The tables. Each module is a family and has `setups()`."""
