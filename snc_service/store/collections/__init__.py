"""The collections of a store: runs, batches, events and so on; each method is one transaction."""
