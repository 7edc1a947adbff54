"""A lineage of one's own model and data: any module, any batches."""
