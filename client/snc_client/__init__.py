"""The client: measures sigma of every layer in a training job, holds it under a threshold."""
