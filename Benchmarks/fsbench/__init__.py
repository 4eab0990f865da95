"""What Benchmarks/speed is made of: places, systems, rows, reports."""
