"""The model: a litgpt GPT with expert layers of our own."""
