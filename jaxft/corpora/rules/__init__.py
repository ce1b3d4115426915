"""Rules, a file for each family. A rule is a pure function of a document and its options, which are keywords.

It returns the document, perhaps changed, or Removed with the reason. To add one: a file here, a line in corpora.RULES,
a section in configs/prepare.py.
"""
