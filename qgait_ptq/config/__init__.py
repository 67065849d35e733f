"""Settings and recipes: schemas, and YAML that others may have written."""
