"""Commands by which a model, its scores and a machine are judged."""
