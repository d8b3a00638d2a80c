"""What is done with a trained model: loss, evaluations, sampling, pictures. No gradients."""
