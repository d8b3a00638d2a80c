"""Uses of a trained model: loss, evaluations, sampling, pictures. No gradients."""
