"""`trm serve`: a trained model behind HTTP, with continuous batching over reasoning steps."""
