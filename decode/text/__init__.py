"""Between text and token ids: vocabularies, prompt templates, and what ends an answer. No model and no method."""
