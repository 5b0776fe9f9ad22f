"""From a pretrained checkpoint to a model for a task, and to and from the Hugging Face formats."""
