"""A trained model as a folder that other people and other programs can use, verified against the model itself."""
