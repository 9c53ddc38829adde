"""What shows how good a version of the model is: numbers, pictures, and its model card."""
