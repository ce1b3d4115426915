"""Corpora: documents read, cleaned, freed of duplicates, tokenised and written as shards.

sources    where documents come from, one after the other, each with file and line
rules/     a file for each family of rules: a pure function from a document to a document, or to why it goes
cleaning   a document through all rules, in the order of the config; what is counted on the way
duplicates exact and near (MinHash), over all documents
shards     tokens of the documents that stay, in array_record files
local      the stages on one machine: processes, restarts
report     what came in, what went and why, what came out
"""

RULES = {
    "control": "jaxft.corpora.rules.control:control",
    "language": "jaxft.corpora.rules.language:language",
    "length": "jaxft.corpora.rules.length:length",
    "pii": "jaxft.corpora.rules.pii:pii",
    "quality": "jaxft.corpora.rules.quality:quality",
    "repetition": "jaxft.corpora.rules.repetition:repetition",
    "stop_words": "jaxft.corpora.rules.stop_words:stop_words",
    "unicode": "jaxft.corpora.rules.unicode:unicode",
    "whitespace": "jaxft.corpora.rules.whitespace:whitespace",
}

SOURCES = {
    "files": "jaxft.corpora.sources:Files",
    "dataset": "jaxft.corpora.sources:Rows",
}
