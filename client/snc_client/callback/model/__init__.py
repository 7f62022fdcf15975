"""Follow the parameters of a model: new layers, master weights, ranks."""
