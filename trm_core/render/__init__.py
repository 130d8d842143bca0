"""Draw how a model reasons, in terminals and as animations. Nothing here needs the model itself."""
