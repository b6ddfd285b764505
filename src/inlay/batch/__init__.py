"""Many pictures: manifests of requests, workers that make them, training data with labels."""
