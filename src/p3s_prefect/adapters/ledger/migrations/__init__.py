"""The ledger's history: one revision for each change of its tables."""
