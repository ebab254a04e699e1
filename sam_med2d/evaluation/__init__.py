"""From scores to rows, tables, curves and the report."""
