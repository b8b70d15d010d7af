"""The rules that an answer is judged by: pure functions from an answer to a verdict."""
