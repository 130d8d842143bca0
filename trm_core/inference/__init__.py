"""Using a trained model: samples in; answers, confidence, costs and decisions out."""
