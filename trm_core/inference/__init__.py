"""Using a trained model: samples in, answers, confidence, costs and decisions out. Imports nothing of training."""
