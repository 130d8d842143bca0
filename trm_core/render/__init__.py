"""Pictures of a model's thinking, for terminals and as animations. No model is needed here."""
