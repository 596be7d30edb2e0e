"""Stage two: one training `step`, the `run` around it, `loading` of batches, `distributed` processes."""
