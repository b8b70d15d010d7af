"""The generated pages of the documentation: `python -m docs.generate` writes them from the code.

A page holds what the code says: keys, options, names, defaults. Descriptions come from the code as far as it has
them, and otherwise from `words`. A key, name or line without a description is a MissingWordsError.
"""
