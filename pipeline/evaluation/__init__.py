"""What a trained model is worth: its loss over the whole val set, what its experts do, and the stories it tells."""
