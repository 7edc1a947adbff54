"""The Hugging Face Hub: cards in its form, what is sent to it, what comes from it."""
