"""Models: loading and adapting Hugging Face models, and the bundled demo pair."""
