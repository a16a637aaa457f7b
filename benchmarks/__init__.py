"""What is timed, as ratios against a peer in the same run: python -m benchmarks.<name>. Never part of the tests."""
