"""What a trained model is worth: metrics, evaluators, and the report that shows them."""
